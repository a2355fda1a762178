//! Start and stop order, task set, logs, readiness and metrics.
