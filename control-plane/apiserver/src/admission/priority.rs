//! Priority: a pod's class becomes its number.

use api::meta::Meta;
use api::status::Status;
use control_plane_store::Snapshot;
use serde_json::Value;

use crate::call::Call;
use crate::error::{Result, fail};
use crate::object;

const CLASSES: &str = "/registry/scheduling.k8s.io/priorityclasses/";

/// Resolves `priorityClassName`, or the global default class.
pub(super) fn admit(call: &Call, snapshot: &Snapshot, pod: &mut Value) -> Result<()> {
    let name = pod["spec"]["priorityClassName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let class = if name.is_empty() {
        global_default(snapshot)?
    } else {
        Some(named(call, snapshot, pod, &name)?)
    };
    let number = class.as_ref().and_then(|c| c["value"].as_i64()).unwrap_or(0);
    let refuse = |why: &str| {
        fail(Status::forbidden(
            call.group_resource(),
            Meta::of(pod).name(),
            why,
        ))
    };
    if let Some(given) = pod["spec"]["priority"].as_i64()
        && given != number
    {
        return refuse(&format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {number} from the given PriorityClass name"
        ));
    }
    let policy = class
        .as_ref()
        .and_then(|c| c["preemptionPolicy"].as_str())
        .unwrap_or("PreemptLowerPriority");
    if let Some(given) = pod["spec"]["preemptionPolicy"].as_str()
        && given != policy
    {
        return refuse(&format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        ));
    }
    let policy = Value::from(policy);
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    if let Some(class) = &class {
        spec.insert("priorityClassName".into(), Meta::of(class).name().into());
    }
    spec.insert("priority".into(), number.into());
    spec.insert("preemptionPolicy".into(), policy);
    Ok(())
}

fn named(call: &Call, snapshot: &Snapshot, pod: &Value, name: &str) -> Result<Value> {
    match snapshot.get(format!("{CLASSES}{name}").as_bytes()) {
        Some(entry) => object::value(entry),
        None => {
            let why = format!("no PriorityClass with name {name} was found");
            fail(Status::forbidden(
                call.group_resource(),
                Meta::of(pod).name(),
                &why,
            ))
        }
    }
}

/// The class that is meant when a pod names none: of several, the one with the lowest value.
fn global_default(snapshot: &Snapshot) -> Result<Option<Value>> {
    let mut found: Option<Value> = None;
    for (_, entry) in snapshot.range(CLASSES.as_bytes(), b"") {
        let class = object::value(entry)?;
        let value = |c: &Value| c["value"].as_i64().unwrap_or(0);
        if class["globalDefault"] == true && found.as_ref().is_none_or(|f| value(&class) < value(f)) {
            found = Some(class);
        }
    }
    Ok(found)
}
