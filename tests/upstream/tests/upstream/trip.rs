//! From kube-proxy to Skep and back.

use crate::cluster::{Cluster, SERVICE, file};
use crate::load::{Kind, Load};
use crate::process::{eventually, pause, peer, root, run};
use anyhow::{Context, Result, ensure};
use std::process::Command;
use std::time::Duration;

const CLUSTER_IP: &str = "10.93.0.80:80";
const NODE_PORT: u16 = 30080;
/// Connections at a time of each kind.
const HELD: usize = 40;
const DIALED: usize = 4;
/// How long every state of the cluster is asked.
const WHILE: Duration = Duration::from_secs(3);

/// Connections of every kind, that are held and that are opened anew.
struct Loads(Vec<Load>);

impl Loads {
    fn start(cluster: &Cluster) -> Result<Self> {
        let container = cluster.container()?;
        let mut all = Vec::new();
        for (kind, threads) in [(Kind::Hold, HELD), (Kind::Dial, DIALED)] {
            let pod = cluster.nodes[0].in_container(&container)?;
            all.push(Load::start(pod, kind, CLUSTER_IP, threads)?);
            for node in &cluster.nodes {
                let to = format!("{}:{NODE_PORT}", node.address);
                all.push(Load::start(cluster.shared.outside(), kind, &to, threads)?);
            }
        }
        Ok(Self(all))
    }

    /// No connection was lost, and each was in use.
    fn end(self) -> Result<()> {
        let ends: Vec<_> = self.0.into_iter().map(Load::end).collect();
        for requests in ends {
            let requests = requests?;
            ensure!(requests > 100, "only {requests} requests");
        }
        Ok(())
    }
}

fn go_on() {
    pause(WHILE);
}

/// Connections of kube-proxy's time survive Skep's start and kube-proxy's end.
pub fn there(cluster: &mut Cluster) -> Result<()> {
    let loads = Loads::start(cluster)?;
    for node in &mut cluster.nodes {
        node.start_skep(&cluster.shared, SERVICE)?;
    }
    go_on();
    for node in &mut cluster.nodes {
        node.remove_kube_proxy()?;
    }
    go_on();
    loads.end()
}

/// Connections of Skep's time survive kube-proxy's start and Skep's end, for which Skep waits.
pub fn back(cluster: &mut Cluster) -> Result<()> {
    let loads = Loads::start(cluster)?;
    for node in &mut cluster.nodes {
        node.start_kube_proxy(&cluster.shared)?;
    }
    go_on();
    for node in &mut cluster.nodes {
        node.stop_skep()?;
        node.leave()?;
    }
    go_on();
    let later = Loads::start(cluster).context("connections of kube-proxy's time")?;
    loads.end()?;
    for node in &mut cluster.nodes {
        node.has_left()?;
    }
    go_on();
    later.end()
}

/// No proxy, no maps, and no address of the API but that of its service: the endpoints are known from before.
pub fn bootstrap(cluster: &mut Cluster) -> Result<()> {
    for node in &mut cluster.nodes {
        node.remove_kube_proxy()?;
    }
    let asks = "echo $$ > /run/cgroup/cgroup.procs; exec curl -sk -m 2";
    let ask = format!("{asks} {SERVICE}/version");
    ensure!(
        cluster.nodes[0].inside(&ask).is_err(),
        "the service is reached though nobody serves it"
    );
    for node in &mut cluster.nodes {
        node.start_skep(&cluster.shared, SERVICE)?;
    }
    let said = eventually(Duration::from_secs(10), || cluster.nodes[0].inside(&ask))?;
    ensure!(!said.is_empty(), "the API says nothing");
    Loads::start(cluster)?.end_soon()?;
    for node in &mut cluster.nodes {
        node.start_kube_proxy(&cluster.shared)?;
        node.stop_skep()?;
        node.leave()?;
    }
    cluster.nodes.iter_mut().try_for_each(|node| node.has_left())
}

impl Loads {
    fn end_soon(self) -> Result<()> {
        go_on();
        self.end()
    }
}

/// Both DaemonSets as they stand in `deploy/services`, but for the place of the cgroups.
pub fn daemon_set(cluster: &mut Cluster) -> Result<()> {
    for node in &cluster.nodes {
        node.import(&root().join("target/images/skep.tar"))?;
    }
    let placed = |text: String| text.replace("path: /sys/fs/cgroup", "path: /run/cgroup");
    let serve = placed(file("deploy/services/skep-services.yaml")?);
    let leave = file("deploy/services/skep-services-leave.yaml")?;
    install_and_leave(cluster, &serve, &leave)?;
    cluster.shared.delete(&leave)?;
    cluster.shared.delete(&serve)
}

/// What the chart renders.
pub fn chart(cluster: &mut Cluster) -> Result<()> {
    let chart = root().join("deploy/services/helm");
    let render = |set: &str| {
        let mut command = Command::new(peer("chart")?);
        command.arg(&chart).args([
            "skep-services",
            "kube-system",
            "hostPaths.cgroup=/run/cgroup",
            set,
        ]);
        run(&mut command)
    };
    install_and_leave(cluster, &render("leave=false")?, &render("leave=true")?)
}

/// The nodes go to the DaemonSet of `serve`, and back by that of `leave`.
fn install_and_leave(cluster: &mut Cluster, serve: &str, leave: &str) -> Result<()> {
    let loads = Loads::start(cluster)?;
    cluster.shared.apply(serve)?;
    cluster.rolled_out("daemonset/skep-services", "kube-system")?;
    for node in &mut cluster.nodes {
        node.is_live()?;
        node.remove_kube_proxy()?;
    }
    go_on();
    loads.end()?;
    let loads = Loads::start(cluster)?;
    for node in &mut cluster.nodes {
        node.start_kube_proxy(&cluster.shared)?;
    }
    cluster.shared.kubectl(&[
        "delete",
        "daemonset/skep-services",
        "-n",
        "kube-system",
        "--cascade=foreground",
    ])?;
    cluster.shared.apply(leave)?;
    go_on();
    loads.end()?;
    cluster.rolled_out("daemonset/skep-services-leave", "kube-system")?;
    cluster.nodes.iter().try_for_each(|node| node.is_clean())
}
