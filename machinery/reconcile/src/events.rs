//! Events: recorded beside the work, never in its way. Repetitions are counted on the Event that is there already.

use std::collections::{HashMap, VecDeque};

use http::{Method, Request};
use jiff::Timestamp;
use kube::Client;
use machinery_plan::{EventKind, ObjectRef};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Events that wait to be written; more are dropped, as losing one is better than waiting for it.
const WAITING: usize = 1024;

/// Events whose repetitions are recognised.
const REMEMBERED: usize = 1024;

/// An event to record.
#[derive(Debug)]
pub(crate) struct Note {
    pub object: ObjectRef,
    pub uid: String,
    pub kind: EventKind,
    pub reason: &'static str,
    pub message: String,
    pub component: &'static str,
}

#[derive(Clone)]
pub(crate) struct EventQueue(mpsc::Sender<Note>);

impl EventQueue {
    pub(crate) fn send(&self, note: Note) {
        if let Err(error) = self.0.try_send(note) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Signature {
    uid: String,
    reason: &'static str,
    message: String,
}

struct Written {
    path: String,
    count: u32,
}

/// Writes the events that an executor's plans contain.
pub struct Recorder {
    client: Client,
    notes: mpsc::Receiver<Note>,
    written: HashMap<Signature, Written>,
    order: VecDeque<Signature>,
}

impl Recorder {
    pub(crate) fn new(client: Client) -> (EventQueue, Self) {
        let (sender, notes) = mpsc::channel(WAITING);
        (
            EventQueue(sender),
            Self {
                client,
                notes,
                written: HashMap::new(),
                order: VecDeque::new(),
            },
        )
    }

    /// Writes events until every executor is gone or `stop` is ready.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                note = self.notes.recv() => match note {
                    Some(note) => self.write(&note).await,
                    None => return,
                },
            }
        }
    }

    async fn write(&mut self, note: &Note) {
        let now = Timestamp::now();
        let signature = Signature {
            uid: note.uid.clone(),
            reason: note.reason,
            message: note.message.clone(),
        };
        if let Some(written) = self.written.get_mut(&signature) {
            written.count += 1;
            let body = json!({"count": written.count, "lastTimestamp": seconds(now)});
            if self
                .client
                .request_text(build(Method::PATCH, &written.path, &body))
                .await
                .is_ok()
            {
                return;
            }
            // It expired, most likely; the event begins anew.
            self.written.remove(&signature);
        }
        let name = format!("{}.{:x}", note.object.key.name, now.as_nanosecond());
        let path = format!("/api/v1/namespaces/{}/events", namespace(note));
        match self
            .client
            .request_text(build(Method::POST, &path, &event(note, &name, now)))
            .await
        {
            Ok(_) => self.remember(
                signature,
                Written {
                    path: format!("{path}/{name}"),
                    count: 1,
                },
            ),
            Err(error) => tracing::debug!(%error, reason = note.reason, "event not written"),
        }
    }

    fn remember(&mut self, signature: Signature, written: Written) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.written.remove(&oldest);
        }
        self.order.push_back(signature.clone());
        self.written.insert(signature, written);
    }
}

/// Events about cluster-scoped objects stand in `default`.
fn namespace(note: &Note) -> &str {
    if note.object.key.namespace.is_empty() {
        "default"
    } else {
        &note.object.key.namespace
    }
}

fn build(method: Method, path: &str, body: &Value) -> Request<Vec<u8>> {
    let content_type = if method == Method::PATCH {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type);
    let body = serde_json::to_vec(body).expect("a JSON value can always be written");
    request
        .body(body)
        .expect("paths are made of API names, which are valid in URLs")
}

fn seconds(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn event(note: &Note, name: &str, now: Timestamp) -> Value {
    let object = &note.object;
    let mut involved = json!({
        "apiVersion": object.resource.api_version(),
        "kind": object.resource.kind,
        "name": object.key.name,
        "uid": note.uid,
    });
    if object.resource.namespaced {
        involved["namespace"] = json!(object.key.namespace);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace(note)},
        "involvedObject": involved,
        "reason": note.reason,
        "message": note.message,
        "type": format!("{:?}", note.kind),
        "source": {"component": note.component},
        "reportingComponent": note.component,
        "reportingInstance": "",
        "firstTimestamp": seconds(now),
        "lastTimestamp": seconds(now),
        "count": 1,
    })
}
