//! API server, store, scheduler and controllers in one process, seen through the public API.

#![allow(clippy::unwrap_used)]
mod support;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use support::{Cluster, until};

fn deployment(replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    })
}

fn is_active(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
}

async fn make_ready(cluster: &Cluster, pods: &[Pod]) {
    for (number, pod) in pods.iter().enumerate() {
        let ip = format!("10.244.9.{}", number + 1);
        let ready =
            json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": ready});
        cluster.status::<Pod>("default", &pod.name_any(), status).await;
    }
}

async fn namespace(client: &Client, name: &str) -> Namespace {
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_namespace_gets_its_service_account_and_root_certificates() {
    let cluster = Cluster::start().await;
    namespace(&cluster.client, "fresh").await;
    until(cluster.api::<ServiceAccount>("fresh"), "the account", |all| {
        all.iter().any(|a| a.name_any() == "default")
    })
    .await;
    let maps = until(cluster.api::<ConfigMap>("fresh"), "the certificates", |all| {
        !all.is_empty()
    })
    .await;
    assert!(maps[0].data.as_ref().unwrap()["ca.crt"].contains("BEGIN CERTIFICATE"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_brings_pods_and_rolls_over_to_a_new_version() {
    let cluster = Cluster::start().await;
    cluster.create::<Deployment>("default", deployment(3, "v1")).await;
    let pods = until(cluster.api::<Pod>("default"), "three pods", |pods| {
        pods.len() == 3
    })
    .await;
    make_ready(&cluster, &pods).await;
    let done = |all: &[Deployment]| {
        let status = all.first().and_then(|d| d.status.clone()).unwrap_or_default();
        status.available_replicas == Some(3)
            && status.updated_replicas == Some(3)
            && status.replicas == Some(3)
    };
    until(cluster.api::<Deployment>("default"), "three available pods", done).await;

    let spec = deployment(3, "v2")["spec"].clone();
    cluster
        .merge::<Deployment>("default", "web", json!({"spec": spec}))
        .await;
    let sets = until(
        cluster.api::<ReplicaSet>("default"),
        "a second replica set",
        |sets| sets.len() == 2,
    )
    .await;
    assert!(sets.iter().all(|set| set.name_any().starts_with("web-")));
    // The stand-in for the kubelet: whatever appears runs at once.
    for _ in 0..4 {
        let new = |pod: &&Pod| {
            pod.status
                .as_ref()
                .and_then(|status| status.pod_ip.as_ref())
                .is_none()
                && is_active(pod)
        };
        let finished = |pods: &[Pod]| {
            let of_v2 = |pod: &&Pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("v2");
            pods.iter().filter(of_v2).count() == 3
        };
        let pods = until(cluster.api::<Pod>("default"), "progress", |pods| {
            pods.iter().any(|p| new(&p)) || finished(pods)
        })
        .await;
        let unready: Vec<Pod> = pods.iter().filter(new).cloned().collect();
        if unready.is_empty() {
            break;
        }
        make_ready(&cluster, &unready).await;
    }
    let all = until(
        cluster.api::<Deployment>("default"),
        "a finished rollout",
        |all| {
            done(all)
                && all[0]
                    .annotations()
                    .get("deployment.kubernetes.io/revision")
                    .is_some_and(|r| r == "2")
        },
    )
    .await;
    let conditions = all[0].status.as_ref().unwrap().conditions.clone().unwrap();
    assert!(
        conditions
            .iter()
            .any(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable")),
        "{conditions:?}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_pods_become_endpoints_and_scaling_to_zero_empties_them() {
    let cluster = Cluster::start().await;
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports, "ipFamilies": ["IPv4"]}});
    cluster.create::<Service>("default", service).await;
    cluster.create::<Deployment>("default", deployment(2, "v1")).await;
    let pods = until(cluster.api::<Pod>("default"), "two pods", |pods| pods.len() == 2).await;
    make_ready(&cluster, &pods).await;
    let ready = |all: &[EndpointSlice]| {
        let own = all.iter().filter(|slice| slice.name_any().starts_with("web-"));
        let endpoints = own.flat_map(|slice| slice.endpoints.iter().flatten());
        endpoints
            .filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true))
            .count()
    };
    let slices = until(cluster.api::<EndpointSlice>("default"), "two endpoints", |all| {
        ready(all) == 2
    })
    .await;
    let own = slices
        .iter()
        .find(|slice| slice.name_any().starts_with("web-"))
        .unwrap();
    assert_eq!(own.ports.as_ref().unwrap()[0].port, Some(8080));
    cluster
        .merge::<Deployment>("default", "web", json!({"spec": {"replicas": 0}}))
        .await;
    until(cluster.api::<EndpointSlice>("default"), "no endpoints", |all| {
        ready(all) == 0
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_goes_with_everything_in_it() {
    let cluster = Cluster::start().await;
    namespace(&cluster.client, "gone").await;
    until(cluster.api::<ServiceAccount>("gone"), "the account", |all| {
        !all.is_empty()
    })
    .await;
    cluster.create::<Deployment>("gone", deployment(2, "v1")).await;
    cluster
        .create::<Secret>("gone", json!({"metadata": {"name": "s"}}))
        .await;
    until(cluster.api::<Pod>("gone"), "two pods", |pods| pods.len() == 2).await;
    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    namespaces.delete("gone", &DeleteParams::default()).await.unwrap();
    until(namespaces, "the end of the namespace", |all| {
        all.iter().all(|n| n.name_any() != "gone")
    })
    .await;
    assert!(
        cluster
            .api::<Secret>("gone")
            .list(&Default::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_owner_leaves_behind_is_collected_in_each_of_the_three_ways() {
    let cluster = Cluster::start().await;
    for (name, how) in [
        ("b", DeleteParams::background()),
        ("f", DeleteParams::foreground()),
        ("o", DeleteParams::orphan()),
    ] {
        let owner = cluster
            .create::<ConfigMap>("default", json!({"metadata": {"name": format!("{name}-owner")}}))
            .await;
        let reference = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(), "uid": owner.uid(), "blockOwnerDeletion": true,
        });
        let meta = json!({"name": format!("{name}-child"), "ownerReferences": [reference]});
        cluster
            .create::<Secret>("default", json!({"metadata": meta}))
            .await;
        cluster
            .api::<ConfigMap>("default")
            .delete(&owner.name_any(), &how)
            .await
            .unwrap();
        until(cluster.api::<ConfigMap>("default"), "the owner's end", |all| {
            all.iter().all(|m| m.name_any() != owner.name_any())
        })
        .await;
    }
    let secrets = until(cluster.api::<Secret>("default"), "two collected", |all| {
        all.len() == 1
    })
    .await;
    assert_eq!(secrets[0].name_any(), "o-child");
    assert!(secrets[0].owner_references().is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_ranges_of_both_families_and_loses_its_taint_when_it_is_ready() {
    let cluster = Cluster::start().await;
    let nodes = Api::<Node>::all(cluster.client.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let all = until(nodes.clone(), "ranges", |all| {
        all[0].spec.as_ref().is_some_and(|s| s.pod_cidr.is_some())
    })
    .await;
    assert_eq!(
        all[0].spec.as_ref().unwrap().pod_cidrs.as_ref().unwrap(),
        &["10.244.0.0/24", "fd00:10:244::/64"]
    );
    let tainted = |node: &Node| {
        node.spec
            .as_ref()
            .is_some_and(|s| s.taints.as_ref().is_some_and(|t| !t.is_empty()))
    };
    until(nodes.clone(), "the taint", |all| tainted(&all[0])).await;
    let ready = json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]);
    let patch = kube::api::Patch::Merge(json!({"status": {"conditions": ready}}));
    nodes
        .patch_status("n1", &Default::default(), &patch)
        .await
        .unwrap();
    until(nodes, "no taint", |all| !tainted(&all[0])).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_completes_and_its_pods_go_with_it() {
    let cluster = Cluster::start().await;
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"parallelism": 2, "completions": 2, "template": template});
    cluster
        .create::<Job>("default", json!({"metadata": {"name": "j"}, "spec": spec}))
        .await;
    let pods = until(cluster.api::<Pod>("default"), "two pods", |pods| pods.len() == 2).await;
    for pod in &pods {
        cluster
            .status::<Pod>("default", &pod.name_any(), json!({"phase": "Succeeded"}))
            .await;
    }
    let complete = |all: &[Job]| {
        let status = all.first().and_then(|job| job.status.clone()).unwrap_or_default();
        let done = status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Complete" && c.status == "True");
        done && status.succeeded == Some(2)
    };
    until(cluster.api::<Job>("default"), "completion", complete).await;
    cluster
        .api::<Job>("default")
        .delete("j", &DeleteParams::background())
        .await
        .unwrap();
    until(cluster.api::<Pod>("default"), "no pods", |pods| pods.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_puts_a_pod_on_each_node_although_no_node_is_ready_yet() {
    let cluster = Cluster::start().await;
    let nodes = Api::<Node>::all(cluster.client.clone());
    for name in ["n1", "n2"] {
        let node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let status = json!({"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}});
        let patch = kube::api::Patch::Merge(json!({"status": status}));
        nodes
            .patch_status(name, &Default::default(), &patch)
            .await
            .unwrap();
    }
    // A node that has just registered is tainted NoSchedule; this daemon is one of those that help it to get ready.
    let tolerations = json!([{"operator": "Exists"}]);
    let template = json!({
        "metadata": {"labels": {"app": "d"}},
        "spec": {"tolerations": tolerations, "containers": [{"name": "c", "image": "i"}]},
    });
    let spec = json!({"selector": {"matchLabels": {"app": "d"}}, "template": template});
    cluster
        .create::<DaemonSet>("default", json!({"metadata": {"name": "d"}, "spec": spec}))
        .await;
    let placed = |pods: &[Pod]| {
        let mut on: Vec<_> = pods
            .iter()
            .filter_map(|pod| pod.spec.as_ref()?.node_name.clone())
            .collect();
        on.sort();
        on == ["n1", "n2"]
    };
    until(cluster.api::<Pod>("default"), "a pod on each node", placed).await;
    cluster.stop().await;
}
