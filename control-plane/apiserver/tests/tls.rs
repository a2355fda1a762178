//! The listener with real TLS and client certificates, asked by a real client.
#![allow(clippy::unwrap_used)]

mod support;

use control_plane_apiserver::Identity;
use futures::StreamExt as _;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use support::{Cluster, config_map};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

struct Served {
    url: String,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

async fn serve(cluster: &Cluster) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = cluster.server.clone();
    let task = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        server.serve(listener, stopped).await.unwrap();
    });
    Served { url, stop, task }
}

async fn client(cluster: &Cluster, url: &str, cn: &str, orgs: &[&str]) -> Client {
    let pair = cluster.pki.issue_client(cn, orgs).unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&cluster.pki.kubeconfig(url, &pair)).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(config_map(name)).unwrap()
}

#[tokio::test]
async fn a_client_certificate_names_user_and_group() {
    let cluster = Cluster::new().await;
    let served = serve(&cluster).await;
    let admin = client(&cluster, &served.url, "kubernetes-admin", &["system:masters"]).await;
    let reviews: Api<SelfSubjectReview> = Api::all(admin.clone());
    let review: SelfSubjectReview = serde_json::from_value(json!({})).unwrap();
    let who = reviews.create(&PostParams::default(), &review).await.unwrap();
    let who = who.status.unwrap().user_info.unwrap();
    assert_eq!(who.username.unwrap(), "kubernetes-admin");
    assert!(who.groups.unwrap().contains(&"system:masters".to_owned()));

    let maps: Api<ConfigMap> = Api::namespaced(admin, "default");
    let mut events = maps.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    maps.create(&PostParams::default(), &map("a")).await.unwrap();
    let event = tokio::time::timeout(std::time::Duration::from_secs(5), events.next())
        .await
        .unwrap();
    assert!(
        matches!(event.unwrap().unwrap(), WatchEvent::Added(m) if m.metadata.name.as_deref() == Some("a"))
    );

    let jo = client(&cluster, &served.url, "jo", &[]).await;
    let refused = Api::<ConfigMap>::namespaced(jo, "default")
        .get("a")
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("User \"jo\" cannot get resource \"configmaps\""),
        "{refused}"
    );
    drop(events);
    served.stop.send(()).unwrap();
    served.task.await.unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (cluster, other) = (Cluster::new().await, Cluster::new().await);
    let served = serve(&cluster).await;
    let pair = other
        .pki
        .issue_client("kubernetes-admin", &["system:masters"])
        .unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&cluster.pki.kubeconfig(&served.url, &pair)).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    let client = Client::try_from(config).unwrap();
    assert!(
        Api::<ConfigMap>::namespaced(client, "default")
            .get("a")
            .await
            .is_err()
    );
    served.stop.send(()).unwrap();
    served.task.await.unwrap();
}

#[tokio::test]
async fn a_client_in_the_same_process_needs_no_socket() {
    let cluster = Cluster::new().await;
    let client = Client::new(cluster.server.in_process(Identity::admin()), "default");
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    maps.create(&PostParams::default(), &map("a")).await.unwrap();
    assert_eq!(maps.get("a").await.unwrap().data.unwrap()["a"], "1");
    let missing = maps.get_opt("b").await.unwrap();
    assert!(missing.is_none());
}
