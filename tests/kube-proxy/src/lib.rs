//! The real kube-proxy in the caller's namespaces, and as much of the Kubernetes API as it reads.
mod api;
mod proxy;

pub use api::{ADDRESS, Api, path, write_kubeconfig};
pub use proxy::{Event, KubeProxy, Mode, Setup, Synced};
