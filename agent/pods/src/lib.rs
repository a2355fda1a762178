//! Decides what each pod on this node needs next and what to report (no I/O).
