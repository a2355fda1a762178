//! Paths and operations.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::definitions::{Definitions, gvk};
use super::{Format, document_path};
use crate::catalog::{Gvk, Resource, Subresource, catalog};

const PATCH_TYPES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
const TYPES: &[&str] = &[
    "application/json",
    "application/vnd.kubernetes.protobuf",
    "application/yaml",
];
const LIST_QUERY: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE_QUERY: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("fieldManager", "string"),
    ("fieldValidation", "string"),
];
const DELETE_QUERY: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// An operation that a verb gives.
struct Verb {
    name: &'static str,
    method: &'static str,
    /// First word of the operation's identifier.
    word: &'static str,
    on_item: bool,
    query: &'static [(&'static str, &'static str)],
}

const VERBS: &[Verb] = &[
    Verb {
        name: "list",
        method: "get",
        word: "list",
        on_item: false,
        query: LIST_QUERY,
    },
    Verb {
        name: "create",
        method: "post",
        word: "create",
        on_item: false,
        query: WRITE_QUERY,
    },
    Verb {
        name: "deletecollection",
        method: "delete",
        word: "deleteCollection",
        on_item: false,
        query: DELETE_QUERY,
    },
    Verb {
        name: "get",
        method: "get",
        word: "read",
        on_item: true,
        query: &[],
    },
    Verb {
        name: "update",
        method: "put",
        word: "replace",
        on_item: true,
        query: WRITE_QUERY,
    },
    Verb {
        name: "patch",
        method: "patch",
        word: "patch",
        on_item: true,
        query: WRITE_QUERY,
    },
    Verb {
        name: "delete",
        method: "delete",
        word: "delete",
        on_item: true,
        query: DELETE_QUERY,
    },
];

/// The paths of these resources, by name.
pub(super) fn of(
    resources: &[&Resource],
    format: Format,
    definitions: &mut Definitions,
) -> Map<String, Value> {
    let mut paths: BTreeMap<String, Value> = BTreeMap::new();
    for resource in resources {
        let mut writer = Writer {
            resource,
            format,
            definitions,
        };
        paths.extend(writer.paths());
    }
    paths.into_iter().collect()
}

struct Writer<'a> {
    resource: &'a Resource,
    format: Format,
    definitions: &'a mut Definitions,
}

impl Writer<'_> {
    fn paths(&mut self) -> Vec<(String, Value)> {
        let resource = self.resource;
        let root = format!("/{}", document_path(&resource.group, &resource.version));
        let scoped = if resource.namespaced {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let collection = format!("{root}{scoped}/{}", resource.plural);
        let own = resource.gvk();
        let mut paths = vec![
            (collection.clone(), self.path(false, &resource.verbs, &own, None)),
            (
                format!("{collection}/{{name}}"),
                self.path(true, &resource.verbs, &own, None),
            ),
        ];
        if resource.namespaced && resource.has("list") {
            let all = self.all_namespaces(&own);
            paths.push((format!("{root}/{}", resource.plural), all));
        }
        for sub in &resource.subresources {
            let kind = Gvk {
                group: sub.group.clone(),
                version: sub.version.clone(),
                kind: sub.kind.clone(),
            };
            let path = self.path(true, &sub.verbs, &kind, Some(sub));
            paths.push((format!("{collection}/{{name}}/{}", sub.name), path));
        }
        paths.retain(|(_, path)| path.as_object().is_some_and(|p| p.len() > 1));
        paths
    }

    /// All operations of one path; path parameters alone when there are none.
    fn path(&mut self, on_item: bool, verbs: &[String], kind: &Gvk, sub: Option<&Subresource>) -> Value {
        let mut path = Map::new();
        for verb in VERBS.iter().filter(|v| verbs.iter().any(|name| name == v.name)) {
            if verb.on_item == on_item || sub.is_some() {
                path.insert(
                    verb.method.to_owned(),
                    self.operation(verb, kind, sub, self.resource.namespaced),
                );
            }
        }
        path.insert(
            "parameters".to_owned(),
            self.path_parameters(on_item, self.resource.namespaced),
        );
        Value::Object(path)
    }

    fn all_namespaces(&mut self, kind: &Gvk) -> Value {
        let get = self.operation(&VERBS[0], kind, None, false);
        json!({"get": get, "parameters": self.path_parameters(false, false)})
    }

    fn operation(&mut self, verb: &Verb, kind: &Gvk, sub: Option<&Subresource>, namespaced: bool) -> Value {
        let result = self.result(verb, kind, sub);
        let mut operation = json!({
            "operationId": self.operation_id(verb, sub, namespaced),
            "parameters": self.query(verb),
            "responses": {"200": self.content("OK", TYPES, result), "401": {"description": "Unauthorized"}},
            "x-kubernetes-action": action(verb, sub),
            "x-kubernetes-group-version-kind": gvk(kind),
        });
        if let Some((types, body)) = self.body(verb, kind) {
            self.add_body(&mut operation, types, body);
        }
        operation
    }

    fn operation_id(&self, verb: &Verb, sub: Option<&Subresource>, namespaced: bool) -> String {
        let resource = self.resource;
        let group: String = match resource.group.trim_end_matches(".k8s.io") {
            "" => "Core".to_owned(),
            group => group.split('.').map(capital).collect(),
        };
        let scope = if namespaced { "Namespaced" } else { "" };
        let all = if !namespaced && resource.namespaced {
            "ForAllNamespaces"
        } else {
            ""
        };
        let sub = sub.map(|s| capital(&s.name)).unwrap_or_default();
        format!(
            "{}{group}{}{scope}{}{sub}{all}",
            verb.word,
            capital(&resource.version),
            resource.kind
        )
    }

    fn result(&mut self, verb: &Verb, kind: &Gvk, sub: Option<&Subresource>) -> Value {
        if matches!(verb.name, "delete" | "deletecollection") {
            return self.definitions.refer_meta("Status");
        }
        let listed = Gvk {
            kind: format!("{}List", kind.kind),
            ..kind.clone()
        };
        let wanted = if verb.name == "list" { &listed } else { kind };
        let is_text = sub.is_some_and(|s| s.name == "log");
        match self.definition_of(wanted) {
            Some(reference) if !is_text => reference,
            _ => json!({"type": "string"}),
        }
    }

    fn definition_of(&mut self, kind: &Gvk) -> Option<Value> {
        let schema = catalog().kind_schema(&kind.group, &kind.version, &kind.kind)?;
        // Query options have no published definition.
        let name = schema.name.as_deref().filter(|name| !name.ends_with("Options"))?;
        Some(self.definitions.refer(name))
    }

    fn body(&mut self, verb: &Verb, kind: &Gvk) -> Option<(&'static [&'static str], Value)> {
        match verb.name {
            "create" | "update" => Some((&["*/*"], self.definition_of(kind)?)),
            "patch" => Some((PATCH_TYPES, json!({"type": "object"}))),
            "delete" | "deletecollection" => Some((&["*/*"], self.definitions.refer_meta("DeleteOptions"))),
            _ => None,
        }
    }

    fn add_body(&self, operation: &mut Value, types: &[&str], schema: Value) {
        match self.format {
            Format::V3 => {
                operation["requestBody"] = json!({"content": media(types, &schema), "required": true});
            }
            Format::V2 => {
                operation["consumes"] = json!(types);
                if let Some(parameters) = operation["parameters"].as_array_mut() {
                    parameters
                        .push(json!({"in": "body", "name": "body", "required": true, "schema": schema}));
                }
            }
        }
    }

    fn content(&self, description: &str, types: &[&str], schema: Value) -> Value {
        match self.format {
            Format::V3 => json!({"description": description, "content": media(types, &schema)}),
            Format::V2 => json!({"description": description, "schema": schema}),
        }
    }

    fn query(&self, verb: &Verb) -> Value {
        let force = (verb.name == "patch").then_some(("force", "boolean"));
        verb.query
            .iter()
            .copied()
            .chain(force)
            .map(|(name, kind)| self.parameter("query", name, kind))
            .collect()
    }

    fn path_parameters(&self, on_item: bool, namespaced: bool) -> Value {
        let mut parameters = Vec::new();
        for (wanted, name) in [(on_item, "name"), (namespaced, "namespace")] {
            if wanted {
                let mut parameter = self.parameter("path", name, "string");
                parameter["required"] = true.into();
                parameters.push(parameter);
            }
        }
        parameters.push(self.parameter("query", "pretty", "string"));
        Value::Array(parameters)
    }

    fn parameter(&self, place: &str, name: &str, kind: &str) -> Value {
        match self.format {
            Format::V3 => json!({"in": place, "name": name, "schema": {"type": kind}}),
            Format::V2 => json!({"in": place, "name": name, "type": kind}),
        }
    }
}

fn action(verb: &Verb, sub: Option<&Subresource>) -> &'static str {
    let is_stream =
        sub.is_some_and(|s| matches!(s.name.as_str(), "exec" | "attach" | "portforward" | "proxy"));
    match (is_stream, verb.name) {
        (true, _) => "connect",
        (_, "create") => "post",
        (_, "update") => "put",
        _ => verb.name,
    }
}

fn media(types: &[&str], schema: &Value) -> Value {
    types
        .iter()
        .map(|kind| ((*kind).to_owned(), json!({"schema": schema})))
        .collect::<Map<_, _>>()
        .into()
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_ascii_uppercase().to_string() + letters.as_str())
        .unwrap_or_default()
}
