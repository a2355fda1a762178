//! The real kube-proxy in the caller's namespaces, and as much of the Kubernetes API as it reads.
mod api;
mod proxy;

pub use api::{ADDRESS, Api, path};
pub use proxy::{Event, KubeProxy, Mode, Setup, Synced};
