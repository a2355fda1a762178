//! Label and field selectors over stored bytes.

use std::sync::Arc;

use api::catalog::Resource;
use api::selector::{FieldSelector, LabelSelector};
use api::status::Status;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Failure, Result, fail};

/// Which objects a list, watch or collection delete is about.
#[derive(Clone)]
pub struct Filter {
    res: Arc<Resource>,
    labels: LabelSelector,
    fields: FieldSelector,
}

/// Just the part of an object that label selectors look at; the rest is skipped, not built.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: HeadMeta,
}

#[derive(Deserialize, Default)]
struct HeadMeta {
    #[serde(default)]
    labels: Option<Value>,
}

impl Filter {
    /// Parses the two selectors for objects of `res` (storage version).
    ///
    /// # Errors
    /// 400 for a selector that cannot be parsed or names a field that cannot be selected by.
    pub fn parse(res: &Arc<Resource>, labels: &str, fields: &str) -> Result<Self> {
        let bad = |e: &dyn std::fmt::Display| Failure::from(Status::bad_request(e.to_string()));
        let filter = Self {
            res: Arc::clone(res),
            labels: LabelSelector::parse(labels).map_err(|e| bad(&e))?,
            fields: FieldSelector::parse(fields).map_err(|e| bad(&e))?,
        };
        let known = api::kinds::selectable_fields(res, &Value::Null);
        for term in filter.fields.terms() {
            if !known.iter().any(|(name, _)| *name == term.field) {
                let gvr = format!("{}/{}, Resource={}", res.group, res.version, res.plural);
                return fail(Status::bad_request(format!(
                    "Unable to find \"{gvr}\" that match label selector \"{labels}\", field selector \"{fields}\": \
                     field label not supported: {}",
                    term.field
                )));
            }
        }
        Ok(filter)
    }

    /// Whether every object matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Whether a stored object matches. An object that cannot be read does not.
    #[must_use]
    pub fn matches(&self, stored: &[u8]) -> bool {
        if self.is_everything() {
            return true;
        }
        if self.fields.is_everything() {
            return serde_json::from_slice::<Head>(stored)
                .is_ok_and(|head| self.labels.matches(&head.metadata.labels.as_ref()));
        }
        serde_json::from_slice::<Value>(stored).is_ok_and(|object| self.matches_value(&object))
    }

    /// Whether a parsed object matches.
    #[must_use]
    pub fn matches_value(&self, object: &Value) -> bool {
        self.labels.matches_object(object)
            && self
                .fields
                .matches(&api::kinds::selectable_fields(&self.res, object))
    }
}
