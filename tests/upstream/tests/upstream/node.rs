//! A node of upstream's: namespaces of its own, containerd, kubelet, and a proxy or two.

use crate::cluster::Shared;
use crate::process::{Service, eventually, peer, root, run, skep};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Mounts of a node. What kubelet would set for the whole machine it finds set: it sees files of its own there.
const INIT: &str = r#"
set -e
mount --make-rprivate /
mkdir -p $D/cg
mount --rbind /sys/fs/cgroup $D/cg
mount -t sysfs sysfs /sys
mount --rbind $D/cg /sys/fs/cgroup
umount -R -l $D/cg
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /run/netns /run/cgroup /run/cni /var/lib/skep
mount -t tmpfs tmpfs /var/lib/skep
mount --bind $CGROUP /run/cgroup
knob() { echo $2 > $D/knob-$(basename $1); mount --bind $D/knob-$(basename $1) /proc/sys/$1; }
knob vm/overcommit_memory 1
knob vm/panic_on_oom 0
knob kernel/panic 10
knob kernel/panic_on_oops 1
knob kernel/keys/root_maxkeys 1000000
knob kernel/keys/root_maxbytes 25000000
mount --make-rshared /
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
echo ready > $D/ready
exec sleep infinity
"#;

/// Where a node's services are asked for, by kube-proxy's port.
const LIVE: &str = "curl -s -m 2 -o /dev/null -w %{http_code} http://127.0.0.1:10256/livez";
pub const PINS: &str = "/sys/fs/bpf/skep/services";

pub struct Node {
    pub name: String,
    pub address: String,
    folder: PathBuf,
    /// The process 1 of the node, by its number out here; killing the one that made it ends everything in the node.
    init: u32,
    proxy: Option<Service>,
    agent: Option<Service>,
    leaving: Option<Service>,
    services: Vec<Service>,
}

impl Node {
    /// Number `n` of the nodes, joined to the cluster's network.
    pub fn start(shared: &Shared, n: usize) -> Result<Self> {
        let name = format!("{}-n{n}", shared.name);
        let folder = shared.folder.join(format!("n{n}"));
        std::fs::create_dir_all(&folder)?;
        let cgroup = shared.unified.join(&name);
        std::fs::create_dir_all(&cgroup)?;
        let mut make = Command::new("unshare");
        make.args(["--net", "--mount", "--uts", "--ipc", "--pid", "--fork"])
            .args(["--kill-child=SIGKILL", "--mount-proc", "--propagation", "private"])
            .args(["sh", "-c", INIT])
            .env("D", &folder)
            .env("CGROUP", &cgroup);
        let holder = Service::start(&mut make, &folder.join("init.log"))?;
        eventually(Duration::from_secs(10), || {
            ensure!(folder.join("ready").exists(), "{}", holder.said());
            Ok(())
        })?;
        let pid = holder.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let node = Self {
            name,
            address: format!("10.91.0.{}", 10 + n),
            init: children.trim().parse().context("the node has no process 1")?,
            folder,
            proxy: None,
            agent: None,
            leaving: None,
            services: vec![holder],
        };
        node.join(shared, n)?;
        Ok(node)
    }

    fn join(&self, shared: &Shared, n: usize) -> Result<()> {
        let (pid, address) = (self.init, &self.address);
        shared.lan(&format!(
            "ip link add n{n} type veth peer name eth0 netns {pid}; ip link set n{n} master lan up; \
             ip route add 10.92.{n}.0/24 via {address}"
        ))?;
        let other = 3 - n;
        self.inside(&format!(
            "ip link set eth0 up; ip addr add {address}/24 dev eth0; ip route add default via 10.91.0.1; \
             ip route add 10.92.{other}.0/24 via 10.91.0.{}",
            10 + other
        ))
        .map(drop)
    }

    /// A command in the node's namespaces.
    pub fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init.to_string(), "-n", "-m", "-u", "-i", "-p"]);
        command
    }

    pub fn inside(&self, script: &str) -> Result<String> {
        run(self.command().args(["sh", "-ec", script]))
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    fn background(&self, program: &Path, args: &[String], log: &str) -> Result<Service> {
        let log = self.folder.join(log);
        Service::start(self.command().arg(program).args(args), &log)
    }

    pub fn containerd(&mut self) -> Result<()> {
        let folder = self.folder.display();
        let toml = format!(
            "version = 2\nroot = '{folder}/containerd'\nstate = '/run/containerd-state'\noom_score = 0\n\
             [grpc]\n  address = '/run/containerd.sock'\n[ttrpc]\n  address = '/run/containerd.sock.ttrpc'\n\
             [plugins.'io.containerd.internal.v1.opt']\n  path = '{folder}/opt'\n\
             [plugins.'io.containerd.grpc.v1.cri']\n  sandbox_image = 'skep.local/pause:1'\n  disable_apparmor = true\n  \
             netns_mounts_under_state_dir = true\n  restrict_oom_score_adj = true\n  disable_hugetlb_controller = true\n  \
             tolerate_missing_hugetlb_controller = true\n  disable_tcp_service = true\n  stream_server_address = '127.0.0.1'\n  \
             stream_server_port = '0'\n  [plugins.'io.containerd.grpc.v1.cri'.containerd]\n    default_runtime_name = 'runc'\n    \
             [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\n      runtime_type = 'io.containerd.runc.v2'\n  \
             [plugins.'io.containerd.grpc.v1.cri'.cni]\n    bin_dir = '/usr/lib/cni'\n    conf_dir = '{folder}/cni'\n"
        );
        let n = self.name.chars().last().unwrap_or('1');
        std::fs::create_dir_all(self.folder.join("cni"))?;
        self.file(
            "cni/ptp.conflist",
            &format!(
                r#"{{"cniVersion":"1.0.0","name":"ptp","plugins":[{{"type":"ptp","ipMasq":false,"ipam":{{"type":"host-local",
                "dataDir":"/run/cni","ranges":[[{{"subnet":"10.92.{n}.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}}]}}"#
            ),
        )?;
        let config = self.file("containerd.toml", &toml)?;
        let args = ["-c".to_owned(), config.display().to_string()];
        let service = self.background(Path::new("containerd"), &args, "containerd.log")?;
        self.services.push(service);
        eventually(Duration::from_secs(20), || {
            self.inside("ctr -a /run/containerd.sock version")
        })?;
        for image in ["pause", "echo"] {
            self.import(&root().join(format!("target/images/{image}.tar")))?;
        }
        Ok(())
    }

    pub fn import(&self, archive: &Path) -> Result<()> {
        let archive = archive.canonicalize().with_context(|| {
            format!(
                "{} is not there\nhint: run `cargo xtask build`",
                archive.display()
            )
        })?;
        let import = "ctr -a /run/containerd.sock -n k8s.io images import";
        self.inside(&format!("{import} {}", archive.display())).map(drop)
    }

    pub fn kubelet(&mut self, shared: &Shared) -> Result<()> {
        let config = self.file(
            "kubelet.yaml",
            &format!(
                "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\naddress: 0.0.0.0\n\
                 authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}\nauthorization: {{mode: AlwaysAllow}}\n\
                 cgroupDriver: cgroupfs\ncgroupRoot: /{}\ncgroupsPerQOS: false\nenforceNodeAllocatable: []\nfailSwapOn: false\n\
                 failCgroupV1: false\ncontainerRuntimeEndpoint: unix:///run/containerd.sock\nresolvConf: ''\noomScoreAdj: 0\n\
                 protectKernelDefaults: true\nmakeIPTablesUtilChains: false\nlocalStorageCapacityIsolation: false\n\
                 imageGCHighThresholdPercent: 100\nevictionHard: {{memory.available: 0%}}\nfeatureGates: {{KubeletInUserNamespace: true}}\n\
                 volumePluginDir: {}/plugins\n",
                self.name,
                self.folder.display()
            ),
        )?;
        let folder = self.folder.display();
        let args = [
            format!("--config={}", config.display()),
            format!("--kubeconfig={}", shared.kubeconfig.display()),
            format!("--hostname-override={}", self.name),
            format!("--node-ip={}", self.address),
            format!("--root-dir={folder}/kubelet"),
            format!("--cert-dir={folder}/kubelet-pki"),
        ];
        let service = self.background(&peer("kubelet")?, &args, "kubelet.log")?;
        self.services.push(service);
        Ok(())
    }

    pub fn start_kube_proxy(&mut self, shared: &Shared) -> Result<()> {
        let config = self.file(
            "kube-proxy.yaml",
            &format!(
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
                 clusterCIDR: 10.92.0.0/16\nhostnameOverride: {}\nclientConnection: {{kubeconfig: {}}}\n\
                 conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\nnodePortAddresses: [primary]\n\
                 healthzBindAddress: 127.0.0.1:10257\nmetricsBindAddress: 127.0.0.1:10258\n",
                self.name,
                shared.kubeconfig.display()
            ),
        )?;
        let args = [format!("--config={}", config.display())];
        self.proxy = Some(self.background(&peer("kube-proxy")?, &args, "kube-proxy.log")?);
        eventually(Duration::from_secs(60), || {
            let rules = self.inside("nft list table ip kube-proxy")?;
            ensure!(rules.contains("default/echo"), "it has no rules yet: {rules}");
            Ok(())
        })
    }

    /// Ends kube-proxy and takes its rules away, by its own command.
    pub fn remove_kube_proxy(&mut self) -> Result<()> {
        self.proxy.take().context("kube-proxy does not run")?.stop()?;
        let program = peer("kube-proxy")?;
        run(self
            .command()
            .arg(program)
            .args(["--cleanup", "--config"])
            .arg(self.folder.join("kube-proxy.yaml")))?;
        let left = self.inside("nft list tables")?;
        ensure!(!left.contains("kube-proxy"), "rules are left: {left}");
        Ok(())
    }

    /// Starts Skep's services, and waits until they are served. `server` is where the API is.
    pub fn start_skep(&mut self, shared: &Shared, server: &str) -> Result<()> {
        let kubeconfig = shared.kubeconfig_for(server, &self.folder.join("skep.kubeconfig"))?;
        let args = [
            "agent".to_owned(),
            "--only=services".to_owned(),
            format!("--node-name={}", self.name),
            format!("--kubeconfig={}", kubeconfig.display()),
            "--cgroup=/run/cgroup".to_owned(),
            "--cluster-cidr=10.92.0.0/16".to_owned(),
            "--log=debug,hyper=warn,hyper_util=warn,tower=warn,kube=info,rustls=info".to_owned(),
        ];
        self.agent = Some(self.background(&skep()?, &args, "skep.log")?);
        self.is_live()
    }

    pub fn is_live(&self) -> Result<()> {
        eventually(Duration::from_secs(60), || {
            let code = self.inside(LIVE)?;
            ensure!(
                code == "200",
                "Skep is not live ({code}): {}",
                self.agent.as_ref().map(Service::said).unwrap_or_default()
            );
            Ok(())
        })
    }

    pub fn stop_skep(&mut self) -> Result<()> {
        self.agent.take().context("Skep does not run")?.stop()
    }

    /// Begins to leave the node to another proxy.
    pub fn leave(&mut self) -> Result<()> {
        let args = ["leave".to_owned(), "--timeout=60".to_owned()];
        self.leaving = Some(self.background(&skep()?, &args, "leave.log")?);
        Ok(())
    }

    /// Nothing of Skep is left.
    pub fn has_left(&mut self) -> Result<()> {
        let leaving = self.leaving.take().context("it is not leaving")?;
        leaving.ended(Duration::from_secs(70))?;
        let said = std::fs::read_to_string(self.folder.join("leave.log"))?;
        ensure!(!said.contains("end now"), "connections were cut: {said}");
        self.is_clean()
    }

    pub fn is_clean(&self) -> Result<()> {
        let said = self.inside(&format!(
            "test ! -e {PINS} || echo pins; nft list tables | grep skep || true; ip -d link show dev eth0 | grep -o 'prog/xdp.*' || true"
        ))?;
        ensure!(said.is_empty(), "left behind: {said}");
        Ok(())
    }

    /// A command in the network namespace of a container, and among the processes whose sockets the hooks serve.
    pub fn in_container(&self, id: &str) -> Result<Command> {
        let id = id.trim_start_matches("containerd://");
        let tasks = self.inside("ctr -a /run/containerd.sock -n k8s.io tasks ls")?;
        let line = tasks
            .lines()
            .find(|l| l.starts_with(id))
            .context("no such container")?;
        let pid = line.split_whitespace().nth(1).context("it has no process")?;
        let mut command = self.command();
        command
            .args(["nsenter", "-t", pid, "-n", "sh", "-ec"])
            .arg("echo $$ > /run/cgroup/cgroup.procs; exec \"$@\"")
            .arg("sh");
        Ok(command)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The holder was the first to come; with it ends everything in the node.
        self.services.truncate(1);
        self.services.clear();
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let folder = hierarchy.path().join(&self.name);
            let _ = eventually(Duration::from_secs(5), || remove_groups(&folder));
        }
    }
}

/// Empty groups only; a group that is not there is fine.
fn remove_groups(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    if folder.is_dir() {
        std::fs::remove_dir(folder)?;
    }
    Ok(())
}
