//! The shapes an object can be sent in: itself, a table of one row, its metadata alone.

use std::sync::Arc;

use api::catalog::{Gvk, Resource};
use api::meta::Meta;
use api::proto::TypeMeta;
use api::status::Status;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::call::Call;
use crate::error::{Failure, Result};
use crate::negotiate::{Output, Shape};

/// How much of each object a table row carries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Include {
    Metadata,
    Object,
    Nothing,
}

/// Turns objects of one resource (storage version) into the shape that was agreed on.
pub(crate) struct Shaper {
    pub(super) res: Arc<Resource>,
    pub(super) stored: Arc<Resource>,
    pub(super) output: Output,
    include: Include,
    now: Timestamp,
}

impl Shaper {
    pub(crate) fn new(call: &Call) -> Self {
        let include = match call.query.get("includeObject") {
            Some("None") => Include::Nothing,
            Some("Object") => Include::Object,
            _ => Include::Metadata,
        };
        Self {
            res: Arc::clone(&call.res),
            stored: Arc::clone(&call.stored),
            output: call.output,
            include,
            now: call.now,
        }
    }

    /// Whether objects go out as they are stored.
    pub(crate) fn is_plain(&self) -> bool {
        self.output.shape == Shape::Object && Arc::ptr_eq(&self.res, &self.stored)
    }

    /// One object in the agreed shape.
    pub(crate) fn object(&self, mut value: Value) -> Result<Value> {
        self.to_served(&mut value);
        Ok(match self.output.shape {
            Shape::Object => value,
            Shape::Partial => self.partial(&value, true),
            Shape::Table => {
                let version = Meta::of(&value).resource_version().to_owned();
                self.table(json!({"resourceVersion": version}), vec![self.row(&value)])
            }
        })
    }

    /// Changes a value from the storage version to the one the client speaks.
    pub(crate) fn to_served(&self, value: &mut Value) {
        if !Arc::ptr_eq(&self.res, &self.stored) {
            api::convert::convert(&self.stored, &self.res, value);
        }
    }

    /// The metadata of an object alone.
    pub(crate) fn partial(&self, value: &Value, typed: bool) -> Value {
        let mut out = Map::new();
        if typed {
            out.insert("kind".into(), "PartialObjectMetadata".into());
            out.insert("apiVersion".into(), self.meta_version().into());
        }
        out.insert(
            "metadata".into(),
            value.get("metadata").cloned().unwrap_or_else(|| json!({})),
        );
        Value::Object(out)
    }

    pub(super) fn meta_version(&self) -> String {
        format!("meta.k8s.io/{}", self.output.meta_version)
    }

    /// A table with these rows.
    pub(crate) fn table(&self, metadata: Value, rows: Vec<Value>) -> Value {
        let columns: Vec<Value> = api::table::columns(&self.res);
        json!({"kind": "Table", "apiVersion": self.meta_version(), "metadata": metadata,
            "columnDefinitions": columns, "rows": rows})
    }

    /// The row of one object.
    pub(crate) fn row(&self, value: &Value) -> Value {
        let cells = api::table::cells(&self.res, value, self.now);
        let object = match self.include {
            Include::Metadata => self.partial(value, true),
            Include::Object => value.clone(),
            Include::Nothing => Value::Null,
        };
        json!({"cells": cells, "object": object})
    }
}

/// The protobuf message of a kind.
pub(crate) fn message_of(gvk: &Gvk) -> Option<String> {
    if gvk.group == "meta.k8s.io" || gvk.kind == "Status" {
        return match gvk.kind.as_str() {
            "PartialObjectMetadata" | "PartialObjectMetadataList" | "Status" => {
                Some(format!("k8s.io.apimachinery.pkg.apis.meta.v1.{}", gvk.kind))
            }
            _ => None,
        };
    }
    api::catalog::catalog()
        .kind_schema(&gvk.group, &gvk.version, &gvk.kind)?
        .name
        .clone()
}

/// A value in its envelope.
pub(crate) fn wrapped(gvk: &Gvk, message: &str, value: &Value) -> Result<Vec<u8>> {
    let raw = api::proto::encode(message, value).map_err(|e| Failure::from(Status::internal(e)))?;
    let meta = TypeMeta {
        api_version: gvk.api_version(),
        kind: gvk.kind.clone(),
    };
    Ok(api::proto::wrap(&meta, &raw))
}
