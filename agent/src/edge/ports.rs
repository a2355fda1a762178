//! The ports that tell of this node's health: one for the node, one per service that asks for one.

use super::health::{Family, HealthPorts, ProxyHealth, Report};
use super::http::{self, Answer, Answers};
use agent_services::ObjectName;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Until a port that another process has is tried again. Nothing tells when it is free: kube-proxy, whose ports these
/// are, may be on its way out.
const AGAIN: Duration = Duration::from_secs(5);

/// The health of this node's services, shared by those who report and those who answer.
#[derive(Clone)]
pub struct Health {
    proxy: Arc<Mutex<ProxyHealth>>,
    ports: watch::Sender<HealthPorts>,
}

impl Health {
    /// Nothing happened yet.
    #[must_use]
    pub fn new(late: Duration) -> Self {
        Self {
            proxy: Arc::new(Mutex::new(ProxyHealth::new(late))),
            ports: watch::Sender::new(HealthPorts::new()),
        }
    }

    /// The state of the node as a whole.
    pub fn proxy(&self) -> MutexGuard<'_, ProxyHealth> {
        self.proxy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets which services have a port, and how many endpoints each has here.
    pub fn set_ports(&self, now: HealthPorts) {
        self.ports.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }

    fn service(&self, name: &ObjectName, family: Family) -> Answer {
        let healthy = self.proxy().is_healthy(Timestamp::now());
        match self.ports.borrow().get(name) {
            Some(port) => answer(port.report(name, family, healthy)),
            None => Answer::text(404, "this service has no health-check port any more"),
        }
    }

    fn node(&self, path: &str) -> Answer {
        let now = Timestamp::now();
        match path {
            "/healthz" => answer(self.proxy().healthz(now)),
            "/livez" => answer(self.proxy().livez(now)),
            _ => Answer::text(404, "not found"),
        }
    }
}

fn answer(report: Report) -> Answer {
    let weight = report
        .weight
        .map(|weight| ("x-load-balancing-endpoint-weight", weight.to_string()));
    Answer {
        status: report.status,
        media_type: "application/json",
        headers: weight.into_iter().collect(),
        body: report.body.to_string(),
    }
}

/// Counts answers on the node's port: kube-proxy's `kubeproxy_proxy_healthz_total` and `…_livez_total`.
pub type Counted = Arc<dyn Fn(&str, u16) + Send + Sync>;

/// Answers `/healthz` and `/livez` until dropped.
pub async fn serve_node(health: Health, address: SocketAddr, counted: Counted) {
    let answers: Answers = Arc::new(move |path| {
        let answer = health.node(path);
        counted(path, answer.status);
        answer
    });
    serve_when_free(address, "health", answers).await;
}

/// Listens as soon as nobody else does, and answers until dropped.
pub async fn serve_when_free(address: SocketAddr, what: &'static str, answers: Answers) {
    let mut told = false;
    loop {
        match http::listen(address, true) {
            Ok(listener) => {
                tracing::info!(%address, "{what} port open");
                return http::serve(listener, answers).await;
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!(%address, %error, "the {what} port cannot be opened yet, trying again until it can");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}

/// The ports of one service, as they listen.
struct Open {
    port: u16,
    addresses: Vec<SocketAddr>,
    /// Ends with this.
    _serving: JoinSet<()>,
}

/// Hears of a service whose port cannot be opened, and why.
pub type Failed = Arc<dyn Fn(&ObjectName, String) + Send + Sync>;

/// Keeps a listener per service that has a health-check port, on the node's `listen` addresses, until dropped.
pub async fn serve_services(health: Health, mut listen: watch::Receiver<Vec<IpAddr>>, failed: Failed) {
    let mut open: BTreeMap<ObjectName, Open> = BTreeMap::new();
    let mut wanted = health.ports.subscribe();
    loop {
        let (ports, addresses) = (
            wanted.borrow_and_update().clone(),
            listen.borrow_and_update().clone(),
        );
        open.retain(|name, open| {
            ports
                .get(name)
                .is_some_and(|p| p.port == open.port && places(p, &addresses) == open.addresses)
        });
        let missing: Vec<_> = ports
            .iter()
            .filter(|(name, _)| !open.contains_key(name))
            .collect();
        for (name, port) in missing {
            match start(&health, name, port.port, places(port, &addresses)) {
                Ok(started) => drop(open.insert(name.clone(), started)),
                Err(error) => failed(name, format!("health-check port {}: {error}", port.port)),
            }
        }
        let all_open = ports.len() == open.len();
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return std::future::pending().await },
            changed = listen.changed() => if changed.is_err() { return std::future::pending().await },
            () = sleep(AGAIN), if !all_open => {}
        }
    }
}

/// Where the port of a service listens.
fn places(port: &super::health::HealthPort, addresses: &[IpAddr]) -> Vec<SocketAddr> {
    let of_families = addresses.iter().filter(|ip| {
        port.families[if ip.is_ipv4() {
            Family::V4 as usize
        } else {
            Family::V6 as usize
        }]
    });
    of_families.map(|ip| SocketAddr::new(*ip, port.port)).collect()
}

/// All of its listeners, or none.
fn start(health: &Health, name: &ObjectName, port: u16, addresses: Vec<SocketAddr>) -> std::io::Result<Open> {
    let mut listeners = Vec::new();
    for address in &addresses {
        listeners.push((*address, http::listen(*address, false)?));
    }
    let mut serving = JoinSet::new();
    for (address, listener) in listeners {
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        let (health, name) = (health.clone(), name.clone());
        let answers: Answers = Arc::new(move |_| health.service(&name, family));
        serving.spawn(http::serve(listener, answers));
    }
    Ok(Open {
        port,
        addresses,
        _serving: serving,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::health::{HealthPort, LATE};
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap().port()
    }

    fn ports(name: &ObjectName, port: u16, local: u32) -> HealthPorts {
        let port = HealthPort {
            port,
            families: [true, false],
            local: [local, 0],
        };
        HealthPorts::from([(name.clone(), port)])
    }

    /// Asks until the answer is as wanted, which takes as long as the other task needs to hear of the change.
    async fn until(address: SocketAddr, wanted: impl Fn(&std::io::Result<String>) -> bool) -> String {
        for _ in 0..200 {
            let answer = get(address, "/any/path").await;
            if wanted(&answer) {
                return answer.unwrap_or_default();
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("no such answer on {address}");
    }

    #[tokio::test]
    async fn the_port_of_a_service_opens_counts_and_closes() {
        let (health, name) = (Health::new(LATE), ObjectName::new("a", "b"));
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (_keep, listen) = watch::channel(vec![loopback]);
        let task = tokio::spawn(serve_services(
            health.clone(),
            listen,
            Arc::new(|_, error| panic!("{error}")),
        ));
        let address = SocketAddr::new(loopback, free_port());
        health.set_ports(ports(&name, address.port(), 3));
        let answer = until(address, Result::is_ok).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("x-load-balancing-endpoint-weight: 3"), "{answer}");
        assert!(answer.contains(r#""localEndpoints":3"#), "{answer}");
        health.set_ports(ports(&name, address.port(), 0));
        until(address, |a| {
            a.as_ref().is_ok_and(|a| a.starts_with("HTTP/1.1 503"))
        })
        .await;
        health.set_ports(HealthPorts::new());
        until(address, Result::is_err).await;
        task.abort();
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told() {
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (health, name) = (Health::new(LATE), ObjectName::new("a", "b"));
        health.set_ports(ports(&name, taken.local_addr().unwrap().port(), 1));
        let (_keep, listen) = watch::channel(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        let (told, mut heard) = tokio::sync::mpsc::channel(8);
        let failed: Failed = Arc::new(move |name, _| drop(told.try_send(name.clone())));
        let task = tokio::spawn(serve_services(health, listen, failed));
        assert_eq!(heard.recv().await, Some(name));
        task.abort();
    }

    #[tokio::test]
    async fn the_node_answers_both_of_its_paths() {
        let health = Health::new(LATE);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let task = tokio::spawn(serve_node(health.clone(), address, Arc::new(|_, _| {})));
        until(address, |a| {
            a.as_ref().is_ok_and(|a| a.starts_with("HTTP/1.1 404"))
        })
        .await;
        assert!(
            get(address, "/healthz")
                .await
                .unwrap()
                .starts_with("HTTP/1.1 503")
        );
        assert!(get(address, "/livez").await.unwrap().starts_with("HTTP/1.1 200"));
        health.proxy().set_eligible(true);
        assert!(
            get(address, "/healthz")
                .await
                .unwrap()
                .starts_with("HTTP/1.1 200")
        );
        task.abort();
    }
}
