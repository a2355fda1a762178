//! What a request is about: verb, group, version, resource, namespace, name and subresource, read off its path.
//!
//! Follows upstream's request info rules: <https://kubernetes.io/docs/reference/using-api/api-concepts/>.

use http::Method;

/// A request, taken apart. Pure data; nothing is looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// The path as it was sent, without the query.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for paths that are not
    /// resources the HTTP method in lower case.
    pub verb: &'static str,
    /// Whether the path names a resource.
    pub is_resource: bool,
    /// API group; empty is the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, when the path has one.
    pub namespace: Option<String>,
    /// Plural resource name.
    pub resource: String,
    /// Object name.
    pub name: Option<String>,
    /// The one name that a list or watch is limited to by the field selector `metadata.name=…`. Authorization treats it
    /// like [`RequestInfo::name`], as upstream does.
    pub selected: Option<String>,
    /// The one node that a list or watch of pods is limited to by the field selector `spec.nodeName=…`.
    pub node: Option<String>,
    /// Subresource, for example `status`.
    pub subresource: Option<String>,
    /// What follows the subresource, with its slash: the path to proxy to. Kept as it was sent (still encoded).
    pub tail: String,
}

impl RequestInfo {
    /// Takes method, path and raw query apart.
    #[must_use]
    pub fn parse(method: &Method, path: &str, query: &str) -> Self {
        let mut info = Self {
            path: path.into(),
            verb: method_name(method),
            ..Self::default()
        };
        let raw: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let Some(rest) = info.take_version(&raw) else {
            return info;
        };
        let rest = info.take_legacy_watch(rest);
        let watch_path = rest.1;
        let rest = info.take_namespace(rest.0);
        let Some((resource, rest)) = rest.split_first().filter(|(r, _)| !r.is_empty()) else {
            return info;
        };
        info.is_resource = true;
        info.resource = decode(resource);
        info.name = rest.first().filter(|s| !s.is_empty()).map(|s| decode(s));
        info.subresource = rest.get(1).filter(|s| !s.is_empty()).map(|s| decode(s));
        if let Some(tail) = rest.get(2..).filter(|t| !t.is_empty()) {
            info.tail = format!("/{}", tail.join("/"));
        }
        info.verb = resource_verb(method, &info, watch_path || asks_to_watch(query));
        if info.name.is_none() && matches!(info.verb, "list" | "watch" | "deletecollection") {
            info.selected = selected(query, "metadata.name");
            info.node = selected(query, "spec.nodeName");
        }
        info
    }

    /// `group/version`, or just the version for the core group.
    #[must_use]
    pub fn group_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    fn take_version<'a>(&mut self, parts: &'a [&'a str]) -> Option<&'a [&'a str]> {
        match parts {
            ["api", version, rest @ ..] if !version.is_empty() => {
                self.version = decode(version);
                Some(rest)
            }
            ["apis", group, version, rest @ ..] if !group.is_empty() && !version.is_empty() => {
                self.group = decode(group);
                self.version = decode(version);
                Some(rest)
            }
            _ => None,
        }
    }

    /// The old form `/api/v1/watch/…`; true when it was used.
    fn take_legacy_watch<'a>(&self, parts: &'a [&'a str]) -> (&'a [&'a str], bool) {
        match parts {
            ["watch", rest @ ..] if !rest.is_empty() => (rest, true),
            _ => (parts, false),
        }
    }

    fn take_namespace<'a>(&mut self, parts: &'a [&'a str]) -> &'a [&'a str] {
        let ["namespaces", namespace, rest @ ..] = parts else {
            return parts;
        };
        if namespace.is_empty() {
            return parts;
        }
        self.namespace = Some(decode(namespace));
        match rest {
            // `/namespaces/NAME` and its own subresources are about the namespace itself.
            [] | [""] | ["status" | "finalize", ..] => parts,
            _ => rest,
        }
    }
}

fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

fn resource_verb(method: &Method, info: &RequestInfo, watch: bool) -> &'static str {
    // A watch of one object is a GET of its name with `watch=true`; a subresource cannot be watched.
    let named = info.name.is_some();
    match *method {
        Method::GET | Method::HEAD if watch && info.subresource.is_none() => "watch",
        Method::GET | Method::HEAD if named => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => method_name(method),
    }
}

fn asks_to_watch(query: &str) -> bool {
    pairs(query)
        .any(|(k, v)| k == "watch" && matches!(v.as_str(), "true" | "1" | "t" | "T" | "True" | "TRUE" | ""))
}

/// The value that the field selector demands of this field.
fn selected(query: &str, field: &str) -> Option<String> {
    let (_, selector) = pairs(query).find(|(key, _)| key == "fieldSelector")?;
    let wanted = selector
        .split(',')
        .find_map(|part| part.trim().strip_prefix(field)?.strip_prefix('='))?;
    let wanted = wanted.strip_prefix('=').unwrap_or(wanted);
    (!wanted.is_empty()).then(|| wanted.to_owned())
}

/// The pairs of a raw query string, decoded.
pub fn pairs(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    query.split('&').filter(|p| !p.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode_form(key), decode_form(value))
    })
}

fn decode_form(text: &str) -> String {
    decode(&text.replace('+', " "))
}

/// Undoes percent encoding; a broken escape stays as it is.
#[must_use]
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .and_then(hex_pair);
        out.push(escaped.unwrap_or(bytes[at]));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex_pair(pair: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> RequestInfo {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        RequestInfo::parse(&Method::GET, path, query)
    }

    #[test]
    fn a_list_of_one_name_is_about_that_name() {
        let selected = |query: &str| get(&format!("/api/v1/namespaces/a/configmaps?{query}")).selected;
        assert_eq!(
            selected("fieldSelector=metadata.name%3Ddb&watch=1").as_deref(),
            Some("db")
        );
        assert_eq!(selected("fieldSelector=metadata.name==db").as_deref(), Some("db"));
        assert_eq!(selected("fieldSelector=metadata.name!=db"), None);
        assert_eq!(selected("limit=3"), None);
        assert_eq!(
            get("/api/v1/namespaces/a/configmaps/x?fieldSelector=metadata.name=db").selected,
            None
        );
    }

    fn summary(info: &RequestInfo) -> String {
        format!(
            "{} {}/{} ns={} {}/{} sub={} tail={}",
            info.verb,
            info.group,
            info.version,
            info.namespace.as_deref().unwrap_or("-"),
            info.resource,
            info.name.as_deref().unwrap_or("-"),
            info.subresource.as_deref().unwrap_or("-"),
            info.tail
        )
    }

    #[test]
    fn resource_paths_give_verb_group_namespace_and_name() {
        let cases = [
            ("/api/v1/pods", "list /v1 ns=- pods/- sub=- tail="),
            ("/api/v1/namespaces/a/pods/b", "get /v1 ns=a pods/b sub=- tail="),
            (
                "/api/v1/namespaces/a/pods/b/log?follow=1",
                "get /v1 ns=a pods/b sub=log tail=",
            ),
            (
                "/apis/apps/v1/namespaces/a/deployments?watch=true",
                "watch apps/v1 ns=a deployments/- sub=- tail=",
            ),
            (
                "/apis/apps/v1/watch/deployments",
                "watch apps/v1 ns=- deployments/- sub=- tail=",
            ),
            (
                "/api/v1/nodes/n1/proxy/logs/a%20b",
                "get /v1 ns=- nodes/n1 sub=proxy tail=/logs/a%20b",
            ),
            ("/api/v1/namespaces", "list /v1 ns=- namespaces/- sub=- tail="),
        ];
        for (path, wanted) in cases {
            assert_eq!(summary(&get(path)), wanted, "{path}");
        }
    }

    #[test]
    fn a_namespace_is_an_object_inside_itself() {
        assert_eq!(
            summary(&get("/api/v1/namespaces/a")),
            "get /v1 ns=a namespaces/a sub=- tail="
        );
        assert_eq!(
            summary(&get("/api/v1/namespaces/a/status")),
            "get /v1 ns=a namespaces/a sub=status tail="
        );
        let info = RequestInfo::parse(&Method::PUT, "/api/v1/namespaces/a/finalize", "");
        assert_eq!(summary(&info), "update /v1 ns=a namespaces/a sub=finalize tail=");
    }

    #[test]
    fn discovery_and_health_paths_are_not_resources() {
        for path in [
            "/",
            "/api",
            "/api/v1",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/healthz",
            "/openapi/v3",
        ] {
            assert!(!get(path).is_resource, "{path}");
        }
        assert_eq!(get("/apis/apps/v1").group_version(), "apps/v1");
    }

    #[test]
    fn escapes_are_decoded_in_names_and_queries() {
        assert_eq!(
            get("/api/v1/namespaces/a/configmaps/x%3Ay").name.as_deref(),
            Some("x:y")
        );
        let all: Vec<_> = pairs("labelSelector=a%3Db%2Cc&x=1+2&flag").collect();
        assert_eq!(all[0], ("labelSelector".into(), "a=b,c".into()));
        assert_eq!(all[1], ("x".into(), "1 2".into()));
        assert_eq!(all[2], ("flag".into(), String::new()));
    }

    #[test]
    fn deleting_without_a_name_is_a_collection_delete() {
        let info = RequestInfo::parse(&Method::DELETE, "/api/v1/namespaces/a/pods", "");
        assert_eq!(info.verb, "deletecollection");
    }
}
