//! The real binary as a user has it. See `tests/`.
