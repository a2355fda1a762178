//! Validation, with the field paths and messages of the published API.

use crate::catalog::Resource;
use crate::status::Cause;
use serde_json::Value;

/// Everything that is wrong with a new object.
pub fn validate_create(_res: &Resource, _object: &Value) -> Vec<Cause> {
    Vec::new()
}

/// Everything that is wrong with changing `old` to `new`.
pub fn validate_update(_res: &Resource, _new: &Value, _old: &Value) -> Vec<Cause> {
    Vec::new()
}
