//! `skep explain`: what would become of a packet, and why.
use crate::cli::ExplainArgs;
use crate::inspect::{self, Place};
use crate::output::{self, Format, WithHint};
use agent_datapath::{Aside, Standing, devices_before_stack, in_the_way};
use agent_explain::{
    Ask, DecidedBy, Explanation, Hook, Packet, Question, Snapshot, Source, World, explain, planned,
};
use anyhow::{Context, Result};
use datapath_logic::host::Hook as Stage;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use machinery_client::from_kubeconfig;
use machinery_client::kube::Client;
use machinery_client::kube::api::{Api, ListParams};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
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
            let tables = planned(&world, &node, &args.nodeport_addresses);
            let ask = Ask {
                packets: args.packets,
                ..Ask::default()
            };
            explain(&world, &packet, &node, &tables, ask)
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
    let hint = "with --state FILE the question is answered from manifests, without any node";
    let place = inspect::place(&args.which.name, &node).hint(hint)?;
    let tables = inspect::tables(&place.pins)
        .with_context(|| format!("cannot read the maps of node {node}"))
        .hint(hint)?;
    let (place, world, packet, node) = (&place, &world, &packet, &node);
    on_node(place, move || {
        asked(world, packet, node, &tables, place, args.packets)
    })
}

/// Runs something in the node's network namespace: the routes that programs ask for are those of whoever runs them.
fn on_node<T: Send>(place: &Place, work: impl FnOnce() -> T + Send) -> Result<T> {
    let Some(path) = &place.network else {
        return Ok(work());
    };
    let network = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    // A thread of its own: the namespace is a thread's, and this one's is not the node's again afterwards.
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .context("cannot enter the node's network")?;
            Ok(work())
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Asks the programs that are loaded on the node, aside from its traffic; and only the logic where they cannot be asked.
fn asked(
    world: &World,
    packet: &Packet,
    node: &str,
    tables: &Snapshot,
    place: &Place,
    packets: bool,
) -> Explanation {
    let mut ask = Ask {
        packets,
        ..Ask::default()
    };
    match aside(place, packet) {
        Ok((mut programs, before_stack)) => {
            ask.before_stack = before_stack;
            ask.programs = Some(&mut programs);
            let mut answer = explain(world, packet, node, tables, ask);
            if answer.decided_by == DecidedBy::Programs {
                let asked = stages(answer.hook, before_stack).iter();
                answer
                    .warnings
                    .extend(asked.filter_map(|stage| differing(&programs, *stage)));
            }
            answer
        }
        Err(why) => {
            let mut answer = explain(world, packet, node, tables, ask);
            answer.warnings.push(format!(
                "the node's programs could not be asked, only their logic: {why:#}"
            ));
            answer
        }
    }
}

/// The node's programs with the memory that a new connection would meet, and whether some stand before the stack.
fn aside(place: &Place, packet: &Packet) -> Result<(Aside, bool)> {
    let mut programs = Aside::open(&place.pins)?;
    let (memory, taken) = in_the_way(&place.pins, packet.src.into())?;
    programs.recall(memory, taken);
    // Where packets come in is not asked for: any uplink's program is the same, and routes decide the rest.
    let device = devices_before_stack(&place.pins).into_iter().next();
    let before_stack = match &device {
        Some(device) => programs.at_device(device)?,
        None => false,
    };
    Ok((programs, before_stack))
}

/// Through which programs a packet goes.
fn stages(hook: Hook, before_stack: bool) -> &'static [Stage] {
    match hook {
        // A call that the hooks left alone: the packets of a pod, or of the node.
        Hook::Socket => &[Stage::FromPod, Stage::ToPod, Stage::ToUplink],
        Hook::Pod => &[Stage::FromPod, Stage::ToPod],
        Hook::Uplink if before_stack => &[Stage::BeforeStack, Stage::FromUplink, Stage::ToUplink],
        Hook::Uplink => &[Stage::FromUplink, Stage::ToUplink],
    }
}

/// What to know of a program that is not the one that the node runs.
fn differing(programs: &Aside, stage: Stage) -> Option<String> {
    match programs.standing(stage) {
        Ok(Standing::Same) => None,
        Ok(Standing::Other) => Some(format!(
            "the node runs another build of the program for {stage:?}: asked was this binary's, over the node's maps"
        )),
        Ok(Standing::Absent) => Some(format!(
            "no program for {stage:?} is loaded on the node: asked was this binary's, over the node's maps"
        )),
        Err(e) => Some(format!(
            "whether the node runs the same program for {stage:?} is not known: {e}"
        )),
    }
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
    lines.push(format!(
        "  => {} (decided by {})",
        e.outcome.words(),
        by(e.decided_by)
    ));
    for warning in &e.warnings {
        lines.push(format!("  !! {warning}"));
    }
    if !e.endpoints.is_empty() {
        lines.push("endpoints:".into());
    }
    for one in &e.endpoints {
        let mark = if one.used { "*" } else { " " };
        let pod = one.pod.as_ref().map(|p| format!(" pod {p}")).unwrap_or_default();
        let node = one.node.as_ref().map(|n| format!(" on {n}")).unwrap_or_default();
        let sees = one
            .sees
            .map(|ip| format!(", sees {ip} as the client"))
            .unwrap_or_default();
        lines.push(format!(
            "  {mark} {}{pod}{node}: {}{sees}",
            one.address, one.reason
        ));
    }
    lines.join("\n") + "\n"
}

fn by(decided: DecidedBy) -> &'static str {
    match decided {
        DecidedBy::Logic => "the logic of the programs",
        DecidedBy::Programs => "the loaded programs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_explain::{EndpointLine, Outcome, Step};

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
            reason: None,
            endpoints: vec![EndpointLine {
                address: "10.0.1.10:8080".into(),
                pod: Some("default/web-1".into()),
                node: Some("n1".into()),
                used: true,
                reason: "ready".into(),
                sees: Some("192.0.2.1".parse().unwrap()),
            }],
            decided_by: DecidedBy::Programs,
            warnings: vec!["look out".into()],
        };
        let told = text(&e);
        assert!(told.contains("1. one of 1 by chance"));
        assert!(told.contains("=> sent to one of the endpoints"));
        assert!(
            told.contains("* 10.0.1.10:8080 pod default/web-1 on n1: ready, sees 192.0.2.1 as the client")
        );
        assert!(told.contains("(decided by the loaded programs)"));
        assert!(told.contains("!! look out"));
    }
}
