//! `skep explain`: what would become of a packet, and why.
use crate::cli::ExplainArgs;
use crate::inspect;
use crate::output::{self, Format, WithHint};
use agent_explain::{Explanation, Outcome, Packet, Question, Snapshot, Source, World, explain};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use machinery_client::from_kubeconfig;
use machinery_client::kube::Client;
use machinery_client::kube::api::{Api, ListParams};
use serde::de::DeserializeOwned;
use std::io::Read as _;
use std::path::Path;

/// Answers a question about a cluster, or about manifests alone.
///
/// # Errors
/// A question that cannot be understood, objects that are missing, maps that cannot be read.
pub fn run(args: &ExplainArgs) -> Result<()> {
    let question: Question = args.question.join(" ").parse()?;
    let answer = match &args.state {
        Some(file) => {
            let world = read(file)?;
            let packet = world.resolve(&question, &args.namespace)?;
            let node = viewpoint(&world, &packet, args)?;
            explain(&world, &packet, &node, &Snapshot::planned(&world, &node))
        }
        None => live(&question, args)?,
    };
    match args.output {
        Format::Json | Format::Yaml => output::print_value(args.output, &answer),
        _ => {
            print!("{}", text(&answer));
            Ok(())
        }
    }
}

/// The objects of a file, or of standard input if it is `-`: YAML documents, JSON, and lists of either.
fn read(file: &Path) -> Result<World> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin()
            .read_to_string(&mut text)
            .context("cannot read the objects")?;
    } else {
        text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    let mut world = World::default();
    // YAML separates its documents by such lines; JSON has none.
    for document in text.split("\n---") {
        let parsed = api::yaml::parse(document.trim_start_matches("---").as_bytes());
        let object = parsed
            .with_context(|| format!("cannot read {}", file.display()))?
            .value;
        if !object.is_null() {
            world.add(object)?;
        }
    }
    Ok(world)
}

/// The node whose data path meets the packet first.
fn viewpoint(world: &World, packet: &Packet, args: &ExplainArgs) -> Result<String> {
    if let Some(node) = &args.node {
        return Ok(node.clone());
    }
    let of_source = match &packet.source {
        Source::Pod { node, .. } | Source::Node(node) => Some(node.clone()),
        Source::Outside => match world.who_has(packet.dst) {
            Source::Node(node) | Source::Pod { node, .. } => Some(node),
            Source::Outside => None,
        },
    };
    let first = || world.nodes.iter().find_map(|n| n.metadata.name.clone());
    of_source
        .or_else(first)
        .or_else(|| args.state.is_some().then(|| "node".to_owned()))
        .context("the cluster has no node")
}

fn live(question: &Question, args: &ExplainArgs) -> Result<Explanation> {
    let cluster = inspect::running(&args.which.name)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let world = runtime.block_on(async {
        let client = from_kubeconfig(&cluster.dirs().kubeconfig())
            .await
            .context("cannot use the cluster's kubeconfig")?;
        observe(client).await
    })?;
    let packet = world.resolve(question, &args.namespace)?;
    let node = viewpoint(&world, &packet, args)?;
    let tables = inspect::tables(&args.which.name, &node)
        .with_context(|| format!("cannot read the maps of node {node}"))
        .hint("with --state FILE the question is answered from manifests, without any node")?;
    Ok(explain(&world, &packet, &node, &tables))
}

async fn observe(client: Client) -> Result<World> {
    Ok(World {
        services: all::<Service>(&client).await.context("cannot list services")?,
        slices: all::<EndpointSlice>(&client)
            .await
            .context("cannot list endpoint slices")?,
        pods: all::<Pod>(&client).await.context("cannot list pods")?,
        nodes: all::<Node>(&client).await.context("cannot list nodes")?,
        ranges: all::<ServiceCIDR>(&client)
            .await
            .context("cannot list service ranges")?,
    })
}

async fn all<K>(client: &Client) -> Result<Vec<K>>
where
    K: machinery_client::kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    Ok(Api::<K>::all(client.clone())
        .list(&ListParams::default())
        .await?
        .items)
}

/// The answer for people: the way of the packet, then the endpoints.
fn text(e: &Explanation) -> String {
    let mut lines = vec![format!("{}  on node {}", e.packet, e.node)];
    for (n, step) in e.steps.iter().enumerate() {
        lines.push(format!("  {}. {}", n + 1, step.decision));
    }
    lines.push(format!("  => {}", verdict(e.outcome)));
    if !e.endpoints.is_empty() {
        lines.push("endpoints:".into());
    }
    for one in &e.endpoints {
        let mark = if one.used { "*" } else { " " };
        let pod = one.pod.as_ref().map(|p| format!(" pod {p}")).unwrap_or_default();
        let node = one.node.as_ref().map(|n| format!(" on {n}")).unwrap_or_default();
        lines.push(format!("  {mark} {}{pod}{node}: {}", one.address, one.reason));
    }
    lines.join("\n") + "\n"
}

fn verdict(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Untouched => "not translated: it goes where its address leads",
        Outcome::Endpoint => "sent to one of the endpoints marked *",
        Outcome::Refused => "refused: the client is told at once",
        Outcome::Dropped => "dropped: the client times out",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_explain::{EndpointLine, Hook, Step};

    #[test]
    fn people_read_the_steps_and_then_the_endpoints() {
        let e = Explanation {
            packet: "10.0.1.2 → 10.96.0.5:80/TCP".into(),
            node: "n1".into(),
            hook: Hook::Socket,
            steps: vec![Step {
                decision: "one of 1 by chance".into(),
                object: None,
            }],
            outcome: Outcome::Endpoint,
            endpoints: vec![EndpointLine {
                address: "10.0.1.10:8080".into(),
                pod: Some("default/web-1".into()),
                node: Some("n1".into()),
                used: true,
                reason: "ready".into(),
            }],
        };
        let told = text(&e);
        assert!(told.contains("1. one of 1 by chance"));
        assert!(told.contains("=> sent to one of the endpoints"));
        assert!(told.contains("* 10.0.1.10:8080 pod default/web-1 on n1: ready"));
    }
}
