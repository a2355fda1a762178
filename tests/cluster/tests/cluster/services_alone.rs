//! `skep agent --only services` on a node that is none of the cluster's: a namespace of its own on the nodes' network, with
//! its own cgroup and its own bpffs.

use crate::services::{Outside, eventually};
use crate::support::{Cluster, run, skep, text};
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The address of the node, beyond those that the cluster's nodes have.
const ADDRESS: &str = "10.89.0.160/24";
/// What leads to the API from the node, whatever serves the service `kubernetes`.
const API: &str = "https://10.89.0.1:6443";
/// The address of the service `kubernetes`, which only the agent itself makes lead anywhere.
const SERVICE: &str = "https://10.96.0.1:443";

/// A bare node; dropping it removes what it was made of.
struct Node {
    name: String,
    folder: PathBuf,
    cgroup: PathBuf,
    holder: Child,
    agent: Option<Child>,
}

impl Node {
    fn on_the_network_of(cluster: &Cluster) -> Result<Self> {
        let name = format!("{}x", cluster.name);
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(folder.join("bpf"))?;
        run(Command::new("mount")
            .args(["-t", "bpf", "bpf"])
            .arg(folder.join("bpf")))?;
        let table = std::fs::read_to_string("/proc/self/mounts")?;
        let mounts = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let unified = mounts
            .into_iter()
            .find(|m| m.get(2) == Some(&"cgroup2"))
            .context("no cgroup2")?;
        let cgroup = Path::new(unified[1]).join(&name);
        std::fs::create_dir_all(&cgroup)?;
        let holder = Command::new("unshare")
            .args(["--net", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()?;
        let node = Self {
            name,
            folder,
            cgroup,
            holder,
            agent: None,
        };
        let outside = Outside::of(cluster)?;
        let pid = node.holder.id().to_string();
        let own = std::fs::read_link("/proc/self/ns/net")?;
        eventually(|| {
            let its = std::fs::read_link(format!("/proc/{pid}/ns/net"))?;
            ensure!(its != own, "it has no namespace yet");
            Ok(())
        })?;
        outside.run(&[
            "ip", "link", "add", "skep-x0", "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ])?;
        outside.run(&["ip", "link", "set", "skep-x0", "master", "skep-lan", "up"])?;
        node.inside("ip link set lo up; ip link set eth0 up")?;
        node.inside(&format!("ip addr add {ADDRESS} dev eth0"))?;
        Ok(node)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id()));
        command
    }

    fn inside(&self, script: &str) -> Result<String> {
        run(self.command().args(["sh", "-ec", script]))
    }

    /// Starts the agent, and waits until it is live, which it is only with its health port open.
    fn start(&mut self, cluster: &Cluster, server: &str) -> Result<()> {
        let admin =
            std::fs::read_to_string(Path::new("/var/lib/skep").join(&cluster.name).join("kubeconfig"))?;
        let lines = admin.lines().map(|line| match line.split_once("server:") {
            Some((indent, _)) => format!("{indent}server: {server}\n"),
            None => format!("{line}\n"),
        });
        let kubeconfig = self.folder.join("kubeconfig");
        std::fs::write(&kubeconfig, lines.collect::<String>())?;
        let mut command = self.command();
        command
            .arg(skep().get_program())
            .args(["agent", "--only", "services", "--node-name", &self.name]);
        command
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .arg("--pin-dir")
            .arg(self.folder.join("bpf/pins"));
        command
            .arg("--cgroup")
            .arg(&self.cgroup)
            .arg("--state-dir")
            .arg(self.folder.join("state"));
        let log = std::fs::File::create(self.folder.join("log"))?;
        self.agent = Some(
            command
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?,
        );
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// A process of this node asks the API at the service's address.
    fn asks_the_service(&self) -> Result<String> {
        let join = format!("echo $$ > {}/cgroup.procs", self.cgroup.display());
        self.inside(&format!("{join}; exec curl -sSk -m 2 {SERVICE}/version"))
    }

    fn is_served(&self) -> Result<()> {
        let said = eventually(|| self.asks_the_service()).with_context(|| self.log())?;
        ensure!(said.contains("gitVersion"), "{said}");
        Ok(())
    }

    fn log(&self) -> String {
        text(&std::fs::read(self.folder.join("log")).unwrap_or_default())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        // Links that are pinned hold the cgroup and the namespace: they go first.
        let _ = run(Command::new("umount").arg(self.folder.join("bpf")));
        let _ = std::fs::remove_dir(&self.cgroup);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// It is killed, and started anew with empty maps and no way to the API but the service that it serves itself.
pub fn services_without_a_kubelet(cluster: &Cluster) -> Result<()> {
    let mut node = Node::on_the_network_of(cluster)?;
    ensure!(
        node.asks_the_service().is_err(),
        "the service is reached before anybody serves it"
    );
    node.start(cluster, API)?;
    node.is_served()?;
    let health = "curl -s -m 2 -o /dev/null -w %{http_code} http://127.0.0.1:10256";
    eventually(|| {
        let codes = (
            node.inside(&format!("{health}/healthz"))?,
            node.inside(&format!("{health}/livez"))?,
        );
        // The API has no Node of this name: balancers are told to stay away, the agent itself is well.
        ensure!(codes == ("503".into(), "200".into()), "{codes:?}");
        Ok(())
    })?;
    let outside = Outside::of(cluster)?;
    let port = SocketAddr::new("10.89.0.160".parse()?, 10256);
    ensure!(
        outside
            .get(port, std::time::Duration::from_secs(2))?
            .contains("404"),
        "the health port is open to others"
    );
    node.kill();
    node.is_served().context("without its agent")?;
    std::fs::remove_dir_all(node.folder.join("bpf/pins"))?;
    // The kernel ends links without pins some time after.
    crate::services::eventually(|| {
        ensure!(
            node.asks_the_service().is_err(),
            "the service is reached without maps"
        );
        Ok(())
    })?;
    node.start(cluster, SERVICE)?;
    node.is_served().context("after a start without a way to the API")
}
