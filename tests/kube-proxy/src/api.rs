//! As much of the Kubernetes API as a service proxy reads: lists and watches of a few kinds, as JSON over HTTP on the
//! loopback address of a peer's own namespace.
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, BufWriter, Read as _, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where it listens.
pub const ADDRESS: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8001));
/// Events that a watcher may be behind; one that is slower is cut off and lists again.
const BEHIND: usize = 1024;

/// Events that a watcher may have missed between its list and its watch; one who missed more begins with what is left.
const KEPT: usize = 1024;

/// A kind that is served.
struct Kind {
    path: &'static str,
    kind: &'static str,
    api_version: &'static str,
    /// Each as its JSON text, made once, by namespace and name.
    items: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    kinds: Vec<Kind>,
    version: u64,
    watchers: Vec<(&'static str, SyncSender<String>)>,
    /// The newest events, with their versions.
    events: VecDeque<(u64, &'static str, String)>,
}

/// The server; clones share everything.
#[derive(Clone, Default)]
pub struct Api {
    state: Arc<Mutex<State>>,
}

/// Paths of the kinds.
pub mod path {
    pub const SERVICES: &str = "/api/v1/services";
    pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
    pub const NODES: &str = "/api/v1/nodes";
    pub const SERVICE_CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
}

/// Path, kind and version of what is served.
const KINDS: [(&str, &str, &str); 4] = [
    (path::SERVICES, "Service", "v1"),
    (path::SLICES, "EndpointSlice", "discovery.k8s.io/v1"),
    (path::NODES, "Node", "v1"),
    (path::SERVICE_CIDRS, "ServiceCIDR", "networking.k8s.io/v1"),
];

impl State {
    /// Changes the objects of a path, and tells its watchers what came of it.
    fn change(
        &mut self,
        path: &'static str,
        change: impl FnOnce(&mut BTreeMap<String, String>) -> Option<String>,
    ) {
        let kind = self.kinds.iter_mut().find(|k| k.path == path);
        let Some(line) = kind.and_then(|k| change(&mut k.items)) else {
            return;
        };
        self.version += 1;
        self.watchers
            .retain(|(of, watcher)| *of != path || watcher.try_send(line.clone()).is_ok());
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back((self.version, path, line));
    }
}

/// Namespace and name of an object; those without a namespace begin with a slash.
fn key(object: &Value) -> String {
    let of = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", of("namespace"), of("name"))
}

impl Api {
    /// Starts to serve these objects, by path, in the calling thread's network namespace.
    ///
    /// # Errors
    /// The port is taken.
    pub fn serve(objects: impl Fn(&str) -> Vec<Value>) -> Result<Self> {
        let api = Self::default();
        {
            let mut state = api.lock();
            state.version = 1;
            state.kinds = KINDS
                .into_iter()
                .map(|(path, kind, api_version)| Kind {
                    path,
                    kind,
                    api_version,
                    items: objects(path).iter().map(|o| (key(o), o.to_string())).collect(),
                })
                .collect();
        }
        let listener = TcpListener::bind(ADDRESS).context("the API's port")?;
        let served = api.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let api = served.clone();
                // A client that goes away ends its thread, nothing else.
                std::thread::spawn(move || api.connection(stream));
            }
        });
        Ok(api)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The resource version that the next change shall carry.
    pub fn next_version(&self) -> u64 {
        self.lock().version + 1
    }

    /// An object of `path` is there, or changed; it carries [`Api::next_version`].
    pub fn put(&self, path: &'static str, object: &Value) {
        let text = object.to_string();
        self.lock().change(path, |items| {
            let kind = if items.contains_key(&key(object)) {
                "MODIFIED"
            } else {
                "ADDED"
            };
            items.insert(key(object), text.clone());
            Some(event(kind, &text))
        });
    }

    /// An object is gone. One that was never there is not spoken of.
    pub fn delete(&self, path: &'static str, namespace: &str, name: &str) {
        self.lock().change(path, |items| {
            let last = items.remove(&format!("{namespace}/{name}"))?;
            Some(event("DELETED", &last))
        });
    }

    fn connection(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut out = BufWriter::with_capacity(1 << 16, stream);
        while let Some(request) = Request::read(&mut reader)? {
            if self.answer(&request, &mut out)? == Connection::Over {
                break;
            }
        }
        Ok(())
    }

    fn answer(&self, request: &Request, out: &mut impl Write) -> std::io::Result<Connection> {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let asks = |text: &str| query.split('&').any(|q| q == text);
        if request.method == "POST" {
            // Events, of which nobody reads more than that they arrived.
            return respond(out, "201 Created", EVENT);
        }
        let watch = asks("watch=true") || asks("watch=1");
        let since = query.split('&').find_map(|q| q.strip_prefix("resourceVersion="));
        let since = since.and_then(|v| v.parse().ok());
        let begin = match since {
            _ if asks("sendInitialEvents=true") => Begin::Everything,
            Some(version) => Begin::After(version),
            None => Begin::Now,
        };
        if watch && let Some((first, events)) = self.watch(path, begin) {
            follow(out, &first, &events)?;
            return Ok(Connection::Over);
        }
        match self.body(path, &Page::of(query)) {
            Some(body) => respond(out, "200 OK", body.as_bytes()),
            None => respond(out, "404 Not Found", &not_found(path)),
        }
    }

    /// A page of a list, or one object without a namespace by its name.
    fn body(&self, path: &str, page: &Page) -> Option<String> {
        let state = self.lock();
        if let Some(kind) = state.kinds.iter().find(|k| k.path == path) {
            let (items, next) = page.take(kind.items.values());
            return Some(format!(
                r#"{{"apiVersion":"{}","kind":"{}List","metadata":{{"resourceVersion":"{}"{next}}},"items":[{}]}}"#,
                kind.api_version,
                kind.kind,
                state.version,
                items.join(",")
            ));
        }
        let (parent, name) = path.rsplit_once('/')?;
        let kind = state.kinds.iter().find(|k| k.path == parent)?;
        kind.items.get(&format!("/{name}")).cloned()
    }

    /// Everything that a new watcher gets at once, and the channel with the rest.
    fn watch(&self, path: &str, begin: Begin) -> Option<(String, Receiver<String>)> {
        let mut state = self.lock();
        let version = state.version;
        let kind = state.kinds.iter().find(|k| k.path == path)?;
        let mut first = String::new();
        if let Begin::After(version) = begin {
            let missed = state
                .events
                .iter()
                .filter(|(v, of, _)| *v > version && *of == path);
            missed.for_each(|(_, _, line)| first.push_str(line));
        }
        if begin == Begin::Everything {
            for item in kind.items.values() {
                first.push_str(&event("ADDED", item));
            }
            let bookmark = json!({
                "apiVersion": kind.api_version,
                "kind": kind.kind,
                "metadata": {
                    "resourceVersion": version.to_string(),
                    "annotations": {"k8s.io/initial-events-end": "true"},
                },
            });
            first.push_str(&event("BOOKMARK", &bookmark.to_string()));
        }
        let path = kind.path;
        let (sender, receiver) = sync_channel(BEHIND);
        state.watchers.push((path, sender));
        Some((first, receiver))
    }
}

/// Which part of a list is asked for.
struct Page {
    from: usize,
    limit: usize,
}

impl Page {
    /// `limit` and `continue`, whose token is the number of objects before the page.
    fn of(query: &str) -> Self {
        let number = |name: &str| {
            let value = query
                .split('&')
                .find_map(|q| q.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|v| v.parse().ok())
        };
        Self {
            from: number("continue").unwrap_or(0),
            limit: number("limit").filter(|limit| *limit > 0).unwrap_or(usize::MAX),
        }
    }

    /// The objects of this page, and what the list says of the next one.
    fn take<'a>(&self, items: impl ExactSizeIterator<Item = &'a String>) -> (Vec<&'a str>, String) {
        let all = items.len();
        let taken: Vec<&str> = items
            .skip(self.from)
            .take(self.limit)
            .map(String::as_str)
            .collect();
        let end = self.from.saturating_add(taken.len());
        let next = if end < all {
            format!(r#","continue":"{end}""#)
        } else {
            String::new()
        };
        (taken, next)
    }
}

/// Writes a kubeconfig that leads here.
///
/// # Errors
/// The file cannot be written.
pub fn write_kubeconfig(path: &Path) -> Result<()> {
    let cluster = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": format!("http://{ADDRESS}")}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    std::fs::write(path, cluster.to_string()).context("the kubeconfig")
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn not_found(path: &str) -> Vec<u8> {
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404,
        "message": format!("{path} is not served"),
    })
    .to_string()
    .into_bytes()
}

/// The answer to an Event that is created.
const EVENT: &[u8] =
    br#"{"apiVersion":"events.k8s.io/v1","kind":"Event","metadata":{"name":"event","namespace":"default"}}"#;

/// With what a watch begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// Every object, and a bookmark after them.
    Everything,
    /// What happened after this version.
    After(u64),
    Now,
}

#[derive(PartialEq, Eq)]
enum Connection {
    GoesOn,
    Over,
}

fn respond(out: &mut impl Write, status: &str, body: &[u8]) -> std::io::Result<Connection> {
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )?;
    out.write_all(body)?;
    out.flush()?;
    Ok(Connection::GoesOn)
}

/// Sends events as they come, until the client goes.
fn follow(out: &mut impl Write, first: &str, events: &Receiver<String>) -> std::io::Result<()> {
    out.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    chunk(out, first)?;
    while let Ok(line) = events.recv() {
        chunk(out, &line)?;
    }
    chunk(out, "")
}

fn chunk(out: &mut impl Write, text: &str) -> std::io::Result<()> {
    if !text.is_empty() {
        write!(out, "{:x}\r\n{text}\r\n", text.len())?;
    }
    out.flush()
}

struct Request {
    method: String,
    target: String,
}

impl Request {
    /// The next request of a connection; none at its end.
    fn read(from: &mut impl BufRead) -> std::io::Result<Option<Self>> {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut length = 0;
        loop {
            let mut header = String::new();
            if from.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        std::io::copy(&mut from.by_ref().take(length), &mut std::io::sink())?;
        Ok(Some(Self { method, target }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_in_pages_of_the_asked_length() {
        let items = ["a", "b", "c"].map(str::to_owned);
        let page = |query: &str| {
            let (taken, next) = Page::of(query).take(items.iter());
            (taken.concat(), next)
        };
        assert_eq!(page(""), ("abc".to_owned(), String::new()));
        assert_eq!(
            page("limit=2&watch=false"),
            ("ab".to_owned(), r#","continue":"2""#.to_owned())
        );
        assert_eq!(page("limit=2&continue=2"), ("c".to_owned(), String::new()));
        assert_eq!(page("limit=0"), ("abc".to_owned(), String::new()));
    }
}
