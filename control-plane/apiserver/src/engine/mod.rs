//! The generic engine: the same code serves every kind; what is special to a kind is in [`crate::strategy`] and in
//! `api::kinds`.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod deletecollection;
pub(crate) mod get;
pub(crate) mod input;
pub(crate) mod list;
pub(crate) mod patch;
pub(crate) mod update;
pub(crate) mod watch;
pub(crate) mod write;

use api::status::Status;
use bytes::Bytes;
use http::Method;

use crate::call::{Call, Reply};
use crate::error::{Result, fail};

/// Serves one resource request whose body was read already.
pub(crate) async fn serve(call: &Call, method: &Method, body: Bytes) -> Result<Reply> {
    match call.info.subresource.as_deref() {
        None => serve_object(call, body).await,
        Some(name) => serve_subresource(call, name, method, body).await,
    }
}

async fn serve_object(call: &Call, body: Bytes) -> Result<Reply> {
    if let Some(reply) = crate::strategy::reviews::serve(call, &body).await? {
        return Ok(reply);
    }
    if !call.res.has(call.info.verb) {
        return fail(Status::method_not_supported());
    }
    match call.info.verb {
        "get" => get::get(call).await,
        "list" => list::list(call).await,
        "watch" => watch::watch(call).await,
        "create" => create::create(call, &body).await,
        "update" => update::update(call, &body).await,
        "patch" => patch::patch(call, &body).await,
        "delete" => delete::delete(call, &body).await,
        "deletecollection" => deletecollection::delete_collection(call, &body).await,
        _ => fail(Status::method_not_supported()),
    }
}

async fn serve_subresource(call: &Call, name: &str, method: &Method, body: Bytes) -> Result<Reply> {
    if !call.res.subresources.iter().any(|s| s.name == name) {
        return fail(Status::no_such_resource());
    }
    match (name, call.info.verb) {
        ("scale", _) => crate::strategy::scale::serve(call, &body).await,
        ("binding", "create") => crate::strategy::binding::bind(call, &body).await,
        ("eviction", "create") => crate::strategy::eviction::evict(call, &body).await,
        ("token", "create") => crate::strategy::token::create(call, &body).await,
        ("status" | "finalize" | "approval" | "ephemeralcontainers" | "resize", verb) => match verb {
            "get" => get::get(call).await,
            "update" => update::update(call, &body).await,
            "patch" => patch::patch(call, &body).await,
            _ => fail(Status::method_not_supported()),
        },
        _ => fail(Status::method_not_allowed(call.group_resource(), method.as_str())),
    }
}
