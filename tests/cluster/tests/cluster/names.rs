//! The cluster's DNS, as pods and nodes see it.

use crate::healing;
use crate::support::Cluster;
use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Longer than an agent takes to come back.
const LOAD: Duration = Duration::from_secs(8);
/// Longer than an agent may take: what is not answered by then is lost.
const LOST: Duration = Duration::from_secs(15);

pub fn pods_find_services(cluster: &Cluster) -> Result<()> {
    for client in ["client-0", "client-1"] {
        for name in [
            "hello",
            "hello.default",
            "hello.default.svc.cluster.local",
            "hello.default.svc.cluster.local.",
        ] {
            let said = cluster.ask(client, &[&format!("http://{name}:80"), "-n", "5"])?;
            ensure!(said.contains("5 answered, 0 failed"), "{client}, {name}: {said}");
        }
        let unknown = cluster.ask(client, &["http://nobody.default:80", "-n", "1"]);
        ensure!(unknown.is_err(), "a name that does not exist leads somewhere");
    }
    Ok(())
}

pub fn a_pod_of_a_headless_service(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: pets}, spec: {clusterIP: None, selector: {app: pets}, ports: [{name: http, port: 8080}]}}",
    )?;
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: pet, labels: {app: pets}}, spec: {hostname: rex, subdomain: pets, terminationGracePeriodSeconds: 1, \
         containers: [{name: c, image: 'skep.local/echo:1', args: [serve, --port, '8080', --drain, '0']}]}}",
    )?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/pet", "--timeout=60s"])?;
    cluster.kubectl(&[
        "wait",
        "--for=jsonpath={.endpoints[0].conditions.ready}=true",
        "endpointslice",
        "-l",
        "kubernetes.io/service-name=pets",
        "--timeout=30s",
    ])?;
    // The node hears of it a moment after we do; a negative answer may be kept for five seconds.
    let end = Instant::now() + LOST;
    for name in ["pets", "rex.pets"] {
        while let Err(error) = cluster.ask("client-1", &[&format!("http://{name}:8080"), "-n", "1"]) {
            ensure!(Instant::now() < end, "{name}: {error:#}");
        }
    }
    cluster.kubectl(&["delete", "pod/pet", "service/pets"]).map(drop)
}

pub fn no_lookup_is_lost(cluster: &Cluster) -> Result<()> {
    let servers = cluster.kubectl(&[
        "get",
        "service",
        "kube-dns",
        "-n",
        "kube-system",
        "-o",
        "jsonpath={.spec.clusterIPs[*]}",
    ])?;
    let agent = healing::find(cluster, "agent")?.context("no agent runs")?;
    let node = File::open(format!("/proc/{agent}/ns/net")).context("the node's network")?;
    let loads: Vec<_> = servers
        .split_whitespace()
        .map(|server| {
            let (server, node) = (server.to_owned(), node.try_clone());
            std::thread::spawn(move || lookups(&server, &node?))
        })
        .collect();
    healing::kill(cluster, "agent")?;
    for load in loads {
        let answered = load.join().map_err(|_| anyhow::anyhow!("a load ended early"))??;
        ensure!(answered > 100, "only {answered} lookups in all that time");
    }
    Ok(())
}

/// Asks one question after the other from within the node; fails if one of them is not answered.
fn lookups(server: &str, node: &File) -> Result<u32> {
    move_into_link_name_space(node.as_fd(), Some(LinkNameSpaceType::Network))
        .context("enter the node's network")?;
    let any = if server.contains(':') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect((server, 53))?;
    socket.set_read_timeout(Some(LOST))?;
    let end = Instant::now() + LOAD;
    let mut count = 0u32;
    while Instant::now() < end {
        let id = u16::try_from(count & 0xffff)
            .context("sixteen bits")?
            .to_be_bytes();
        socket.send(&question(id))?;
        let mut reply = [0; 512];
        let length = socket
            .recv(&mut reply)
            .with_context(|| format!("lookup {count} at {server} was lost"))?;
        ensure!(length > 12 && reply[..2] == id, "the answer to another question");
        ensure!(
            reply[3] & 0xf == 0 && reply[7] == 1,
            "no address: {:?}",
            &reply[..12]
        );
        count += 1;
        std::thread::park_timeout(Duration::from_millis(2));
    }
    Ok(count)
}

/// The address of `kubernetes.default.svc.cluster.local`, RFC 1035 section 4.
fn question(id: [u8; 2]) -> Vec<u8> {
    let mut packet = [&id[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in ["kubernetes", "default", "svc", "cluster", "local"] {
        packet.push(u8::try_from(label.len()).unwrap_or_default());
        packet.extend(label.bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}
