//! `/healthz`, `/livez` and `/readyz`, with named checks: <https://kubernetes.io/docs/reference/using-api/health-checks/>.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use http::Response;

use crate::ApiServer;
use crate::body::{self, Body};
use crate::options::Query;

/// Answers all checks, or the one that the path names.
pub(super) async fn serve(server: &ApiServer, segments: &[&str], query: &Query) -> Response<Body> {
    let (endpoint, named) = (segments[0], segments.get(1));
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut checks = vec![("ping", true)];
    if endpoint != "livez" {
        checks.push(("etcd", server.inner.store.fresh().await.is_ok()));
        checks.push((
            "poststarthook/bootstrap",
            server.inner.ready.load(Ordering::Acquire),
        ));
    }
    if endpoint == "readyz" {
        checks.push(("etcd-readiness", server.inner.store.fresh().await.is_ok()));
    }
    let wanted = segments[1..].join("/");
    if named.is_some() {
        return match checks.iter().find(|(name, _)| *name == wanted) {
            Some((_, true)) => body::text(200, "ok"),
            Some((_, false)) => body::text(500, format!("internal server error: {wanted} failed")),
            None => body::text(404, "404 page not found\n"),
        };
    }
    report(endpoint, &checks, &excluded, query.get("verbose").is_some())
}

fn report(endpoint: &str, checks: &[(&str, bool)], excluded: &[&str], verbose: bool) -> Response<Body> {
    let mut text = String::new();
    let mut good = true;
    for (name, holds) in checks {
        // Writing to a string cannot fail.
        let _ = match (excluded.contains(name), holds) {
            (true, _) => writeln!(text, "[+]{name} excluded: ok"),
            (false, true) => writeln!(text, "[+]{name} ok"),
            (false, false) => {
                good = false;
                writeln!(text, "[-]{name} failed: reason withheld")
            }
        };
    }
    let _ = writeln!(
        text,
        "{endpoint} check {}",
        if good { "passed" } else { "failed" }
    );
    match (good, verbose) {
        (true, false) => body::text(200, "ok"),
        (true, true) => body::text(200, text),
        (false, _) => body::text(500, text),
    }
}
