//! Resources that are only asked, never stored: reviews of tokens, of access and of oneself, and the old `bindings`.

use api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::authn;
use crate::authz::{Attributes, Decision};
use crate::call::{Call, Reply};
use crate::engine::input;
use crate::error::{Result, fail};
use crate::identity::Identity;
use crate::negotiate::Shape;
use crate::options::WriteOptions;

/// Answers a review; `None` when the resource is none.
pub(crate) async fn serve(call: &Call, body: &[u8]) -> Result<Option<Reply>> {
    let answer: fn(&Call, &mut Value) -> Result<()> =
        match (call.res.group.as_str(), call.res.plural.as_str()) {
            ("", "bindings") => return crate::strategy::binding::bind(call, body).await.map(Some),
            ("authentication.k8s.io", "tokenreviews") => token_review,
            ("authentication.k8s.io", "selfsubjectreviews") => self_review,
            ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews") => access_review,
            ("authorization.k8s.io", "selfsubjectaccessreviews") => self_access_review,
            ("authorization.k8s.io", "selfsubjectrulesreviews") => rules_review,
            _ => return Ok(None),
        };
    if call.info.verb != "create" {
        return fail(Status::method_not_supported());
    }
    if call.output.shape == Shape::Table {
        // An answer is no object that could be a row.
        return fail(Status::not_acceptable(&[
            crate::negotiate::JSON,
            crate::negotiate::PROTOBUF,
        ]));
    }
    let options = WriteOptions::parse(&call.query)?;
    let wanted = input::Wanted::from(&*call.res);
    let mut review = input::decode(call, body, &wanted, options.field_validation)?;
    api::meta::metadata_mut(&mut review);
    answer(call, &mut review)?;
    Ok(Some(Reply::Other {
        code: 201,
        value: review,
    }))
}

fn user_info(identity: &Identity) -> Value {
    let mut info = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        info["uid"] = identity.uid.clone().into();
    }
    if !identity.extra.is_empty() {
        info["extra"] = json!(identity.extra);
    }
    info
}

fn token_review(call: &Call, review: &mut Value) -> Result<()> {
    let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
    let asked: Vec<String> = review["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Into::into)
        .collect();
    let issuer = call.server.inner.signer.issuer().to_owned();
    let audiences: Vec<&str> = if asked.is_empty() {
        vec![&issuer]
    } else {
        asked.iter().map(String::as_str).collect()
    };
    review["status"] = match authn::token(&call.server, &token, &audiences, call.now) {
        Ok((identity, claims)) => {
            let shared: Vec<&str> = audiences
                .into_iter()
                .filter(|a| claims.aud.iter().any(|b| a == b))
                .collect();
            json!({"authenticated": true, "user": user_info(&identity), "audiences": shared})
        }
        Err(error) => json!({"authenticated": false, "user": {}, "error": error.to_string()}),
    };
    Ok(())
}

fn self_review(call: &Call, review: &mut Value) -> Result<()> {
    review["status"] = json!({"userInfo": user_info(&call.identity)});
    Ok(())
}

fn access_review(call: &Call, review: &mut Value) -> Result<()> {
    let spec = &review["spec"];
    let texts = |v: &Value| -> Vec<String> {
        v.as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(Into::into)
            .collect()
    };
    let identity = Identity {
        user: spec["user"].as_str().unwrap_or_default().into(),
        uid: spec["uid"].as_str().unwrap_or_default().into(),
        groups: texts(&spec["groups"]),
        ..Identity::default()
    };
    if identity.user.is_empty() && identity.groups.is_empty() {
        let cause = api::status::Cause::invalid(
            "spec.user",
            &Value::Null,
            "at least one of user or group must be specified",
        );
        return fail(Status::invalid(call.group_kind(), "", vec![cause]));
    }
    decide(call, &identity, review);
    Ok(())
}

fn self_access_review(call: &Call, review: &mut Value) -> Result<()> {
    decide(call, &call.identity.clone(), review);
    Ok(())
}

fn decide(call: &Call, identity: &Identity, review: &mut Value) {
    let decision = {
        let spec = &review["spec"];
        let attributes = attributes(spec);
        call.server
            .inner
            .authorizer
            .decide(&call.server.inner.store, identity, &attributes)
    };
    review["status"] = match decision {
        Decision::Allow(reason) => json!({"allowed": true, "reason": reason}),
        Decision::Deny => json!({"allowed": false}),
    };
}

fn attributes(spec: &Value) -> Attributes<'_> {
    let text = |part: &'static str, field: &str| spec[part][field].as_str().unwrap_or_default();
    if spec["nonResourceAttributes"].is_object() {
        return Attributes {
            verb: text("nonResourceAttributes", "verb"),
            path: text("nonResourceAttributes", "path"),
            ..Attributes::default()
        };
    }
    let part = "resourceAttributes";
    Attributes {
        verb: text(part, "verb"),
        group: text(part, "group"),
        resource: text(part, "resource"),
        subresource: text(part, "subresource"),
        namespace: text(part, "namespace"),
        name: text(part, "name"),
        node: selected_node(&spec[part]["fieldSelector"]),
        path: "",
    }
}

/// The node that a review's field selector limits pods to.
fn selected_node(selector: &Value) -> &str {
    let mut demands = selector["requirements"].as_array().into_iter().flatten();
    let of_node = demands.find(|demand| demand["key"] == "spec.nodeName" && demand["operator"] == "In");
    match of_node
        .and_then(|demand| demand["values"].as_array())
        .map(Vec::as_slice)
    {
        Some([node]) => node.as_str().unwrap_or_default(),
        _ => "",
    }
}

fn rules_review(call: &Call, review: &mut Value) -> Result<()> {
    let namespace = review["spec"]["namespace"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let rules = call
        .server
        .inner
        .authorizer
        .rules_of(&call.server.inner.store, &call.identity, &namespace);
    let (paths, resources): (Vec<Value>, Vec<Value>) = rules
        .into_iter()
        .partition(|rule| rule.get("nonResourceURLs").is_some());
    review["status"] = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
    debug_assert!(call.now > Timestamp::UNIX_EPOCH);
    Ok(())
}
