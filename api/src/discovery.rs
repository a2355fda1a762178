//! Discovery: which groups, versions and resources there are, in the older form (a document per group and version) and
//! in the aggregated one (`apidiscovery.k8s.io/v2`). Everything the catalogue has is listed.

use serde_json::{Map, Value, json};

use crate::catalog::{Group, Resource, Subresource, api_version, catalog};

/// `/api`.
pub fn api_versions() -> Value {
    let core = catalog().groups().iter().find(|g| g.name.is_empty());
    let versions = core.map(|g| g.versions.clone()).unwrap_or_default();
    json!({"kind": "APIVersions", "versions": versions, "serverAddressByClientCIDRs": []})
}

/// `/apis`.
pub fn api_group_list() -> Value {
    let groups: Vec<Value> = catalog()
        .groups()
        .iter()
        .filter(|g| !g.name.is_empty())
        .map(group_document)
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`; `None` when there is no such group.
pub fn api_group(name: &str) -> Option<Value> {
    let group = catalog()
        .groups()
        .iter()
        .find(|g| !name.is_empty() && g.name == name)?;
    let mut document = json!({"kind": "APIGroup", "apiVersion": "v1"});
    if let (Value::Object(document), Value::Object(fields)) = (&mut document, group_document(group)) {
        document.extend(fields);
    }
    Some(document)
}

fn group_document(group: &Group) -> Value {
    let version = |v: &String| json!({"groupVersion": api_version(&group.name, v), "version": v});
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    json!({"name": group.name, "preferredVersion": versions.first(), "versions": versions})
}

/// `/api/VERSION` and `/apis/GROUP/VERSION`; `None` when there is no such version.
pub fn resource_list(group: &str, version: &str) -> Option<Value> {
    let resources = || {
        catalog()
            .resources()
            .filter(|r| r.group == group && r.version == version)
    };
    resources().next()?;
    let mut entries: Vec<Value> = Vec::new();
    for resource in resources() {
        entries.push(legacy_resource(resource));
        entries.extend(
            resource
                .subresources
                .iter()
                .map(|sub| legacy_subresource(resource, sub)),
        );
    }
    let mut document = json!({"kind": "APIResourceList"});
    if !group.is_empty() {
        document["apiVersion"] = "v1".into();
    }
    document["groupVersion"] = api_version(group, version).into();
    document["resources"] = entries.into();
    Some(document)
}

fn legacy_resource(resource: &Resource) -> Value {
    let mut entry = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": resource.verbs,
    });
    names(&mut entry, resource);
    entry
}

fn legacy_subresource(resource: &Resource, sub: &Subresource) -> Value {
    let mut entry = json!({
        "name": format!("{}/{}", resource.plural, sub.name),
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": sub.kind,
        "verbs": sub.verbs,
    });
    if is_foreign(resource, sub) {
        entry["group"] = sub.group.clone().into();
        entry["version"] = sub.version.clone().into();
    }
    entry
}

fn is_foreign(resource: &Resource, sub: &Subresource) -> bool {
    (&sub.group, &sub.version) != (&resource.group, &resource.version)
}

fn names(entry: &mut Value, resource: &Resource) {
    for (key, list) in [
        ("shortNames", &resource.short_names),
        ("categories", &resource.categories),
    ] {
        if !list.is_empty() {
            entry[key] = list.clone().into();
        }
    }
}

/// The aggregated document of the core group (`/api`) or of all others (`/apis`).
pub fn aggregated(core: bool) -> Value {
    let groups = catalog().groups().iter().filter(|g| g.name.is_empty() == core);
    let items: Vec<Value> = groups.map(aggregated_group).collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(group: &Group) -> Value {
    let mut metadata = Map::new();
    if !group.name.is_empty() {
        metadata.insert("name".to_owned(), group.name.clone().into());
    }
    metadata.insert("creationTimestamp".to_owned(), Value::Null);
    let version = |version: &String| {
        let all = catalog()
            .resources()
            .filter(|r| r.group == group.name && r.version == *version);
        let resources: Vec<Value> = all.map(|r| aggregated_resource(r)).collect();
        json!({"version": version, "resources": resources, "freshness": "Current"})
    };
    json!({"metadata": metadata, "versions": group.versions.iter().map(version).collect::<Vec<_>>()})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": kind(&resource.group, &resource.version, &resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    names(&mut entry, resource);
    if !resource.subresources.is_empty() {
        let sub = |sub: &Subresource| {
            let kind = kind(&sub.group, &sub.version, &sub.kind);
            json!({"subresource": sub.name, "responseKind": kind, "verbs": sub.verbs})
        };
        entry["subresources"] = resource.subresources.iter().map(sub).collect();
    }
    entry
}

fn kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_documents_list_resources_with_their_subresources() {
        let apps = resource_list("apps", "v1").unwrap();
        let entry = |name: &str| {
            apps["resources"]
                .as_array()
                .unwrap()
                .iter()
                .find(|r| r["name"] == name)
                .unwrap()
        };
        assert_eq!(entry("deployments")["shortNames"], json!(["deploy"]));
        assert_eq!(entry("deployments/scale")["group"], "autoscaling");
        assert_eq!(entry("deployments/status").get("group"), None);
        assert_eq!(resource_list("apps", "v2"), None);
        assert_eq!(resource_list("", "v1").unwrap().get("apiVersion"), None);
    }

    #[test]
    fn groups_put_the_preferred_version_first() {
        let group = api_group("autoscaling").unwrap();
        assert_eq!(group["preferredVersion"]["groupVersion"], "autoscaling/v2");
        assert_eq!(group["versions"].as_array().unwrap().len(), 2);
        assert_eq!(api_group(""), None);
        assert_eq!(api_versions()["versions"], json!(["v1"]));
    }

    #[test]
    fn both_forms_list_the_same_resources() {
        let count = |document: &Value| {
            let versions = document["items"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|g| g["versions"].as_array().unwrap());
            versions
                .map(|v| v["resources"].as_array().unwrap().len())
                .sum::<usize>()
        };
        assert_eq!(
            count(&aggregated(true)) + count(&aggregated(false)),
            catalog().resources().count()
        );
        assert_eq!(aggregated(true)["items"].as_array().unwrap().len(), 1);
    }
}
