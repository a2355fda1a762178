//! Socket tests; see `tests/`.
