//! Runs only in the virtual machine of `cargo xtask test-kernel --node`: it takes the machine as its own.

use anyhow::{Result, ensure};
use std::process::{Command, Stdio};

fn run(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    let (said, complained) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    ensure!(
        out.status.success(),
        "{program} {args:?}: {}\n{said}{complained}",
        out.status
    );
    Ok(said.trim().to_string())
}

/// What the logs of a cluster say: the machine that holds them is gone after the test.
fn logs() -> String {
    let dir = std::fs::read_dir("/run/skep/skep/log");
    let mut files: Vec<_> = dir.into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    let text = |path: &std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    files
        .iter()
        .map(|f| format!("--- {}\n{}\n", f.display(), text(f)))
        .collect()
}

#[test]
fn a_machine_of_its_own_becomes_a_cluster_whose_service_answers() -> Result<()> {
    cluster().inspect_err(|_| println!("{}", logs()))
}

fn cluster() -> Result<()> {
    // cgroup v2 alone, as most machines have it and the namespaced tests do not.
    ensure!(std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists());
    run("skep", &["up", "--host"])?;
    let kubeconfig = run("skep", &["kubeconfig"])?;
    let kubectl = |args: &[&str]| {
        run(
            "kubectl",
            &[&["--kubeconfig", kubeconfig.as_str()], args].concat(),
        )
    };
    kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"])?;
    kubectl(&["apply", "-f", "/etc/hello.yaml", "-f", "/etc/client.yaml"])?;
    kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
    for ip in
        kubectl(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIPs[*]}"])?.split_whitespace()
    {
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.to_string()
        };
        let said = kubectl(&[
            "exec",
            "client",
            "--",
            "/echo",
            "client",
            &format!("http://{host}:80"),
            "-n",
            "30",
        ])?;
        ensure!(said.contains("30 answered, 0 failed"), "{said}");
    }
    run("skep", &["down"]).map(drop)
}
