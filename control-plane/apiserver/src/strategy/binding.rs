//! `pods/binding`: the scheduler's decision.

use api::meta::{Meta, metadata_mut};
use api::status::Status;
use serde_json::{Value, json};

use crate::call::{Call, Reply};
use crate::engine::input::{self, Wanted};
use crate::engine::write;
use crate::error::{Failure, Result, fail};
use crate::object;
use crate::options::WriteOptions;

const POD: (&str, &str) = ("", "pods");

/// Assigns the pod of the path, or for `POST …/bindings` of the body, to a node.
pub(crate) async fn bind(call: &Call, body: &[u8]) -> Result<Reply> {
    let options = WriteOptions::parse(&call.query)?;
    let schema = api::catalog::catalog().kind_schema("", "v1", "Binding");
    let schema = schema.ok_or_else(|| Failure::from(Status::internal("no schema for Binding")))?;
    let wanted = Wanted {
        api_version: "v1".into(),
        kind: "Binding",
        schema: &schema,
        message: Some("k8s.io.api.core.v1.Binding"),
    };
    let binding = input::decode(call, body, &wanted, options.field_validation)?;
    let meta = Meta::of(&binding);
    let name = call.info.name.clone().unwrap_or_else(|| meta.name().to_owned());
    let node = node(&binding, &name)?;
    let pods = api::catalog::catalog().lookup("", "v1", "pods");
    let pods = pods.ok_or_else(|| Failure::from(Status::internal("no pods in the catalogue")))?;
    let key = object::key(&pods, call.info.namespace.as_deref(), &name);
    write::rewrite(call, key, &pods, &name, options.dry_run, |pod| {
        write::check_preconditions(call, pod, meta.uid(), meta.resource_version())?;
        assign(call, pod, &name, &node, &binding)
    })
    .await?;
    Ok(Reply::Other {
        code: 201,
        value: json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
    })
}

fn node(binding: &Value, pod: &str) -> Result<String> {
    let target = &binding["target"];
    let kind = target["kind"].as_str().unwrap_or_default();
    let name = target["name"].as_str().unwrap_or_default();
    let mut causes = Vec::new();
    if !matches!(kind, "" | "Node") {
        causes.push(api::status::Cause::not_supported(
            "target.kind",
            &kind.into(),
            &["Node", "<empty>"],
        ));
    }
    if name.is_empty() {
        causes.push(api::status::Cause::required("target.name", ""));
    }
    if causes.is_empty() {
        Ok(name.into())
    } else {
        fail(Status::invalid(("", "Binding"), pod, causes))
    }
}

fn assign(call: &Call, pod: &mut Value, name: &str, node: &str, binding: &Value) -> Result<()> {
    let refuse = |why: &str| fail(Status::conflict(POD, name, why));
    if Meta::of(pod).is_terminating() {
        return refuse(&format!(
            "pod {name} is being deleted, cannot be assigned to a host"
        ));
    }
    let had = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !had.is_empty() {
        return refuse(&format!("pod {name} is already assigned to node \"{had}\""));
    }
    if pod["spec"]["schedulingGates"]
        .as_array()
        .is_some_and(|g| !g.is_empty())
    {
        return refuse(&format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    pod["spec"]["nodeName"] = node.into();
    let annotations: Vec<_> = Meta::of(binding)
        .annotations()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    if !annotations.is_empty() {
        metadata_mut(pod);
        let all = api::meta::map_mut(&mut pod["metadata"], "annotations");
        all.extend(annotations.into_iter().map(|(k, v)| (k, v.into())));
    }
    set_scheduled(pod, &api::meta::time(call.now));
    Ok(())
}

fn set_scheduled(pod: &mut Value, now: &str) {
    let conditions = api::meta::map_mut(pod, "status")
        .entry("conditions")
        .or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else {
        return;
    };
    conditions.retain(|c| c["type"] != "PodScheduled");
    conditions.push(
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}),
    );
}
