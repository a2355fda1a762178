//! Runs one probe check: a command, an HTTP request, a TCP connection or a gRPC health question.

use crate::client::Runtime;
use agent_pods::model::Member;
use agent_pods::probe::Found;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{GRPCAction, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::Code;

/// Bytes of a command's output or an answer's body that a message shows.
const SHOWN: usize = 1024;

/// Runs `probe` against the container `id` of a pod with address `ip`, within the probe's own time.
pub async fn check(runtime: &Runtime, id: &str, member: &Member, probe: &Probe, ip: Option<IpAddr>) -> Found {
    let time = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1).unsigned_abs().into());
    if let Some(exec) = &probe.exec {
        return command(runtime, id, exec.command.clone().unwrap_or_default(), time).await;
    }
    if let Some(get) = &probe.http_get {
        return http(get, member, ip, time).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        let address = address(tcp.host.as_deref(), &tcp.port, member, ip);
        return within(time, async { connect(address?).await.map(|_| ()) }).await;
    }
    if let Some(grpc) = &probe.grpc {
        return within(time, health(grpc, ip)).await;
    }
    Found::Fail("the probe names no check; use exec, httpGet, tcpSocket or grpc".to_owned())
}

async fn within(time: Duration, work: impl Future<Output = Result<(), String>>) -> Found {
    match tokio::time::timeout(time, work).await {
        Ok(Ok(())) => Found::Pass,
        Ok(Err(why)) => Found::Fail(why),
        Err(_) => Found::Fail(format!("context deadline exceeded: no answer within {time:?}")),
    }
}

async fn command(runtime: &Runtime, id: &str, command: Vec<String>, time: Duration) -> Found {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match runtime.exec_sync(id, command, seconds).await {
        Ok(answer) if answer.exit_code == 0 => Found::Pass,
        Ok(answer) => Found::Fail(shown(&[answer.stdout, answer.stderr].concat())),
        Err(error) if error.code() == Code::DeadlineExceeded => {
            Found::Fail(format!("command timed out after {}s", time.as_secs()))
        }
        Err(error) => Found::Fail(error.to_string()),
    }
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned()
}

/// Where to connect: the named host or the pod, and a port by number or by name.
fn address(
    host: Option<&str>,
    port: &IntOrString,
    member: &Member,
    ip: Option<IpAddr>,
) -> Result<SocketAddr, String> {
    let port = match port {
        IntOrString::Int(port) => u16::try_from(*port).map_err(|_| format!("port {port} is none"))?,
        IntOrString::String(name) => named_port(member, name)?,
    };
    let host = match host.filter(|h| !h.is_empty()) {
        Some(host) => host
            .parse()
            .map_err(|_| format!("host {host:?} is not an address"))?,
        None => ip.ok_or("the pod has no address yet")?,
    };
    Ok(SocketAddr::new(host, port))
}

fn named_port(member: &Member, name: &str) -> Result<u16, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let found = member
        .spec
        .ports
        .iter()
        .flatten()
        .find(|p| p.name.as_deref() == Some(name));
    let port = found.ok_or_else(|| format!("couldn't find port: {name}"))?;
    u16::try_from(port.container_port).map_err(|_| format!("port {} is none", port.container_port))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address)
        .await
        .map_err(|e| format!("dial tcp {address}: {e}"))
}

/// An HTTP or HTTPS GET; any status from 200 to 399 passes. Certificates are not verified, as documented.
pub async fn http(get: &HTTPGetAction, member: &Member, ip: Option<IpAddr>, time: Duration) -> Found {
    within(time, request(get, member, ip)).await
}

async fn request(get: &HTTPGetAction, member: &Member, ip: Option<IpAddr>) -> Result<(), String> {
    // A host that is a name only fills the Host header.
    let name = get.host.as_deref().filter(|h| h.parse::<IpAddr>().is_err());
    let address = address(
        get.host.as_deref().filter(|_| name.is_none()),
        &get.port,
        member,
        ip,
    )?;
    let stream = connect(address).await?;
    let host = name.map_or_else(|| address.to_string(), str::to_owned);
    if get.scheme.as_deref() == Some("HTTPS") {
        let config = unverified::client();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let server = rustls::pki_types::ServerName::IpAddress(address.ip().into());
        let stream = connector
            .connect(server, stream)
            .await
            .map_err(|e| e.to_string())?;
        exchange(get, &host, stream).await
    } else {
        exchange(get, &host, stream).await
    }
}

async fn exchange<S>(get: &HTTPGetAction, host: &str, stream: S) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let path = get.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let mut request = http::Request::get(path)
        .header("Accept", "*/*")
        .header("User-Agent", "kube-probe/1.36");
    let headers = get.http_headers.iter().flatten();
    let mut own_host = false;
    for header in headers {
        own_host |= header.name.eq_ignore_ascii_case("host");
        request = request.header(&header.name, &header.value);
    }
    if !own_host {
        request = request.header("Host", host);
    }
    let request = request
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| e.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let answer = async move {
        let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = answer.status();
        if status.as_u16() >= 200 && status.as_u16() < 400 {
            return Ok(());
        }
        let body = answer
            .into_body()
            .collect()
            .await
            .map(|b| shown(&b.to_bytes()))
            .unwrap_or_default();
        tracing::debug!(%status, body, "HTTP probe failed");
        Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    };
    // The connection does the work; it ends when the answer is in hand and dropped.
    tokio::pin!(answer);
    tokio::select! {
        done = &mut answer => done,
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SERVING` of `grpc.health.v1.HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;

async fn health(action: &GRPCAction, ip: Option<IpAddr>) -> Result<(), String> {
    let port = u16::try_from(action.port).map_err(|_| format!("port {} is none", action.port))?;
    let address = SocketAddr::new(ip.ok_or("the pod has no address yet")?, port);
    let endpoint =
        tonic::transport::Endpoint::try_from(format!("http://{address}")).map_err(|e| e.to_string())?;
    let channel = endpoint
        .connect()
        .await
        .map_err(|e| format!("service unreachable: {e}"))?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| e.to_string())?;
    let request = HealthCheckRequest {
        service: action.service.clone().unwrap_or_default(),
    };
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let answer = client
        .unary(tonic::Request::new(request), path, codec)
        .await
        .map_err(|e| e.to_string())?;
    match answer.into_inner().status {
        SERVING => Ok(()),
        other => Err(format!("service unhealthy (responded with status {other})")),
    }
}

/// A TLS client that takes any certificate.
mod unverified {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
    use std::sync::Arc;

    #[derive(Debug)]
    struct Anyone;

    impl ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            rustls::crypto::ring::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }

    pub(super) fn client() -> ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the ring provider has the default versions");
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_pods::model::PodModel;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn member() -> Member {
        let pod = json!({"spec": {"containers": [{"name": "a", "ports": [{"name": "web", "containerPort": 8080}]}]}});
        PodModel::new(serde_json::from_value(pod).unwrap()).members[0].clone()
    }

    async fn answer_with(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 1024];
            let _ = stream.read(&mut bytes).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        port
    }

    async fn get(port: u16) -> Found {
        let action = HTTPGetAction {
            port: IntOrString::Int(port.into()),
            ..HTTPGetAction::default()
        };
        http(
            &action,
            &member(),
            Some("127.0.0.1".parse().unwrap()),
            Duration::from_secs(5),
        )
        .await
    }

    #[tokio::test]
    async fn an_http_probe_passes_by_its_status_code() {
        assert_eq!(
            get(answer_with("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n").await).await,
            Found::Pass
        );
        let failed = get(answer_with("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno").await).await;
        assert_eq!(
            failed,
            Found::Fail("HTTP probe failed with statuscode: 500".into())
        );
    }

    #[tokio::test]
    async fn a_tcp_probe_fails_where_nobody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        assert!(connect(open).await.is_ok());
        drop(listener);
        assert!(connect(open).await.unwrap_err().starts_with("dial tcp"));
    }

    #[test]
    fn ports_are_found_by_name() {
        let ip = Some("10.0.0.1".parse().unwrap());
        let found = address(None, &IntOrString::String("web".into()), &member(), ip);
        assert_eq!(found.unwrap().to_string(), "10.0.0.1:8080");
        let missing = address(None, &IntOrString::String("x".into()), &member(), ip);
        assert_eq!(missing.unwrap_err(), "couldn't find port: x");
    }
}
