//! Reports the node: registration, lease, status; serves the kubelet API.
