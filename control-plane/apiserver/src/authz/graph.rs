//! What runs where, and what it refers to: the edges from nodes over their pods to the objects these pods need, by which
//! the node authorizer decides. Pods are followed through a watch that is read when a question is asked; a write that was
//! acknowledged before the question is therefore always known.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use control_plane_store::{Store, Watch, WatchItem};
use futures::FutureExt as _;
use serde_json::Value;

/// Where pods are stored.
const PODS: &[u8] = b"/registry/pods/";
/// Pods that a node made for itself refer to nothing: the node could otherwise give itself any secret.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What a pod can refer to in its own namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    ConfigMap,
    Secret,
    Claim,
    Account,
}

/// The edges, as of the last question.
#[derive(Default)]
pub(super) struct Graph(Mutex<Option<Known>>);

struct Known {
    watch: Watch,
    edges: Edges,
}

/// Pods by storage key, with what each refers to.
type Pods = HashMap<Box<[u8]>, Vec<(Kind, Box<str>)>>;

#[derive(Default)]
struct Edges {
    /// Pods of each node.
    nodes: HashMap<Box<str>, Pods>,
    /// The node of each pod.
    homes: HashMap<Box<[u8]>, Box<str>>,
}

impl Graph {
    /// Whether a pod of the node refers to this object.
    pub(super) fn uses(&self, store: &Store, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let current = known
            .take()
            .and_then(Known::caught_up)
            .or_else(|| Known::read(store));
        let answer = current
            .as_ref()
            .is_some_and(|k| k.edges.uses(node, kind, namespace, name));
        *known = current;
        answer
    }
}

impl Known {
    /// All pods there are. None when the store is closing: then nobody is told anything any more.
    fn read(store: &Store) -> Option<Self> {
        let snapshot = store.snapshot();
        let watch = store.watch(PODS, snapshot.revision()).ok()?;
        let mut edges = Edges::default();
        for (key, entry) in snapshot.range(PODS, b"") {
            edges.put(key, &entry.value);
        }
        Self { watch, edges }.caught_up()
    }

    /// With every change so far. None when the watch was cut off, which it is when nobody asked for long.
    fn caught_up(mut self) -> Option<Self> {
        // Waits for a change that is being made known just now.
        self.watch.request_progress();
        loop {
            // The runtime's fairness must not end this early.
            match tokio::task::unconstrained(self.watch.next()).now_or_never() {
                None => return Some(self),
                Some(Some(Ok(WatchItem::Event(event)))) => match &event.entry {
                    Some(entry) => self.edges.put(&event.key, &entry.value),
                    None => self.edges.remove(&event.key),
                },
                Some(Some(Ok(WatchItem::Progress(_)))) => {}
                Some(None | Some(Err(_))) => return None,
            }
        }
    }
}

impl Edges {
    fn put(&mut self, key: &[u8], pod: &[u8]) {
        let pod: Value = serde_json::from_slice(pod).unwrap_or_default();
        self.remove(key);
        let Some(node) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) else {
            return;
        };
        self.homes.insert(key.into(), node.into());
        let pods = self.nodes.entry(node.into()).or_default();
        pods.insert(key.into(), references(&pod));
    }

    fn remove(&mut self, key: &[u8]) {
        let Some(node) = self.homes.remove(key) else {
            return;
        };
        if let Some(pods) = self.nodes.get_mut(&node) {
            pods.remove(key);
            if pods.is_empty() {
                self.nodes.remove(&node);
            }
        }
    }

    fn uses(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let prefix = [PODS, namespace.as_bytes(), b"/"].concat();
        let pods = self.nodes.get(node).into_iter().flatten();
        pods.filter(|(key, _)| key.starts_with(&prefix))
            .any(|(_, refs)| refs.iter().any(|(of, to)| *of == kind && **to == *name))
    }
}

/// Everything a pod refers to, each once.
fn references(pod: &Value) -> Vec<(Kind, Box<str>)> {
    if pod["metadata"]["annotations"].get(MIRROR).is_some() {
        return Vec::new();
    }
    let spec = &pod["spec"];
    let mut found = Found::default();
    found.add(Kind::Account, &spec["serviceAccountName"]);
    for secret in items(&spec["imagePullSecrets"]) {
        found.add(Kind::Secret, &secret["name"]);
    }
    for volume in items(&spec["volumes"]) {
        found.volume(volume, pod);
    }
    for containers in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items(&spec[containers]) {
            found.environment(container);
        }
    }
    found.0
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[derive(Default)]
struct Found(Vec<(Kind, Box<str>)>);

impl Found {
    fn add(&mut self, kind: Kind, name: &Value) {
        let Some(name) = name.as_str().filter(|n| !n.is_empty()) else {
            return;
        };
        if !self.0.iter().any(|(of, to)| *of == kind && **to == *name) {
            self.0.push((kind, name.into()));
        }
    }

    fn volume(&mut self, volume: &Value, pod: &Value) {
        self.add(Kind::Secret, &volume["secret"]["secretName"]);
        self.add(Kind::ConfigMap, &volume["configMap"]["name"]);
        self.add(Kind::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        for source in items(&volume["projected"]["sources"]) {
            self.add(Kind::Secret, &source["secret"]["name"]);
            self.add(Kind::ConfigMap, &source["configMap"]["name"]);
        }
        if volume["ephemeral"].is_object() {
            let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let claim = format!("{}-{}", part(&pod["metadata"]["name"]), part(&volume["name"]));
            self.add(Kind::Claim, &claim.into());
        }
        self.add(Kind::Secret, &volume["azureFile"]["secretName"]);
        self.add(Kind::Secret, &volume["csi"]["nodePublishSecretRef"]["name"]);
        // cephfs, flexVolume, iscsi, rbd, scaleIO and storageos call it all the same.
        for source in volume.as_object().into_iter().flat_map(|v| v.values()) {
            self.add(Kind::Secret, &source["secretRef"]["name"]);
        }
    }

    fn environment(&mut self, container: &Value) {
        for variable in items(&container["env"]) {
            let from = &variable["valueFrom"];
            self.add(Kind::Secret, &from["secretKeyRef"]["name"]);
            self.add(Kind::ConfigMap, &from["configMapKeyRef"]["name"]);
        }
        for from in items(&container["envFrom"]) {
            self.add(Kind::Secret, &from["secretRef"]["name"]);
            self.add(Kind::ConfigMap, &from["configMapRef"]["name"]);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &[u8] = b"/registry/pods/n/p";

    fn pod(node: &str) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "file"}},
                {"name": "b", "projected": {"sources": [{"configMap": {"name": "ca"}}, {"secret": {"name": "part"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "disk"}},
                {"name": "d", "ephemeral": {"volumeClaimTemplate": {}}},
                {"name": "e", "rbd": {"secretRef": {"name": "ceph"}}}],
            "initContainers": [{"envFrom": [{"secretRef": {"name": "all"}}]}],
            "containers": [{"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "one", "key": "k"}}}]}]}})
    }

    fn edges(pod: &Value) -> Edges {
        let mut edges = Edges::default();
        edges.put(KEY, pod.to_string().as_bytes());
        edges
    }

    #[test]
    fn every_place_where_a_pod_names_an_object_counts() {
        let edges = edges(&pod("n1"));
        let named = [
            (Kind::Account, "sa"),
            (Kind::Secret, "pull"),
            (Kind::Secret, "file"),
            (Kind::Secret, "part"),
            (Kind::Secret, "all"),
            (Kind::Secret, "ceph"),
            (Kind::ConfigMap, "ca"),
            (Kind::ConfigMap, "one"),
            (Kind::Claim, "disk"),
            (Kind::Claim, "p-d"),
        ];
        for (kind, name) in named {
            assert!(edges.uses("n1", kind, "n", name), "{kind:?} {name}");
            assert!(
                !edges.uses("n2", kind, "n", name),
                "{kind:?} {name} of another node"
            );
            assert!(
                !edges.uses("n1", kind, "m", name),
                "{kind:?} {name} of another namespace"
            );
        }
        assert!(!edges.uses("n1", Kind::ConfigMap, "n", "file"));
    }

    #[test]
    fn edges_go_with_the_pod() {
        let mut edges = edges(&pod("n1"));
        edges.put(KEY, pod("n2").to_string().as_bytes());
        assert!(!edges.uses("n1", Kind::Account, "n", "sa"));
        assert!(edges.uses("n2", Kind::Account, "n", "sa"));
        edges.remove(KEY);
        assert!(edges.nodes.is_empty() && edges.homes.is_empty());
    }

    #[test]
    fn pods_that_a_node_made_for_itself_open_nothing() {
        let mut own = pod("n1");
        own["metadata"]["annotations"] = json!({MIRROR: "hash"});
        assert!(!edges(&own).uses("n1", Kind::Secret, "n", "file"));
    }
}
