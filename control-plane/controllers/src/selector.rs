//! Label selectors of typed objects.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// Labels as objects carry them.
pub type Labels = BTreeMap<String, String>;

/// Whether `labels` satisfy `selector`. As everywhere in the API an empty selector takes everything; a selector with an
/// unknown operator takes nothing.
#[must_use]
pub fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let none = Labels::new();
    let labels = labels.unwrap_or(&none);
    let wanted = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    wanted
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|requirement| satisfies(requirement, labels))
}

/// Whether `labels` have all pairs of `selector`; an empty one takes nothing, as for Services.
#[must_use]
pub fn matches_all(selector: &Labels, labels: Option<&Labels>) -> bool {
    let has = |key: &String, value: &String| labels.is_some_and(|labels| labels.get(key) == Some(value));
    !selector.is_empty() && selector.iter().all(|(key, value)| has(key, value))
}

/// Whether a selector takes everything, which controllers of pods refuse.
#[must_use]
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

fn satisfies(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    let listed = |value: &String| {
        requirement
            .values
            .iter()
            .flatten()
            .any(|allowed| allowed == value)
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selector(json: serde_json::Value) -> LabelSelector {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn expressions_and_labels_all_have_to_hold() {
        let labels = Labels::from([
            ("app".to_owned(), "web".to_owned()),
            ("tier".to_owned(), "a".to_owned()),
        ]);
        let with =
            |expressions| selector(json!({"matchLabels": {"app": "web"}, "matchExpressions": expressions}));
        assert!(matches(
            &with(json!([{"key": "tier", "operator": "In", "values": ["a", "b"]}])),
            Some(&labels)
        ));
        assert!(!matches(
            &with(json!([{"key": "tier", "operator": "NotIn", "values": ["a"]}])),
            Some(&labels)
        ));
        assert!(matches(
            &with(json!([{"key": "gone", "operator": "DoesNotExist"}])),
            Some(&labels)
        ));
        assert!(!matches(
            &with(json!([{"key": "gone", "operator": "Exists"}])),
            Some(&labels)
        ));
        assert!(!matches(&with(json!([])), None));
    }
}
