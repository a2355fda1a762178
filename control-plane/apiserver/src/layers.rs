//! What every request passes, in one list: [`ApiServer::handle`].

use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::status::Status;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::header::{ACCEPT, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use jiff::Timestamp;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use crate::authz::{Attributes, Decision};
use crate::body::{self, Body, BoxError};
use crate::call::Call;
use crate::config::MAX_BODY;
use crate::error::{Failure, Result, fail};
use crate::identity::Identity;
use crate::negotiate::{self, Encoding, JSON, Output, PROTOBUF, YAML};
use crate::options::Query;
use crate::path::RequestInfo;
use crate::{ApiServer, authn, authz, endpoints, engine, proxy, render};

/// How many requests are served at a time.
pub(crate) struct Limits(Semaphore);

impl Limits {
    pub(crate) fn new(at_once: usize) -> Self {
        Self(Semaphore::new(at_once))
    }

    /// A place among the requests being served, or 429. Watches and streams last long and take none.
    fn enter(&self, lasting: bool) -> Result<Option<SemaphorePermit<'_>>> {
        if lasting {
            return Ok(None);
        }
        match self.0.try_acquire() {
            Ok(permit) => Ok(Some(permit)),
            Err(_) => fail(Status::too_many_requests(
                "Too many requests, please try again later.",
                1,
            )),
        }
    }
}

/// A request after its path was read.
pub(crate) struct Incoming {
    pub(crate) parts: Parts,
    pub(crate) body: Body,
    pub(crate) info: RequestInfo,
    pub(crate) query: Query,
    pub(crate) identity: Identity,
}

impl ApiServer {
    /// Serves one request. `peer` is who the connection proved the caller to be; without it the caller may still have
    /// a bearer token.
    pub fn handle<B>(&self, peer: Option<Identity>, request: Request<B>) -> BoxFuture<'static, Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let server = self.clone();
        let request = request.map(body::foreign);
        async move { server.answer(peer, request).await }.boxed()
    }

    async fn answer(&self, peer: Option<Identity>, request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let info = RequestInfo::parse(
            &parts.method,
            parts.uri.path(),
            parts.uri.query().unwrap_or_default(),
        );
        let accept = accept(&parts).to_owned();
        let labels = (info.verb, info.resource.clone(), info.subresource.clone());
        let outcome = self.layers(peer, parts, body, info).await;
        let mut response = outcome.unwrap_or_else(|failure| refused(&failure, &accept));
        self.inner
            .metrics
            .observe(labels, response.status().as_u16(), started.elapsed());
        if let Ok(id) = HeaderValue::from_str(&crate::random::uuid()) {
            response
                .headers_mut()
                .insert(HeaderName::from_static("audit-id"), id);
        }
        response
            .headers_mut()
            .entry("cache-control")
            .or_insert(HeaderValue::from_static("no-cache, private"));
        response
    }

    /// The layers, from the outside in.
    async fn layers(
        &self,
        peer: Option<Identity>,
        parts: Parts,
        body: Body,
        info: RequestInfo,
    ) -> Result<Response<Body>> {
        let lasting = is_lasting(&info, &parts);
        let _place = self.inner.limits.enter(lasting)?;
        let identity = authn::authenticate(self, peer, &parts.headers)?;
        authorize(self, &identity, &info)?;
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let incoming = Incoming {
            parts,
            body,
            info,
            query,
            identity,
        };
        if lasting {
            return self.dispatch(incoming).await;
        }
        let limit = self.inner.config.request_timeout;
        // A write that has begun is done whether or not its client waits for the answer: what it charged to a quota, say,
        // is not left standing.
        let server = self.clone();
        let work = tokio::spawn(async move { server.dispatch(incoming).await });
        match timeout(limit, work).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => fail(Status::internal(format!(
                "the request was not carried out: {error}"
            ))),
            Err(_) => took_too_long(limit),
        }
    }

    async fn dispatch(&self, incoming: Incoming) -> Result<Response<Body>> {
        if !incoming.info.is_resource {
            return endpoints::serve(self, incoming).await;
        }
        if proxy::is_stream(&incoming.info) {
            return proxy::serve(self, incoming).await;
        }
        let Incoming {
            parts,
            body,
            info,
            query,
            identity,
        } = incoming;
        let method = parts.method.clone();
        let call = self.call(&parts, info, query, identity)?;
        let body = read(body).await?;
        let reply = engine::serve(&call, &method, body).await?;
        render::reply(&call, reply)
    }

    fn call(&self, parts: &Parts, info: RequestInfo, query: Query, identity: Identity) -> Result<Call> {
        let catalog = api::catalog::catalog();
        let res = catalog.lookup(&info.group, &info.version, &info.resource);
        let res = res.ok_or_else(|| Failure::from(Status::no_such_resource()))?;
        let stored = catalog.storage_resource(&res).unwrap_or_else(|| Arc::clone(&res));
        check_scope(&info, &res)?;
        Ok(Call {
            server: self.clone(),
            identity,
            output: negotiated(parts, &info)?,
            headers: parts.headers.clone(),
            query,
            info,
            res,
            stored,
            now: Timestamp::now(),
            warnings: Mutex::new(Vec::new()),
        })
    }
}

/// Writes need a namespace when the kind has one, and none when it has not.
fn check_scope(info: &RequestInfo, res: &api::catalog::Resource) -> Result<()> {
    let over_all = info.namespace.is_none() && !matches!(info.verb, "list" | "watch" | "deletecollection");
    let namespaced_path = info.namespace.is_some() && info.resource != "namespaces";
    let reviews = matches!(
        info.group.as_str(),
        "authentication.k8s.io" | "authorization.k8s.io"
    );
    if (res.namespaced && over_all && !reviews) || (!res.namespaced && namespaced_path) {
        return fail(Status::no_such_resource());
    }
    Ok(())
}

fn negotiated(parts: &Parts, info: &RequestInfo) -> Result<Output> {
    let mut output = negotiate::negotiate(accept(parts), true);
    if info.verb == "watch" && output.is_some_and(|o| o.encoding == Encoding::Yaml) {
        output = Some(Output {
            encoding: Encoding::Json,
            ..output.unwrap_or(Output::JSON)
        });
    }
    output.ok_or_else(|| Status::not_acceptable(&[JSON, YAML, PROTOBUF]).into())
}

fn accept(parts: &Parts) -> &str {
    parts
        .headers
        .get(ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
}

fn authorize(server: &ApiServer, identity: &Identity, info: &RequestInfo) -> Result<()> {
    let attributes = Attributes::from(info);
    match server
        .inner
        .authorizer
        .decide(&server.inner.store, identity, &attributes)
    {
        Decision::Allow(_) => Ok(()),
        Decision::Deny => fail(authz::refusal(identity, &attributes)),
    }
}

/// Whether a request may last: watches, streams, followed logs, proxied requests.
fn is_lasting(info: &RequestInfo, parts: &Parts) -> bool {
    info.verb == "watch" || proxy::is_stream(info) || parts.method == Method::CONNECT
}

async fn read(body: Body) -> Result<Bytes> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => fail(Status::too_large(MAX_BODY)),
        Err(error) => fail(Status::bad_request(format!(
            "unable to read the request body: {error}"
        ))),
    }
}

fn took_too_long(limit: Duration) -> Result<Response<Body>> {
    fail(Status::timeout(format!(
        "request did not complete within {}s",
        limit.as_secs()
    )))
}

/// The answer that says why a request failed.
fn refused(failure: &Failure, accept: &str) -> Response<Body> {
    let status = &failure.status;
    let mut value = status.to_json();
    if let Some(token) = &failure.continue_token {
        value["metadata"]["continue"] = token.as_ref().into();
    }
    let output = negotiate::negotiate(accept, true).unwrap_or(Output::JSON);
    let mut response = render::encoded(status.code, &value, output, false)
        .unwrap_or_else(|_| body::json(status.code, &value));
    let headers = response.headers_mut();
    if let Some(seconds) = status
        .details
        .as_ref()
        .map(|d| d.retry_after_seconds)
        .filter(|s| *s > 0)
    {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if status.code == 401 {
        headers.insert(
            WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"kubernetes\""),
        );
    }
    response
}
