//! Places where a store can be opened: a file of its own, or an etcd of its own.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use control_plane_store::{EtcdConfig, EtcdTls, Options, Store};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::net::UnixDatagram;

/// Where the stores of one test live; a store opened again finds what the last one left.
pub trait Place: Sync {
    /// Opens the store; the one opened before must be closed.
    fn open(&self, options: Options) -> impl Future<Output = Store> + Send;
    /// Whether history outlives the process.
    const KEEPS_HISTORY: bool;
}

/// Options with a short deadline, so that a hanging store fails its test soon.
pub fn options() -> Options {
    Options {
        deadline: Duration::from_secs(20),
        ..Options::default()
    }
}

/// A folder with the file of an embedded store.
pub struct File(pub TempDir);

impl File {
    pub async fn new() -> Self {
        Self(
            tempfile::Builder::new()
                .prefix("store-test-")
                .tempdir()
                .expect("a temporary folder"),
        )
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.0.path().join("store.redb")
    }
}

impl Place for File {
    async fn open(&self, options: Options) -> Store {
        Store::open_embedded(&self.path(), options)
            .await
            .expect("the file opens")
    }

    const KEEPS_HISTORY: bool = true;
}

/// A process that ends with its handle, after a failed test too, and the socket on which it says that it is ready.
struct Running(Child, Arc<UnixDatagram>);

impl Running {
    fn end(&mut self) {
        // It may have been ended by the test.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// A real etcd on loopback, ended with the test.
pub struct Etcd {
    folder: TempDir,
    client_url: String,
    peer_url: String,
    process: std::sync::Mutex<Running>,
    pub prefix: String,
    tls: Option<EtcdTls>,
}

fn free_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
    format!(
        "http://{}",
        listener.local_addr().expect("a bound socket has an address")
    )
}

fn spawn(folder: &Path, client: &str, peer: &str) -> Running {
    let file = |name: &str| folder.join(name).into_os_string();
    let tls = [
        ("--cert-file", "server.pem"),
        ("--key-file", "server.key"),
        ("--trusted-ca-file", "ca.pem"),
    ];
    let tls = tls
        .into_iter()
        .flat_map(|(option, name)| [option.into(), file(name)]);
    let tls = tls
        .chain(["--client-cert-auth".into()])
        .filter(|_| client.starts_with("https:"));
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .expect("a log file");
    // Where etcd tells, by sd_notify(3), that it answers.
    let notify = folder.join(format!(
        "notify-{}",
        client.rsplit(':').next().unwrap_or_default()
    ));
    // The one of an earlier run at the same address.
    let _ = std::fs::remove_file(&notify);
    let ready = UnixDatagram::bind(&notify).expect("a socket in the test's folder");
    let process = Command::new("etcd")
        .args(["--name", "test", "--data-dir"])
        .arg(folder.join("data"))
        .args(["--listen-client-urls", client, "--advertise-client-urls", client])
        .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
        .args(["--initial-cluster", &format!("test={peer}")])
        // A single member elects itself, so short intervals only make the start and the shortest lease shorter.
        .args([
            "--heartbeat-interval",
            "20",
            "--election-timeout",
            "200",
            "--max-request-bytes",
            "8388608",
        ])
        .args(tls)
        .env("NOTIFY_SOCKET", &notify)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("cannot start `etcd`; run `cargo xtask setup`, which installs it");
    Running(process, Arc::new(ready))
}

/// Makes an authority and certificates for etcd and for its client.
fn write_certificates(folder: &Path) -> EtcdTls {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let issue = |names: Vec<String>| {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (server, server_key) = issue(vec!["127.0.0.1".into()]);
    let (client, client_key) = issue(vec!["client".into()]);
    for (name, text) in [
        ("ca.pem", authority.pem()),
        ("server.pem", server),
        ("server.key", server_key),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    EtcdTls {
        ca: authority.pem().into_bytes(),
        client: Some((client.into_bytes(), client_key.into_bytes())),
    }
}

/// A client of an etcd that may still be starting.
async fn answering_client(url: &str, ready: &UnixDatagram) -> etcd_client::Client {
    // The message is left where it is: the next one to ask finds it there.
    tokio::time::timeout(Duration::from_secs(20), ready.readable())
        .await
        .expect("etcd does not say that it is ready")
        .expect("its socket is open");
    etcd_client::Client::connect([url], None)
        .await
        .expect("the address is one")
}

impl Etcd {
    pub async fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("store-test-")
            .tempdir()
            .expect("a temporary folder");
        let (client_url, peer_url) = (free_url(), free_url());
        let process = std::sync::Mutex::new(spawn(folder.path(), &client_url, &peer_url));
        Self {
            folder,
            client_url,
            peer_url,
            process,
            prefix: "/test".into(),
            tls: None,
        }
    }

    /// One that speaks TLS only, and only to clients with a certificate.
    pub async fn with_tls() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("store-test-")
            .tempdir()
            .expect("a temporary folder");
        let tls = write_certificates(folder.path());
        let (client_url, peer_url) = (free_url().replace("http:", "https:"), free_url());
        let process = std::sync::Mutex::new(spawn(folder.path(), &client_url, &peer_url));
        Self {
            folder,
            client_url,
            peer_url,
            process,
            prefix: "/test".into(),
            tls: Some(tls),
        }
    }

    pub fn config(&self, options: Options) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec![self.client_url.clone()],
            tls: self.tls.clone(),
            prefix: self.prefix.clone(),
            options,
        }
    }

    /// A client that is not ours.
    pub async fn foreign(&self) -> etcd_client::Client {
        let ready = Arc::clone(&self.process.lock().unwrap().1);
        answering_client(&self.client_url, &ready).await
    }

    pub fn kill(&self) {
        self.process.lock().unwrap().end();
    }

    pub fn start(&self) {
        *self.process.lock().unwrap() = spawn(self.folder.path(), &self.client_url, &self.peer_url);
    }

    /// Runs etcd at other addresses while `change` works on its data, out of sight of open stores.
    pub async fn change_offline<W: Future>(
        &self,
        change: impl FnOnce(etcd_client::Client) -> W,
    ) -> W::Output {
        let (client_url, peer_url) = (free_url(), free_url());
        let hidden = spawn(self.folder.path(), &client_url, &peer_url);
        let client = answering_client(&client_url, &hidden.1).await;
        let result = change(client).await;
        drop(hidden);
        result
    }

    /// Loses everything.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.folder.path().join("data")).expect("etcd's data is there");
    }

    pub fn signal(&self, name: &str) {
        let pid = self.process.lock().unwrap().0.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .expect("kill runs")
                .success()
        );
    }
}

impl Place for Etcd {
    async fn open(&self, options: Options) -> Store {
        Store::connect_etcd(self.config(options))
            .await
            .expect("etcd answers")
    }

    const KEEPS_HISTORY: bool = false;
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Ok(process) = self.process.get_mut() {
            // Before its folder goes.
            process.end();
            if std::thread::panicking() {
                eprintln!(
                    "etcd said:\n{}",
                    std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
                );
            }
        }
    }
}
