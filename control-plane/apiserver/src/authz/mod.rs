//! Who may do what: administrators, nodes, and RBAC for everybody else, the cluster's own components included.

mod graph;
mod node;
mod rbac;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use api::status::Status;
use arc_swap::ArcSwap;
use control_plane_store::Store;
use serde_json::Value;

use crate::identity::{Identity, MASTERS};
use crate::path::RequestInfo;
use rbac::Rbac;

/// Where role and binding objects are stored.
pub(crate) const RBAC_PREFIX: &[u8] = b"/registry/rbac.authorization.k8s.io/";

/// What is to be decided on. For paths that are no resource only `verb` and `path` are set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// API verb, or HTTP method in lower case.
    pub verb: &'a str,
    /// API group.
    pub group: &'a str,
    /// Plural resource name.
    pub resource: &'a str,
    /// Subresource.
    pub subresource: &'a str,
    /// Namespace; empty for the whole cluster.
    pub namespace: &'a str,
    /// Object name; empty for collections.
    pub name: &'a str,
    /// The one node to whose pods a collection is limited by the field selector `spec.nodeName=…`; else empty.
    pub node: &'a str,
    /// Path of a request that is not for a resource.
    pub path: &'a str,
}

impl<'a> From<&'a RequestInfo> for Attributes<'a> {
    fn from(info: &'a RequestInfo) -> Self {
        if !info.is_resource {
            return Self {
                verb: info.verb,
                path: &info.path,
                ..Self::default()
            };
        }
        Self {
            verb: info.verb,
            group: &info.group,
            resource: &info.resource,
            subresource: info.subresource.as_deref().unwrap_or_default(),
            namespace: info.namespace.as_deref().unwrap_or_default(),
            name: info
                .name
                .as_deref()
                .or(info.selected.as_deref())
                .unwrap_or_default(),
            node: info.node.as_deref().unwrap_or_default(),
            path: "",
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed, and by what.
    Allow(String),
    /// Nothing allows it.
    Deny,
}

/// Decides, with the roles and bindings of the store compiled for quick use.
pub(crate) struct Authorizer {
    /// The compiled rules, and how many changes they know.
    rbac: ArcSwap<(u64, Rbac)>,
    /// Changes of roles and bindings so far.
    changes: AtomicU64,
    /// Held by the one that compiles; whoever asks meanwhile waits for the new rules, and never decides by the old ones.
    compiling: Mutex<()>,
    graph: graph::Graph,
}

impl Authorizer {
    /// Compiles the roles at the first question.
    pub(crate) fn new() -> Self {
        Self {
            rbac: ArcSwap::from_pointee((0, Rbac::default())),
            changes: AtomicU64::new(1),
            compiling: Mutex::default(),
            graph: graph::Graph::default(),
        }
    }

    /// A role or binding was written.
    pub(crate) fn forget(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the user may do this.
    pub(crate) fn decide(&self, store: &Store, identity: &Identity, asked: &Attributes<'_>) -> Decision {
        if identity.in_group(MASTERS) {
            return Decision::Allow(String::new());
        }
        if let Some(node) = identity.node_name()
            && node::allows(store, &self.graph, node, asked)
        {
            return Decision::Allow("node authorizer".into());
        }
        self.compiled(store).1.decide(identity, asked)
    }

    /// The rules that apply to a user in a namespace, as `SelfSubjectRulesReview` lists them.
    pub(crate) fn rules_of(&self, store: &Store, identity: &Identity, namespace: &str) -> Vec<Value> {
        self.compiled(store).1.rules_of(identity, namespace)
    }

    fn compiled(&self, store: &Store) -> Arc<(u64, Rbac)> {
        let known = self.rbac.load_full();
        if known.0 >= self.changes.load(Ordering::Acquire) {
            return known;
        }
        let _turn = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        // Read before the snapshot is taken: a later change has the rules compiled again.
        let changes = self.changes.load(Ordering::Acquire);
        if self.rbac.load().0 < changes {
            self.rbac
                .store(Arc::new((changes, Rbac::compile(&store.snapshot()))));
        }
        self.rbac.load_full()
    }
}

/// 403 with upstream's words.
pub(crate) fn refusal(identity: &Identity, asked: &Attributes<'_>) -> Status {
    let user = &identity.user;
    if !asked.path.is_empty() {
        let why = format!("User \"{user}\" cannot {} path \"{}\"", asked.verb, asked.path);
        return Status::forbidden(("", ""), "", &why);
    }
    let resource = if asked.subresource.is_empty() {
        asked.resource.to_owned()
    } else {
        format!("{}/{}", asked.resource, asked.subresource)
    };
    let place = if asked.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", asked.namespace)
    };
    let why = format!(
        "User \"{user}\" cannot {} resource \"{resource}\" in API group \"{}\" {place}",
        asked.verb, asked.group
    );
    Status::forbidden((asked.group, asked.resource), asked.name, &why)
}

/// Notices changes of roles that other servers make, for as long as the server lives.
pub(crate) fn follow(inner: &Arc<crate::Inner>) {
    let Ok(mut watch) = inner.store.watch(RBAC_PREFIX, inner.store.snapshot().revision()) else {
        return;
    };
    let server = Arc::downgrade(inner);
    tokio::spawn(async move {
        // An error ends the watch; from then on every change of this server is still seen.
        while let Some(Ok(_)) = watch.next().await {
            let Some(inner) = server.upgrade() else { return };
            inner.authorizer.forget();
        }
    });
}
