//! How an action becomes an HTTP request of the Kubernetes API.

use http::{Method, Request};
use machinery_plan::{Action, Operation, PatchStrategy, Preconditions, Propagation};
use serde_json::{Map, Value, json};

/// The request for `action`; none for events, which are recorded by other means.
pub(crate) fn request(action: &Action) -> Option<Request<Vec<u8>>> {
    let object = &action.object;
    let subresource = action.subresource();
    let (method, path, content_type, body) = match &action.operation {
        Operation::Create { body } => (Method::POST, object.collection_path(), JSON, body.clone()),
        Operation::Update { body, .. } => (
            Method::PUT,
            object.path(subresource),
            JSON,
            with_preconditions(body.clone(), &action.preconditions),
        ),
        Operation::Patch { strategy, body, .. } => (
            Method::PATCH,
            object.path(subresource),
            content_type(*strategy),
            patch(*strategy, body, &action.preconditions),
        ),
        Operation::Delete {
            propagation,
            grace_seconds,
        } => (
            Method::DELETE,
            object.path(None),
            JSON,
            delete_options(action, *propagation, *grace_seconds),
        ),
        Operation::Evict => (Method::POST, object.path(subresource), JSON, eviction(action)),
        Operation::Bind { node } => (
            Method::POST,
            object.path(subresource),
            JSON,
            binding(action, node),
        ),
        Operation::Event { .. } => return None,
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type);
    let body = serde_json::to_vec(&body).expect("a JSON value can always be written");
    Some(
        request
            .body(body)
            .expect("paths are made of API names, which are valid in URLs"),
    )
}

const JSON: &str = "application/json";

fn content_type(strategy: PatchStrategy) -> &'static str {
    match strategy {
        PatchStrategy::Merge => "application/merge-patch+json",
        PatchStrategy::Strategic => "application/strategic-merge-patch+json",
        PatchStrategy::Json => "application/json-patch+json",
    }
}

fn patch(strategy: PatchStrategy, body: &Value, preconditions: &Preconditions) -> Value {
    if strategy != PatchStrategy::Json {
        return with_preconditions(body.clone(), preconditions);
    }
    let uid = preconditions
        .uid
        .iter()
        .map(|uid| json!({"op": "test", "path": "/metadata/uid", "value": uid}));
    let version = preconditions.resource_version.iter();
    let version = version.map(|rv| json!({"op": "test", "path": "/metadata/resourceVersion", "value": rv}));
    uid.chain(version)
        .chain(body.as_array().into_iter().flatten().cloned())
        .collect()
}

/// The API refuses a write whose body names another uid or resource version than the object has.
fn with_preconditions(mut body: Value, preconditions: &Preconditions) -> Value {
    if let Some(uid) = &preconditions.uid {
        body["metadata"]["uid"] = json!(uid);
    }
    if let Some(version) = &preconditions.resource_version {
        body["metadata"]["resourceVersion"] = json!(version);
    }
    body
}

fn delete_options(action: &Action, propagation: Option<Propagation>, grace_seconds: Option<i64>) -> Value {
    let mut preconditions = Map::new();
    if let Some(uid) = &action.preconditions.uid {
        preconditions.insert("uid".to_owned(), json!(uid));
    }
    if let Some(version) = &action.preconditions.resource_version {
        preconditions.insert("resourceVersion".to_owned(), json!(version));
    }
    let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions});
    if let Some(propagation) = propagation {
        options["propagationPolicy"] = json!(format!("{propagation:?}"));
    }
    if let Some(seconds) = grace_seconds {
        options["gracePeriodSeconds"] = json!(seconds);
    }
    options
}

fn eviction(action: &Action) -> Value {
    let key = &action.object.key;
    json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": key.name, "namespace": key.namespace},
        "deleteOptions": delete_options(action, None, None),
    })
}

fn binding(action: &Action, node: &str) -> Value {
    let key = &action.object.key;
    json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": key.name, "namespace": key.namespace, "uid": action.preconditions.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn pod() -> Pod {
        let metadata = ObjectMeta {
            namespace: Some("a".to_owned()),
            name: Some("b".to_owned()),
            uid: Some("u".to_owned()),
            resource_version: Some("7".to_owned()),
            ..ObjectMeta::default()
        };
        Pod {
            metadata,
            ..Pod::default()
        }
    }

    fn sent(action: &Action) -> (String, Value) {
        let request = request(action).unwrap();
        let body = serde_json::from_slice(request.body()).unwrap();
        (format!("{} {}", request.method(), request.uri()), body)
    }

    #[test]
    fn a_deletion_names_the_uid_it_was_planned_for() {
        let (line, body) = sent(&Action::delete_with(
            &pod(),
            Some(Propagation::Foreground),
            Some(0),
        ));
        assert_eq!(line, "DELETE /api/v1/namespaces/a/pods/b");
        assert_eq!(body["preconditions"], json!({"uid": "u"}));
        assert_eq!(
            (&body["propagationPolicy"], &body["gracePeriodSeconds"]),
            (&json!("Foreground"), &json!(0))
        );
    }

    #[test]
    fn a_patch_carries_its_preconditions_in_its_body() {
        let (_, body) = sent(&Action::merge(&pod(), json!({"spec": {"x": 1}})));
        assert_eq!(
            body,
            json!({"spec": {"x": 1}, "metadata": {"uid": "u", "resourceVersion": "7"}})
        );
    }

    #[test]
    fn a_json_patch_tests_its_preconditions_first() {
        let mut action = Action::merge(&pod(), json!([]));
        let body = json!([{"op": "remove", "path": "/spec/x"}]);
        action.operation = Operation::Patch {
            strategy: PatchStrategy::Json,
            body,
            subresource: None,
        };
        let (_, body) = sent(&action);
        assert_eq!(body[0]["path"], "/metadata/uid");
        assert_eq!(body[1]["value"], "7");
        assert_eq!(body[2]["op"], "remove");
    }

    #[test]
    fn a_binding_goes_to_the_subresource() {
        let (line, body) = sent(&Action::bind(&pod(), "n"));
        assert_eq!(line, "POST /api/v1/namespaces/a/pods/b/binding");
        assert_eq!(body["target"]["name"], "n");
    }
}
