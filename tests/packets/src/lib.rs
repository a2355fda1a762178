//! Packet tests; see `tests/`.
