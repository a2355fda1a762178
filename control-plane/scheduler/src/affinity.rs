//! Which nodes a pod wants, and which pods it wants near or far.

use api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm};
use std::collections::{BTreeMap, BTreeSet};

type Labels = BTreeMap<String, String>;

/// One requirement on a label or field of a node.
#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    operator: String,
    values: Vec<String>,
}

impl Requirement {
    fn new(raw: &NodeSelectorRequirement) -> Self {
        Self {
            key: raw.key.clone(),
            operator: raw.operator.clone(),
            values: raw.values.clone().unwrap_or_default(),
        }
    }

    fn matches(&self, value: Option<&String>) -> bool {
        let number = |text: Option<&String>| text.and_then(|t| t.parse::<i64>().ok());
        match self.operator.as_str() {
            "In" => value.is_some_and(|v| self.values.contains(v)),
            "NotIn" => value.is_none_or(|v| !self.values.contains(v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => matches!((number(value), number(self.values.first())), (Some(a), Some(b)) if a > b),
            "Lt" => matches!((number(value), number(self.values.first())), (Some(a), Some(b)) if a < b),
            _ => false,
        }
    }
}

/// Terms on nodes: one of them has to match wholly. A term without requirements matches nothing.
#[derive(Clone, Debug)]
pub struct NodeTerms(Vec<(Vec<Requirement>, Vec<Requirement>)>);

impl NodeTerms {
    pub fn any(selector: &NodeSelector) -> Self {
        Self(selector.node_selector_terms.iter().map(Self::parse).collect())
    }

    pub fn one(term: &NodeSelectorTerm) -> Self {
        Self(vec![Self::parse(term)])
    }

    fn parse(term: &NodeSelectorTerm) -> (Vec<Requirement>, Vec<Requirement>) {
        let all = |list: &Option<Vec<NodeSelectorRequirement>>| {
            list.iter().flatten().map(Requirement::new).collect()
        };
        (all(&term.match_expressions), all(&term.match_fields))
    }

    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let name = name.to_string();
        self.0.iter().any(|(expressions, fields)| {
            !(expressions.is_empty() && fields.is_empty())
                && expressions.iter().all(|r| r.matches(labels.get(&r.key)))
                && fields
                    .iter()
                    .all(|r| r.matches((r.key == "metadata.name").then_some(&name)))
        })
    }
}

/// A term about other pods, in one topology.
#[derive(Clone, Debug)]
pub struct PodTerm {
    pub topology_key: String,
    selector: LabelSelector,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
}

/// A preferred term; the weight is negative for anti-affinity.
#[derive(Clone, Debug)]
pub struct Weighted {
    pub weight: i64,
    pub term: PodTerm,
}

impl PodTerm {
    pub fn new(raw: &PodAffinityTerm, own_namespace: &str, own_labels: &Labels) -> Self {
        let mut namespaces: BTreeSet<String> = raw.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && raw.namespace_selector.is_none() {
            namespaces.insert(own_namespace.to_string());
        }
        let mut selector = raw.label_selector.clone();
        extend_by_keys(&mut selector, raw.match_label_keys.as_deref(), own_labels, "In");
        extend_by_keys(
            &mut selector,
            raw.mismatch_label_keys.as_deref(),
            own_labels,
            "NotIn",
        );
        Self {
            topology_key: raw.topology_key.clone(),
            selector: compile(selector.as_ref()),
            namespaces,
            namespace_selector: raw.namespace_selector.as_ref().map(|s| compile(Some(s))),
        }
    }

    /// Whether a pod with these labels in this namespace is meant. `namespace_labels` are those of its namespace.
    pub fn selects(&self, namespace: &str, labels: &Labels, namespace_labels: &Labels) -> bool {
        let there = self.namespaces.contains(namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|s| s.matches(namespace_labels));
        there && self.selector.matches(labels)
    }
}

/// `matchLabelKeys`: the pod's own values of these labels narrow the selector.
pub fn extend_by_keys(
    selector: &mut Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
    keys: Option<&[String]>,
    own_labels: &Labels,
    operator: &str,
) {
    for key in keys.unwrap_or_default() {
        if let (Some(selector), Some(value)) = (selector.as_mut(), own_labels.get(key)) {
            selector.match_expressions.get_or_insert_default().push(
                k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement {
                    key: key.clone(),
                    operator: operator.to_string(),
                    values: Some(vec![value.clone()]),
                },
            );
        }
    }
}

/// An absent selector selects nothing, an empty one everything.
pub fn compile(
    selector: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
) -> LabelSelector {
    let json = selector.and_then(|s| serde_json::to_value(s).ok());
    json.and_then(|j| LabelSelector::from_json(&j).ok())
        .unwrap_or_else(LabelSelector::nothing)
}
