//! Validation, with the field paths and messages of the published API.
//!
//! Types and required fields of the schema are `fields::check`'s; here is what it cannot say: formats of names, ranges,
//! references between fields, uniqueness, and what an update may not change.

mod batch;
mod config;
mod container;
mod endpoints;
mod generic;
mod network;
mod pod;
mod pod_parts;
mod pod_update;
mod service;
mod storage;
mod volume;
mod workload;

use super::access::{at, has, int, text};
use super::id;
use crate::catalog::Resource;
use crate::names;
use crate::status::Cause;
use serde_json::Value;

type Causes = Vec<Cause>;

const IMMUTABLE: &str = "field is immutable";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// Everything that is wrong with a new object.
pub fn validate_create(res: &Resource, object: &Value) -> Vec<Cause> {
    let mut out = Causes::new();
    generic::metadata(res, object, &mut out);
    of_kind(res, object, None, &mut out);
    out
}

/// Everything that is wrong with changing `old` to `new` through the object itself or its status.
pub fn validate_update(res: &Resource, new: &Value, old: &Value) -> Vec<Cause> {
    validate_update_of(res, None, new, old)
}

/// As [`validate_update`], for an update through `subresource`: `ephemeralcontainers` and `resize` may change parts of a
/// pod that an ordinary update may not.
pub fn validate_update_of(res: &Resource, subresource: Option<&str>, new: &Value, old: &Value) -> Vec<Cause> {
    let mut out = Causes::new();
    generic::metadata_update(new, old, &mut out);
    if subresource == Some("status") {
        return out;
    }
    match (id(res), subresource) {
        (("", "pods"), Some("ephemeralcontainers")) => pod_parts::ephemeral(new, old, &mut out),
        (("", "pods"), Some("resize")) => pod_parts::resize(new, old, &mut out),
        (("", "pods"), _) => pod_update::update(new, old, &mut out),
        _ => of_kind(res, new, Some(old), &mut out),
    }
    out
}

fn of_kind(res: &Resource, new: &Value, old: Option<&Value>, out: &mut Causes) {
    match id(res) {
        ("", "pods") => pod::create(new, old, out),
        ("", "podtemplates") => pod::template(at(new, "template"), "template", out),
        ("", "services") => service::service(new, old, out),
        ("", "endpoints") => endpoints::endpoints(new, out),
        ("discovery.k8s.io", "endpointslices") => endpoints::slice(new, old, out),
        ("", "configmaps") => config::config_map(new, old, out),
        ("", "secrets") => config::secret(new, old, out),
        ("", "namespaces") => config::namespace(new, out),
        ("", "nodes") => config::node(new, old, out),
        ("", "events") | ("events.k8s.io", "events") => config::event(new, out),
        ("", "resourcequotas") => config::quota(new, out),
        ("", "limitranges") => config::limit_range(new, out),
        ("", "persistentvolumeclaims") => storage::claim(new, old, out),
        ("", "persistentvolumes") => storage::volume(new, old, out),
        ("storage.k8s.io", "storageclasses") => storage::class(new, old, out),
        ("apps", "deployments") => workload::deployment(new, old, out),
        ("apps", "replicasets") => workload::replica_set(new, old, out),
        ("", "replicationcontrollers") => workload::replication_controller(new, out),
        ("apps", "statefulsets") => workload::stateful_set(new, old, out),
        ("apps", "daemonsets") => workload::daemon_set(new, old, out),
        ("apps", "controllerrevisions") => workload::controller_revision(new, old, out),
        ("batch", "jobs") => batch::job(new, old, out),
        ("batch", "cronjobs") => batch::cron_job(new, out),
        ("coordination.k8s.io", "leases") => config::lease(new, out),
        ("networking.k8s.io", "ingresses") => network::ingress(new, out),
        ("networking.k8s.io", "networkpolicies") => network::policy(new, out),
        ("networking.k8s.io", "ingressclasses") => network::ingress_class(new, old, out),
        ("rbac.authorization.k8s.io", "roles" | "clusterroles") => config::role(res, new, out),
        ("rbac.authorization.k8s.io", _) => config::role_binding(res, new, old, out),
        ("scheduling.k8s.io", "priorityclasses") => config::priority_class(new, old, out),
        ("policy", "poddisruptionbudgets") => workload::disruption_budget(new, out),
        ("autoscaling", "horizontalpodautoscalers") => workload::autoscaler(new, out),
        ("certificates.k8s.io", "certificatesigningrequests") => config::signing_request(new, out),
        _ => {}
    }
}

/// One `Invalid` per message.
fn invalid_each(out: &mut Causes, path: &str, value: &str, messages: Vec<String>) {
    out.extend(
        messages
            .into_iter()
            .map(|message| Cause::invalid_str(path, value, &message)),
    );
}

/// `base.field`, or `field` alone at the top.
fn child(base: &str, field: &str) -> String {
    if base.is_empty() {
        field.to_owned()
    } else {
        format!("{base}.{field}")
    }
}

/// The field's text, with a cause when there is none.
fn required<'a>(object: &'a Value, field: &str, base: &str, out: &mut Causes) -> Option<&'a str> {
    let value = text(object, field);
    if value.is_empty() {
        out.push(Cause::required(child(base, field), ""));
        return None;
    }
    Some(value)
}

/// The field must be one of `allowed`; with `must`, it may not be empty either.
fn one_of(object: &Value, field: &str, base: &str, allowed: &[&str], must: bool, out: &mut Causes) {
    let value = text(object, field);
    if value.is_empty() {
        if must {
            out.push(Cause::required(child(base, field), ""));
        }
    } else if !allowed.contains(&value) {
        out.push(Cause::not_supported(
            child(base, field),
            at(object, field),
            allowed,
        ));
    }
}

fn not_negative(object: &Value, fields: &[&str], base: &str, out: &mut Causes) {
    for field in fields {
        if int(object, field).is_some_and(|number| number < 0) {
            out.push(Cause::invalid(
                child(base, field),
                at(object, field),
                NOT_NEGATIVE,
            ));
        }
    }
}

fn immutable(new: &Value, old: &Value, field: &str, out: &mut Causes) {
    if !super::access::same(at(new, field), at(old, field)) {
        out.push(Cause::invalid(field, at(new, field), IMMUTABLE));
    }
}

/// A port number or the name of a port.
fn port_or_name(object: &Value, field: &str, base: &str, out: &mut Causes) {
    match at(object, field) {
        Value::String(name) => invalid_each(out, &child(base, field), name, names::port_name(name)),
        other => port_number(other, &child(base, field), out),
    }
}

fn port_number(value: &Value, path: &str, out: &mut Causes) {
    let number = value.as_i64().unwrap_or(0);
    out.extend(
        names::port_number(number)
            .iter()
            .map(|message| Cause::invalid(path, &number.into(), message)),
    );
}

/// Labels as a map: keys and values (`metadata.labels`, node selectors, service selectors).
fn labels(map: &Value, path: &str, out: &mut Causes) {
    for (key, value) in super::access::entries(map, "") {
        invalid_each(out, path, key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        invalid_each(out, path, value, names::label_value(value));
    }
}

/// A `LabelSelector` object.
fn label_selector(selector: &Value, path: &str, out: &mut Causes) {
    labels(at(selector, "matchLabels"), &child(path, "matchLabels"), out);
    for (index, expression) in super::access::list(selector, "matchExpressions")
        .iter()
        .enumerate()
    {
        let path = format!("{path}.matchExpressions[{index}]");
        let values = super::access::list(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => out.push(Cause::required(
                child(&path, "values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => out.push(Cause::forbidden(
                child(&path, "values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => out.push(Cause::invalid_str(
                child(&path, "operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = text(expression, "key");
        invalid_each(out, &child(&path, "key"), key, names::qualified_name(key));
    }
}

/// Whether the field is there although it may not be.
fn forbid(object: &Value, field: &str, base: &str, why: &str, out: &mut Causes) {
    if has(object, field) {
        out.push(Cause::forbidden(child(base, field), why));
    }
}

/// An IP address as the API accepts it.
fn ip(value: &str) -> Option<std::net::IpAddr> {
    value.parse().ok()
}

/// An IP address that traffic may be sent to: endpoints and external IPs.
fn endpoint_ip(value: &str, path: &str, out: &mut Causes) {
    let Some(address) = ip(value) else {
        out.push(Cause::invalid_str(path, value, "must be a valid IP address"));
        return;
    };
    let (link_local, link_multicast) = match address {
        std::net::IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        std::net::IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] == 0xff02),
    };
    let problem = if address.is_unspecified() {
        format!("may not be unspecified ({value})")
    } else if address.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
    } else if link_multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()
    } else {
        return;
    };
    out.push(Cause::invalid_str(path, value, &problem));
}

#[cfg(test)]
mod tests;
