//! Table output: the columns and cells that `kubectl get` prints, as upstream's server renders them.

mod cluster;
mod duration;
mod network;
mod pods;
mod storage;
mod workloads;

pub use duration::human;

use crate::catalog::Resource;
use crate::kinds::access::{at, entries, list, text};
use crate::selector::LabelSelector;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Columns of a kind, one word each: name, `:`, the first letter of the type, `!` when only wide output shows it.
type Columns = &'static [&'static str];

/// How a kind is printed.
struct Layout {
    columns: Columns,
    cells: fn(&View<'_>) -> Vec<Value>,
}

/// An object being printed.
struct View<'a> {
    object: &'a Value,
    now: Timestamp,
}

/// The column definitions of a resource (`meta/v1` `TableColumnDefinition` objects). Priority 1 is for wide output.
pub fn columns(res: &Resource) -> Vec<Value> {
    layout(res)
        .columns
        .iter()
        .map(|column| definition(column))
        .collect()
}

/// The cells of one row, in the order of [`columns`].
pub fn cells(res: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    (layout(res).cells)(&View { object, now })
}

fn definition(column: &str) -> Value {
    let (name, rest) = column.split_once(':').unwrap_or((column, "s"));
    let kind = match rest.as_bytes().first() {
        Some(b'i') => "integer",
        Some(b'b') => "boolean",
        Some(b'd') => "date",
        _ => "string",
    };
    let format = if name == "Name" { "name" } else { "" };
    json!({"name": name, "type": kind, "format": format, "description": "", "priority": i32::from(rest.ends_with('!'))})
}

fn layout(res: &Resource) -> Layout {
    let found = workloads::layout(res).or_else(|| network::layout(res));
    let found = found
        .or_else(|| storage::layout(res))
        .or_else(|| cluster::layout(res));
    found.unwrap_or_else(|| fallback(res))
}

/// Kinds without columns of their own: when they were created; for custom resources, how long ago.
fn fallback(res: &Resource) -> Layout {
    if res.schema.name.is_none() {
        return Layout {
            columns: &["Name:s", "Age:d"],
            cells: |v| vec![v.name(), v.age()],
        };
    }
    Layout {
        columns: &["Name:s", "Created At:d"],
        cells: |v| vec![v.name(), text(v.object, "metadata.creationTimestamp").into()],
    }
}

impl View<'_> {
    fn name(&self) -> Value {
        text(self.object, "metadata.name").into()
    }

    fn age(&self) -> Value {
        self.since("metadata.creationTimestamp").into()
    }

    /// How long ago the time at `path` was, `<unknown>` when it is not set.
    fn since(&self, path: &str) -> String {
        match text(self.object, path).parse::<Timestamp>() {
            Ok(at) => human(self.now.duration_since(at)),
            Err(_) => "<unknown>".into(),
        }
    }

    fn text(&self, path: &str) -> Value {
        text(self.object, path).into()
    }

    fn text_or(&self, path: &str, otherwise: &str) -> Value {
        or(text(self.object, path), otherwise)
    }

    fn int(&self, path: &str) -> Value {
        self.number(path).into()
    }

    fn number(&self, path: &str) -> i64 {
        at(self.object, path).as_i64().unwrap_or(0)
    }

    fn count(&self, path: &str) -> Value {
        let value = at(self.object, path);
        let map = value.as_object().map(serde_json::Map::len);
        map.or_else(|| value.as_array().map(Vec::len)).unwrap_or(0).into()
    }

    fn has_condition(&self, kind: &str) -> bool {
        let conditions = list(self.object, "status.conditions");
        conditions
            .iter()
            .any(|c| text(c, "type") == kind && text(c, "status") == "True")
    }

    /// Names and images of the containers at `path`.
    fn containers(&self, path: &str) -> [Value; 2] {
        let containers = list(self.object, path);
        let join = |field: &str| -> Value {
            containers
                .iter()
                .map(|c| text(c, field))
                .collect::<Vec<_>>()
                .join(",")
                .into()
        };
        [join("name"), join("image")]
    }

    /// A `LabelSelector` object in query form.
    fn selector(&self, path: &str) -> Value {
        match LabelSelector::from_json(at(self.object, path)) {
            Err(_) => "<error>".into(),
            Ok(selector) => or(&selector.to_string(), "<none>"),
        }
    }

    /// A map of labels in query form.
    fn labels(&self, path: &str) -> Value {
        let pairs: Vec<String> = entries(self.object, path)
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        let mut pairs = pairs;
        pairs.sort();
        or(&pairs.join(","), "<none>")
    }
}

fn or(text: &str, otherwise: &str) -> Value {
    if text.is_empty() {
        otherwise.into()
    } else {
        text.into()
    }
}

/// At most `max` items, then how many more there are.
fn some(items: &[String], max: usize) -> String {
    if items.is_empty() {
        return "<none>".into();
    }
    let shown = items[..items.len().min(max)].join(",");
    match items.len().checked_sub(max) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} + {more} more..."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::catalog;

    fn row(group: &str, version: &str, kind: &str, object: Value) -> Vec<String> {
        let res = catalog().by_kind(group, version, kind).unwrap();
        let cells = cells(&res, &object, "2024-01-02T00:00:00Z".parse().unwrap());
        cells
            .iter()
            .map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned))
            .collect()
    }

    #[test]
    fn every_kind_has_as_many_cells_as_columns() {
        for res in catalog().resources() {
            let empty = cells(res, &json!({}), Timestamp::UNIX_EPOCH);
            assert_eq!(columns(res).len(), empty.len(), "{} {}", res.group, res.kind);
        }
    }

    #[test]
    fn only_details_need_wide_output() {
        let pods = columns(&catalog().by_kind("", "v1", "Pod").unwrap());
        let narrow: Vec<&str> = pods
            .iter()
            .filter(|c| c["priority"] == 0)
            .filter_map(|c| c["name"].as_str())
            .collect();
        assert_eq!(narrow, ["Name", "Ready", "Status", "Restarts", "Age"]);
        assert_eq!(
            (&pods[0]["format"], &pods[0]["type"]),
            (&json!("name"), &json!("string"))
        );
    }

    #[test]
    fn deployments_services_and_nodes_print_like_upstream() {
        let created = json!({"name": "a", "creationTimestamp": "2024-01-01T00:00:00Z"});
        let deployment = json!({"metadata": created, "spec": {"replicas": 3, "selector": {"matchLabels": {"x": "y"}},
            "template": {"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j"}]}}},
            "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1}});
        assert_eq!(
            row("apps", "v1", "Deployment", deployment),
            ["a", "1/3", "2", "1", "24h", "c,d", "i,j", "x=y"]
        );
        let service = json!({"metadata": created, "spec": {"type": "NodePort", "clusterIPs": ["10.0.0.1"],
            "selector": {"b": "2", "a": "1"},
            "ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
        assert_eq!(
            row("", "v1", "Service", service),
            [
                "a",
                "NodePort",
                "10.0.0.1",
                "<none>",
                "80:30000/TCP,53/UDP",
                "24h",
                "a=1,b=2"
            ]
        );
        let node = json!({"metadata": {"name": "n", "creationTimestamp": "2024-01-01T00:00:00Z",
            "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"},
                "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}]}});
        assert_eq!(
            row("", "v1", "Node", node),
            [
                "n",
                "Ready,SchedulingDisabled",
                "control-plane",
                "24h",
                "v1",
                "1.2.3.4",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>"
            ]
        );
    }

    #[test]
    fn events_print_when_and_what() {
        let event = json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "Pulled", "message": " ok\n",
            "involvedObject": {"kind": "Pod", "name": "p"}, "source": {"component": "kubelet", "host": "n"},
            "firstTimestamp": "2024-01-01T23:50:00Z", "lastTimestamp": "2024-01-01T23:59:00Z", "count": 3});
        assert_eq!(
            row("", "v1", "Event", event),
            [
                "60s",
                "Normal",
                "Pulled",
                "pod/p",
                "",
                "kubelet, n",
                "ok",
                "10m",
                "3",
                "e"
            ]
        );
    }

    #[test]
    fn kinds_without_columns_show_when_they_were_created() {
        let range = json!({"metadata": {"name": "l", "creationTimestamp": "2024-01-01T00:00:00Z"}});
        assert_eq!(row("", "v1", "LimitRange", range), ["l", "2024-01-01T00:00:00Z"]);
    }
}
