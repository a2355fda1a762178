//! `pods/eviction`: a delete that respects disruption budgets.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/api-eviction/>

use api::meta::Meta;
use api::selector::LabelSelector;
use api::status::{Cause, Status};
use serde_json::{Value, json};

use crate::call::{Call, Reply};
use crate::engine::delete::{self, DeleteOptions};
use crate::engine::input::{self, Wanted};
use crate::engine::write;
use crate::error::{Failure, Result, fail};
use crate::object;
use crate::options::WriteOptions;

/// Deletes the pod of the path if its disruption budget allows it; 429 if not.
pub(crate) async fn evict(call: &Call, body: &[u8]) -> Result<Reply> {
    let options = WriteOptions::parse(&call.query)?;
    let eviction = decode(call, body, &options)?;
    let mut delete_options: DeleteOptions = serde_json::from_value(match &eviction["deleteOptions"] {
        Value::Object(fields) => {
            Value::Object(fields.clone().into_iter().filter(|(_, v)| !v.is_null()).collect())
        }
        _ => json!({}),
    })
    .map_err(|e| Status::bad_request(e.to_string()))?;
    if options.dry_run {
        delete_options.dry_run = vec!["All".into()];
    }
    let key = call.key()?;
    let pod = object::value(&*write::current(call, &key).await?)?;
    if needs_budget(&pod) {
        spend_budget(call, &pod, options.dry_run).await?;
    }
    delete::delete_key(call, key, &delete_options).await?;
    let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    Ok(Reply::Other {
        code: 201,
        value: done,
    })
}

fn decode(call: &Call, body: &[u8], options: &WriteOptions) -> Result<Value> {
    let schema = api::catalog::catalog().kind_schema("policy", "v1", "Eviction");
    let schema = schema.ok_or_else(|| Failure::from(Status::internal("no schema for Eviction")))?;
    let wanted = Wanted {
        api_version: "policy/v1".into(),
        kind: "Eviction",
        schema: &schema,
        message: Some("k8s.io.api.policy.v1.Eviction"),
    };
    input::decode(call, body, &wanted, options.field_validation)
}

/// A pod that does not run yet, or no more, disrupts nothing when it goes.
fn needs_budget(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    !matches!(phase, "Pending" | "Succeeded" | "Failed") && !Meta::of(pod).is_terminating()
}

async fn spend_budget(call: &Call, pod: &Value, dry_run: bool) -> Result<()> {
    let budgets = api::catalog::catalog().lookup("policy", "v1", "poddisruptionbudgets");
    let Some(budgets) = budgets else { return Ok(()) };
    let prefix = object::prefix(&budgets, call.namespace());
    let snapshot = call.server.inner.store.fresh().await?;
    let mut matching = Vec::new();
    for (key, entry) in snapshot.range(&prefix, &prefix) {
        let budget = object::value(entry)?;
        let selector = LabelSelector::from_json(&budget["spec"]["selector"]);
        if selector.is_ok_and(|s| s.matches_object(pod)) {
            matching.push((key.to_vec(), Meta::of(&budget).name().to_owned()));
        }
    }
    let Some((key, name)) = matching.first() else {
        return Ok(());
    };
    if matching.len() > 1 {
        let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return fail(Status::internal(why));
    }
    let pod_name = Meta::of(pod).name().to_owned();
    write::rewrite(call, key.clone(), &budgets, name, dry_run, |budget| {
        spend(budget, &pod_name, &api::meta::time(call.now))
    })
    .await
    .map(drop)
}

fn spend(budget: &mut Value, pod: &str, now: &str) -> Result<()> {
    let status = &budget["status"];
    let number = |v: &Value| v.as_i64().unwrap_or(0);
    let refuse = |message: String| {
        let cause = Cause {
            reason: "DisruptionBudget",
            message,
            field: String::new(),
        };
        let text = "Cannot evict pod as it would violate the pod's disruption budget.";
        fail(Status::too_many_requests(text, 0).with_causes(vec![cause]))
    };
    let name = Meta::of(budget).name();
    if number(&status["observedGeneration"]) < Meta::of(budget).generation() {
        return refuse(format!(
            "The disruption budget {name} is still being processed by the server."
        ));
    }
    let allowed = number(&status["disruptionsAllowed"]);
    if allowed <= 0 {
        return refuse(format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number(&status["desiredHealthy"]),
            number(&status["currentHealthy"])
        ));
    }
    let status = api::meta::map_mut(budget, "status");
    status.insert("disruptionsAllowed".into(), (allowed - 1).into());
    let disrupted = status.entry("disruptedPods").or_insert_with(|| json!({}));
    disrupted[pod] = now.into();
    Ok(())
}
