//! The built-in controllers as pure planners (no I/O).
