//! An API server alone, for trying it by hand: `serve DIR [PORT]` serves on 127.0.0.1 and writes `DIR/admin.conf`.

use std::path::PathBuf;
use std::sync::Arc;

use control_plane_apiserver::pki::Pki;
use control_plane_apiserver::{ApiServer, Config};
use control_plane_store::{Options, Store};
use machinery_lifecycle::Shutdown;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("usage: serve DIR [PORT]")?);
    let port: u16 = arguments.next().map_or(Ok(0), |p| p.parse())?;
    std::fs::create_dir_all(&dir)?;
    let names = ["localhost", "127.0.0.1", "10.96.0.1", "kubernetes.default.svc"].map(String::from);
    let pki = Arc::new(Pki::open_or_create(&dir.join("pki"), &names)?);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    let store = Store::open_embedded(&dir.join("store.redb"), Options::default()).await?;
    let config = Config {
        advertise: vec![address.ip()],
        advertise_port: address.port(),
        ..Config::new(Arc::clone(&pki))
    };
    let server = ApiServer::new(config, store.clone()).await?;
    let admin = pki.issue_client("kubernetes-admin", &["system:masters"])?;
    let kubeconfig = dir.join("admin.conf");
    std::fs::write(&kubeconfig, pki.kubeconfig(&format!("https://{address}"), &admin))?;
    println!("export KUBECONFIG={}", kubeconfig.display());
    let shutdown = Shutdown::on_signals()?;
    server.serve(listener, shutdown.into_requested()).await?;
    store.close().await;
    Ok(())
}
