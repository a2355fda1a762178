//! Upstream's own cluster, moved from kube-proxy to Skep and back under load. See `tests/`.
