//! Kubernetes client: kubeconfig or in-process, list-watch caches.
