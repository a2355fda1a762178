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

/// A kubelet that answers logs, and echoes what comes over an upgraded connection.
mod kubelet {
    use std::sync::Arc;

    use control_plane_apiserver::pki::{CertKey, Pki};
    use http::{Request, Response, StatusCode};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::net::TcpListener;

    type Answer = Result<Response<Full<bytes::Bytes>>, std::convert::Infallible>;

    pub async fn serve(pki: &Pki) -> u16 {
        let pair = pki.issue_kubelet_server("n1", &["127.0.0.1".into()]).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls(pki, &pair)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let tls = acceptor.accept(stream).await.unwrap();
                    let connection = hyper::server::conn::http1::Builder::new();
                    let connection = connection.serve_connection(TokioIo::new(tls), service_fn(answer));
                    let _ = connection.with_upgrades().await;
                });
            }
        });
        port
    }

    /// Only clients of the cluster's CA are let in, as a kubelet does it.
    fn tls(pki: &Pki, pair: &CertKey) -> rustls::ServerConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).unwrap())
            .unwrap();
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap(),
            )
            .unwrap()
    }

    async fn answer(mut request: Request<Incoming>) -> Answer {
        let asked = request.uri().to_string();
        if !request.headers().contains_key("upgrade") {
            return Ok(Response::new(Full::from(asked)));
        }
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let (mut read, mut write) = tokio::io::split(&mut io);
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        let mut response = Response::new(Full::from(""));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response
            .headers_mut()
            .insert("upgrade", "websocket".parse().unwrap());
        response
            .headers_mut()
            .insert("connection", "Upgrade".parse().unwrap());
        response.headers_mut().insert("x-asked", asked.parse().unwrap());
        Ok(response)
    }
}

/// A cluster with one node, whose kubelet is the one above, and a pod on it.
async fn with_kubelet() -> Cluster {
    let cluster = Cluster::new().await;
    let port = kubelet::serve(&cluster.pki).await;
    cluster.account("default").await;
    cluster
        .post("/api/v1/nodes", json!({"metadata": {"name": "n1"}}))
        .await
        .expect(201);
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    cluster
        .patch("merge", "/api/v1/nodes/n1/status", status)
        .await
        .expect(200);
    let pods = "/api/v1/namespaces/default/pods";
    cluster.post(pods, support::pod("p")).await.expect(201);
    cluster
        .post(&format!("{pods}/p/binding"), json!({"target": {"name": "n1"}}))
        .await
        .expect(201);
    cluster
}

#[tokio::test]
async fn logs_come_from_the_kubelet_of_the_pods_node() {
    let cluster = with_kubelet().await;
    let path = "/api/v1/namespaces/default/pods/p/log";
    let answer = cluster.get(&format!("{path}?tailLines=5")).await;
    assert_eq!(
        (answer.code, &answer.bytes[..]),
        (200, &b"/containerLogs/default/p/c?tailLines=5"[..])
    );
    let failed = cluster.get(&format!("{path}?container=x")).await.expect(400);
    assert_eq!(failed["message"], "container x is not valid for pod p");
    let answer = cluster.get("/api/v1/nodes/n1/proxy/configz?x=y").await;
    assert_eq!(&answer.bytes[..], b"/configz?x=y");
}

#[tokio::test]
async fn an_upgraded_connection_is_passed_on_byte_by_byte() {
    use std::sync::Arc;

    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let cluster = with_kubelet().await;
    let served = serve(&cluster).await;
    let pair = cluster
        .pki
        .issue_client("kubernetes-admin", &["system:masters"])
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(cluster.pki.ca_pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    let address = served.url.strip_prefix("https://").unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut tls = connector
        .connect(ServerName::try_from("127.0.0.1").unwrap(), stream)
        .await
        .unwrap();
    let request = "POST /api/v1/namespaces/default/pods/p/exec?command=sh&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\n\
                   Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tls.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.contains("/c?command=sh&input=1&output=1"), "{head}");
    tls.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    tls.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
}
