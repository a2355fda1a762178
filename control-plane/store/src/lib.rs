//! Revisioned key-value store: embedded (default) and etcd v3 behind one port.
