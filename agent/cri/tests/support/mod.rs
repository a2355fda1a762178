//! A containerd of the test's own, in namespaces of its own, with one image made here. Gone when dropped.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The only image: busybox, which sleeps unless told otherwise, so that it is the sandbox image, too.
pub const IMAGE: &str = "local.test/busybox:1";
const DEADLINE: Duration = Duration::from_secs(30);

/// A running containerd.
pub struct Containerd {
    pub dir: tempfile::TempDir,
    namespace: Child,
    pub cgroup: String,
}

impl Containerd {
    pub fn start() -> Self {
        for tool in ["containerd", "runc", "busybox", "unshare"] {
            assert!(
                which(tool).is_some(),
                "{tool} is missing; run `cargo xtask setup` (as root) first"
            );
        }
        let dir = tempfile::Builder::new().prefix("skep-cri-").tempdir().unwrap();
        let cgroup = format!("skep-test-cri/{}", std::process::id());
        fs::write(dir.path().join("config.toml"), config(dir.path())).unwrap();
        // One process holds everything: its death ends containerd, shims and containers.
        let script = format!(
            "mount --make-rprivate / && mount --make-rshared / && ip link set lo up && exec containerd -c {}/config.toml",
            dir.path().display()
        );
        let log = fs::File::create(dir.path().join("containerd.log")).unwrap();
        let namespace = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--uts",
                "--ipc",
                "--pid",
                "--fork",
                "--kill-child=SIGKILL",
                "--mount-proc",
            ])
            .args(["--propagation", "private", "--", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("unshare starts; this test needs root");
        let node = Self {
            dir,
            namespace,
            cgroup,
        };
        node.wait();
        node.import();
        node
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    fn ctr(&self, args: &[&str]) -> bool {
        let mut ctr = Command::new("ctr");
        ctr.arg("-a")
            .arg(self.socket())
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        ctr.status().is_ok_and(|s| s.success())
    }

    fn wait(&self) {
        let begun = Instant::now();
        // containerd tells nobody when it is ready; each try takes some milliseconds itself.
        while !self.ctr(&["version"]) {
            let log = fs::read_to_string(self.dir.path().join("containerd.log")).unwrap_or_default();
            assert!(begun.elapsed() < DEADLINE, "containerd did not start:\n{log}");
        }
    }

    fn import(&self) {
        let tar = self.dir.path().join("image.tar");
        image(&tar);
        assert!(
            self.ctr(&["-n", "k8s.io", "images", "import", &tar.to_string_lossy()]),
            "the image is imported"
        );
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // containerd is the first process of its pid namespace: its end is the end of all others there, and `unshare`,
        // which waits for it, ends after them. Then nobody is left in the cgroups.
        let pid = self.namespace.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for child in children
            .split_whitespace()
            .filter_map(|c| c.parse().ok())
            .filter_map(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
        }
        let _ = self.namespace.wait();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for hierarchy in agent_cri::cgroups::hierarchies(&table) {
            remove_tree(&hierarchy.mount.join(&self.cgroup));
            let _ = fs::remove_dir(hierarchy.mount.join("skep-test-cri"));
        }
    }
}

fn remove_tree(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

fn which(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|d| d.join(tool))
        .find(|p| p.exists())
}

fn config(dir: &Path) -> String {
    let d = dir.display();
    let runc = which("runc").unwrap();
    format!(
        r#"version = 2
root = "{d}/root"
state = "{d}/state"
temp = "{d}/tmp"
[grpc]
  address = "{d}/c.sock"
[ttrpc]
  address = "{d}/c.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{d}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  disable_apparmor = true
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = "{}"
      Root = "{d}/runc"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{d}/cni/bin"
    conf_dir = "{d}/cni/net.d"
"#,
        runc.display()
    )
}

/// An OCI layout in a tar: one layer with busybox and its applets.
fn image(out: &Path) {
    let layer = layer();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Entrypoint":["/bin/busybox","sleep","2147483647"],"Env":["PATH=/bin"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        sha256(&layer)
    );
    let blob = |media: &str, bytes: &[u8]| {
        format!(
            r#"{{"mediaType":"{media}","digest":"sha256:{}","size":{}}}"#,
            sha256(bytes),
            bytes.len()
        )
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        blob("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        blob("application/vnd.oci.image.layer.v1.tar", &layer)
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{}","size":{},"annotations":{{"io.containerd.image.name":"{IMAGE}"}}}}]}}"#,
        sha256(manifest.as_bytes()),
        manifest.len()
    );
    let mut tar = tar::Builder::new(fs::File::create(out).unwrap());
    add(
        &mut tar,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        0o644,
    );
    add(&mut tar, "index.json", index.as_bytes(), 0o644);
    for bytes in [config.as_bytes(), manifest.as_bytes(), &layer] {
        add(&mut tar, &format!("blobs/sha256/{}", sha256(bytes)), bytes, 0o644);
    }
    tar.finish().unwrap();
}

fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let busybox = fs::read(which("busybox").unwrap()).unwrap();
    add(&mut tar, "bin/busybox", &busybox, 0o755);
    for applet in ["sh", "cat", "sleep", "true", "false", "echo"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")
            .unwrap();
    }
    tar.into_inner().unwrap()
}

fn add<W: Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, path, bytes).unwrap();
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}
