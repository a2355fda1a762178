//! The control plane: wires store, API server, scheduler and controllers together.
