//! The `scale` subresource: replicas of any kind that has them, as `autoscaling/v1` `Scale`.

use api::meta::Meta;
use api::selector::LabelSelector;
use api::status::{Cause, Status};
use serde_json::{Map, Value, json};

use crate::call::{Call, Reply};
use crate::engine::input::{self, Wanted};
use crate::engine::{patch, update, write};
use crate::error::{Failure, Result, fail};
use crate::object;
use crate::options::{FieldValidation, WriteOptions};

/// Serves get, update and patch of a scale.
pub(crate) async fn serve(call: &Call, body: &[u8]) -> Result<Reply> {
    let entry = write::current(call, &call.key()?).await?;
    let now = object::value(&entry)?;
    let options = WriteOptions::parse(&call.query)?;
    match call.info.verb {
        "get" => Ok(Reply::Other {
            code: 200,
            value: scale(&now),
        }),
        "update" => {
            let wanted = decode(call, body, options.field_validation)?;
            change(call, &options, |_| Ok(wanted.clone())).await
        }
        "patch" => {
            let parsed = api::yaml::parse(body).map_err(|e| Status::bad_request(e.to_string()))?;
            let media = call.content_type();
            let schema = schema()?;
            change(call, &options, |scale| {
                let patched = if media.contains("apply-patch") {
                    api::patch::merge(scale, &parsed.value)
                } else {
                    patch::apply_patch(&media, &schema, scale, &parsed.value)
                };
                patched.map_err(|e| Failure::from(e.status()))
            })
            .await
        }
        _ => fail(Status::method_not_supported()),
    }
}

fn schema() -> Result<std::sync::Arc<api::schema::Schema>> {
    let schema = api::catalog::catalog().kind_schema("autoscaling", "v1", "Scale");
    schema.ok_or_else(|| Status::internal("no schema for Scale").into())
}

fn decode(call: &Call, body: &[u8], validation: FieldValidation) -> Result<Value> {
    let schema = schema()?;
    let wanted = Wanted {
        api_version: "autoscaling/v1".into(),
        kind: "Scale",
        schema: &schema,
        message: Some("k8s.io.api.autoscaling.v1.Scale"),
    };
    input::decode(call, body, &wanted, validation)
}

/// Sets the replicas that `make` returns, given the present scale.
async fn change(
    call: &Call,
    options: &WriteOptions,
    make: impl Fn(&Value) -> Result<Value> + Send + Sync,
) -> Result<Reply> {
    let reply = update::change(call, options, "Update", |old| {
        let wanted = make(&scale(old))?;
        let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let cause = Cause::invalid(
                "spec.replicas",
                &replicas.into(),
                "must be greater than or equal to 0",
            );
            return fail(Status::invalid(
                ("autoscaling", "Scale"),
                Meta::of(old).name(),
                vec![cause],
            ));
        }
        let asked = Meta::of(&wanted);
        write::check_preconditions(call, old, asked.uid(), "")?;
        let version = asked.resource_version();
        if !version.is_empty() && version != Meta::of(old).resource_version() {
            return fail(Status::modified(call.group_resource(), Meta::of(old).name()));
        }
        let mut new = old.clone();
        new["spec"]["replicas"] = replicas.into();
        Ok(new)
    })
    .await?;
    let value = match reply {
        Reply::Stored { entry, modified, .. } => object::decode(&entry, modified)?,
        Reply::Object { value, .. } => value,
        other => return Ok(other),
    };
    Ok(Reply::Other {
        code: 200,
        value: scale(&value),
    })
}

/// The scale of an object with replicas.
fn scale(object: &Value) -> Value {
    let meta = Meta::of(object);
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta.get(field) {
            metadata.insert(field.into(), value.clone());
        }
    }
    let replicas = |part: &str| object[part]["replicas"].as_i64().unwrap_or(0);
    let selector = selector(object);
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": replicas("spec")},
        "status": {"replicas": replicas("status"), "selector": selector}})
}

fn selector(object: &Value) -> String {
    let selector = &object["spec"]["selector"];
    // A ReplicationController has the bare map.
    let parsed = if object["kind"] == "ReplicationController" {
        LabelSelector::from_map(selector)
    } else {
        LabelSelector::from_json(selector)
    };
    parsed.map(|s| s.to_string()).unwrap_or_default()
}
