//! What becomes of one object.

use std::sync::Arc;

use machinery_plan::{Action, Operation, PatchStrategy, Plan, Preconditions, Propagation};
use serde_json::{Value, json};

use super::graph::{Object, Owner};
use super::{FOREGROUND, ORPHAN};

/// How an owner stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// It exists and is not waiting for dependents.
    Present,
    /// It waits for its dependents to be gone.
    Waiting,
    /// It does not exist: the API server said so, not just a cache.
    Absent,
    /// Its kind is not served, or it stands where it cannot be an owner; nothing can be concluded from that.
    Unresolvable,
}

/// The object under decision with its relations.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The object.
    pub object: Arc<Object>,
    /// Its owners, each with how it stands.
    pub owners: Vec<(Owner, OwnerState)>,
    /// Objects that name it as an owner.
    pub dependents: Vec<Arc<Object>>,
}

/// What the planner looks at; none if the object is gone.
pub type Observed = Option<Subject>;

/// Decides about one object.
#[must_use]
pub fn plan(observed: &Observed) -> Plan {
    let mut plan = Plan::nothing();
    let Some(subject) = observed else { return plan };
    let object = subject.object.as_ref();
    if object.orphans_dependents() {
        set_dependents_free(subject, &mut plan);
    } else if object.waits_for_dependents() {
        let blocked = subject
            .dependents
            .iter()
            .any(|dependent| blocks(dependent, &object.uid));
        if !blocked {
            plan.then(without_finalizer(object, FOREGROUND));
        }
    } else if !object.deleting {
        by_owners(subject, &mut plan);
    }
    plan
}

fn blocks(dependent: &Object, owner: &str) -> bool {
    dependent
        .owners
        .iter()
        .any(|reference| reference.uid == owner && reference.blocks)
}

fn set_dependents_free(subject: &Subject, plan: &mut Plan) {
    let owner = subject.object.uid.as_str();
    let others: Vec<_> = subject
        .dependents
        .iter()
        .filter(|dependent| dependent.uid != owner)
        .collect();
    plan.together(
        others
            .into_iter()
            .map(|dependent| without_owners(dependent, &[owner])),
    );
    plan.then(without_finalizer(&subject.object, ORPHAN));
}

fn by_owners(subject: &Subject, plan: &mut Plan) {
    let object = subject.object.as_ref();
    let of = |state: OwnerState| {
        subject
            .owners
            .iter()
            .filter(move |(_, held)| *held == state)
            .map(|(owner, _)| owner)
    };
    if subject.owners.is_empty() || of(OwnerState::Unresolvable).next().is_some() {
        return;
    }
    let gone: Vec<&str> = of(OwnerState::Absent)
        .chain(of(OwnerState::Waiting))
        .map(|owner| owner.uid.as_str())
        .collect();
    if gone.is_empty() {
        return;
    }
    if of(OwnerState::Present).next().is_some() {
        plan.then(without_owners(object, &gone));
        return;
    }
    let waiting = of(OwnerState::Waiting).next().is_some();
    if waiting && !subject.dependents.is_empty() {
        // Two that wait for each other would wait forever.
        let circle = subject
            .dependents
            .iter()
            .any(|dependent| dependent.waits_for_dependents());
        if circle && object.owners.iter().any(|owner| owner.blocks) {
            plan.then(unblocked(object));
            return;
        }
        plan.then(delete(object, Propagation::Foreground));
    } else {
        plan.then(delete(object, inherited(object)));
    }
}

/// Finalizers say how the object's own dependents are to be treated.
fn inherited(object: &Object) -> Propagation {
    let has = |name: &str| object.finalizers.iter().any(|finalizer| finalizer == name);
    match (has(ORPHAN), has(FOREGROUND)) {
        (true, _) => Propagation::Orphan,
        (_, true) => Propagation::Foreground,
        _ => Propagation::Background,
    }
}

/// The version is part of the condition: the owner references must still be those that were judged.
fn delete(object: &Object, propagation: Propagation) -> Action {
    act(
        object,
        Operation::Delete {
            propagation: Some(propagation),
            grace_seconds: None,
        },
    )
}

fn without_owners(object: &Object, owners: &[&str]) -> Action {
    // The list may hold more per owner than is kept here, so entries are removed one by one and not rewritten.
    let gone = |owner: &&Owner| owners.contains(&owner.uid.as_str());
    let items: Vec<Value> = object
        .owners
        .iter()
        .filter(gone)
        .map(|owner| json!({"$patch": "delete", "uid": owner.uid}))
        .collect();
    patch(
        object,
        PatchStrategy::Strategic,
        json!({"metadata": {"ownerReferences": items}}),
    )
}

fn unblocked(object: &Object) -> Action {
    let items: Vec<Value> = object
        .owners
        .iter()
        .map(|owner| json!({"uid": owner.uid, "blockOwnerDeletion": false}))
        .collect();
    patch(
        object,
        PatchStrategy::Strategic,
        json!({"metadata": {"ownerReferences": items}}),
    )
}

fn without_finalizer(object: &Object, finalizer: &str) -> Action {
    let rest: Vec<&String> = object
        .finalizers
        .iter()
        .filter(|held| *held != finalizer)
        .collect();
    patch(
        object,
        PatchStrategy::Merge,
        json!({"metadata": {"finalizers": rest}}),
    )
}

fn patch(object: &Object, strategy: PatchStrategy, body: Value) -> Action {
    act(
        object,
        Operation::Patch {
            strategy,
            body,
            subresource: None,
        },
    )
}

fn act(object: &Object, operation: Operation) -> Action {
    let preconditions = Preconditions {
        uid: Some(object.uid.clone()),
        resource_version: Some(object.resource_version.clone()),
    };
    Action {
        object: object.object.clone(),
        preconditions,
        operation,
    }
}
