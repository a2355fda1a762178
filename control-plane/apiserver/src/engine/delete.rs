//! DELETE of one object: preconditions, grace, finalizers, propagation.

use api::catalog::Resource;
use api::meta::{Meta, metadata_mut};
use api::status::{self, Status};
use control_plane_store::{Entry, Expect};
use jiff::ToSpan as _;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admission;
use crate::call::{Call, Reply};
use crate::engine::write::{self, PutError};
use crate::error::{Result, fail};
use crate::negotiate::{Encoding, PROTOBUF};
use crate::object;
use crate::options::dry_run;

const ATTEMPTS: u32 = 30;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// `DeleteOptions`, from the body or, when there is none, from the query.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) propagation_policy: Option<String>,
    pub(crate) orphan_dependents: Option<bool>,
    pub(crate) preconditions: Preconditions,
    pub(crate) dry_run: Vec<String>,
}

/// What must hold for the delete to happen.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Preconditions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

impl DeleteOptions {
    /// Reads the options of a delete.
    pub(crate) fn parse(call: &Call, body: &[u8]) -> Result<Self> {
        let mut options = if body.is_empty() {
            Self::from_query(call)?
        } else {
            Self::from_body(call, body)?
        };
        if dry_run(&call.query)? {
            options.dry_run = vec!["All".into()];
        }
        options.check()?;
        Ok(options)
    }

    fn from_query(call: &Call) -> Result<Self> {
        Ok(Self {
            grace_period_seconds: call.query.number("gracePeriodSeconds")?,
            propagation_policy: call.query.get("propagationPolicy").map(Into::into),
            orphan_dependents: call.query.flag("orphanDependents")?,
            ..Self::default()
        })
    }

    fn from_body(call: &Call, body: &[u8]) -> Result<Self> {
        let bad =
            |e: &dyn std::fmt::Display| Status::bad_request(format!("could not decode DeleteOptions: {e}"));
        let value = match call.content_type().as_str() {
            PROTOBUF => crate::engine::input::protobuf(
                body,
                Some("k8s.io.apimachinery.pkg.apis.meta.v1.DeleteOptions"),
            )?,
            media if Encoding::of(media) == Some(Encoding::Yaml) => {
                api::yaml::parse(body).map_err(|e| bad(&e))?.value
            }
            _ => serde_json::from_slice(body).map_err(|e| bad(&e))?,
        };
        let Value::Object(mut fields) = value else {
            return fail(bad(&"not an object"));
        };
        // Null means unset, for every field.
        fields.retain(|_, v| !v.is_null());
        Ok(serde_json::from_value(Value::Object(fields)).map_err(|e| bad(&e))?)
    }

    fn check(&self) -> Result<()> {
        let known = ["Orphan", "Background", "Foreground"];
        let policy = self.propagation_policy.as_deref();
        if policy.is_some() && self.orphan_dependents.is_some() {
            return fail(Status::bad_request(
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        match policy {
            Some(policy) if !known.contains(&policy) => {
                let cause = status::Cause::not_supported("propagationPolicy", &policy.into(), &known);
                fail(Status::invalid(("meta.k8s.io", "DeleteOptions"), "", vec![cause]))
            }
            _ => Ok(()),
        }
    }

    fn is_dry(&self) -> bool {
        self.dry_run.iter().any(|d| d == "All")
    }

    /// The finalizers that make the garbage collector do what was asked for.
    fn propagation(&self, res: &Resource, object: &Value) -> Option<&'static str> {
        match (self.propagation_policy.as_deref(), self.orphan_dependents) {
            (Some("Orphan"), _) | (None, Some(true)) => Some(ORPHAN),
            (Some("Foreground"), _) => Some(FOREGROUND),
            (Some(_), _) | (None, Some(false)) => None,
            (None, None) => {
                let had = |name| Meta::of(object).finalizers().any(|f| f == name);
                let by_default = matches!(object::storage(res), "replicationcontrollers" | "batch/jobs");
                match (had(ORPHAN) || by_default, had(FOREGROUND)) {
                    (true, _) => Some(ORPHAN),
                    (false, true) => Some(FOREGROUND),
                    (false, false) => None,
                }
            }
        }
    }
}

/// Serves a delete.
pub(crate) async fn delete(call: &Call, body: &[u8]) -> Result<Reply> {
    let options = DeleteOptions::parse(call, body)?;
    delete_key(call, call.key()?, &options).await
}

/// Deletes the object under a key, or marks it as being deleted.
pub(crate) async fn delete_key(call: &Call, key: Vec<u8>, options: &DeleteOptions) -> Result<Reply> {
    for _ in 0..ATTEMPTS {
        let entry = write::current(call, &key).await?;
        let old = object::value(&entry)?;
        let wanted = &options.preconditions;
        let (uid, version) = (wanted.uid.as_deref(), wanted.resource_version.as_deref());
        write::check_preconditions(call, &old, uid.unwrap_or_default(), version.unwrap_or_default())?;
        admission::delete(call, &old)?;
        match attempt(call, &key, &entry, &old, options).await {
            Ok(reply) => return Ok(reply),
            Err(PutError::Failed(failure)) => return Err(failure),
            Err(PutError::Raced) => {
                call.server.inner.store.fresh().await?;
            }
        }
    }
    fail(Status::modified(
        call.group_resource(),
        call.info.name.as_deref().unwrap_or_default(),
    ))
}

async fn attempt(
    call: &Call,
    key: &[u8],
    entry: &Entry,
    old: &Value,
    options: &DeleteOptions,
) -> Result<Reply, PutError> {
    let mut marked = old.clone();
    mark(call, &mut marked, options);
    if write::is_free(&marked) {
        if !options.is_dry() {
            write::remove(call, key.to_vec(), old, entry).await?;
        }
        return Ok(deleted(call, marked));
    }
    if marked != *old && !options.is_dry() {
        let written = write::put(call, key.to_vec(), &marked, Expect::Modified(entry.modified)).await?;
        return Ok(Reply::Stored {
            code: 200,
            entry: written.entry,
            modified: written.modified,
        });
    }
    Ok(Reply::Object {
        code: 200,
        value: marked,
    })
}

/// Sets the deletion timestamp, the grace period and the finalizers of the propagation policy.
fn mark(call: &Call, object: &mut Value, options: &DeleteOptions) {
    let policy = options.propagation(&call.stored, object);
    set_finalizers(object, policy);
    let grace = grace_period(call, object, options);
    let meta = Meta::of(object);
    let (already, had) = (meta.is_terminating(), meta.deletion_grace_period_seconds());
    // A second delete can only shorten the grace period.
    if already && had.is_none_or(|had| grace >= had) {
        return;
    }
    let at = call.now.saturating_add(grace.seconds()).unwrap_or(call.now);
    let generation = meta.generation();
    let metadata = metadata_mut(object);
    metadata.insert("deletionTimestamp".into(), api::meta::time(at).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    if generation > 0 && !already {
        metadata.insert("generation".into(), (generation + 1).into());
    }
    if object["kind"] == "Namespace" {
        object["status"]["phase"] = "Terminating".into();
    }
}

fn set_finalizers(object: &mut Value, policy: Option<&str>) {
    let had: Vec<String> = Meta::of(object).finalizers().map(Into::into).collect();
    let mut wanted: Vec<String> = had
        .iter()
        .filter(|f| *f != ORPHAN && *f != FOREGROUND)
        .cloned()
        .collect();
    wanted.extend(policy.map(Into::into));
    if wanted == had {
        return;
    }
    let metadata = metadata_mut(object);
    if wanted.is_empty() {
        metadata.shift_remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), json!(wanted));
    }
}

/// Seconds until an object may go; only pods have any.
fn grace_period(call: &Call, object: &Value, options: &DeleteOptions) -> i64 {
    let spec = &object["spec"];
    if object::storage(&call.stored) != "pods" {
        return 0;
    }
    let finished = matches!(
        object.pointer("/status/phase").and_then(Value::as_str),
        Some("Failed" | "Succeeded")
    );
    let unscheduled = spec["nodeName"].as_str().unwrap_or_default().is_empty();
    let wanted = options
        .grace_period_seconds
        .or(spec["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30);
    match wanted {
        _ if finished || unscheduled => 0,
        negative if negative < 0 => 1,
        seconds => seconds,
    }
}

/// Some kinds answer with the object that is gone, most with a `Status`.
fn deleted(call: &Call, object: Value) -> Reply {
    const WITH_OBJECT: [&str; 7] = [
        "pods",
        "services",
        "persistentvolumeclaims",
        "persistentvolumes",
        "serviceaccounts",
        "resourcequotas",
        "podtemplates",
    ];
    if WITH_OBJECT.contains(&object::storage(&call.stored)) {
        return Reply::Object {
            code: 200,
            value: object,
        };
    }
    let meta = Meta::of(&object);
    Reply::Other {
        code: 200,
        value: status::success(call.group_resource(), meta.name(), meta.uid()),
    }
}
