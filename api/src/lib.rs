//! The Kubernetes vocabulary without I/O: schema tables, metadata, selectors, patches, defaults, validation.
//!
//! The table-driven half ([`catalog`], [`schema`], [`json`], [`fields`], [`defaults`], [`proto`], [`discovery`],
//! [`openapi`], [`convert`]) knows every kind through the committed tables in `api/tables`. The other half
//! ([`kinds`], [`patch`], [`apply`], [`table`] …) holds what the tables cannot express.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod catalog;
pub mod convert;
pub mod defaults;
pub mod discovery;
pub mod fields;
pub mod json;
pub mod openapi;
pub mod proto;
pub mod schema;
pub mod yaml;

pub mod apply;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod patch;
pub mod quantity;
pub mod selector;
pub mod status;
pub mod table;
