//! `Status` (meta/v1): how the API says that a request failed, with the reasons, messages and details clients match on.
//!
//! The texts are part of the published behaviour: `kubectl`, client-go and the conformance suite read them.

use serde_json::{Map, Value, json};
use std::fmt;

/// A resource as errors name it: the plural, with its group when it is not the core group (`deployments.apps`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupResource<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// Plural name of the resource.
    pub resource: &'a str,
}

/// A kind as errors name it (`Deployment.apps`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupKind<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// Kind.
    pub kind: &'a str,
}

impl<'a> From<(&'a str, &'a str)> for GroupResource<'a> {
    fn from((group, resource): (&'a str, &'a str)) -> Self {
        Self { group, resource }
    }
}

impl<'a> From<(&'a str, &'a str)> for GroupKind<'a> {
    fn from((group, kind): (&'a str, &'a str)) -> Self {
        Self { group, kind }
    }
}

impl fmt::Display for GroupResource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_qualified(f, self.resource, self.group)
    }
}

impl fmt::Display for GroupKind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_qualified(f, self.kind, self.group)
    }
}

fn write_qualified(f: &mut fmt::Formatter<'_>, name: &str, group: &str) -> fmt::Result {
    if group.is_empty() {
        f.write_str(name)
    } else {
        write!(f, "{name}.{group}")
    }
}

/// One cause in `status.details.causes`: a field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable reason, such as `FieldValueInvalid`.
    pub reason: &'static str,
    /// What is wrong, with the bad value quoted.
    pub message: String,
    /// Path of the field, such as `spec.containers[0].image`; empty when no field is meant.
    pub field: String,
}

/// The way field errors print a bad value: strings quoted, numbers bare, anything else as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        other => other.to_string(),
    }
}

/// A Go-style quoted string, as the messages of the API have it.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

impl Cause {
    fn new(reason: &'static str, field: impl Into<String>, head: &str, detail: &str) -> Self {
        let message = if detail.is_empty() {
            head.to_owned()
        } else {
            format!("{head}: {detail}")
        };
        Self {
            reason,
            message,
            field: field.into(),
        }
    }

    /// A field that must be present; `detail` may be empty.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new("FieldValueRequired", field, "Required value", detail)
    }

    /// A value that breaks the field's rule.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new(
            "FieldValueInvalid",
            field,
            &format!("Invalid value: {}", shown(value)),
            detail,
        )
    }

    /// As [`Cause::invalid`], for a string value.
    pub fn invalid_str(field: impl Into<String>, value: &str, detail: &str) -> Self {
        Self::new(
            "FieldValueInvalid",
            field,
            &format!("Invalid value: {}", quote(value)),
            detail,
        )
    }

    /// A value of another type than the field's.
    pub fn type_invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new(
            "FieldValueTypeInvalid",
            field,
            &format!("Invalid value: {}", shown(value)),
            detail,
        )
    }

    /// A value (or list key) that occurs twice where it must be unique.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new(
            "FieldValueDuplicate",
            field,
            &format!("Duplicate value: {}", shown(value)),
            "",
        )
    }

    /// A value outside the set of `supported` ones, listed in the order given.
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        let detail = if list.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", list.join(", "))
        };
        Self::new(
            "FieldValueNotSupported",
            field,
            &format!("Unsupported value: {}", shown(value)),
            &detail,
        )
    }

    /// A value that is well formed but may not be there.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new("FieldValueForbidden", field, "Forbidden", detail)
    }

    /// A reference to something that does not exist.
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::new(
            "FieldValueNotFound",
            field,
            &format!("Not found: {}", shown(value)),
            "",
        )
    }

    /// A string or blob of more than `max` bytes.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self::new(
            "FieldValueTooLong",
            field,
            "Too long",
            &format!("may not be more than {max} bytes"),
        )
    }

    /// A list of `actual` items where at most `max` may be.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        let head = format!("Too many: {actual}");
        Self::new(
            "FieldValueTooMany",
            field,
            &head,
            &format!("must have at most {max} items"),
        )
    }

    /// The cause as it stands in `status.details.causes`.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        if !self.reason.is_empty() {
            out.insert("reason".into(), self.reason.into());
        }
        out.insert("message".into(), self.message.clone().into());
        if !self.field.is_empty() {
            out.insert("field".into(), self.field.clone().into());
        }
        Value::Object(out)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

/// `status.details`: what the error is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// Its API group.
    pub group: String,
    /// Its kind; errors about a request have the plural resource here.
    pub kind: String,
    /// Its uid.
    pub uid: String,
    /// What is wrong with which field.
    pub causes: Vec<Cause>,
    /// Seconds after which the client may try again; 0 says nothing about it.
    pub retry_after_seconds: u32,
}

impl Details {
    fn about(resource: GroupResource<'_>, name: &str) -> Self {
        Self {
            name: name.into(),
            group: resource.group.into(),
            kind: resource.resource.into(),
            ..Self::default()
        }
    }

    fn to_json(&self) -> Value {
        let mut out = Map::new();
        let texts = [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.kind),
            ("uid", &self.uid),
        ];
        for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            out.insert(key.into(), text.clone().into());
        }
        if !self.causes.is_empty() {
            out.insert("causes".into(), self.causes.iter().map(Cause::to_json).collect());
        }
        if self.retry_after_seconds > 0 {
            out.insert("retryAfterSeconds".into(), self.retry_after_seconds.into());
        }
        Value::Object(out)
    }
}

/// A failed request: HTTP code, reason, message and details (meta/v1 `Status` with `status: Failure`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, such as `NotFound`; empty when unknown.
    pub reason: &'static str,
    /// Human-readable message.
    pub message: String,
    /// What it is about.
    pub details: Option<Details>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    /// An error of any code; the named constructors are to be preferred.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    fn with(mut self, details: Details) -> Self {
        self.details = Some(details);
        self
    }

    /// The same error with the uid of the object it is about.
    pub fn with_uid(mut self, uid: &str) -> Self {
        self.details.get_or_insert_default().uid = uid.to_owned();
        self
    }

    /// The same error with these causes.
    pub fn with_causes(mut self, causes: Vec<Cause>) -> Self {
        self.details.get_or_insert_default().causes = causes;
        self
    }

    /// The same error, telling the client to try again after `seconds`.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// 404: no object of that name.
    pub fn not_found<'a>(resource: impl Into<GroupResource<'a>>, name: &str) -> Self {
        let resource = resource.into();
        Self::new(404, "NotFound", format!("{resource} {} not found", quote(name)))
            .with(Details::about(resource, name))
    }

    /// 404: the server has no such path or resource at all.
    pub fn no_such_resource() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
        .with(Details::default())
    }

    /// 409: the name is taken.
    pub fn already_exists<'a>(resource: impl Into<GroupResource<'a>>, name: &str) -> Self {
        let resource = resource.into();
        Self::new(
            409,
            "AlreadyExists",
            format!("{resource} {} already exists", quote(name)),
        )
        .with(Details::about(resource, name))
    }

    /// 409: the generated name was taken; the client should ask again.
    pub fn generate_name_conflict<'a>(
        resource: impl Into<GroupResource<'a>>,
        name: &str,
        retry_after_seconds: u32,
    ) -> Self {
        let resource = resource.into();
        let message = format!(
            "{resource} {} already exists, the server was not able to generate a unique name for the object",
            quote(name)
        );
        Self::new(409, "AlreadyExists", message).with(Details {
            retry_after_seconds,
            ..Details::about(resource, name)
        })
    }

    /// 409: the write is refused for `why`.
    pub fn conflict<'a>(resource: impl Into<GroupResource<'a>>, name: &str, why: &str) -> Self {
        let resource = resource.into();
        let message = format!(
            "Operation cannot be fulfilled on {resource} {}: {why}",
            quote(name)
        );
        Self::new(409, "Conflict", message).with(Details::about(resource, name))
    }

    /// 409: the resourceVersion of the request is not the newest.
    pub fn modified<'a>(resource: impl Into<GroupResource<'a>>, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, why)
    }

    /// 409: server-side apply met fields of other managers. `causes` have the reason `FieldManagerConflict`.
    pub fn apply_conflict(message: impl Into<String>, causes: Vec<Cause>) -> Self {
        Self::new(409, "Conflict", message).with(Details {
            causes,
            ..Details::default()
        })
    }

    /// 422: the object breaks rules; `causes` name the fields.
    pub fn invalid<'a>(kind: impl Into<GroupKind<'a>>, name: &str, causes: Vec<Cause>) -> Self {
        let kind = kind.into();
        let mut message = format!("{kind} {} is invalid", quote(name));
        if let Some(list) = joined(&causes) {
            message = format!("{message}: {list}");
        }
        let details = Details {
            name: name.into(),
            group: kind.group.into(),
            kind: kind.kind.into(),
            causes,
            ..Details::default()
        };
        Self::new(422, "Invalid", message).with(details)
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: nobody is known by these credentials.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: refused by authorization or admission; `name` may be empty.
    pub fn forbidden<'a>(resource: impl Into<GroupResource<'a>>, name: &str, why: &str) -> Self {
        let resource = resource.into();
        let message = match (resource.resource, name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{resource} is forbidden: {why}"),
            _ => format!("{resource} {} is forbidden: {why}", quote(name)),
        };
        Self::new(403, "Forbidden", message).with(Details::about(resource, name))
    }

    /// 405: the resource has no such verb; `action` is what was tried (`create`).
    pub fn method_not_allowed<'a>(resource: impl Into<GroupResource<'a>>, action: &str) -> Self {
        let resource = resource.into();
        let message = format!(
            "{action} is not supported on resources of kind {}",
            quote(&resource.to_string())
        );
        Self::new(405, "MethodNotAllowed", message).with(Details::about(resource, ""))
    }

    /// 405 for a path where the method has no meaning.
    pub fn method_not_supported() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).with(Details::default())
    }

    /// 406: none of the representations the client accepts can be made.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!(
            "only the following media types are accepted: {}",
            accepted.join(", ")
        );
        Self::new(406, "NotAcceptable", message)
    }

    /// 415: the body (or patch) is of an unknown type.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 410 `Expired`: the revision or continue token is compacted away.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 410 `Expired`, with the text clients of watch and list know.
    pub fn gone_expired(requested: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// 413: the body is larger than `limit` bytes.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity is too large: limit is {limit}"),
        )
    }

    /// 504: a revision that this server has not reached yet.
    pub fn too_large_rv(requested: u64, current: u64) -> Self {
        let cause = Cause {
            reason: "ResourceVersionTooLarge",
            message: "Too large resource version".into(),
            field: String::new(),
        };
        let message = format!("Timeout: Too large resource version: {requested}, current: {current}");
        Self::new(504, "Timeout", message).with(Details {
            causes: vec![cause],
            retry_after_seconds: 1,
            ..Details::default()
        })
    }

    /// 429: too many requests, or a disruption budget that forbids an eviction now.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::new(429, "TooManyRequests", message).with(Details {
            retry_after_seconds,
            ..Details::default()
        })
    }

    /// 504: the deadline of the request has passed.
    pub fn timeout(message: impl fmt::Display) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {message}")).with(Details::default())
    }

    /// 500 `ServerTimeout`: the server could not finish now; the client may try again.
    pub fn server_timeout<'a>(resource: impl Into<GroupResource<'a>>, operation: &str) -> Self {
        let resource = resource.into();
        let message = format!(
            "The {operation} operation against {resource} could not be completed at this time, please try again."
        );
        let details = Details {
            name: operation.into(),
            retry_after_seconds: 1,
            ..Details::about(resource, "")
        };
        Self::new(500, "ServerTimeout", message).with(details)
    }

    /// 503: not able to serve now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 500: a failure of the server itself.
    pub fn internal(why: impl fmt::Display) -> Self {
        let why = why.to_string();
        let message = format!("Internal error occurred: {why}");
        let cause = Cause {
            reason: "",
            message: why,
            field: String::new(),
        };
        Self::new(500, "InternalError", message).with(Details {
            causes: vec![cause],
            ..Details::default()
        })
    }

    /// The `Status` object that is sent as body.
    pub fn to_json(&self) -> Value {
        let mut out = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
        });
        if !self.reason.is_empty() {
            out["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            out["details"] = details.to_json();
        }
        out["code"] = self.code.into();
        out
    }
}

/// `Status` with `status: Success`, the answer to a delete whose object is gone at once.
pub fn success<'a>(resource: impl Into<GroupResource<'a>>, name: &str, uid: &str) -> Value {
    let details = Details {
        uid: uid.into(),
        ..Details::about(resource.into(), name)
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details.to_json()})
}

/// All causes as one text: alone as it is, several in brackets, repeated ones once.
fn joined(causes: &[Cause]) -> Option<String> {
    let mut texts: Vec<String> = Vec::with_capacity(causes.len());
    for cause in causes {
        let text = cause.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.len() {
        0 => None,
        1 => texts.pop(),
        _ => Some(format!("[{}]", texts.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_clients_match_on() {
        let cases = [
            (Status::not_found(("", "pods"), "x"), 404, r#"pods "x" not found"#),
            (
                Status::not_found(("apps", "deployments"), "x"),
                404,
                r#"deployments.apps "x" not found"#,
            ),
            (
                Status::already_exists(("", "pods"), "x"),
                409,
                r#"pods "x" already exists"#,
            ),
            (
                Status::modified(("", "pods"), "x"),
                409,
                "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply your \
                 changes to the latest version and try again",
            ),
            (
                Status::forbidden(("", "pods"), "", r#"User "u" cannot list"#),
                403,
                r#"pods is forbidden: User "u" cannot list"#,
            ),
            (Status::internal("no"), 500, "Internal error occurred: no"),
            (
                Status::too_large_rv(9, 4),
                504,
                "Timeout: Too large resource version: 9, current: 4",
            ),
        ];
        for (status, code, message) in cases {
            assert_eq!((status.code, status.message.as_str()), (code, message));
        }
    }

    #[test]
    fn invalid_names_each_field_once() {
        let one = vec![Cause::required("spec.containers", "")];
        let status = Status::invalid(("", "Pod"), "x", one.clone());
        assert_eq!(
            status.message,
            r#"Pod "x" is invalid: spec.containers: Required value"#
        );
        let two = vec![
            one[0].clone(),
            one[0].clone(),
            Cause::invalid("spec.n", &json!(3), "must be 1"),
        ];
        assert_eq!(
            Status::invalid(("apps", "Deployment"), "d", two).message,
            r#"Deployment.apps "d" is invalid: [spec.containers: Required value, spec.n: Invalid value: 3: must be 1]"#
        );
    }

    #[test]
    fn json_has_the_published_shape() {
        let status = Status::invalid(
            ("", "Pod"),
            "x",
            vec![Cause::duplicate("spec.c[1].name", &json!("a"))],
        );
        assert_eq!(
            status.to_json(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "Pod \"x\" is invalid: spec.c[1].name: Duplicate value: \"a\"", "reason": "Invalid",
                "details": {"name": "x", "kind": "Pod", "causes": [
                    {"reason": "FieldValueDuplicate", "message": "Duplicate value: \"a\"", "field": "spec.c[1].name"}]},
                "code": 422})
        );
    }

    #[test]
    fn bad_values_print_like_field_errors() {
        let cause = Cause::not_supported("spec.type", &json!("X"), &["A", "B"]);
        assert_eq!(
            cause.message,
            r#"Unsupported value: "X": supported values: "A", "B""#
        );
        assert_eq!(
            Cause::too_long("m", 63).message,
            "Too long: may not be more than 63 bytes"
        );
        assert_eq!(
            Cause::invalid("m", &json!({"a": 1}), "").message,
            r#"Invalid value: {"a":1}"#
        );
    }
}
