//! One executor carries out the plans of all controllers.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use kube::Client;
use machinery_client::WriteBacks;
use machinery_plan::{Action, EventKind, Key, ObjectRef, Operation, Plan, ResourceType, Stage};
use tokio::sync::Semaphore;

use crate::events::{EventQueue, Note, Recorder};
use crate::request::request;

/// Requests of one executor that are under way at a time; more wait.
const IN_FLIGHT: usize = 64;

/// Largest number of actions of one stage that are under way at a time.
const STAGE_WIDTH: usize = 16;

/// What kind of refusal an action met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The object changed or is another one: the plan was out of date.
    Stale,
    /// The object, or the namespace to create it in, does not exist.
    NotFound,
    /// An object with this name exists.
    AlreadyExists,
    /// The namespace is being deleted: nothing can be created in it any more.
    NamespaceTerminating,
    /// The API server understood and said no.
    Refused,
    /// The API server could not be asked, or could not answer now.
    Unavailable,
}

/// Why a plan was not carried out to its end.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{action} failed: {message}")]
pub struct Failure {
    /// Which action, in words.
    pub action: String,
    /// What kind of failure.
    pub kind: FailureKind,
    /// What the API server said.
    pub message: String,
}

struct Shared {
    caches: WriteBacks,
    in_flight: Semaphore,
    events: EventQueue,
}

/// Carries out plans: stages in order, the actions of a stage side by side (1, 2, 4 … up to a bound), with the
/// preconditions each was planned under. Answers go back into the caches.
#[derive(Clone)]
pub struct Executor {
    client: Client,
    shared: Arc<Shared>,
    component: &'static str,
}

impl Executor {
    /// An executor over `client`, and the recorder of its events, which has to be run.
    #[must_use]
    pub fn new(client: Client, caches: WriteBacks) -> (Self, Recorder) {
        let (events, recorder) = Recorder::new(client.clone());
        let shared = Shared {
            caches,
            in_flight: Semaphore::new(IN_FLIGHT),
            events,
        };
        (
            Self {
                client,
                shared: Arc::new(shared),
                component: "skep",
            },
            recorder,
        )
    }

    /// The same executor, under the name that events are reported by.
    #[must_use]
    pub fn named(&self, component: &'static str) -> Self {
        Self {
            component,
            ..self.clone()
        }
    }

    /// The same executor, whose requests go through `client`: another user's. Events stay those of the first.
    #[must_use]
    pub fn acting(&self, client: Client) -> Self {
        Self {
            client,
            ..self.clone()
        }
    }

    /// The client that requests go through.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Carries out `plan`.
    ///
    /// # Errors
    /// The first failure; actions after it were not started.
    pub async fn carry_out(&self, plan: &Plan) -> Result<(), Failure> {
        for stage in &plan.stages {
            self.stage(stage).await?;
        }
        Ok(())
    }

    async fn stage(&self, stage: &Stage) -> Result<(), Failure> {
        let mut rest = stage.actions.as_slice();
        let mut width = 1;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(width.min(rest.len()));
            let futures: Vec<_> = now.iter().map(|action| self.act(action)).collect();
            stream::iter(futures)
                .buffer_unordered(STAGE_WIDTH)
                .try_collect::<()>()
                .await?;
            rest = later;
            width = (width * 2).min(STAGE_WIDTH * 4);
        }
        Ok(())
    }

    async fn act(&self, action: &Action) -> Result<(), Failure> {
        let Some(request) = request(action) else {
            self.note(action);
            return Ok(());
        };
        let permit = self
            .shared
            .in_flight
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let answer = self.client.request_text(request).await;
        drop(permit);
        match answer {
            Ok(text) => {
                self.announce(action, &text);
                self.confirm(action, &text);
            }
            Err(error) => return self.failed(action, error),
        }
        Ok(())
    }

    /// The name of a pod that a controller made is known only now; its owner's events tell it, as upstream's do.
    fn announce(&self, action: &Action, answer: &str) {
        let Operation::Create { body } = &action.operation else {
            return;
        };
        let Some((object, uid)) = controller_of(body).filter(|_| action.object.resource.kind == "Pod") else {
            return;
        };
        let created: Option<serde_json::Value> = serde_json::from_str(answer).ok();
        let Some(name) = created.as_ref().and_then(|pod| pod["metadata"]["name"].as_str()) else {
            return;
        };
        self.shared.events.send(Note {
            object,
            uid,
            kind: EventKind::Normal,
            reason: "SuccessfulCreate",
            message: format!("Created pod: {name}"),
            component: self.component,
        });
    }

    fn note(&self, action: &Action) {
        if let Operation::Event {
            kind,
            reason,
            message,
        } = &action.operation
        {
            self.shared.events.send(Note {
                object: action.object.clone(),
                uid: action.preconditions.uid.clone().unwrap_or_default(),
                kind: *kind,
                reason,
                message: message.clone(),
                component: self.component,
            });
        }
    }

    /// Feeds the answer back into the cache of the resource. Answers of `binding`, `eviction` and finished deletions
    /// are a `Status` and no object.
    fn confirm(&self, action: &Action, answer: &str) {
        let Some(cache) = self.shared.caches.of(&action.object.resource) else {
            return;
        };
        match &action.operation {
            Operation::Bind { .. } | Operation::Evict | Operation::Event { .. } => {}
            Operation::Delete { .. } if is_status(answer) => {
                cache.deleted(
                    &action.object.key,
                    action.preconditions.uid.as_deref().unwrap_or_default(),
                );
            }
            _ => cache.written(answer),
        }
    }

    fn failed(&self, action: &Action, error: kube::Error) -> Result<(), Failure> {
        let (kind, message) = classify(error);
        let deletion = matches!(action.operation, Operation::Delete { .. } | Operation::Evict);
        if deletion && kind == FailureKind::NotFound {
            if let Some(cache) = self.shared.caches.of(&action.object.resource) {
                cache.deleted(
                    &action.object.key,
                    action.preconditions.uid.as_deref().unwrap_or_default(),
                );
            }
            return Ok(());
        }
        Err(Failure {
            action: describe(action),
            kind,
            message,
        })
    }
}

/// The owner that controls an object, and its uid.
fn controller_of(body: &serde_json::Value) -> Option<(ObjectRef, String)> {
    let owners = body["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    let text = |field: &str| owner[field].as_str().map(str::to_owned);
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    let resource = ResourceType {
        group: group.to_owned().into(),
        version: version.to_owned().into(),
        // Every controller's kind in the API forms its plural so.
        plural: format!("{}s", kind.to_lowercase()).into(),
        kind: kind.into(),
        namespaced: true,
    };
    let namespace = body["metadata"]["namespace"].as_str().unwrap_or_default();
    let key = Key::new(namespace, text("name")?);
    Some((ObjectRef { resource, key }, text("uid")?))
}

fn is_status(answer: &str) -> bool {
    let value: Option<serde_json::Value> = serde_json::from_str(answer).ok();
    value.is_some_and(|value| value["kind"] == "Status")
}

fn classify(error: kube::Error) -> (FailureKind, String) {
    let kube::Error::Api(status) = error else {
        return (FailureKind::Unavailable, error.to_string());
    };
    let terminating = status.message.contains("because it is being terminated");
    let kind = match (status.code, status.reason.as_str()) {
        (403, _) if terminating => FailureKind::NamespaceTerminating,
        (_, "AlreadyExists") => FailureKind::AlreadyExists,
        (409, _) => FailureKind::Stale,
        (404, _) => FailureKind::NotFound,
        (429 | 500.., _) => FailureKind::Unavailable,
        _ => FailureKind::Refused,
    };
    (kind, status.message.clone())
}

fn describe(action: &Action) -> String {
    let verb = match &action.operation {
        Operation::Create { .. } => "create",
        Operation::Update { .. } => "update",
        Operation::Patch { .. } => "patch",
        Operation::Delete { .. } => "delete",
        Operation::Evict => "evict",
        Operation::Bind { .. } => "bind",
        Operation::Event { .. } => "event about",
    };
    match action.subresource() {
        Some(subresource) => format!("{verb} {} ({subresource})", action.object),
        None => format!("{verb} {}", action.object),
    }
}
