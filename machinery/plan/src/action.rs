//! What a planner may ask for.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::object::{Key, Kubernetes, ObjectRef};

/// What must still hold for an action to be carried out; the API server checks it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Preconditions {
    /// The object is still this one and not a namesake.
    pub uid: Option<String>,
    /// The object has not changed at all.
    pub resource_version: Option<String>,
}

/// How dependents of a deleted object are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Propagation {
    /// The object goes at once, dependents follow.
    Background,
    /// Dependents that block go first.
    Foreground,
    /// Dependents stay and lose the reference.
    Orphan,
}

/// Patch formats of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PatchStrategy {
    /// RFC 7396.
    Merge,
    /// Merge by the list keys of the schema.
    Strategic,
    /// RFC 6902.
    Json,
}

/// The two types of Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum EventKind {
    /// Progress.
    Normal,
    /// Something an operator may have to look at.
    Warning,
}

/// One request to the API.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Operation {
    /// Create the object.
    Create {
        /// The whole object.
        body: Value,
    },
    /// Replace the object or a subresource.
    Update {
        /// The whole object.
        body: Value,
        /// `status`, `scale`, `finalize` …
        subresource: Option<&'static str>,
    },
    /// Patch the object or a subresource.
    Patch {
        /// Format of the patch.
        strategy: PatchStrategy,
        /// The patch, without preconditions: the executor adds them.
        body: Value,
        /// `status`, `scale` …
        subresource: Option<&'static str>,
    },
    /// Delete the object.
    Delete {
        /// What happens to dependents; the resource's default when absent.
        propagation: Option<Propagation>,
        /// Seconds a pod gets to end; the pod's own figure when absent.
        grace_seconds: Option<i64>,
    },
    /// Ask for the eviction of a pod, which disruption budgets may refuse.
    Evict,
    /// Bind a pod to a node.
    Bind {
        /// Name of the node.
        node: String,
    },
    /// Record an Event about the object. Repetitions are counted, not repeated.
    Event {
        /// Normal or warning.
        kind: EventKind,
        /// CamelCase reason.
        reason: &'static str,
        /// For people.
        message: String,
    },
}

/// One step of a plan: what to do to which object under which preconditions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Action {
    /// The object.
    pub object: ObjectRef,
    /// What must still hold.
    pub preconditions: Preconditions,
    /// What to do.
    pub operation: Operation,
}

impl Action {
    /// Creates `object`.
    pub fn create<K: Kubernetes>(object: &K) -> Self {
        let body = to_json(object);
        Self::plain(ObjectRef::to(object), Operation::Create { body })
    }

    /// Replaces `object`, if it has not changed since it was observed.
    pub fn update<K: Kubernetes>(object: &K) -> Self {
        let operation = Operation::Update {
            body: to_json(object),
            subresource: None,
        };
        Self::unchanged(object, operation)
    }

    /// Replaces a subresource of `object`, if the object has not changed since it was observed.
    pub fn update_subresource<K: Kubernetes>(object: &K, subresource: &'static str) -> Self {
        let operation = Operation::Update {
            body: to_json(object),
            subresource: Some(subresource),
        };
        Self::unchanged(object, operation)
    }

    /// Merge-patches `object` if it has not changed since it was observed.
    pub fn merge<K: Kubernetes>(object: &K, body: Value) -> Self {
        Self::unchanged(
            object,
            Operation::Patch {
                strategy: PatchStrategy::Merge,
                body,
                subresource: None,
            },
        )
    }

    /// Merge-patches `object` whatever changed since, as long as it is the same object: for patches that touch
    /// nothing anybody else writes.
    pub fn merge_same<K: Kubernetes>(object: &K, body: Value) -> Self {
        Self::same(
            object,
            Operation::Patch {
                strategy: PatchStrategy::Merge,
                body,
                subresource: None,
            },
        )
    }

    /// Strategic-merge-patches `object` if it is still the same one.
    pub fn strategic<K: Kubernetes>(object: &K, body: Value) -> Self {
        Self::same(
            object,
            Operation::Patch {
                strategy: PatchStrategy::Strategic,
                body,
                subresource: None,
            },
        )
    }

    /// Sets the whole status of `object`, if it has not changed since it was observed.
    pub fn status<K: Kubernetes, S: Serialize>(object: &K, status: &S) -> Self {
        let mut new = to_json(object);
        new["status"] = to_json(status);
        Self::unchanged(
            object,
            Operation::Update {
                body: new,
                subresource: Some("status"),
            },
        )
    }

    /// Strategic-merge-patches the status of `object` (conditions merge by type), if it is still the same object.
    pub fn patch_status<K: Kubernetes>(object: &K, status: Value) -> Self {
        let body = json!({ "status": status });
        Self::same(
            object,
            Operation::Patch {
                strategy: PatchStrategy::Strategic,
                body,
                subresource: Some("status"),
            },
        )
    }

    /// Deletes `object` and nothing else that may have taken its name.
    pub fn delete<K: Kubernetes>(object: &K) -> Self {
        Self::same(
            object,
            Operation::Delete {
                propagation: None,
                grace_seconds: None,
            },
        )
    }

    /// Deletes `object` with a propagation policy or a grace period of its own.
    pub fn delete_with<K: Kubernetes>(
        object: &K,
        propagation: Option<Propagation>,
        grace_seconds: Option<i64>,
    ) -> Self {
        Self::same(
            object,
            Operation::Delete {
                propagation,
                grace_seconds,
            },
        )
    }

    /// Deletes `object` only if nothing about it changed since it was observed.
    pub fn delete_unchanged<K: Kubernetes>(object: &K) -> Self {
        Self::unchanged(
            object,
            Operation::Delete {
                propagation: None,
                grace_seconds: None,
            },
        )
    }

    /// Binds a pod to a node.
    pub fn bind(pod: &k8s_openapi::api::core::v1::Pod, node: impl Into<String>) -> Self {
        Self::same(pod, Operation::Bind { node: node.into() })
    }

    /// Evicts a pod.
    pub fn evict(pod: &k8s_openapi::api::core::v1::Pod) -> Self {
        Self::same(pod, Operation::Evict)
    }

    /// Records an Event about `object`.
    pub fn event<K: Kubernetes>(
        object: &K,
        kind: EventKind,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::same(
            object,
            Operation::Event {
                kind,
                reason,
                message: message.into(),
            },
        )
    }

    /// Creates an object whose type is only known at run time.
    #[must_use]
    pub fn plain(object: ObjectRef, operation: Operation) -> Self {
        Self {
            object,
            preconditions: Preconditions::default(),
            operation,
        }
    }

    fn same<K: Kubernetes>(object: &K, operation: Operation) -> Self {
        let preconditions = Preconditions {
            uid: object.metadata().uid.clone(),
            resource_version: None,
        };
        Self {
            object: ObjectRef::to(object),
            preconditions,
            operation,
        }
    }

    fn unchanged<K: Kubernetes>(object: &K, operation: Operation) -> Self {
        let meta = object.metadata();
        let preconditions = Preconditions {
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
        };
        Self {
            object: ObjectRef::to(object),
            preconditions,
            operation,
        }
    }

    /// The subresource that the action writes to.
    #[must_use]
    pub fn subresource(&self) -> Option<&'static str> {
        match self.operation {
            Operation::Update { subresource, .. } | Operation::Patch { subresource, .. } => subresource,
            Operation::Bind { .. } => Some("binding"),
            Operation::Evict => Some("eviction"),
            _ => None,
        }
    }
}

fn to_json<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object)
        .expect("Kubernetes types have string keys only, so they are always valid JSON")
}

/// Actions that may be carried out at the same time. The executor starts slowly (1, 2, 4 …), so that a stage that
/// cannot succeed costs one refused request and not hundreds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stage {
    /// The actions, on different objects.
    pub actions: Vec<Action>,
}

/// What a planner returns: stages in order, and when to look again even if nothing changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// Carried out in order; a failure in one leaves out the following ones.
    pub stages: Vec<Stage>,
    /// Look again after this time.
    pub requeue_after: Option<Duration>,
}

impl Plan {
    /// Nothing to do.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Adds one action that starts after all before it have succeeded.
    pub fn then(&mut self, action: Action) {
        self.stages.push(Stage {
            actions: vec![action],
        });
    }

    /// Adds actions that may run at the same time, after all before them have succeeded.
    pub fn together(&mut self, actions: impl IntoIterator<Item = Action>) {
        let actions: Vec<_> = actions.into_iter().collect();
        if !actions.is_empty() {
            self.stages.push(Stage { actions });
        }
    }

    /// Looks again after `delay` at the latest.
    pub fn requeue(&mut self, delay: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(delay, |earlier| earlier.min(delay)));
    }

    /// Appends another plan.
    pub fn extend(&mut self, other: Self) {
        self.stages.extend(other.stages);
        if let Some(delay) = other.requeue_after {
            self.requeue(delay);
        }
    }

    /// All actions in order.
    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        self.stages.iter().flat_map(|stage| &stage.actions)
    }

    /// Whether there is nothing to do now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Keys of the objects that a test may want to see deleted.
    #[must_use]
    pub fn deletions(&self) -> Vec<&Key> {
        let deletes = self
            .actions()
            .filter(|a| matches!(a.operation, Operation::Delete { .. }));
        deletes.map(|a| &a.object.key).collect()
    }

    /// Bodies of the objects that the plan creates.
    #[must_use]
    pub fn creations(&self) -> Vec<&Value> {
        self.actions()
            .filter_map(|a| {
                if let Operation::Create { body } = &a.operation {
                    Some(body)
                } else {
                    None
                }
            })
            .collect()
    }
}
