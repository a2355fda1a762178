//! Connections to kubelets (TLS with our client certificate) and to pods and services (plain or TLS).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::target::{Target, Trust};
use crate::body::Body;
use crate::pki::{Pki, PkiError};

const CONNECT: Duration = Duration::from_secs(10);

/// Why a back end cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("dial tcp {address}")]
    Tcp {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("dial tcp {0}: i/o timeout")]
    Timeout(SocketAddr),
    #[error("TLS with {address}")]
    Tls {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("HTTP with the back end")]
    Http(#[from] hyper::Error),
}

/// Opens connections to back ends.
pub(crate) struct Dialer {
    kubelet: TlsConnector,
    anyone: TlsConnector,
}

impl Dialer {
    pub(crate) fn new(pki: &Pki) -> Result<Self, PkiError> {
        Ok(Self {
            kubelet: TlsConnector::from(Arc::new(pki.kubelet_tls()?)),
            anyone: TlsConnector::from(Arc::new(unverified()?)),
        })
    }

    /// A fresh connection, ready for one request.
    pub(crate) async fn connect(&self, target: &Target) -> Result<http1::SendRequest<Body>, DialError> {
        let address = target.address;
        let stream = timeout(CONNECT, TcpStream::connect(address))
            .await
            .map_err(|_| DialError::Timeout(address))?
            .map_err(|source| DialError::Tcp { address, source })?;
        // Interactive streams send single key strokes.
        let _ = stream.set_nodelay(true);
        let connector = match target.trust {
            Trust::Plain => return handshake(stream).await,
            Trust::Kubelet => &self.kubelet,
            Trust::Anyone => &self.anyone,
        };
        let name = ServerName::IpAddress(address.ip().into());
        let tls = connector
            .connect(name, stream)
            .await
            .map_err(|source| DialError::Tls { address, source })?;
        handshake(tls).await
    }
}

async fn handshake<S>(stream: S) -> Result<http1::SendRequest<Body>, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to the back end ended");
        }
    });
    Ok(sender)
}

/// Pods and services behind `https:` have certificates of their own making; upstream does not check them either.
fn unverified() -> Result<rustls::ClientConfig, PkiError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(PkiError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        .with_no_client_auth();
    Ok(config)
}

#[derive(Debug)]
struct Unverified(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
