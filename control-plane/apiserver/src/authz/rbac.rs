//! RBAC: roles and bindings, compiled. <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>

use std::collections::HashMap;

use control_plane_store::Snapshot;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Attributes, Decision};
use crate::identity::Identity;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Object {
    metadata: ObjectMeta,
    rules: Option<Vec<Rule>>,
    subjects: Option<Vec<Subject>>,
    role_ref: RoleRef,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ObjectMeta {
    name: String,
    namespace: String,
}

/// Every role and binding of the cluster.
#[derive(Default)]
pub(super) struct Rbac {
    cluster_roles: HashMap<String, Vec<Rule>>,
    roles: HashMap<(String, String), Vec<Rule>>,
    cluster_bindings: Vec<Object>,
    bindings: HashMap<String, Vec<Object>>,
}

impl Rbac {
    /// Reads roles and bindings; one that cannot be read grants nothing.
    pub(super) fn compile(snapshot: &Snapshot) -> Self {
        let objects = |plural: &str| -> Vec<Object> {
            let prefix = format!("/registry/rbac.authorization.k8s.io/{plural}/");
            let entries = snapshot.range(prefix.as_bytes(), b"");
            entries
                .filter_map(|(_, entry)| serde_json::from_slice(&entry.value).ok())
                .collect()
        };
        let rules = |o: Object| o.rules.unwrap_or_default();
        let mut bindings: HashMap<String, Vec<Object>> = HashMap::new();
        for binding in objects("rolebindings") {
            bindings
                .entry(binding.metadata.namespace.clone())
                .or_default()
                .push(binding);
        }
        Self {
            cluster_roles: objects("clusterroles")
                .into_iter()
                .map(|o| (o.metadata.name.clone(), rules(o)))
                .collect(),
            roles: objects("roles")
                .into_iter()
                .map(|o| ((o.metadata.namespace.clone(), o.metadata.name.clone()), rules(o)))
                .collect(),
            cluster_bindings: objects("clusterrolebindings"),
            bindings,
        }
    }

    /// Whether a rule bound to the user allows this.
    pub(super) fn decide(&self, identity: &Identity, asked: &Attributes<'_>) -> Decision {
        for (binding, rules) in self.bound(identity, asked.namespace) {
            if rules.iter().any(|rule| rule.allows(asked)) {
                let kind = if binding.metadata.namespace.is_empty() {
                    "ClusterRoleBinding"
                } else {
                    "RoleBinding"
                };
                return Decision::Allow(format!(
                    "RBAC: allowed by {kind} \"{}\" of {} \"{}\"",
                    binding.metadata.name, binding.role_ref.kind, binding.role_ref.name
                ));
            }
        }
        Decision::Deny
    }

    /// The rules bound to the user, as they stand in reviews.
    pub(super) fn rules_of(&self, identity: &Identity, namespace: &str) -> Vec<Value> {
        self.bound(identity, namespace)
            .flat_map(|(_, rules)| rules)
            .map(Rule::to_json)
            .collect()
    }

    /// Bindings that name the user and hold in the namespace, with the rules of their role.
    fn bound<'a>(
        &'a self,
        identity: &'a Identity,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Object, &'a [Rule])> {
        let here = self.bindings.get(namespace).into_iter().flatten();
        self.cluster_bindings
            .iter()
            .chain(here)
            .filter_map(move |binding| {
                let mut subjects = binding.subjects.iter().flatten();
                subjects
                    .any(|s| s.is(identity, &binding.metadata.namespace))
                    .then(|| (binding, self.rules(binding)))
            })
    }

    fn rules(&self, binding: &Object) -> &[Rule] {
        let name = &binding.role_ref.name;
        let found = match binding.role_ref.kind.as_str() {
            "ClusterRole" => self.cluster_roles.get(name),
            _ => self
                .roles
                .get(&(binding.metadata.namespace.clone(), name.clone())),
        };
        found.map(Vec::as_slice).unwrap_or_default()
    }
}

impl Subject {
    fn is(&self, identity: &Identity, binding_namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => self.name == identity.user,
            "Group" => identity.in_group(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() {
                    binding_namespace
                } else {
                    &self.namespace
                };
                let rest = identity.user.strip_prefix("system:serviceaccount:");
                rest.and_then(|r| r.split_once(':')) == Some((namespace, self.name.as_str()))
            }
            _ => false,
        }
    }
}

impl Rule {
    fn allows(&self, asked: &Attributes<'_>) -> bool {
        let has = |list: &[String], text: &str| list.iter().any(|t| t == "*" || t == text);
        if !has(&self.verbs, asked.verb) {
            return false;
        }
        if !asked.path.is_empty() {
            return self
                .non_resource_urls
                .iter()
                .any(|url| path_matches(url, asked.path));
        }
        has(&self.api_groups, asked.group)
            && self.resources.iter().any(|r| resource_matches(r, asked))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == asked.name))
    }

    fn to_json(&self) -> Value {
        if self.non_resource_urls.is_empty() {
            let mut rule =
                json!({"verbs": self.verbs, "apiGroups": self.api_groups, "resources": self.resources});
            if !self.resource_names.is_empty() {
                rule["resourceNames"] = json!(self.resource_names);
            }
            return rule;
        }
        json!({"verbs": self.verbs, "nonResourceURLs": self.non_resource_urls})
    }
}

/// `pods`, `pods/log`, `*`, `*/scale`.
fn resource_matches(rule: &str, asked: &Attributes<'_>) -> bool {
    match rule.split_once('/') {
        _ if rule == "*" => true,
        Some(("*", subresource)) => subresource == asked.subresource,
        Some((resource, subresource)) => resource == asked.resource && subresource == asked.subresource,
        None => rule == asked.resource && asked.subresource.is_empty(),
    }
}

/// A path, or one that ends in `*`.
fn path_matches(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => rule == path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn reader_in_a() -> Rbac {
        let role = object(json!({"metadata": {"name": "reader", "namespace": "a"},
            "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]}]}));
        let binding = object(json!({"metadata": {"name": "b", "namespace": "a"},
            "roleRef": {"kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "sa"}, {"kind": "Group", "name": "devs"}]}));
        let mut rbac = Rbac::default();
        rbac.roles
            .insert(("a".into(), "reader".into()), role.rules.unwrap());
        rbac.bindings.insert("a".into(), vec![binding]);
        rbac
    }

    fn allowed(rbac: &Rbac, user: &str, asked: &Attributes<'_>) -> bool {
        rbac.decide(&Identity::new(user, &[]), asked) != Decision::Deny
    }

    #[test]
    fn a_role_binding_grants_in_its_namespace_and_nowhere_else() {
        let rbac = reader_in_a();
        let get = Attributes {
            verb: "get",
            resource: "pods",
            namespace: "a",
            name: "x",
            ..Attributes::default()
        };
        let user = "system:serviceaccount:a:sa";
        assert!(allowed(&rbac, user, &get));
        assert!(allowed(
            &rbac,
            user,
            &Attributes {
                subresource: "log",
                ..get
            }
        ));
        assert!(!allowed(
            &rbac,
            user,
            &Attributes {
                subresource: "exec",
                ..get
            }
        ));
        assert!(!allowed(
            &rbac,
            user,
            &Attributes {
                verb: "delete",
                ..get
            }
        ));
        assert!(!allowed(
            &rbac,
            user,
            &Attributes {
                namespace: "b",
                ..get
            }
        ));
        assert!(!allowed(&rbac, user, &Attributes { group: "apps", ..get }));
        assert!(!allowed(&rbac, "system:serviceaccount:b:sa", &get));
        assert_ne!(rbac.decide(&Identity::new("jo", &["devs"]), &get), Decision::Deny);
    }

    #[test]
    fn wildcards_names_and_paths_follow_the_published_rules() {
        let rule: Rule = serde_json::from_value(
            json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*/scale"],
            "resourceNames": ["web"]}),
        )
        .unwrap();
        let asked = Attributes {
            verb: "update",
            group: "apps",
            resource: "deployments",
            subresource: "scale",
            name: "web",
            ..Attributes::default()
        };
        assert!(rule.allows(&asked));
        assert!(!rule.allows(&Attributes { name: "db", ..asked }));
        let rule: Rule =
            serde_json::from_value(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz/*", "/version"]}))
                .unwrap();
        assert!(rule.allows(&Attributes {
            verb: "get",
            path: "/healthz/ping",
            ..Attributes::default()
        }));
        assert!(!rule.allows(&Attributes {
            verb: "get",
            path: "/versions",
            ..Attributes::default()
        }));
    }
}
