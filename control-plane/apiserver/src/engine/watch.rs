//! WATCH: the present state if wanted, then every change, as one stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::catalog::Resource;
use api::meta::metadata_mut;
use api::status::Status;
use bytes::Bytes;
use control_plane_store::{Entry, Revision, Snapshot, StoreError, Watch, WatchError, WatchEvent, WatchItem};
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, interval_at, timeout_at};

use crate::body;
use crate::call::{Call, Reply};
use crate::engine::list;
use crate::error::Result;
use crate::filter::Filter;
use crate::object;
use crate::options::ListOptions;
use crate::render::EventEncoder;

/// How often an idle watch tells how far it is, as upstream's watch cache.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long a watch lives when the client does not say: 30 to 60 minutes, spread so that not all end at once.
const SHORTEST: u64 = 1800;

/// Serves a watch.
pub(crate) async fn watch(call: &Call) -> Result<Reply> {
    let options = ListOptions::parse(&call.query, true)?;
    let mut filter_fields = options.field_selector.clone();
    if let Some(name) = call.info.name.as_deref() {
        filter_fields = format!("metadata.name={name}");
    }
    let filter = Filter::parse(&call.stored, &options.label_selector, &filter_fields)?;
    let prefix = object::prefix(&call.stored, call.namespace());
    let encoder = EventEncoder::new(call);
    let seconds = options
        .timeout
        .map_or(SHORTEST + crate::random::number() % SHORTEST, |t| t.as_secs());
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let stream = match start(call, &options, &prefix).await? {
        Start::At { watch, initial } => Stream {
            first: initial_events(&encoder, &filter, &options, &prefix, initial, call),
            live: Some(watch),
            res: Arc::clone(&call.stored),
            bookmarks: options
                .bookmarks
                .then(|| interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY)),
            deadline,
            filter,
            encoder,
        },
        Start::Expired(status) => Stream {
            first: VecDeque::from([encoder.error(&status)]),
            live: None,
            res: Arc::clone(&call.stored),
            bookmarks: None,
            deadline,
            filter,
            encoder,
        },
    };
    let content_type = stream.encoder.content_type();
    let chunks = futures::stream::unfold(
        stream,
        |mut s| async move { s.next().await.map(|chunk| (chunk, s)) },
    );
    Ok(Reply::Http(body::response(
        200,
        content_type,
        body::stream(chunks),
    )))
}

enum Start {
    At { watch: Watch, initial: Option<Snapshot> },
    Expired(Status),
}

/// Where the stream begins: with a state that is sent first, or after a version the client knows.
async fn start(call: &Call, options: &ListOptions, prefix: &[u8]) -> Result<Start> {
    let store = &call.server.inner.store;
    let version = options.version.unwrap_or(0);
    // Initial events were asked for, or the old way: no version means "from now, and what is there first".
    let with_state = options.send_initial_events.unwrap_or(version == 0);
    if with_state || version == 0 {
        let snapshot = match options.version {
            None => store.fresh().await?,
            Some(0) => store.snapshot(),
            Some(version) => list::not_older_than(call, version).await?,
        };
        let watch = store.watch(prefix, snapshot.revision())?;
        return Ok(Start::At {
            watch,
            initial: with_state.then_some(snapshot),
        });
    }
    match store.watch(prefix, Revision::new(version)) {
        Ok(watch) => Ok(Start::At { watch, initial: None }),
        Err(StoreError::Compacted { oldest }) => {
            Ok(Start::Expired(Status::gone_expired(version, oldest.get())))
        }
        Err(other) => Err(other.into()),
    }
}

/// The present state as ADDED events, and the bookmark that ends it when it was asked for by name.
fn initial_events(
    encoder: &EventEncoder,
    filter: &Filter,
    options: &ListOptions,
    prefix: &[u8],
    snapshot: Option<Snapshot>,
    call: &Call,
) -> VecDeque<Bytes> {
    let Some(snapshot) = snapshot else {
        return VecDeque::new();
    };
    let found = snapshot
        .range(prefix, prefix)
        .filter(|(_, entry)| filter.matches(&entry.value));
    let mut events: VecDeque<Bytes> = found
        .map(|(_, entry)| encoder.event("ADDED", &entry.value, entry.modified))
        .collect();
    if options.send_initial_events == Some(true) && options.bookmarks {
        let mut mark = bookmark(&call.stored, snapshot.revision());
        metadata_mut(&mut mark).insert("annotations".into(), json!({"k8s.io/initial-events-end": "true"}));
        events.push_back(encoder.value("BOOKMARK", &mark));
    }
    events
}

fn bookmark(res: &Resource, revision: Revision) -> Value {
    json!({"kind": res.kind, "apiVersion": res.api_version(),
        "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null}})
}

/// A watch that is being sent.
struct Stream {
    first: VecDeque<Bytes>,
    live: Option<Watch>,
    filter: Filter,
    encoder: EventEncoder,
    res: Arc<Resource>,
    bookmarks: Option<Interval>,
    deadline: Instant,
}

impl Stream {
    /// The next bytes to send; `None` ends the watch.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(chunk) = self.first.pop_front() {
            return Some(self.with_more(chunk));
        }
        loop {
            let event = timeout_at(self.deadline, self.wait()).await.ok()??;
            if let Some(chunk) = event {
                return Some(chunk);
            }
        }
    }

    /// Puts what is ready into one chunk: fewer, larger writes while the initial state is sent.
    fn with_more(&mut self, chunk: Bytes) -> Bytes {
        const ENOUGH: usize = 32 << 10;
        if self.first.is_empty() || chunk.len() > ENOUGH {
            return chunk;
        }
        let mut all = chunk.to_vec();
        while all.len() < ENOUGH {
            let Some(chunk) = self.first.pop_front() else {
                break;
            };
            all.extend_from_slice(&chunk);
        }
        all.into()
    }

    /// Waits for one thing to happen. Outer `None`: the watch ends. Inner `None`: nothing to send.
    async fn wait(&mut self) -> Option<Option<Bytes>> {
        let watch = self.live.as_mut()?;
        let item = tokio::select! {
            item = watch.next() => item?,
            () = tick(self.bookmarks.as_mut()) => {
                watch.request_progress();
                return Some(None);
            }
        };
        match item {
            Ok(WatchItem::Event(event)) => Some(self.change(&event)),
            Ok(WatchItem::Progress(revision)) => Some(Some(
                self.encoder.value("BOOKMARK", &bookmark(&self.res, revision)),
            )),
            Err(WatchError::Compacted) => {
                self.live = None;
                Some(Some(self.encoder.error(&Status::expired(
                    "the history after the last event is lost",
                ))))
            }
            // Too slow: closed without a word, as upstream does; the client lists again.
            Err(WatchError::Lagged) => None,
        }
    }

    /// What a change means to this watcher, whose selector may hold before, after, both or neither.
    fn change(&self, event: &WatchEvent) -> Option<Bytes> {
        let matching = |entry: &Option<Arc<Entry>>| entry.clone().filter(|e| self.filter.matches(&e.value));
        match (matching(&event.prev), matching(&event.entry)) {
            (None, None) => None,
            (None, Some(now)) => Some(self.encoder.event("ADDED", &now.value, event.revision)),
            (Some(_), Some(now)) => Some(self.encoder.event("MODIFIED", &now.value, event.revision)),
            // The last state that matched, at the version at which it stopped to.
            (Some(before), None) => Some(self.encoder.event("DELETED", &before.value, event.revision)),
        }
    }
}

async fn tick(interval: Option<&mut Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
