//! Discovery (legacy and aggregated) and OpenAPI. The documents do not change while the server runs.

use std::sync::OnceLock;

use api::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{ACCEPT, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{HeaderMap, Response};

use crate::body::{self, Body};
use crate::error::{Result, fail};
use crate::layers::Incoming;
use crate::negotiate::{self, Encoding};
use crate::render;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Serves `/api…` and `/apis…` up to a group and version.
pub(super) fn serve(segments: &[&str], incoming: &Incoming) -> Result<Response<Body>> {
    let accept = incoming
        .parts
        .headers
        .get(ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if segments.len() == 1 && wants_aggregated(accept) {
        return Ok(aggregated(segments[0] == "api", &incoming.parts.headers));
    }
    let found = match segments {
        ["api"] => Some(api::discovery::api_versions()),
        ["apis"] => Some(api::discovery::api_group_list()),
        ["api", version] => api::discovery::resource_list("", version),
        ["apis", group] => api::discovery::api_group(group),
        ["apis", group, version] => api::discovery::resource_list(group, version),
        _ => None,
    };
    let Some(document) = found else {
        return fail(Status::no_such_resource());
    };
    let Some(output) = negotiate::negotiate(accept, false) else {
        return fail(Status::not_acceptable(&[
            negotiate::JSON,
            negotiate::YAML,
            negotiate::PROTOBUF,
        ]));
    };
    render::encoded(200, &document, output, false)
}

/// Whether the most wanted form is the aggregated one, in the version we serve.
fn wants_aggregated(accept: &str) -> bool {
    let clauses = negotiate::clauses(accept);
    let known = clauses.iter().find(|c| match c.parameter("as") {
        None => Encoding::of(&c.media).is_some(),
        Some(form) => form == "APIGroupDiscoveryList" && c.parameter("v") == Some("v2"),
    });
    known.is_some_and(|c| c.parameter("as").is_some())
}

fn aggregated(core: bool, headers: &HeaderMap) -> Response<Body> {
    static CORE: OnceLock<Document> = OnceLock::new();
    static GROUPS: OnceLock<Document> = OnceLock::new();
    let cell = if core { &CORE } else { &GROUPS };
    let document = cell.get_or_init(|| Document::new(api::discovery::aggregated(core).to_string().into()));
    let mut response = document.respond(AGGREGATED, headers);
    response
        .headers_mut()
        .insert(VARY, HeaderValue::from_static("Accept"));
    response
}

/// Serves `/openapi/v2`, `/openapi/v3` and the document of each group and version.
pub(super) fn openapi(segments: &[&str], incoming: &Incoming) -> Result<Response<Body>> {
    let headers = &incoming.parts.headers;
    match segments {
        ["openapi", "v2"] => openapi_v2(headers),
        ["openapi", "v3"] => Ok(body::json(200, &api::openapi::v3_index())),
        ["openapi", "v3", group_version @ ..] => {
            let Some(document) = api::openapi::v3(&group_version.join("/")) else {
                return fail(Status::no_such_resource());
            };
            Ok(Document::new(document.into()).respond(negotiate::JSON, headers))
        }
        _ => fail(Status::no_such_resource()),
    }
}

/// The name under which Go clients ask for version 2 in protobuf. `@` is not allowed in a media type, so the answer's has a dot.
const OPENAPI_V2_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const OPENAPI_V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

fn openapi_v2(headers: &HeaderMap) -> Result<Response<Body>> {
    let accept = headers
        .get(ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if accept.contains(OPENAPI_V2_ASKED) || accept.contains(OPENAPI_V2_PROTOBUF) {
        return Ok(Document::new(api::openapi::v2_protobuf().into()).respond(OPENAPI_V2_PROTOBUF, headers));
    }
    if negotiate::negotiate(accept, false).is_none() {
        return fail(Status::not_acceptable(&[negotiate::JSON, OPENAPI_V2_PROTOBUF]));
    }
    Ok(Document::new(api::openapi::v2().into()).respond(negotiate::JSON, headers))
}

/// A document with its entity tag.
struct Document {
    content: Bytes,
    tag: String,
}

impl Document {
    fn new(content: Bytes) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, &content);
        Self {
            tag: format!("\"{}\"", URL_SAFE_NO_PAD.encode(digest)),
            content,
        }
    }

    /// The document, or 304 when the client has it.
    fn respond(&self, content_type: &str, headers: &HeaderMap) -> Response<Body> {
        let known = headers
            .get(IF_NONE_MATCH)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let same = known.split(',').any(|tag| tag.trim() == self.tag);
        let mut response = match same {
            true => body::response(304, content_type, body::full(Bytes::new())),
            false => body::response(200, content_type, body::full(self.content.clone())),
        };
        if let Ok(tag) = HeaderValue::from_str(&self.tag) {
            response.headers_mut().insert(ETAG, tag);
        }
        response
    }
}
