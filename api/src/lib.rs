//! The Kubernetes vocabulary without I/O: schema tables, metadata, selectors, patches, defaults, validation.
