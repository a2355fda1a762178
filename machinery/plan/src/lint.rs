//! Rules that every plan keeps. Tests of planners run [`assert_clean`] on every plan they see.

use std::collections::HashSet;

use serde_json::Value;

use crate::action::{Action, Operation, PatchStrategy, Plan};

/// A rule that a plan breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A write to an existing object that would also hit a namesake.
    #[error("{0} is written without the uid it was planned for")]
    NoUid(String),
    /// A whole-object write that would undo what others wrote.
    #[error("{0} is replaced without the resource version it was planned for")]
    NoResourceVersion(String),
    /// Two actions of one stage on one object race with each other.
    #[error("{0} is touched twice in one stage")]
    TouchedTwice(String),
    /// The second action would be refused, as the first one moved the resource version.
    #[error("{0} is written again under the resource version that the plan itself outdates")]
    OutdatedByItself(String),
    /// The body does not say what it is.
    #[error("the body for {0} has apiVersion {1}, kind {2}")]
    WrongType(String, String, String),
    /// The body stands in another place than the action.
    #[error("the body for {0} names another object or namespace")]
    WrongPlace(String),
    /// A created object has no name, or an existing one none.
    #[error("{0} has no name")]
    NoName(String),
    /// An owner reference that the garbage collector would take for an absent owner.
    #[error("{0} has an owner reference without a uid")]
    OwnerWithoutUid(String),
    /// More than one owner calls itself controller.
    #[error("{0} has more than one controlling owner")]
    ManyControllers(String),
    /// A patch that says nothing.
    #[error("{0} is patched with nothing")]
    EmptyPatch(String),
    /// A delay of zero is a busy loop.
    #[error("the plan asks to be looked at again at once")]
    BusyLoop,
}

/// All rules that `plan` breaks.
#[must_use]
pub fn check(plan: &Plan) -> Vec<Violation> {
    let mut found: Vec<Violation> = plan.actions().flat_map(check_action).collect();
    let mut written = HashSet::new();
    for stage in &plan.stages {
        let mut here = HashSet::new();
        for action in stage.actions.iter().filter(|action| writes(action)) {
            if !here.insert(&action.object) {
                found.push(Violation::TouchedTwice(action.object.to_string()));
            }
            if action.preconditions.resource_version.is_some() && written.contains(&action.object) {
                found.push(Violation::OutdatedByItself(action.object.to_string()));
            }
        }
        written.extend(here);
    }
    if plan.requeue_after.is_some_and(|delay| delay.is_zero()) {
        found.push(Violation::BusyLoop);
    }
    found
}

/// Panics with all violations, if there are any.
///
/// # Panics
/// When the plan breaks a rule: it is for tests.
pub fn assert_clean(plan: &Plan) {
    let violations: Vec<String> = check(plan).iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{}", violations.join("; "));
}

/// Whether the action writes to a named existing object.
fn writes(action: &Action) -> bool {
    !matches!(action.operation, Operation::Event { .. }) && !action.object.key.name.is_empty()
}

fn check_action(action: &Action) -> Vec<Violation> {
    match &action.operation {
        Operation::Create { body } => check_create(action, body),
        Operation::Update { body, .. } => {
            let mut found = check_existing(action);
            if action.preconditions.resource_version.is_none() {
                found.push(Violation::NoResourceVersion(action.object.to_string()));
            }
            found.extend(check_body(action, body));
            found
        }
        Operation::Patch { strategy, body, .. } => {
            let mut found = check_existing(action);
            if is_empty_patch(*strategy, body) {
                found.push(Violation::EmptyPatch(action.object.to_string()));
            }
            found
        }
        Operation::Event { .. } => Vec::new(),
        Operation::Delete { .. } | Operation::Bind { .. } | Operation::Evict => check_existing(action),
    }
}

fn is_empty_patch(strategy: PatchStrategy, body: &Value) -> bool {
    match strategy {
        PatchStrategy::Json => body.as_array().is_none_or(Vec::is_empty),
        PatchStrategy::Merge | PatchStrategy::Strategic => {
            body.as_object().is_none_or(serde_json::Map::is_empty)
        }
    }
}

fn check_existing(action: &Action) -> Vec<Violation> {
    let mut found = Vec::new();
    if action.preconditions.uid.as_deref().is_none_or(str::is_empty) {
        found.push(Violation::NoUid(action.object.to_string()));
    }
    if action.object.key.name.is_empty() {
        found.push(Violation::NoName(action.object.to_string()));
    }
    found
}

fn check_create(action: &Action, body: &Value) -> Vec<Violation> {
    let mut found = check_body(action, body);
    let meta = &body["metadata"];
    if meta["name"].as_str().is_none_or(str::is_empty)
        && meta["generateName"].as_str().is_none_or(str::is_empty)
    {
        found.push(Violation::NoName(action.object.to_string()));
    }
    found
}

fn check_body(action: &Action, body: &Value) -> Vec<Violation> {
    let mut found = Vec::new();
    let what = action.object.to_string();
    let resource = &action.object.resource;
    let (api_version, kind) = (text(&body["apiVersion"]), text(&body["kind"]));
    if api_version != resource.api_version() || kind != resource.kind {
        found.push(Violation::WrongType(
            what.clone(),
            api_version.to_owned(),
            kind.to_owned(),
        ));
    }
    let meta = &body["metadata"];
    let namespaced = resource.namespaced != text(&meta["namespace"]).is_empty();
    if !namespaced
        || text(&meta["namespace"]) != action.object.key.namespace
        || text(&meta["name"]) != action.object.key.name
    {
        found.push(Violation::WrongPlace(what.clone()));
    }
    let owners = meta["ownerReferences"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if owners.iter().any(|owner| text(&owner["uid"]).is_empty()) {
        found.push(Violation::OwnerWithoutUid(what.clone()));
    }
    if owners.iter().filter(|owner| owner["controller"] == true).count() > 1 {
        found.push(Violation::ManyControllers(what));
    }
    found
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str) -> Pod {
        let text = |t: &str| Some(t.to_owned()).filter(|t| !t.is_empty());
        let metadata = ObjectMeta {
            namespace: text("default"),
            name: text(name),
            uid: text(uid),
            resource_version: text("7"),
            ..ObjectMeta::default()
        };
        Pod {
            metadata,
            ..Pod::default()
        }
    }

    fn plan_of(actions: impl IntoIterator<Item = Action>) -> Plan {
        let mut plan = Plan::nothing();
        plan.together(actions);
        plan
    }

    #[test]
    fn a_well_made_plan_is_clean() {
        let mut new = pod("", "");
        new.metadata.generate_name = Some("web-".to_owned());
        new.metadata.resource_version = None;
        let mut plan = plan_of([
            Action::create(&new),
            Action::create(&new),
            Action::delete(&pod("a", "1")),
        ]);
        plan.then(Action::bind(&pod("b", "2"), "node-1"));
        plan.requeue(Duration::from_secs(3));
        assert_clean(&plan);
    }

    #[test]
    fn a_deletion_without_a_uid_is_found() {
        let found = check(&plan_of([Action::delete(&pod("a", ""))]));
        assert_eq!(found, [Violation::NoUid("Pod default/a".to_owned())]);
    }

    #[test]
    fn an_object_without_a_name_or_namespace_is_found() {
        let found = check(&plan_of([Action::create(&ConfigMap::default())]));
        assert!(found.contains(&Violation::NoName("ConfigMap ".to_owned())));
        assert!(found.contains(&Violation::WrongPlace("ConfigMap ".to_owned())));
    }

    #[test]
    fn one_object_twice_in_a_stage_is_found() {
        let twice = [
            Action::delete(&pod("a", "1")),
            Action::merge(&pod("a", "1"), json!({"spec": {}})),
        ];
        assert_eq!(
            check(&plan_of(twice)),
            [Violation::TouchedTwice("Pod default/a".to_owned())]
        );
    }

    #[test]
    fn a_second_write_under_the_first_ones_version_is_found() {
        let mut plan = plan_of([Action::merge(&pod("a", "1"), json!({"spec": {}}))]);
        plan.then(Action::update(&pod("a", "1")));
        assert_eq!(
            check(&plan),
            [Violation::OutdatedByItself("Pod default/a".to_owned())]
        );
    }

    #[test]
    fn a_requeue_without_delay_is_found() {
        let mut plan = Plan::nothing();
        plan.requeue(Duration::ZERO);
        assert_eq!(check(&plan), [Violation::BusyLoop]);
    }
}
