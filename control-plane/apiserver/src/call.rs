//! One request for a resource, with all that is known about it.

use std::sync::{Arc, Mutex};

use api::catalog::Resource;
use api::kinds::Context;
use api::status::Status;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, USER_AGENT};
use jiff::Timestamp;

use crate::ApiServer;
use crate::error::{Result, fail};
use crate::identity::Identity;
use crate::negotiate::Output;
use crate::options::{Query, WriteOptions};
use crate::path::RequestInfo;

/// A request for a resource on its way through the engine.
pub(crate) struct Call {
    pub(crate) server: ApiServer,
    pub(crate) identity: Identity,
    pub(crate) info: RequestInfo,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) output: Output,
    /// The resource in the version the client speaks.
    pub(crate) res: Arc<Resource>,
    /// The same resource in the version it is stored in.
    pub(crate) stored: Arc<Resource>,
    pub(crate) now: Timestamp,
    pub(crate) warnings: Mutex<Vec<String>>,
}

impl Call {
    /// The namespace of the request; `None` for cluster-scoped resources and requests over all namespaces.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.info.namespace.as_deref().filter(|_| self.res.namespaced)
    }

    /// The name in the path.
    pub(crate) fn name(&self) -> Result<&str> {
        match &self.info.name {
            Some(name) => Ok(name),
            None => fail(Status::method_not_supported()),
        }
    }

    /// The key of the object the path names.
    pub(crate) fn key(&self) -> Result<Vec<u8>> {
        Ok(crate::object::key(&self.stored, self.namespace(), self.name()?))
    }

    /// 404 for the object the path names.
    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(
            self.group_resource(),
            self.info.name.as_deref().unwrap_or_default(),
        )
    }

    /// Group and plural name, for messages.
    pub(crate) fn group_resource(&self) -> (&str, &str) {
        (&self.res.group, &self.res.plural)
    }

    /// Group and kind, for messages.
    pub(crate) fn group_kind(&self) -> (&str, &str) {
        (&self.res.group, &self.res.kind)
    }

    /// The context for the rules of the kind.
    pub(crate) fn context(&self) -> Context<'_> {
        Context {
            now: self.now,
            user: &self.identity.user,
            subresource: self.info.subresource.as_deref(),
        }
    }

    /// Adds a text to the `Warning` headers of the answer.
    pub(crate) fn warn(&self, text: impl Into<String>) {
        let mut warnings = self
            .warnings
            .lock()
            .expect("no panic while the list of warnings is held");
        let text = text.into();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// The `Content-Type` without parameters, lower case; JSON when there is none.
    pub(crate) fn content_type(&self) -> String {
        let header = self
            .headers
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let media = header
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        if media.is_empty() {
            crate::negotiate::JSON.into()
        } else {
            media
        }
    }

    /// The field manager: the option, or the first part of the user agent.
    pub(crate) fn manager(&self, options: &WriteOptions) -> String {
        if let Some(manager) = &options.field_manager {
            return manager.clone();
        }
        let agent = self
            .headers
            .get(USER_AGENT)
            .and_then(|v| v.to_str().ok())
            .unwrap_or("unknown");
        agent.split('/').next().unwrap_or(agent).to_owned()
    }

    /// Whether the client wants the JSON indented.
    pub(crate) fn pretty(&self) -> bool {
        self.query.flag("pretty").ok().flatten().unwrap_or(false)
    }
}

/// What a handler answers; [`crate::render`] turns it into bytes of the wanted encoding and shape.
pub(crate) enum Reply {
    /// An object as it is stored.
    Stored {
        code: u16,
        entry: Bytes,
        modified: control_plane_store::Revision,
    },
    /// An object of the call's resource (storage version).
    Object { code: u16, value: serde_json::Value },
    /// Something else: a `Status`, a `Scale`, a review. Sent as it is; `message` is its protobuf name.
    Other { code: u16, value: serde_json::Value },
    /// Objects of the call's resource.
    List(crate::engine::list::Listing),
    /// A finished answer.
    Http(http::Response<crate::body::Body>),
}
