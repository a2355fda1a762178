//! OpenAPI documents for `kubectl explain`, `apply` and `diff`, and for client generators. Descriptions are not in the
//! tables. The same tables give the same bytes.

mod definitions;
mod paths;
mod protobuf;

use serde_json::{Map, Value, json};

use crate::catalog::{Resource, api_version, catalog, table_digest};
use definitions::Definitions;

/// Changes when this module gives other documents for the same tables, so that clients drop what they keep.
const EDITION: &str = "1";
const VERSION: &str = "v1.36.2";

/// Which of the two formats a document is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    V2,
    V3,
}

impl Format {
    fn reference(self, name: &str) -> Value {
        let place = match self {
            Format::V2 => "#/definitions/",
            Format::V3 => "#/components/schemas/",
        };
        json!({"$ref": format!("{place}{name}")})
    }
}

/// `/openapi/v3`: where the document of each group and version is. The address has a hash of its content, so that it
/// may be kept for ever.
pub fn v3_index() -> Value {
    let mut index = Map::new();
    for group in catalog().groups() {
        for version in &group.versions {
            let path = document_path(&group.name, version);
            let url = format!("/openapi/v3/{path}?hash={}", hash(&path));
            index.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": index})
}

/// The value of `hash` under which the index lists the document `path` (`api/v1`, `apis/apps/v1`).
pub fn hash(path: &str) -> String {
    format!("{:016X}{EDITION}", table_digest(path))
}

fn document_path(group: &str, version: &str) -> String {
    format!(
        "{}/{}",
        if group.is_empty() { "api" } else { "apis" },
        api_version(group, version)
    )
}

/// `/openapi/v3/PATH`, with a path such as `api/v1` or `apis/apps/v1`; `None` when there is no such group and version.
pub fn v3(path: &str) -> Option<Vec<u8>> {
    let resources: Vec<&Resource> = catalog()
        .resources()
        .map(|r| &**r)
        .filter(|r| document_path(&r.group, &r.version) == path)
        .collect();
    if resources.is_empty() {
        return None;
    }
    let mut definitions = Definitions::new(Format::V3);
    let paths = paths::of(&resources, Format::V3, &mut definitions);
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": definitions.finish(),
            "securitySchemes": {"BearerToken": security()},
        },
    });
    Some(document.to_string().into_bytes())
}

/// `/openapi/v2` in JSON.
pub fn v2() -> Vec<u8> {
    v2_document().to_string().into_bytes()
}

/// `/openapi/v2` in protobuf (`application/com.github.proto-openapi.spec.v2@v1.0+protobuf`), as Go clients ask for it.
pub fn v2_protobuf() -> Vec<u8> {
    protobuf::document(&v2_document())
}

fn v2_document() -> Value {
    let resources: Vec<&Resource> = catalog().resources().map(|r| &**r).collect();
    let mut definitions = Definitions::new(Format::V2);
    let paths = paths::of(&resources, Format::V2, &mut definitions);
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": paths,
        "definitions": definitions.finish(),
        "securityDefinitions": {"BearerToken": security()},
        "security": [{"BearerToken": []}],
    })
}

fn security() -> Value {
    json!({"description": "Bearer Token authentication", "type": "apiKey", "name": "authorization", "in": "header"})
}

#[cfg(test)]
mod tests;
