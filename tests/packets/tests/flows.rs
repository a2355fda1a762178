//! Every flow of kube-proxy through the loaded programs: planned, written into a node's maps, and each packet run by PROG_TEST_RUN
//! (root). Sockets' calls, which cannot be run that way, are decided by the logic, and their packets by the programs again.
use agent_datapath::{Aside, Standing, since_boot};
use agent_services::Changes;
use anyhow::{Result, ensure};
use datapath_abi::Reason;
use datapath_logic::host::Hook;
use std::net::SocketAddr;
use tests_lab::{Lab, isolated, run};
use tests_scenarios::{Connection, Layer, Memory, Model, Outcome, flows_of_kube_proxy};

/// The device at which packets of others come in, and behind which everybody is.
const DEVICE: &str = "up0";

/// The programs aside, over the maps of the lab's data path.
struct ByPrograms<'a> {
    lab: &'a Lab,
    programs: Aside,
}

impl ByPrograms<'_> {
    fn recall(&mut self, model: &Model) {
        let (now, model_now) = (now(), model.now());
        let aged = model.affinity.iter().filter_map(|(key, kept)| {
            let mut kept = *kept;
            // What was before this machine began cannot be told to its kernel.
            kept.seen = now.checked_sub(model_now.saturating_sub(kept.seen))?;
            Some((*key, kept))
        });
        self.programs.recall(aged.collect(), Vec::new());
    }
}

/// Nanoseconds since boot.
fn now() -> u64 {
    u64::try_from(since_boot().as_nanos()).expect("no machine runs for centuries")
}

impl Layer for ByPrograms<'_> {
    fn changed(&mut self, model: &Model, changes: &Changes) {
        let written = self
            .lab
            .datapath
            .set_settings(&model.settings())
            .and_then(|()| self.lab.datapath.apply(changes))
            .and_then(|()| self.lab.datapath.existing());
        let stands = written.unwrap_or_else(|e| panic!("the maps cannot be written: {e}"));
        assert_eq!(stands, model.maps, "the kernel has what the planner wants");
    }

    fn outcome(&mut self, model: &Model, connection: &Connection) -> Outcome {
        self.recall(model);
        connection.outcome(model, &mut self.programs)
    }

    fn made(&mut self, model: &Model, connection: &Connection) -> (Option<SocketAddr>, Memory) {
        self.recall(model);
        let (endpoint, memory) = connection.made(model, &mut self.programs);
        if let Some(memory) = memory {
            return (endpoint, memory);
        }
        let kept = self.programs.memory().unwrap_or_else(|e| panic!("{e}"));
        let (now, model_now) = (now(), model.now());
        let since = kept.into_iter().map(|(key, mut kept)| {
            kept.seen = model_now.saturating_sub(now.saturating_sub(kept.seen));
            (key, kept)
        });
        (endpoint, since.collect())
    }
}

/// One device behind which every address lies, with a neighbour that is always known.
fn surroundings(lab: &Lab) -> Result<()> {
    lab.forward()?;
    for line in [
        "ip link add up0 type veth peer name up1",
        "ip addr add 198.51.100.1/24 dev up0",
        "ip addr add 2001:db8:51::1/64 dev up0 nodad",
        "ip link set up1 up",
        "ip link set up0 up",
        "ip neigh replace 198.51.100.2 lladdr 02:00:00:00:00:02 nud permanent dev up0",
        "ip neigh replace 2001:db8:51::2 lladdr 02:00:00:00:00:02 nud permanent dev up0",
        "ip route add default via 198.51.100.2 dev up0",
        "ip -6 route add default via 2001:db8:51::2 dev up0",
    ] {
        run(&line.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

/// The programs aside, and whether packets before the stack find their routes.
fn programs(lab: &Lab) -> Result<(Aside, bool)> {
    surroundings(lab)?;
    let mut programs = Aside::open(&lab.config.pin_dir)?;
    let routed = programs.at_device(DEVICE)?;
    Ok((programs, routed))
}

#[test]
fn the_programs_do_with_every_flow_what_kube_proxy_does_but_for_what_is_listed() {
    isolated(
        "the_programs_do_with_every_flow_what_kube_proxy_does_but_for_what_is_listed",
        |lab| {
            let (programs, routed) = programs(lab)?;
            let mut layer = ByPrograms { lab, programs };
            flows_of_kube_proxy(&mut layer);
            let sent_back = layer.programs.count(Reason::PacketSentBack)?;
            ensure!(
                (sent_back > 0) == routed,
                "{sent_back} packets were sent back before the stack"
            );
            Ok(())
        },
    );
}

#[test]
fn what_is_run_aside_is_the_loaded_program_and_leaves_no_trace_on_the_node() {
    isolated(
        "what_is_run_aside_is_the_loaded_program_and_leaves_no_trace_on_the_node",
        |lab| {
            use datapath_abi::Proto;
            use datapath_logic::host::{Fate, Stages as _};
            use tests_packets::at;
            let (vip, client) = (at("10.96.0.10:80"), at("10.244.0.9:4000"));
            lab.serve("web", vip, Proto::TCP, &[at("10.244.0.2:8080")])?;
            let traces = |lab: &Lab| -> Result<_> {
                let dump = lab.datapath.dump()?;
                let counts: Vec<_> = dump.counters.iter().map(|c| c.count).collect();
                Ok((
                    dump.flows,
                    dump.traffic,
                    counts,
                    lab.datapath.flow_memory()?.affinity,
                ))
            };
            let before = traces(lab)?;
            let (mut programs, _) = programs(lab)?;
            for hook in [
                Hook::FromPod,
                Hook::ToPod,
                Hook::FromUplink,
                Hook::ToUplink,
                Hook::BeforeStack,
            ] {
                let standing = programs.standing(hook)?;
                ensure!(standing == Standing::Same, "{hook:?}: {standing:?}");
            }
            let probe = agent_explain::probe::Probe {
                src: client,
                dst: vip,
                proto: Proto::TCP,
            };
            for _ in 0..3 {
                programs.again(0)?;
                let ran = programs.run(Hook::FromPod, &probe.frame())?;
                ensure!(matches!(ran.fate, Fate::Changed(_)), "{ran:?}");
            }
            ensure!(traces(lab)? == before, "something is left on the node");
            Ok(())
        },
    );
}
