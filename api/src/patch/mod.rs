//! The patch formats of the API: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and strategic merge patch.

mod strategic;

pub use strategic::strategic;

use crate::status::Status;
use serde_json::Value;

/// More operations than this in one JSON patch are refused.
const MAX_OPERATIONS: usize = 10_000;

/// A patch that cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well formed but does not fit the object (a missing path, a failed `test`).
    #[error("{0}")]
    DoesNotFit(String),
    /// Too many operations.
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooMany(usize),
}

impl PatchError {
    /// The answer of the API: 400, 422 or 413.
    pub fn status(&self) -> Status {
        match self {
            PatchError::Malformed(why) => Status::bad_request(why.clone()),
            PatchError::DoesNotFit(_) => Status::new(
                422,
                "Invalid",
                "the server rejected our request due to an error in our request",
            )
            .with_causes(Vec::new()),
            PatchError::TooMany(_) => Status::new(413, "RequestEntityTooLarge", self.to_string()),
        }
    }
}

/// Applies a JSON patch: all operations or none.
///
/// # Errors
/// A malformed patch, a path that is not there, a `test` that fails.
pub fn json(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    if let Some(list) = patch.as_array().filter(|list| list.len() > MAX_OPERATIONS) {
        return Err(PatchError::TooMany(list.len()));
    }
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| PatchError::Malformed(format!("error decoding patch: {e}")))?;
    let mut out = doc.clone();
    json_patch::patch(&mut out, &operations).map_err(|e| PatchError::DoesNotFit(e.to_string()))?;
    Ok(out)
}

/// Applies a JSON merge patch.
///
/// # Errors
/// A patch that is no object (it would replace the whole document).
pub fn merge(doc: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed(
            "error decoding patch: the merge patch must be a JSON object".into(),
        ));
    }
    let mut out = doc.clone();
    json_patch::merge(&mut out, patch);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn json_patch_applies_all_or_nothing() {
        let doc = json!({"a": {"b": [1, 2]}});
        let good = json!([{"op": "add", "path": "/a/b/1", "value": 9}, {"op": "remove", "path": "/a/b/0"}]);
        assert_eq!(json(&doc, &good), Ok(json!({"a": {"b": [9, 2]}})));
        for (bad, code) in [
            (json!([{"op": "test", "path": "/a/b/0", "value": 7}]), 422),
            (json!([{"op": "remove", "path": "/x"}]), 422),
            (json!([{"op": "nope", "path": "/x"}]), 400),
            (json!({"a": 1}), 400),
        ] {
            assert_eq!(json(&doc, &bad).unwrap_err().status().code, code, "{bad}");
        }
    }

    #[test]
    fn json_patch_paths_escape_slashes() {
        let doc = json!({"metadata": {"annotations": {"a/b": "1"}}});
        let patch = json!([{"op": "replace", "path": "/metadata/annotations/a~1b", "value": "2"}]);
        assert_eq!(json(&doc, &patch).unwrap()["metadata"]["annotations"]["a/b"], "2");
    }

    #[test]
    fn merge_patch_deletes_with_null_and_replaces_lists() {
        let doc = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        assert_eq!(
            merge(&doc, &json!({"a": {"b": null}, "l": [3]})),
            Ok(json!({"a": {"c": 2}, "l": [3]}))
        );
        assert!(merge(&doc, &json!([1])).is_err());
    }

    fn object() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(1)),
            Just(json!("x")),
            Just(json!(null)),
            Just(json!([1, 2]))
        ];
        let node = leaf.prop_recursive(3, 16, 3, |inner| {
            prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| json!(map))
        });
        prop::collection::btree_map("[a-d]", node, 0..4).prop_map(|map| json!(map))
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(doc in object(), patch in object()) {
            let once = merge(&doc, &patch).unwrap();
            prop_assert_eq!(merge(&once, &patch).unwrap(), once);
        }
    }
}
