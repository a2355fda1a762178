//! Scenarios over planner and packet logic; see `tests/`.
