//! LimitRanger: default resources of containers, and bounds on containers, pods and claims.
//! <https://kubernetes.io/docs/concepts/policy/limit-range/>

use std::collections::BTreeMap;

use api::meta::Meta;
use api::quantity::{Format, Quantity};
use api::status::Status;
use control_plane_store::Snapshot;
use serde_json::{Map, Value, json};

use crate::call::Call;
use crate::error::{Result, fail};
use crate::object;

type Resources = BTreeMap<String, Quantity>;

/// Gives containers of a new pod the defaults of the namespace and checks its bounds.
pub(super) fn pod(call: &Call, snapshot: &Snapshot, pod: &mut Value) -> Result<()> {
    let items = items(call, snapshot)?;
    for item in items.iter().filter(|i| i["type"] == "Container") {
        set_defaults(item, pod);
    }
    let mut broken = Vec::new();
    for item in &items {
        match item["type"].as_str() {
            Some("Container") => {
                for container in containers(pod) {
                    check(
                        item,
                        &used(container, "requests"),
                        &used(container, "limits"),
                        &mut broken,
                    );
                }
            }
            Some("Pod") => check(item, &total(pod, "requests"), &total(pod, "limits"), &mut broken),
            _ => {}
        }
    }
    refuse(call, pod, broken)
}

/// Checks the bounds on a new claim.
pub(super) fn claim(call: &Call, snapshot: &Snapshot, claim: &Value) -> Result<()> {
    let mut broken = Vec::new();
    for item in items(call, snapshot)?
        .iter()
        .filter(|i| i["type"] == "PersistentVolumeClaim")
    {
        let asked = resources(&claim["spec"]["resources"]["requests"]);
        check(item, &asked, &Resources::new(), &mut broken);
    }
    refuse(call, claim, broken)
}

fn refuse(call: &Call, object: &Value, broken: Vec<String>) -> Result<()> {
    let why = match broken.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    fail(Status::forbidden(
        call.group_resource(),
        Meta::of(object).name(),
        &why,
    ))
}

/// Every item of every limit range of the namespace.
fn items(call: &Call, snapshot: &Snapshot) -> Result<Vec<Value>> {
    let prefix = format!("/registry/limitranges/{}/", call.namespace().unwrap_or_default());
    let mut items = Vec::new();
    for (_, entry) in snapshot.range(prefix.as_bytes(), b"") {
        let range = object::value(entry)?;
        items.extend(range["spec"]["limits"].as_array().into_iter().flatten().cloned());
    }
    Ok(items)
}

fn set_defaults(item: &Value, pod: &mut Value) {
    let mut notes = Vec::new();
    for (list, word) in [("initContainers", "init container"), ("containers", "container")] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (part, defaults, what) in [
                ("requests", "defaultRequest", "request"),
                ("limits", "default", "limit"),
            ] {
                let set = fill(container, part, &item[defaults]);
                if !set.is_empty() {
                    notes.push(format!("{} {what} for {word} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        api::meta::metadata_mut(pod);
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        api::meta::map_mut(&mut pod["metadata"], "annotations")
            .insert("kubernetes.io/limit-ranger".into(), note.into());
    }
}

/// Sets what the container leaves out; the names that were set, sorted.
fn fill(container: &mut Value, part: &str, defaults: &Value) -> Vec<String> {
    let Some(defaults) = defaults.as_object().filter(|d| !d.is_empty()) else {
        return Vec::new();
    };
    if !container["resources"].is_object() {
        container["resources"] = json!({});
    }
    let Some(resources) = container["resources"].as_object_mut() else {
        return Vec::new();
    };
    let list = resources.entry(part).or_insert_with(|| json!({}));
    if list.is_null() {
        *list = json!({});
    }
    let Some(list) = list.as_object_mut() else {
        return Vec::new();
    };
    let missing: Vec<String> = defaults
        .keys()
        .filter(|name| !list.contains_key(*name))
        .cloned()
        .collect();
    for name in &missing {
        list.insert(name.clone(), defaults[name].clone());
    }
    let mut set = missing;
    set.sort();
    set
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let list = |name: &str| pod["spec"][name].as_array().into_iter().flatten();
    list("initContainers").chain(list("containers"))
}

fn resources(map: &Value) -> Resources {
    let pairs = map.as_object().into_iter().flat_map(Map::iter);
    pairs
        .filter_map(|(name, value)| Some((name.clone(), Quantity::from_json(value).ok()?)))
        .collect()
}

fn used(container: &Value, part: &str) -> Resources {
    resources(&container["resources"][part])
}

/// What a pod needs: the sum of its containers, or the largest init container where that is more.
fn total(pod: &Value, part: &str) -> Resources {
    let list = |name: &str| pod["spec"][name].as_array().into_iter().flatten();
    let mut sum = Resources::new();
    for container in list("containers") {
        for (name, amount) in used(container, part) {
            let have = sum.get(&name).copied();
            sum.insert(name, have.map_or(amount, |have| have + amount));
        }
    }
    for container in list("initContainers") {
        for (name, amount) in used(container, part) {
            let have = sum.get(&name).copied();
            sum.insert(name, have.map_or(amount, |have| have.max(amount)));
        }
    }
    sum
}

fn check(item: &Value, requests: &Resources, limits: &Resources, broken: &mut Vec<String>) {
    let kind = item["type"].as_str().unwrap_or_default();
    for (name, least) in resources(&item["min"]) {
        minimum(kind, &name, least, requests.get(&name), limits.get(&name), broken);
    }
    for (name, most) in resources(&item["max"]) {
        maximum(kind, &name, most, requests.get(&name), limits.get(&name), broken);
    }
    for (name, ratio) in resources(&item["maxLimitRequestRatio"]) {
        proportion(kind, &name, ratio, requests.get(&name), limits.get(&name), broken);
    }
}

fn minimum(
    kind: &str,
    name: &str,
    least: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
    broken: &mut Vec<String>,
) {
    let start = format!("minimum {name} usage per {kind} is {least}");
    match request {
        None => broken.push(format!("{start}.  No request is specified")),
        Some(request) if *request < least => broken.push(format!("{start}, but request is {request}")),
        Some(_) => {}
    }
    if let Some(limit) = limit.filter(|limit| **limit < least) {
        broken.push(format!("{start}, but limit is {limit}"));
    }
}

fn maximum(
    kind: &str,
    name: &str,
    most: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
    broken: &mut Vec<String>,
) {
    let start = format!("maximum {name} usage per {kind} is {most}");
    match limit {
        // A claim has requests only.
        None if kind == "PersistentVolumeClaim" => {}
        None => broken.push(format!("{start}.  No limit is specified")),
        Some(limit) if *limit > most => broken.push(format!("{start}, but limit is {limit}")),
        Some(_) => {}
    }
    if let Some(request) = request.filter(|request| **request > most) {
        broken.push(format!("{start}, but request is {request}"));
    }
}

fn proportion(
    kind: &str,
    name: &str,
    ratio: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
    broken: &mut Vec<String>,
) {
    let start = format!("{name} max limit to request ratio per {kind} is {ratio}");
    let (Some(request), Some(limit)) = (request, limit) else {
        return broken.push(format!("{start}, but no request is specified or request is 0"));
    };
    if request.is_zero() {
        return broken.push(format!("{start}, but no request is specified or request is 0"));
    }
    let observed = limit.as_f64() / request.as_f64();
    if observed > ratio.as_f64() {
        // To three digits, which is what a ratio is written with.
        let shown = Quantity::from_milli((observed * 1000.0).round() as i64, Format::Decimal);
        broken.push(format!("{start}, but provided ratio is {shown}"));
    }
}
