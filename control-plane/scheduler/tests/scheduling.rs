//! What the scheduler decides, state by state.
#![allow(clippy::unwrap_used)]

use control_plane_scheduler::{Change, Cluster, Decision, PodInfo, Queue, Unschedulable};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use std::sync::Arc;

fn node(name: &str, change: impl FnOnce(&mut Value)) -> Node {
    let mut value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": "z1"}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]},
    });
    change(&mut value);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn cluster(nodes: impl IntoIterator<Item = Node>) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.upsert_node(&node);
    }
    cluster
}

fn place(cluster: &mut Cluster, pod: Arc<Pod>) -> Result<String, Unschedulable> {
    let info = PodInfo::new(pod);
    match cluster.schedule(&info, 0) {
        Decision::Node(node) => {
            cluster.assume(&info, &node);
            Ok(node)
        }
        Decision::Unschedulable(why) => Err(why),
    }
}

#[test]
fn a_pod_goes_only_where_its_requests_fit() {
    let mut cluster = cluster([
        node("small", |n| n["status"]["allocatable"]["cpu"] = json!("500m")),
        node("big", |_| ()),
    ]);
    assert_eq!(place(&mut cluster, pod("p", |_| ())).unwrap(), "big");
}

#[test]
fn a_full_cluster_says_what_lacks_and_on_how_many_nodes() {
    let mut cluster = cluster([node("n1", |_| ()), node("n2", |_| ())]);
    let why = place(
        &mut cluster,
        pod("p", |p| {
            p["spec"]["containers"][0]["resources"]["requests"] = json!({"cpu": "5", "memory": "9Gi"});
        }),
    )
    .unwrap_err();
    assert!(
        why.message
            .starts_with("0/2 nodes are available: 2 Insufficient cpu, 2 Insufficient memory."),
        "{}",
        why.message
    );
    assert!(why.preemption.is_none());
}

#[test]
fn a_cluster_without_nodes_says_so() {
    let why = place(&mut cluster([]), pod("p", |_| ())).unwrap_err();
    assert_eq!(why.message, "no nodes available to schedule pods");
}

#[test]
fn replicas_spread_over_nodes() {
    let mut cluster = cluster([node("n1", |_| ()), node("n2", |_| ())]);
    let owned = |p: &mut Value| {
        p["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]);
        p["spec"]["containers"][0]["resources"] = json!({});
    };
    let mut nodes: Vec<String> = (0..4)
        .map(|i| place(&mut cluster, pod(&format!("p{i}"), owned)).unwrap())
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["n1", "n1", "n2", "n2"]);
}

#[test]
fn taints_keep_pods_away_unless_tolerated() {
    let taint =
        |n: &mut Value| n["spec"] = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
    let mut cluster = cluster([node("n1", taint)]);
    let why = place(&mut cluster, pod("p", |_| ())).unwrap_err();
    assert!(
        why.message.contains("1 node(s) had untolerated taint {k: v}"),
        "{}",
        why.message
    );
    let tolerant = pod("q", |p| {
        p["spec"]["tolerations"] = json!([{"key": "k", "operator": "Exists"}])
    });
    assert_eq!(place(&mut cluster, tolerant).unwrap(), "n1");
}

#[test]
fn cordoned_nodes_take_no_pods() {
    let mut cluster = cluster([node("n1", |n| n["spec"] = json!({"unschedulable": true}))]);
    assert!(
        place(&mut cluster, pod("p", |_| ()))
            .unwrap_err()
            .message
            .contains("1 node(s) were unschedulable")
    );
}

#[test]
fn node_selectors_and_node_affinity_must_match() {
    let ssd = |n: &mut Value| n["metadata"]["labels"]["disk"] = json!("ssd");
    let mut cluster = cluster([node("n1", |_| ()), node("n2", ssd)]);
    assert_eq!(
        place(
            &mut cluster,
            pod("p", |p| p["spec"]["nodeSelector"] = json!({"disk": "ssd"}))
        )
        .unwrap(),
        "n2"
    );
    let not_ssd = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["ssd"]}]}]}}});
    assert_eq!(
        place(&mut cluster, pod("q", |p| p["spec"]["affinity"] = not_ssd)).unwrap(),
        "n1"
    );
    let by_name = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]}}});
    assert_eq!(
        place(&mut cluster, pod("r", |p| p["spec"]["affinity"] = by_name)).unwrap(),
        "n2"
    );
}

#[test]
fn two_pods_never_share_a_host_port() {
    let mut cluster = cluster([node("n1", |_| ())]);
    let port = |p: &mut Value| {
        p["spec"]["containers"][0]["ports"] =
            json!([{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}]);
    };
    place(&mut cluster, pod("p", port)).unwrap();
    let why = place(&mut cluster, pod("q", port)).unwrap_err();
    assert!(why.message.contains("didn't have free ports"), "{}", why.message);
}

#[test]
fn anti_affinity_holds_for_the_newcomer_and_for_those_already_there() {
    let apart = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "a"}}}]}});
    let mut cluster = cluster([node("n1", |_| ()), node("n2", |_| ())]);
    let first = place(&mut cluster, pod("p", |p| p["spec"]["affinity"] = apart.clone())).unwrap();
    let second = place(&mut cluster, pod("q", |_| ())).unwrap();
    assert_ne!(first, second, "the one already there keeps others away");
    assert!(place(&mut cluster, pod("r", |p| p["spec"]["affinity"] = apart)).is_err());
}

#[test]
fn affinity_draws_pods_together_and_lets_the_first_one_start() {
    let together = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "a"}}}]}});
    let mut cluster = cluster([node("n1", |_| ()), node("n2", |_| ())]);
    let near = |p: &mut Value| p["spec"]["affinity"] = together.clone();
    let first = place(&mut cluster, pod("p", near)).unwrap();
    assert_eq!(place(&mut cluster, pod("q", near)).unwrap(), first);
    let stranger = pod("s", |p| {
        p["metadata"]["labels"] = json!({"app": "b"});
        p["spec"]["affinity"] = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "nobody"}}}]}});
    });
    assert!(
        place(&mut cluster, stranger)
            .unwrap_err()
            .message
            .contains("didn't match pod affinity rules")
    );
}

#[test]
fn hard_spreading_refuses_what_would_skew_too_much() {
    let zone = |z: &'static str| {
        move |n: &mut Value| n["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(z)
    };
    let mut cluster = cluster([
        node("n1", zone("a")),
        node("n2", |n| {
            zone("b")(n);
            n["status"]["allocatable"]["cpu"] = json!("1");
        }),
    ]);
    let spread = |p: &mut Value| {
        p["spec"]["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}}]);
    };
    let mut zones = vec![
        place(&mut cluster, pod("p1", spread)).unwrap(),
        place(&mut cluster, pod("p2", spread)).unwrap(),
    ];
    zones.sort();
    assert_eq!(zones, ["n1", "n2"]);
    place(&mut cluster, pod("p3", spread)).unwrap();
    let why = place(&mut cluster, pod("p4", spread)).unwrap_err();
    assert!(
        why.message
            .contains("1 node(s) didn't match pod topology spread constraints"),
        "{}",
        why.message
    );
}

#[test]
fn an_important_pod_displaces_the_least_important_ones_it_must() {
    let mut cluster = cluster([node("n1", |n| n["status"]["allocatable"]["cpu"] = json!("2"))]);
    let with = |priority: i32| move |p: &mut Value| p["spec"]["priority"] = json!(priority);
    place(&mut cluster, pod("low", with(1))).unwrap();
    place(&mut cluster, pod("middle", with(5))).unwrap();
    let why = place(&mut cluster, pod("high", with(10))).unwrap_err();
    let victims = why.preemption.expect("room can be made").victims;
    assert_eq!(
        victims.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(),
        ["low"]
    );
    let meek = pod("meek", |p| {
        p["spec"]["priority"] = json!(10);
        p["spec"]["preemptionPolicy"] = json!("Never");
    });
    assert!(place(&mut cluster, meek).unwrap_err().preemption.is_none());
}

#[test]
fn ended_pods_free_their_place() {
    let mut cluster = cluster([node("n1", |n| n["status"]["allocatable"]["pods"] = json!("1"))]);
    place(&mut cluster, pod("p", |_| ())).unwrap();
    assert!(
        place(&mut cluster, pod("q", |_| ()))
            .unwrap_err()
            .message
            .contains("1 Too many pods")
    );
    cluster.upsert_pod(pod("p", |p| {
        p["spec"]["nodeName"] = json!("n1");
        p["status"] = json!({"phase": "Succeeded"});
    }));
    place(&mut cluster, pod("q", |_| ())).unwrap();
}

#[test]
fn the_most_important_and_then_the_oldest_pod_is_next() {
    let mut queue = Queue::default();
    let at = |name: &str, created: &str, priority: i32| {
        Arc::new(PodInfo::new(pod(name, |p| {
            p["metadata"]["creationTimestamp"] = json!(created);
            p["spec"]["priority"] = json!(priority);
        })))
    };
    queue.upsert(at("young", "2026-01-01T00:00:02Z", 0));
    queue.upsert(at("old", "2026-01-01T00:00:01Z", 0));
    queue.upsert(at("important", "2026-01-01T00:00:03Z", 1));
    let now = Timestamp::UNIX_EPOCH;
    let names: Vec<String> = std::iter::from_fn(|| queue.pop(now))
        .map(|p| p.name.clone())
        .collect();
    assert_eq!(names, ["important", "old", "young"]);
}

#[test]
fn a_pod_that_did_not_fit_waits_for_a_change_and_for_its_backoff() {
    let mut queue = Queue::default();
    let info = Arc::new(PodInfo::new(pod("p", |_| ())));
    let now = Timestamp::UNIX_EPOCH;
    queue.upsert(info.clone());
    queue.pop(now).unwrap();
    queue.unschedulable(&info.key(), now);
    assert!(queue.pop(now).is_none());
    queue.changed(Change::PodPlaced, now);
    assert!(
        queue.pop(now + SignedDuration::from_secs(2)).is_none(),
        "a placed pod helps only those who want it near"
    );
    queue.changed(Change::Node, now);
    assert!(queue.pop(now).is_none(), "not before its back-off");
    let next = queue.next_time().unwrap();
    assert_eq!(next, now + SignedDuration::from_secs(1));
    assert_eq!(queue.pop(next).unwrap().name, "p");
}

#[test]
fn a_gated_pod_is_not_tried_until_its_gates_are_gone() {
    let mut queue = Queue::default();
    let gated = pod("p", |p| p["spec"]["schedulingGates"] = json!([{"name": "g"}]));
    queue.upsert(Arc::new(PodInfo::new(gated)));
    assert!(queue.pop(Timestamp::UNIX_EPOCH).is_none());
    queue.upsert(Arc::new(PodInfo::new(pod("p", |_| ()))));
    assert!(queue.pop(Timestamp::UNIX_EPOCH).is_some());
}

#[test]
fn sidecars_and_init_containers_count_as_what_is_needed_at_one_time() {
    let p = pod("p", |p| {
        let want = |cpu: &str| json!({"requests": {"cpu": cpu}});
        p["spec"]["initContainers"] = json!([
            {"name": "side", "image": "i", "restartPolicy": "Always", "resources": want("1")},
            {"name": "init", "image": "i", "resources": want("5")},
        ]);
    });
    assert_eq!(PodInfo::new(p).requests.milli_cpu, 6000);
}
