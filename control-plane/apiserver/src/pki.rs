//! The cluster's keys and certificates: one CA, the server's certificate, client certificates and the key that signs
//! service-account tokens. Everything is made on first start, with mode 0600, and kept from then on.
//!
//! File names follow kubeadm's `/etc/kubernetes/pki`, so that operators find what they expect.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// How long the CA lives, in years.
const CA_YEARS: i16 = 10;
/// How long server and client certificates live, in years.
const LEAF_YEARS: i16 = 5;

/// Why keys or certificates could not be read, made or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("cannot access {path}: check that the folder exists and that this process may write there")]
    File {
        /// The file in question.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A key or certificate could not be made or parsed.
    #[error("cannot make or read a certificate for {what}")]
    Certificate {
        /// Which certificate.
        what: String,
        /// What the certificate library said.
        #[source]
        source: rcgen::Error,
    },
    /// A PEM file holds no usable certificate or key.
    #[error("{what} holds no usable PEM block; delete it to have it made again")]
    Pem {
        /// Which file or certificate.
        what: String,
    },
    /// TLS refused the certificates.
    #[error("TLS does not accept the cluster's certificates")]
    Tls(#[source] rustls::Error),
    /// More than one organisation was asked for.
    #[error("a client certificate holds at most one organisation, {0} were given")]
    Organisations(usize),
}

/// A certificate with its private key, both PEM.
#[derive(Clone, Debug)]
pub struct CertKey {
    /// Certificate chain, PEM.
    pub cert_pem: String,
    /// Private key (PKCS#8), PEM.
    pub key_pem: String,
}

impl CertKey {
    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, PkiError> {
        CertificateDer::pem_slice_iter(self.cert_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| PkiError::Pem {
                what: "certificate".into(),
            })
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, PkiError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|_| PkiError::Pem {
            what: "private key".into(),
        })
    }
}

/// The cluster's certificate authority and the keys of this server.
pub struct Pki {
    dir: PathBuf,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
    server: CertKey,
    kubelet_client: CertKey,
    service_account_key: Vec<u8>,
}

impl Pki {
    /// Opens the folder `dir`, making what is missing: `ca.crt`, `ca.key`, `apiserver.crt`, `apiserver.key`,
    /// `apiserver-kubelet-client.*`, `sa.key` and `sa.pub`. `names` are the DNS names and addresses the server is
    /// reached by; when they change, the server certificate is made anew.
    ///
    /// # Errors
    /// [`PkiError`] when a file cannot be read or written, or holds something else.
    pub fn open_or_create(dir: &Path, names: &[String]) -> Result<Self, PkiError> {
        fs::create_dir_all(dir).map_err(|source| PkiError::File {
            path: dir.into(),
            source,
        })?;
        let ca = ensure_pair(dir, "ca", None, make_ca)?;
        let ca_key = parse_key("ca.key", &ca.key_pem)?;
        let issuer =
            Issuer::from_ca_cert_pem(&ca.cert_pem, ca_key).map_err(|source| PkiError::Certificate {
                what: "ca".into(),
                source,
            })?;
        let stamp = names.join("\n");
        let server = ensure_pair(dir, "apiserver", Some(&stamp), || {
            issue(&issuer, "kube-apiserver", None, names)
        })?;
        let kubelet_client = ensure_pair(dir, "apiserver-kubelet-client", None, || {
            issue(
                &issuer,
                "kube-apiserver-kubelet-client",
                Some("system:masters"),
                &[],
            )
        })?;
        let service_account_key = ensure_service_account_key(dir)?;
        Ok(Self {
            dir: dir.into(),
            ca_pem: ca.cert_pem,
            issuer,
            server,
            kubelet_client,
            service_account_key,
        })
    }

    /// The folder this was opened from.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The CA certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The API server's own certificate.
    #[must_use]
    pub fn server(&self) -> &CertKey {
        &self.server
    }

    /// The certificate the API server shows to kubelets.
    #[must_use]
    pub fn kubelet_client(&self) -> &CertKey {
        &self.kubelet_client
    }

    /// The P-256 key that signs service-account tokens, PKCS#8 DER.
    pub(crate) fn service_account_key(&self) -> &[u8] {
        &self.service_account_key
    }

    /// A fresh client certificate for user `cn` in the group `orgs[0]`.
    ///
    /// # Errors
    /// [`PkiError::Organisations`] for more than one group, [`PkiError::Certificate`] when it cannot be made.
    pub fn issue_client(&self, cn: &str, orgs: &[&str]) -> Result<CertKey, PkiError> {
        if orgs.len() > 1 {
            return Err(PkiError::Organisations(orgs.len()));
        }
        issue(&self.issuer, cn, orgs.first().copied(), &[])
    }

    /// A fresh server certificate for these DNS names and addresses; the first one is its common name.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] when a name cannot stand in a certificate.
    pub fn issue_server(&self, sans: &[&str]) -> Result<CertKey, PkiError> {
        let names: Vec<String> = sans.iter().map(ToString::to_string).collect();
        issue(
            &self.issuer,
            names.first().map_or("skep", String::as_str),
            None,
            &names,
        )
    }

    /// A server certificate for a kubelet: common name `system:node:NAME`, valid for `sans`.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] when a name cannot stand in a certificate.
    pub fn issue_kubelet_server(&self, node: &str, sans: &[String]) -> Result<CertKey, PkiError> {
        issue(
            &self.issuer,
            &format!("system:node:{node}"),
            Some("system:nodes"),
            sans,
        )
    }

    /// A kubeconfig (YAML) that reaches `server_url` with this client certificate, everything inline.
    #[must_use]
    pub fn kubeconfig(&self, server_url: &str, client: &CertKey) -> String {
        kubeconfig("skep", server_url, &self.ca_pem, client)
    }

    /// The TLS settings of the listener: our certificate, client certificates optional but verified, `h2` and
    /// `http/1.1` offered.
    ///
    /// # Errors
    /// [`PkiError`] when the certificates on disk do not fit together.
    pub fn server_tls(&self) -> Result<rustls::ServerConfig, PkiError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(
            std::sync::Arc::new(self.roots()?),
            std::sync::Arc::new(rustls::crypto::ring::default_provider()),
        )
        .allow_unauthenticated()
        .build()
        .map_err(|_| PkiError::Pem {
            what: "ca.crt".into(),
        })?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(PkiError::Tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.server.chain()?, self.server.private_key()?)
            .map_err(PkiError::Tls)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(tls)
    }

    /// The TLS settings with which the server calls kubelets.
    ///
    /// # Errors
    /// [`PkiError`] when the certificates on disk do not fit together.
    pub(crate) fn kubelet_tls(&self) -> Result<rustls::ClientConfig, PkiError> {
        rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(PkiError::Tls)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.kubelet_client.chain()?, self.kubelet_client.private_key()?)
            .map_err(PkiError::Tls)
    }

    fn roots(&self) -> Result<RootCertStore, PkiError> {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(self.ca_pem.as_bytes()) {
            let cert = cert.map_err(|_| PkiError::Pem {
                what: "ca.crt".into(),
            })?;
            roots.add(cert).map_err(PkiError::Tls)?;
        }
        Ok(roots)
    }
}

fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    std::sync::Arc::new(rustls::crypto::ring::default_provider())
}

fn kubeconfig(name: &str, server_url: &str, ca_pem: &str, client: &CertKey) -> String {
    let (ca, cert, key) = (
        STANDARD.encode(ca_pem),
        STANDARD.encode(&client.cert_pem),
        STANDARD.encode(&client.key_pem),
    );
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server_url}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {name}\n  user:\n    client-certificate-data: {cert}\n    \
         client-key-data: {key}\ncontexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {name}\n\
         current-context: {name}\n"
    )
}

/// Reads `NAME.crt` and `NAME.key`, or makes them. With a stamp they are made again when the stamp differs.
fn ensure_pair(
    dir: &Path,
    name: &str,
    stamp: Option<&str>,
    make: impl FnOnce() -> Result<CertKey, PkiError>,
) -> Result<CertKey, PkiError> {
    let (cert, key, names) = (
        dir.join(format!("{name}.crt")),
        dir.join(format!("{name}.key")),
        dir.join(format!("{name}.names")),
    );
    let same = stamp.is_none_or(|wanted| fs::read_to_string(&names).is_ok_and(|had| had == wanted));
    if same && cert.exists() && key.exists() {
        return Ok(CertKey {
            cert_pem: read(&cert)?,
            key_pem: read(&key)?,
        });
    }
    let pair = make()?;
    write_private(&key, pair.key_pem.as_bytes())?;
    write_private(&cert, pair.cert_pem.as_bytes())?;
    if let Some(stamp) = stamp {
        write_private(&names, stamp.as_bytes())?;
    }
    Ok(pair)
}

fn ensure_service_account_key(dir: &Path) -> Result<Vec<u8>, PkiError> {
    let path = dir.join("sa.key");
    let key = if path.exists() {
        parse_key("sa.key", &read(&path)?)?
    } else {
        let key = generate_key("sa.key")?;
        write_private(&path, key.serialize_pem().as_bytes())?;
        write_private(&dir.join("sa.pub"), key.public_key_pem().as_bytes())?;
        key
    };
    Ok(key.serialize_der())
}

fn make_ca() -> Result<CertKey, PkiError> {
    let key = generate_key("ca")?;
    let mut params = parameters("kubernetes", None, CA_YEARS);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let cert = params.self_signed(&key).map_err(|source| PkiError::Certificate {
        what: "ca".into(),
        source,
    })?;
    Ok(CertKey {
        cert_pem: cert.pem(),
        key_pem: key.serialize_pem(),
    })
}

/// Signs a leaf certificate, good for both ends of a connection; a client one has no alternative names.
fn issue(
    issuer: &Issuer<'static, KeyPair>,
    cn: &str,
    org: Option<&str>,
    sans: &[String],
) -> Result<CertKey, PkiError> {
    let failed = |source| PkiError::Certificate {
        what: cn.to_owned(),
        source,
    };
    let key = generate_key(cn)?;
    let mut params = parameters(cn, org, LEAF_YEARS);
    for san in sans {
        params.subject_alt_names.push(match san.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(san.as_str().try_into().map_err(failed)?),
        });
    }
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !sans.is_empty() {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    let cert = params.signed_by(&key, issuer).map_err(failed)?;
    Ok(CertKey {
        cert_pem: cert.pem(),
        key_pem: key.serialize_pem(),
    })
}

fn parameters(cn: &str, org: Option<&str>, years: i16) -> CertificateParams {
    let mut name = DistinguishedName::new();
    if let Some(org) = org {
        name.push(DnType::OrganizationName, org);
    }
    name.push(DnType::CommonName, cn);
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    // A day back: clocks of nodes may be behind ours. Day 28 at most: every month of every year has it.
    let from = today.yesterday().unwrap_or(today);
    let day = from.day().clamp(1, 28).unsigned_abs();
    let month = from.month().unsigned_abs();
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.not_before = rcgen::date_time_ymd(i32::from(from.year()), month, day);
    params.not_after = rcgen::date_time_ymd(i32::from(from.year() + years), month, day);
    params
}

fn generate_key(what: &str) -> Result<KeyPair, PkiError> {
    KeyPair::generate().map_err(|source| PkiError::Certificate {
        what: what.to_owned(),
        source,
    })
}

fn parse_key(what: &str, pem: &str) -> Result<KeyPair, PkiError> {
    KeyPair::from_pem(pem).map_err(|source| PkiError::Certificate {
        what: what.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File {
        path: path.into(),
        source,
    })
}

/// Writes beside the target and renames, so that a crash leaves either the old file or the new one.
fn write_private(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let failed = |source| PkiError::File {
        path: path.into(),
        source,
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .map_err(failed)?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_made_once_and_are_readable_by_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let first = Pki::open_or_create(dir.path(), &names).unwrap();
        let second = Pki::open_or_create(dir.path(), &names).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.server().cert_pem, second.server().cert_pem);
        for entry in fs::read_dir(dir.path()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn new_server_names_renew_the_server_certificate_but_not_the_ca() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open_or_create(dir.path(), &["localhost".into()]).unwrap();
        let second = Pki::open_or_create(dir.path(), &["localhost".into(), "10.96.0.1".into()]).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_ne!(first.server().cert_pem, second.server().cert_pem);
    }
}
