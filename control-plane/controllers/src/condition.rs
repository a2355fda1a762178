//! Setting a condition in a list of conditions given as JSON patches.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::time::wire;

/// A condition for a strategic merge patch, where lists of conditions merge by type.
#[must_use]
pub fn patch(type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": wire(now)})
}
