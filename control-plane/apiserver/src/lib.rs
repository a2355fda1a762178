//! The Kubernetes API over HTTP: one schema-driven engine for every kind.
