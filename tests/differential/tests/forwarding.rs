//! The same random states on nodes that the real kube-proxy serves and that Skep serves: what becomes of packets is the same, but for what
//! is listed (root, Go).
use anyhow::Result;
use std::path::Path;
use tests_differential::compare::{Pair, Reasons, rule};
use tests_differential::node::{Node, ask, follow};
use tests_differential::probe::{Once, Outcome, Probe};
use tests_differential::state::State;

const PROGRAM: &str = env!("CARGO_BIN_EXE_skep-differential-node");
/// So many states one after another, and probes of each.
const STEPS: u64 = 20;
const PROBES: usize = 120;
/// Tries of each probe, and those of one whose endpoints seem to differ: of four, one is missed by chance in 10²² cases.
const TRIES: u16 = 12;
const MORE: u16 = 180;
/// So many differences are enough to tell.
const ENOUGH: usize = 40;

/// What a variable says, or this.
fn number(variable: &str, or: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.and_then(|v| v.parse().ok()).unwrap_or(or)
}

/// Asks every node; where they do not agree at once, by more tries.
fn outcomes(nodes: &mut [Node], probes: &[Probe]) -> Result<Vec<Vec<Outcome>>> {
    let mut all = ask(nodes, probes, TRIES)?;
    let unsure: Vec<usize> = (0..probes.len())
        .filter(|i| all.iter().any(|of| of[*i] != all[0][*i]))
        .collect();
    let again: Vec<Probe> = unsure.iter().map(|i| probes[*i]).collect();
    for (mine, more) in all.iter_mut().zip(ask(nodes, &again, MORE)?) {
        for (i, outcome) in unsure.iter().zip(more) {
            mine[*i].extend(outcome);
        }
    }
    Ok(all)
}

/// A course of random states: what differs, and what it was made of.
#[derive(Default)]
struct Course {
    differing: Vec<String>,
    used: Reasons,
    /// How many probes led to endpoints, or were passed on, refused, dropped.
    kinds: [usize; 4],
}

impl Course {
    fn step(&mut self, nodes: &mut [Node], state: &mut State, step: u64) -> Result<()> {
        follow(nodes, &state.step())?;
        let probes = state.probes(PROBES);
        let all = outcomes(nodes, &probes)?;
        for (i, probe) in probes.iter().enumerate() {
            self.count(&all[0][i]);
            for (node, own) in nodes[1..].iter().zip(&all[1..]) {
                let pair = Pair {
                    cluster: &state.cluster,
                    probe,
                    real: &all[0][i],
                    ours: &own[i],
                    hooks: node.name == "skep",
                };
                let wrong = pair.differences(&mut self.used);
                if !wrong.is_empty() {
                    self.differing.push(format!(
                        "step {step}, {}: {probe:?}: {wrong:?}\n    kube-proxy: {:?}\n    Skep: {:?}\n    the plain rule: {:?}\n    of {}",
                        node.name, pair.real, pair.ours, rule(&state.cluster, probe), state.about(probe.to)
                    ));
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, outcome: &Outcome) {
        let kind = match outcome.first() {
            Some(Once::Endpoint(..) | Once::Broken(..)) => 0,
            Some(Once::Untouched) => 1,
            Some(Once::Refused) => 2,
            Some(Once::Dropped) | None => 3,
        };
        self.kinds[kind] += 1;
    }
}

fn compared(seed: u64, steps: u64) -> Result<Course> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let kube_proxy = root.join("target/peers/kube-proxy");
    let start = |name| Node::start(PROGRAM, name, &kube_proxy);
    let mut nodes = [start("kube-proxy")?, start("skep")?, start("skep-packets")?];
    let (mut state, mut course) = (State::new(seed), Course::default());
    for step in 0..steps {
        course.step(&mut nodes, &mut state, step)?;
        if course.differing.len() >= ENOUGH {
            break;
        }
    }
    Ok(course)
}

#[test]
fn packets_go_where_they_go_under_the_real_kube_proxy_but_for_what_is_listed() {
    let seed = number("SKEP_DIFFERENTIAL_SEED", 1);
    let steps = number("SKEP_DIFFERENTIAL_STEPS", STEPS);
    let course = compared(seed, steps).unwrap_or_else(|e| panic!("SKEP_DIFFERENTIAL_SEED={seed}: {e:#}"));
    let found = course.differing.join("\n");
    assert!(found.is_empty(), "SKEP_DIFFERENTIAL_SEED={seed}:\n{found}");
    let [endpoints, passed, refused, dropped] = course.kinds;
    println!(
        "seed {seed}: {endpoints} probes led to endpoints, {passed} were passed on, {refused} refused, {dropped} dropped; listed \
         differences: {:?}",
        course.used
    );
    // A comparison of nothing would agree as well.
    let enough = course.kinds.iter().all(|n| *n as u64 >= steps) && endpoints as u64 > steps * 20;
    assert!(enough, "the states are too plain: {:?}", course.kinds);
    for reason in course.used.keys() {
        assert!(
            tests_scenarios::reasons().contains(*reason),
            "{reason} is no listed reason"
        );
    }
}
