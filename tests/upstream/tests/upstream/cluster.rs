//! The control plane, the network between nodes, and kubectl.

use crate::node::Node;
use crate::process::{Service, eventually, peer, root, run};
use anyhow::{Context, Result, bail, ensure};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The API's own address, and that of the service `kubernetes`.
pub const API: &str = "https://10.91.0.1:6443";
pub const SERVICE: &str = "https://10.93.0.1:443";
const TOKEN: &str = "a-token-for-tests";

/// What every part of the cluster knows.
pub struct Shared {
    pub name: String,
    pub folder: PathBuf,
    pub kubeconfig: PathBuf,
    /// The root of the unified cgroup hierarchy.
    pub unified: PathBuf,
    /// The process that holds the network namespace of the control plane, which is also where clients from outside live.
    lan: Child,
}

impl Shared {
    fn new() -> Result<Self> {
        let name = format!("up{}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(folder.join("pki"))?;
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let fields = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
        let unified = fields
            .into_iter()
            .find(|m| m.get(2) == Some(&"cgroup2"))
            .context("no cgroup2 is mounted")?[1]
            .into();
        let lan = Command::new("unshare")
            .args(["--net", "--kill-child=SIGKILL", "--fork", "sleep", "900"])
            .stdin(Stdio::null())
            .spawn()?;
        let shared = Self {
            kubeconfig: folder.join("kubeconfig"),
            name,
            folder,
            unified,
            lan,
        };
        eventually(Duration::from_secs(5), || {
            let (its, ours) = (shared.lan_namespace(), PathBuf::from("/proc/self/ns/net"));
            ensure!(std::fs::read_link(its)? != std::fs::read_link(ours)?);
            Ok(())
        })?;
        shared.lan(
            "ip link set lo up; ip link add lan type bridge; ip addr add 10.91.0.1/24 dev lan; ip link set lan up; \
             ip route add unreachable default",
        )?;
        Ok(shared)
    }

    fn lan_namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.lan.id()).into()
    }

    /// A command among the control plane's processes.
    pub fn outside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.lan_namespace().display()));
        command
    }

    pub fn lan(&self, script: &str) -> Result<String> {
        run(self.outside().args(["sh", "-ec", script]))
    }

    /// An administrator's, with another address of the API.
    pub fn kubeconfig_for(&self, server: &str, path: &Path) -> Result<PathBuf> {
        let ca = self.folder.join("pki/apiserver.crt");
        std::fs::write(
            path,
            format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
                 users: [{{name: u, user: {{token: {TOKEN}}}}}]\n\
                 clusters: [{{name: c, cluster: {{server: '{server}', certificate-authority: {}}}}}]\n",
                ca.display()
            ),
        )?;
        Ok(path.to_owned())
    }

    pub fn kubectl_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.outside();
        command
            .arg(peer("kubectl")?)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(args);
        Ok(command)
    }

    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        run(&mut self.kubectl_command(args)?)
    }

    pub fn apply(&self, manifest: &str) -> Result<()> {
        self.with_manifest(&["apply", "-f", "-"], manifest)
    }

    pub fn delete(&self, manifest: &str) -> Result<()> {
        self.with_manifest(&["delete", "--ignore-not-found", "-f", "-"], manifest)
    }

    fn with_manifest(&self, args: &[&str], manifest: &str) -> Result<()> {
        let mut child = self
            .kubectl_command(args)?
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(manifest.as_bytes())?;
        let out = child.wait_with_output()?;
        if !out.status.success() {
            bail!("{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.lan.kill();
        let _ = self.lan.wait();
        if std::env::var_os("SKEP_KEEP_LOGS").is_none() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// A running cluster; dropping it ends and removes everything.
pub struct Cluster {
    pub nodes: Vec<Node>,
    services: Vec<Service>,
    // Last: everything above lives in its folder.
    pub shared: Shared,
}

const WORKLOAD: &str = "
{apiVersion: apps/v1, kind: Deployment, metadata: {name: echo}, spec: {replicas: 4, selector: {matchLabels: {app: echo}},
  template: {metadata: {labels: {app: echo}}, spec: {terminationGracePeriodSeconds: 1,
    topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule,
      labelSelector: {matchLabels: {app: echo}}}],
    containers: [{name: c, image: 'skep.local/echo:1', imagePullPolicy: Never, args: [serve, --port, '8080', --drain, '0']}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: echo}, spec: {type: NodePort, clusterIP: 10.93.0.80, selector: {app: echo},
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}}
";

impl Cluster {
    /// Upstream's cluster of two nodes with kube-proxy, and a service of four pods on it.
    pub fn start() -> Result<Self> {
        let mut cluster = Self {
            nodes: Vec::new(),
            services: Vec::new(),
            shared: Shared::new()?,
        };
        cluster.control_plane()?;
        for n in 1..=2 {
            let mut node = Node::start(&cluster.shared, n)?;
            node.containerd()?;
            node.kubelet(&cluster.shared)?;
            cluster.nodes.push(node);
        }
        cluster.is_ready()?;
        Ok(cluster)
    }

    fn background(&mut self, program: &Path, args: &[String]) -> Result<()> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let log = self.shared.folder.join(format!("{name}.log"));
        let service = Service::start(self.shared.outside().arg(program).args(args), &log)?;
        self.services.push(service);
        Ok(())
    }

    fn control_plane(&mut self) -> Result<()> {
        let folder = self.shared.folder.display().to_string();
        let pki = format!("{folder}/pki");
        run(Command::new("openssl").args(["genrsa", "-out", &format!("{pki}/sa.key"), "2048"]))?;
        std::fs::write(
            format!("{pki}/tokens.csv"),
            format!("{TOKEN},admin,admin,\"system:masters\"\n"),
        )?;
        let etcd = [
            format!("--data-dir={folder}/etcd"),
            "--unsafe-no-fsync".to_owned(),
        ];
        self.background(Path::new("etcd"), &etcd)?;
        let api = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--advertise-address=10.91.0.1".to_owned(),
            "--bind-address=10.91.0.1".to_owned(),
            "--service-cluster-ip-range=10.93.0.0/16".to_owned(),
            format!("--cert-dir={pki}"),
            format!("--token-auth-file={pki}/tokens.csv"),
            "--authorization-mode=RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={pki}/sa.key"),
            format!("--service-account-signing-key-file={pki}/sa.key"),
        ];
        self.background(&peer("kube-apiserver")?, &api)?;
        let ca = format!("{pki}/apiserver.crt");
        eventually(Duration::from_secs(60), || Ok(std::fs::metadata(&ca).map(drop)?))?;
        self.shared.kubeconfig_for(API, &self.shared.kubeconfig)?;
        eventually(Duration::from_secs(90), || {
            self.shared.kubectl(&["get", "--raw", "/readyz"])
        })
        .with_context(|| self.said())?;
        let kubeconfig = format!("--kubeconfig={}", self.shared.kubeconfig.display());
        let controllers = [
            kubeconfig.clone(),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=false".to_owned(),
            format!("--service-account-private-key-file={pki}/sa.key"),
            format!("--root-ca-file={ca}"),
        ];
        self.background(&peer("kube-controller-manager")?, &controllers)?;
        self.background(
            &peer("kube-scheduler")?,
            &[kubeconfig, "--leader-elect=false".to_owned()],
        )
    }

    fn is_ready(&mut self) -> Result<()> {
        eventually(Duration::from_secs(90), || {
            for (i, node) in self.nodes.iter().enumerate() {
                let range = format!("10.92.{}.0/24", i + 1);
                let patch = format!(r#"{{"spec":{{"podCIDR":"{range}","podCIDRs":["{range}"]}}}}"#);
                self.shared
                    .kubectl(&["patch", "node", &node.name, "-p", &patch])?;
            }
            Ok(())
        })
        .with_context(|| self.said())?;
        let shared = &self.shared;
        self.nodes
            .iter_mut()
            .try_for_each(|n| {
                shared
                    .kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "node", &n.name])
                    .map(drop)
            })
            .with_context(|| self.said())?;
        shared.apply(WORKLOAD)?;
        self.rolled_out("deployment/echo", "default")?;
        for node in &mut self.nodes {
            node.start_kube_proxy(&self.shared)?;
        }
        Ok(())
    }

    pub fn rolled_out(&self, what: &str, namespace: &str) -> Result<()> {
        let args = ["rollout", "status", what, "--timeout=120s", "-n", namespace];
        self.shared.kubectl(&args).map(drop).with_context(|| {
            let all = self.shared.kubectl(&["get", "pods,events", "-A", "-o", "wide"]);
            all.unwrap_or_default()
        })
    }

    /// A container of the service on the first node.
    pub fn container(&self) -> Result<String> {
        let field = format!("spec.nodeName={}", self.nodes[0].name);
        let path = "jsonpath={.items[0].status.containerStatuses[0].containerID}";
        self.shared.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=echo",
            "--field-selector",
            &field,
            "-o",
            path,
        ])
    }

    /// The last words of all parts.
    fn said(&self) -> String {
        self.services
            .iter()
            .map(Service::said)
            .collect::<Vec<_>>()
            .join("\n--\n")
    }
}

/// The text of a file of the repository.
pub fn file(path: &str) -> Result<String> {
    std::fs::read_to_string(root().join(path)).with_context(|| format!("{path} cannot be read"))
}
