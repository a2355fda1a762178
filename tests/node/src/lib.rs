//! A whole real node, in a virtual machine. See `tests/`.
