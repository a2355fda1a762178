//! Reads `tables/resources.txt` (format: `tables/README.md`).

use super::types::Types;
use super::{Gvk, Resource, StorageName, Subresource};

pub(super) const TABLE: &str = include_str!("../../tables/resources.txt");
const MADE: &str = "the committed tables are well formed";

/// Kinds that show the objects of another resource.
const SHARED: &[((&str, &str), &str, &str)] = &[(("events.k8s.io", "events"), "/events", "v1")];

pub(super) fn read(types: &Types) -> Vec<Resource> {
    let mut resources: Vec<Resource> = Vec::new();
    let (mut group, mut version) = ("", "");
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if let Some(sub) = line.strip_prefix("  ") {
            let parent = resources.last_mut().expect(MADE);
            parent.subresources.push(subresource(sub, parent));
        } else if line.starts_with(' ') {
            resources.push(resource(types, group, version, &words));
        } else {
            (group, version) = (words[1].trim_start_matches('-'), words[2]);
        }
    }
    prefer_first_version(&mut resources);
    resources
}

fn list(word: &str) -> Vec<String> {
    word.split(',').filter(|w| *w != "-").map(str::to_owned).collect()
}

fn resource(types: &Types, group: &str, version: &str, words: &[&str]) -> Resource {
    let [plural, singular, kind, scope, shorts, categories, verbs] = words else {
        panic!("line {words:?} in resources.txt: {MADE}");
    };
    let gvk = Gvk {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: (*kind).to_owned(),
    };
    let schema = types.schemas[types.by_kind(&gvk).expect(MADE)].clone();
    let shared = SHARED.iter().find(|(from, ..)| *from == (group, plural));
    Resource {
        plural: (*plural).to_owned(),
        singular: (*singular).to_owned(),
        namespaced: *scope == "namespaced",
        short_names: list(shorts),
        categories: list(categories),
        verbs: list(verbs),
        subresources: Vec::new(),
        proto: schema.name.as_deref().map(message_name),
        schema,
        storage: StorageName(shared.map_or(format!("{group}/{plural}"), |(_, to, _)| (*to).to_owned())),
        storage_version: shared.map_or(version, |(_, _, version)| version).to_owned(),
        group: gvk.group,
        version: gvk.version,
        kind: gvk.kind,
    }
}

/// `io.k8s.api.core.v1.Pod` is the message `k8s.io.api.core.v1.Pod`.
pub(super) fn message_name(definition: &str) -> String {
    let rest = definition.strip_prefix("io.k8s.").unwrap_or(definition);
    format!("k8s.io.{}", rest.replace('-', "_"))
}

fn subresource(line: &str, parent: &Resource) -> Subresource {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [name, kind, verbs] = words[..] else {
        panic!("line {line:?} in resources.txt: {MADE}")
    };
    let own = || Gvk {
        kind: kind.to_owned(),
        ..parent.gvk()
    };
    let Gvk { group, version, kind } = Gvk::parse(kind).unwrap_or_else(own);
    Subresource {
        name: name.to_owned(),
        group,
        version,
        kind,
        verbs: list(verbs),
    }
}

/// Objects of a resource with several versions are kept in the one that its group prefers.
fn prefer_first_version(resources: &mut [Resource]) {
    for place in 1..resources.len() {
        let (earlier, later) = resources.split_at_mut(place);
        let this = &mut later[0];
        if let Some(first) = earlier
            .iter()
            .find(|r| r.group == this.group && r.plural == this.plural)
        {
            this.storage_version = first.storage_version.clone();
        }
    }
}
