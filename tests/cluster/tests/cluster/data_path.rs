//! Packets: clients on both nodes, both families, and what changes under them.

use crate::support::Cluster;
use anyhow::{Result, ensure};

pub fn a_pod_reaches_the_service(cluster: &Cluster) -> Result<()> {
    for (number, node) in cluster.nodes()?.iter().enumerate() {
        let client = format!("client-{number}");
        cluster.client(&client, node, false)?;
        for url in cluster.urls("http")?.into_iter().chain(cluster.urls("udp")?) {
            let said = cluster.ask(&client, &[&url, "-n", "60"])?;
            ensure!(said.contains("60 answered, 0 failed"), "{said}");
            let pods = said.lines().filter(|l| l.contains("hello-")).count();
            ensure!(pods == 3, "sixty requests reached {pods} of three pods: {said}");
        }
    }
    Ok(())
}

pub fn a_node_reaches_the_service(cluster: &Cluster) -> Result<()> {
    let node = cluster.nodes()?[0].clone();
    cluster.client("on-the-node", &node, true)?;
    for url in cluster.urls("http")? {
        let said = cluster.ask("on-the-node", &[&url, "-n", "30"])?;
        ensure!(said.contains("30 answered, 0 failed"), "{said}");
    }
    Ok(())
}

pub fn the_maps_show_the_service(cluster: &Cluster) -> Result<()> {
    let shown = cluster.skep(&["services", "default/hello"])?;
    for address in cluster.addresses("hello")? {
        ensure!(
            shown.contains(&address),
            "`skep services` does not show {address}: {shown}"
        );
    }
    let maps = cluster.skep(&["maps"])?;
    ensure!(!maps.is_empty(), "`skep maps` shows nothing");
    Ok(())
}

pub fn scaling_to_zero_and_back(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["scale", "deployment/hello", "--replicas=0"])?;
    cluster.kubectl(&["wait", "--for=delete", "pod", "-l", "app=hello", "--timeout=60s"])?;
    for url in cluster.urls("http")? {
        let refused = cluster.ask("client-0", &[&url, "-n", "1", "--timeout", "1000"]);
        let message = format!(
            "{:#}",
            refused
                .err()
                .ok_or_else(|| anyhow::anyhow!("nobody is there, yet somebody answered"))?
        );
        ensure!(
            message.contains("refused"),
            "expected an immediate refusal: {message}"
        );
    }
    cluster.kubectl(&["scale", "deployment/hello", "--replicas=3"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    for url in cluster.urls("http")? {
        cluster.ask("client-0", &[&url, "-n", "10", "--timeout", "1000"])?;
    }
    Ok(())
}

pub fn deleting_a_pod_under_load(cluster: &Cluster) -> Result<()> {
    let url = cluster.urls("http")?.remove(0);
    let load = cluster.ask_meanwhile("client-1", &[&url, "-n", "400", "--interval", "10"])?;
    let pod = cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=hello",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ])?;
    cluster.kubectl(&["delete", "pod", &pod])?;
    load.all_answered()?;
    cluster
        .kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])
        .map(drop)
}
