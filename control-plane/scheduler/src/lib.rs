//! Chooses a node for each pod (no I/O).
