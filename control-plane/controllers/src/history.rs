//! The content of a `ControllerRevision`: the patch that takes a workload back to a pod template
//! (<https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/controller-revision-v1/>).

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Map, Value, json};

/// The patch that replaces the template by this one, as `kubectl rollout undo` applies it. Clients compare it byte for
/// byte with what upstream's encoder writes: names in order, and the fields that the published types never leave out.
#[must_use]
pub fn patch(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    if let Some(schema) = api::catalog::type_schema("io.k8s.api.core.v1.PodTemplateSpec") {
        api::fields::prune(schema, &mut template);
        api::defaults::apply(schema, &mut template);
    }
    template["$patch"] = json!("replace");
    in_order(json!({"spec": {"template": template}}))
}

/// Whether the content of a revision is this patch, however it was written down.
#[must_use]
pub fn same(content: &Value, patched: &Value) -> bool {
    let template = || {
        let mut template = content["spec"]["template"].clone();
        template.as_object_mut()?.shift_remove("$patch");
        serde_json::from_value(template).ok()
    };
    content == patched || template().is_some_and(|template| patch(&template) == *patched)
}

/// The same value with the fields of every object in order of their names.
fn in_order(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().map(|(k, v)| (k, in_order(v))).collect();
            fields.sort_by(|(one, _), (other, _)| one.cmp(other));
            Value::Object(Map::from_iter(fields))
        }
        Value::Array(items) => items.into_iter().map(in_order).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_is_what_upstreams_encoder_writes() {
        let template = serde_json::from_value(json!({
            "spec": {"nodeSelector": {"z": "1", "a": "2"}, "hostNetwork": false, "volumes": [],
                "containers": [{"name": "c", "image": "v1", "ports": [{"protocol": "TCP", "containerPort": 80}]}]},
            "metadata": {"labels": {"app": "d"}},
        }));
        let text = serde_json::to_string(&patch(&template.unwrap())).unwrap();
        let expected = concat!(
            r#"{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"app":"d"}},"#,
            r#""spec":{"containers":[{"image":"v1","name":"c","ports":[{"containerPort":80,"protocol":"TCP"}],"#,
            r#""resources":{}}],"nodeSelector":{"a":"2","z":"1"}}}}}"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn content_is_the_same_without_the_fields_that_are_never_left_out() {
        let template = json!({"spec": {"containers": [{"name": "c", "image": "v1"}]}});
        let patched = patch(&serde_json::from_value(template.clone()).unwrap());
        let content = |mut template: Value| {
            template["$patch"] = json!("replace");
            json!({"spec": {"template": template}})
        };
        assert!(same(&content(template.clone()), &patched));
        let mut other = template;
        other["spec"]["containers"][0]["image"] = json!("v2");
        assert!(!same(&content(other), &patched));
        assert!(!same(&json!({}), &patched));
    }
}
