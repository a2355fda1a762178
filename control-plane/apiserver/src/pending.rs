//! Interim stand-ins until the `api` crate has them.
#![allow(dead_code)]

pub(crate) const AGGREGATED: bool = false;

pub(crate) mod convert {
    use api::catalog::Resource;
    use serde_json::Value;

    pub(crate) fn convert(_: &Resource, to: &Resource, value: &mut Value) {
        value["apiVersion"] = to.api_version().into();
    }
}

pub(crate) mod apply {
    use api::schema::Schema;
    use api::status::Status;
    use serde_json::Value;

    pub(crate) struct Conflicts;

    impl Conflicts {
        pub(crate) fn status(&self) -> Status {
            Status::internal("apply conflict")
        }
    }

    pub(crate) fn apply(
        _: &Schema,
        live: Option<&Value>,
        applied: &Value,
        _: &str,
        _: bool,
        _: Option<&str>,
        _: jiff::Timestamp,
    ) -> Result<Value, Conflicts> {
        match live {
            Some(live) => api::patch::merge(live, applied).map_err(|_| Conflicts),
            None => Ok(applied.clone()),
        }
    }

    pub(crate) fn track_update(
        _: &Schema,
        _: Option<&Value>,
        _: &mut Value,
        _: &str,
        _: &str,
        _: Option<&str>,
        _: jiff::Timestamp,
    ) {
    }
}

pub(crate) mod table {
    use api::catalog::Resource;
    use jiff::Timestamp;
    use serde_json::{Value, json};

    pub(crate) fn columns(_: &Resource) -> Vec<Value> {
        vec![json!({"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0})]
    }

    pub(crate) fn cells(_: &Resource, value: &Value, _: Timestamp) -> Vec<Value> {
        vec![value["metadata"]["name"].clone()]
    }
}

pub(crate) mod openapi {
    use serde_json::{Value, json};

    pub(crate) fn v3_index() -> Value {
        json!({"paths": {}})
    }

    pub(crate) fn v3(_: &str) -> Option<Vec<u8>> {
        None
    }

    pub(crate) fn v2() -> Vec<u8> {
        b"{\"swagger\":\"2.0\",\"info\":{\"title\":\"Kubernetes\",\"version\":\"v1.36\"},\"paths\":{},\"definitions\":{}}".to_vec()
    }
}

pub(crate) mod discovery {
    use api::catalog::catalog;
    use serde_json::{Value, json};

    pub(crate) fn api_versions() -> Value {
        json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
    }

    pub(crate) fn api_group(name: &str) -> Option<Value> {
        let group = catalog().groups().iter().find(|g| g.name == name)?;
        let versions: Vec<Value> = group
            .versions
            .iter()
            .map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
            .collect();
        Some(
            json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions,
            "preferredVersion": versions[0]}),
        )
    }

    pub(crate) fn api_group_list() -> Value {
        let groups: Vec<Value> = catalog()
            .groups()
            .iter()
            .filter(|g| !g.name.is_empty())
            .filter_map(|g| api_group(&g.name))
            .collect();
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    }

    pub(crate) fn resource_list(group: &str, version: &str) -> Option<Value> {
        let all: Vec<Value> = catalog()
            .resources()
            .filter(|r| r.group == group && r.version == version)
            .map(|r| {
                json!({"name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind,
                    "verbs": r.verbs, "shortNames": r.short_names, "categories": r.categories})
            })
            .collect();
        if all.is_empty() {
            return None;
        }
        let gv = if group.is_empty() {
            version.to_owned()
        } else {
            format!("{group}/{version}")
        };
        Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv, "resources": all}))
    }

    pub(crate) fn aggregated(_: bool) -> Value {
        json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": []})
    }
}
