//! Loads, attaches, pins, adopts and dumps the eBPF programs and maps; the only user of aya.
