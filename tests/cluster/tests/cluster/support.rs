//! A cluster under test, and kubectl on it.

use anyhow::{Context, Result, bail, ensure};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// A running cluster. Dropping it removes it, whatever happened.
pub struct Cluster {
    pub name: String,
    kubeconfig: PathBuf,
    gone: bool,
}

/// The workspace's folder: tests run in their package's.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The binary under test, as `cargo xtask build` leaves it.
pub fn skep() -> Command {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Command::new(target.join("release/skep"))
}

/// Upstream's kubectl of the pinned release where it was built, else the one on PATH.
fn kubectl_program() -> PathBuf {
    let pinned = root().join("target/peers/kubectl");
    if pinned.is_file() {
        pinned
    } else {
        PathBuf::from("kubectl")
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_string()
}

/// Runs a command to its end; its stdout, or an error with all that it said.
pub fn run(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?} cannot be started"))?;
    said(command, &out)
}

fn said(command: &Command, out: &Output) -> Result<String> {
    if !out.status.success() {
        bail!(
            "{command:?} ended with {}: {} {}",
            out.status,
            text(&out.stdout),
            text(&out.stderr)
        );
    }
    Ok(text(&out.stdout))
}

impl Cluster {
    pub fn start(store: &str) -> Result<Self> {
        let name = format!("t{}-{store}", std::process::id());
        let program = skep();
        ensure!(
            PathBuf::from(program.get_program()).is_file(),
            "there is no binary to test\nhint: run `cargo xtask build`"
        );
        let mut cluster = Self {
            name,
            kubeconfig: PathBuf::new(),
            gone: false,
        };
        run(skep().args(["up", "--name", &cluster.name, "--nodes", "2", "--store", store]))?;
        cluster.kubeconfig = PathBuf::from(run(skep().args(["kubeconfig", "--name", &cluster.name]))?);
        Ok(cluster)
    }

    /// Removes the cluster by its command.
    pub fn stop(mut self) -> Result<()> {
        self.gone = true;
        run(skep().args(["down", "--name", &self.name])).map(drop)
    }

    pub fn skep(&self, args: &[&str]) -> Result<String> {
        run(skep().args(args).args(["--name", &self.name]))
    }

    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(kubectl_program());
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        command
    }

    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        run(&mut self.kubectl_command(args))
    }

    /// What kubectl says when it must fail.
    pub fn kubectl_fails(&self, args: &[&str]) -> Result<String> {
        let out = self.kubectl_command(args).stdin(Stdio::null()).output()?;
        ensure!(
            !out.status.success(),
            "kubectl {args:?} should have failed, but said: {}",
            text(&out.stdout)
        );
        Ok(text(&out.stderr))
    }

    /// kubectl with a manifest on its standard input.
    pub fn kubectl_with(&self, args: &[&str], manifest: &str) -> Result<Output> {
        let mut child = self
            .kubectl_command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(manifest.as_bytes())?;
        Ok(child.wait_with_output()?)
    }

    pub fn apply(&self, manifest: &str) -> Result<String> {
        let out = self.kubectl_with(&["apply", "-f", "-"], manifest)?;
        ensure!(
            out.status.success(),
            "apply: {} {}",
            text(&out.stdout),
            text(&out.stderr)
        );
        Ok(text(&out.stdout))
    }

    pub fn apply_example(&self, file: &str) -> Result<String> {
        let path = root().join("examples").join(file);
        self.kubectl(&["apply", "-f", path.to_str().context("path")?])
    }

    /// A pod to ask from, on a node of choice.
    pub fn client(&self, name: &str, node: &str, host_network: bool) -> Result<()> {
        // Pods of a node's own network share its ports.
        static NEXT_PORT: AtomicU16 = AtomicU16::new(18080);
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        self.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {node}, hostNetwork: {host_network}, \
             terminationGracePeriodSeconds: 1, containers: [{{name: c, image: 'skep.local/echo:1', args: [serve, --port, '{port}', --drain, '0']}}]}}}}"
        ))?;
        self.kubectl(&[
            "wait",
            "--for=condition=Ready",
            &format!("pod/{name}"),
            "--timeout=60s",
        ])
        .map(drop)
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let names = self.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])?;
        Ok(names.split_whitespace().map(str::to_string).collect())
    }

    /// The addresses of a service, IPv4 first.
    pub fn addresses(&self, service: &str) -> Result<Vec<String>> {
        let all = self.kubectl(&["get", "service", service, "-o", "jsonpath={.spec.clusterIPs[*]}"])?;
        Ok(all.split_whitespace().map(str::to_string).collect())
    }

    /// `http://` or `udp://` and each address of the service `hello`.
    pub fn urls(&self, scheme: &str) -> Result<Vec<String>> {
        let bracket = |ip: String| if ip.contains(':') { format!("[{ip}]") } else { ip };
        Ok(self
            .addresses("hello")?
            .into_iter()
            .map(|ip| format!("{scheme}://{}:80", bracket(ip)))
            .collect())
    }

    /// Asks from a pod, a bounded number of times; what the client counted.
    pub fn ask(&self, pod: &str, args: &[&str]) -> Result<String> {
        self.kubectl(&[&["exec", pod, "--", "/echo", "client"], args].concat())
    }

    /// The same in the background.
    pub fn ask_meanwhile(&self, pod: &str, args: &[&str]) -> Result<Load> {
        let mut command = self.kubectl_command(&[&["exec", pod, "--", "/echo", "client"], args].concat());
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Load {
            child,
            command: format!("{command:?}"),
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.gone {
            run(skep().args(["down", "--name", &self.name])).ok();
        }
    }
}

/// Requests that go on while something else happens.
pub struct Load {
    child: Child,
    command: String,
}

impl Load {
    /// Waits for the end; fails if one request was not answered.
    pub fn all_answered(self) -> Result<String> {
        let out = self.child.wait_with_output()?;
        ensure!(
            out.status.success(),
            "{}: {} {}",
            self.command,
            text(&out.stdout),
            text(&out.stderr)
        );
        Ok(text(&out.stdout))
    }
}
