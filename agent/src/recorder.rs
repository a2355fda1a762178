//! Pod and node events, written beside the work and dropped rather than waited for.

use agent_cri::Recorder;
use agent_pods::model::PodModel;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use std::collections::HashMap;
use tokio::sync::mpsc;

/// Events that wait to be written.
const WAITING: usize = 1024;
/// Events whose repetitions are counted instead of written anew.
const REMEMBERED: usize = 2048;
/// The component that events name; tools filter by upstream's.
const COMPONENT: &str = "kubelet";
/// The component of events about services.
const PROXY: &str = "kube-proxy";

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Note {
    component: &'static str,
    kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
    field: Option<String>,
    warning: bool,
    reason: &'static str,
    message: String,
}

/// Hands events to the writer.
#[derive(Clone)]
pub struct Events(mpsc::Sender<Note>);

impl Events {
    /// A queue and its other end.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Note>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    fn send(&self, note: Note) {
        if let Err(error) = self.0.try_send(note) {
            tracing::debug!(%error, "event dropped");
        }
    }

    /// Records something about the node itself.
    pub fn node(&self, name: &str, reason: &'static str, message: String) {
        self.send(Note {
            component: COMPONENT,
            kind: "Node",
            // Events of cluster-scoped objects live in the default namespace.
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: name.to_owned(),
            field: None,
            warning: false,
            reason,
            message,
        });
    }

    /// Warns about the node where services are concerned.
    pub fn services_warning(&self, node: &str, reason: &'static str, message: String) {
        self.send(Note {
            component: PROXY,
            kind: "Node",
            namespace: "default".to_owned(),
            name: node.to_owned(),
            uid: node.to_owned(),
            field: None,
            warning: true,
            reason,
            message,
        });
    }

    /// Warns about a service.
    pub fn service_warning(&self, namespace: &str, name: &str, reason: &'static str, message: String) {
        self.send(Note {
            component: PROXY,
            kind: "Service",
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: String::new(),
            field: None,
            warning: true,
            reason,
            message,
        });
    }

    fn pod(
        &self,
        pod: &PodModel,
        container: Option<&str>,
        warning: bool,
        reason: &'static str,
        message: String,
    ) {
        self.send(Note {
            component: COMPONENT,
            kind: "Pod",
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            field: container.map(|c| field(pod, c)),
            warning,
            reason,
            message,
        });
    }
}

fn field(pod: &PodModel, container: &str) -> String {
    use agent_pods::model::Role;
    let list = match pod.member(container).map(|m| m.role) {
        Some(Role::Init | Role::Sidecar) => "initContainers",
        Some(Role::Ephemeral) => "ephemeralContainers",
        _ => "containers",
    };
    format!("spec.{list}{{{container}}}")
}

impl Recorder for Events {
    fn normal(&self, pod: &PodModel, container: Option<&str>, reason: &'static str, message: String) {
        tracing::info!(
            pod = pod.name(),
            namespace = pod.namespace(),
            container,
            reason,
            "{message}"
        );
        self.pod(pod, container, false, reason, message);
    }

    fn warning(&self, pod: &PodModel, container: Option<&str>, reason: &'static str, message: String) {
        tracing::warn!(
            pod = pod.name(),
            namespace = pod.namespace(),
            container,
            reason,
            "{message}"
        );
        self.pod(pod, container, true, reason, message);
    }
}

/// Writes events until every sender is gone.
pub async fn write(client: Client, host: String, mut notes: mpsc::Receiver<Note>) {
    let mut written: HashMap<Note, (String, i32)> = HashMap::new();
    while let Some(note) = notes.recv().await {
        if written.len() >= REMEMBERED {
            written.clear();
        }
        let api: Api<Event> = Api::namespaced(client.clone(), &note.namespace);
        let known = written.get(&note).cloned();
        match put(&api, &host, &note, known).await {
            Ok(entry) => {
                written.insert(note, entry);
            }
            Err(error) => {
                written.remove(&note);
                tracing::debug!(%error, reason = note.reason, "event not written");
            }
        }
    }
}

async fn put(
    api: &Api<Event>,
    host: &str,
    note: &Note,
    known: Option<(String, i32)>,
) -> kube::Result<(String, i32)> {
    let now = Timestamp::now();
    let seconds = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    if let Some((name, count)) = known {
        let patch = serde_json::json!({"count": count + 1, "lastTimestamp": seconds});
        match api
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => return Ok((name, count + 1)),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let name = format!("{}.{:x}", note.name, now.as_nanosecond());
    api.create(&PostParams::default(), &event(host, note, &name, seconds))
        .await?;
    Ok((name, 1))
}

fn event(host: &str, note: &Note, name: &str, now: Time) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(note.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(note.kind.to_owned()),
            namespace: Some(note.namespace.clone()).filter(|_| note.kind != "Node"),
            name: Some(note.name.clone()),
            uid: Some(note.uid.clone()).filter(|uid| !uid.is_empty()),
            field_path: note.field.clone(),
            resource_version: None,
        },
        reason: Some(note.reason.to_owned()),
        message: Some(note.message.clone()),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        source: Some(EventSource {
            component: Some(note.component.to_owned()),
            host: Some(host.to_owned()),
        }),
        reporting_component: Some(note.component.to_owned()),
        reporting_instance: Some(host.to_owned()),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..Event::default()
    }
}
