//! Turns Services and EndpointSlices into wanted map entries and an ordered diff (no I/O).
