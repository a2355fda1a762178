//! TLS of the kubelet API: a serving certificate, and clients known by a certificate of the cluster's authority.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The organisation whose members may do everything.
const MASTERS: &str = "system:masters";

/// Files of the kubelet port's identity.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate chain (PEM).
    pub cert: PathBuf,
    /// Key (PEM).
    pub key: PathBuf,
    /// The authority of clients (PEM).
    pub client_ca: PathBuf,
}

/// An identity that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{path} cannot be read as PEM: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: rustls::pki_types::pem::Error,
    },
    /// The pieces do not fit.
    #[error("the kubelet port's certificate cannot be used: {0}")]
    Config(String),
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error| TlsError::File {
        path: path.to_owned(),
        error,
    };
    CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<_, _>>()
        .map_err(failed)
}

/// The server's configuration. A client without a certificate gets through TLS, and then only to `/healthz`.
///
/// # Errors
/// [`TlsError`]
pub fn config(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let other = |e: &dyn std::fmt::Display| TlsError::Config(e.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.client_ca)? {
        roots.add(certificate).map_err(|e| other(&e))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|e| other(&e))?;
    let key = PrivateKeyDer::from_pem_file(&files.key);
    let key = key.map_err(|error| TlsError::File {
        path: files.key.clone(),
        error,
    })?;
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder
        .map_err(|e| other(&e))?
        .with_client_cert_verifier(verifier);
    let mut config = builder
        .with_single_cert(certificates(&files.cert)?, key)
        .map_err(|e| other(&e))?;
    // Upgrades to SPDY and WebSocket are HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Whether the client with this (verified) certificate may use the kubelet API: members of `system:masters`, which the
/// API server's kubelet client is. Nodes have certificates of the same authority and may not.
#[must_use]
pub fn allowed(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return false;
    };
    let mut organisations = parsed.subject().iter_organization();
    organisations.any(|o| o.as_str().is_ok_and(|name| name == MASTERS))
}
