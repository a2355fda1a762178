//! ResourceQuota: a new object is charged to the quotas it counts for before it is stored.
//!
//! The charge is a compare-and-put of the quota's status, so that many requests at a time cannot use more than there
//! is; the quota controller counts again when something goes.

use api::catalog::{Resource, catalog};
use api::kinds::quota::{self, Usage};
use api::meta::{Meta, map_mut};
use api::status::Status;
use serde_json::{Map, Value};

use crate::call::Call;
use crate::engine::write;
use crate::error::{Result, fail};
use crate::object;

/// What was charged to which quota.
#[derive(Default)]
pub(crate) struct Charge(Vec<(Vec<u8>, Usage)>);

/// Charges `object` to every quota of its namespace that it counts for; refuses it if one of them has too little.
pub(crate) async fn charge(call: &Call, new: &Value, dry_run: bool) -> Result<Charge> {
    let mut charged = Charge::default();
    let Some(quotas) = quotas(call) else {
        return Ok(charged);
    };
    let usage = quota::usage(&call.stored, new);
    for (key, quota) in matching(call, &quotas, new)? {
        let part = relevant(&quota, &usage);
        if part.is_empty() {
            continue;
        }
        let name = Meta::of(&quota).name().to_owned();
        let spend = |quota: &mut Value| spend(call, new, quota, &part);
        if let Err(refused) = write::rewrite(call, key.clone(), &quotas, &name, dry_run, spend).await {
            charged.refund(call).await;
            return Err(refused);
        }
        if !dry_run {
            charged.0.push((key, part));
        }
    }
    Ok(charged)
}

impl Charge {
    /// Gives back what was charged for an object that was not stored. What fails here is set right by the next count.
    pub(crate) async fn refund(self, call: &Call) {
        let Some(quotas) = quotas(call) else { return };
        for (key, part) in self.0 {
            let give_back = |quota: &mut Value| {
                let used = quota::amounts(&quota["status"]["used"]);
                let rest = part
                    .iter()
                    .filter_map(|(name, amount)| Some((name.clone(), *used.get(name)? - *amount)));
                set_used(quota, rest.collect());
                Ok(())
            };
            write::rewrite(call, key, &quotas, "", false, give_back)
                .await
                .ok();
        }
    }
}

/// The resource of quotas, where quotas can matter.
fn quotas(call: &Call) -> Option<std::sync::Arc<Resource>> {
    // Events come and go by themselves and have never been counted.
    let counts = call.namespace().is_some() && call.stored.plural != "events";
    catalog().lookup("", "v1", "resourcequotas").filter(|_| counts)
}

fn matching(call: &Call, quotas: &Resource, new: &Value) -> Result<Vec<(Vec<u8>, Value)>> {
    let prefix = object::prefix(quotas, call.namespace());
    let mut all = Vec::new();
    for (key, entry) in call.server.inner.store.snapshot().range(&prefix, &prefix) {
        let quota = object::value(entry)?;
        if quota::counts(&quota["spec"], &call.stored, new) {
            all.push((key.to_vec(), quota));
        }
    }
    Ok(all)
}

/// The part of `usage` that a quota limits.
fn relevant(quota: &Value, usage: &Usage) -> Usage {
    let hard = quota::amounts(&quota["status"]["hard"]);
    let limited = usage.iter().filter(|(name, _)| hard.contains_key(*name));
    limited.map(|(name, amount)| (name.clone(), *amount)).collect()
}

fn spend(call: &Call, new: &Value, quota: &mut Value, part: &Usage) -> Result<()> {
    let name = Meta::of(quota).name().to_owned();
    let refuse = |why: &str| {
        fail(Status::forbidden(
            call.group_resource(),
            Meta::of(new).name(),
            why,
        ))
    };
    let (hard, used) = (
        quota::amounts(&quota["status"]["hard"]),
        quota::amounts(&quota["status"]["used"]),
    );
    if call.stored.group.is_empty() && call.stored.plural == "pods" {
        let unstated = quota::unstated(&hard, new);
        if !unstated.is_empty() {
            return refuse(&format!(
                "failed quota: {name}: must specify {}",
                unstated.join("; ")
            ));
        }
    }
    let unknown: Vec<&str> = part
        .keys()
        .filter(|key| !used.contains_key(*key))
        .map(String::as_str)
        .collect();
    if !unknown.is_empty() {
        return refuse(&format!(
            "status unknown for quota: {name}, resources: {}",
            unknown.join(",")
        ));
    }
    let sum = quota::sum(part.clone(), used.clone());
    let over: Vec<&String> = part.keys().filter(|key| sum[*key] > hard[*key]).collect();
    if !over.is_empty() {
        let shown = |of: &Usage| {
            let pairs = over
                .iter()
                .filter_map(|key| Some(format!("{key}={}", of.get(*key)?)));
            pairs.collect::<Vec<_>>().join(",")
        };
        return refuse(&format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            shown(part),
            shown(&used),
            shown(&hard)
        ));
    }
    set_used(quota, part.keys().map(|key| (key.clone(), sum[key])).collect());
    Ok(())
}

fn set_used(quota: &mut Value, new: Usage) {
    let status = map_mut(quota, "status");
    let used = status.entry("used").or_insert_with(|| Value::Object(Map::new()));
    for (name, amount) in new {
        used[name.as_str()] = amount.to_string().into();
    }
}
