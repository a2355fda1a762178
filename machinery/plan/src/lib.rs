//! Actions as data, with the preconditions they were planned for (no I/O).
