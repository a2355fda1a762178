//! Bent packets through the loaded programs and through the logic on the host, with the same maps before: verdict, bytes and, of the TC
//! programs, what is remembered afterwards are the same (root). `SKEP_FUZZ_SEED` and `SKEP_FUZZ_PACKETS` (for each packet of the fixtures) choose others.
use agent_datapath::{Datapath, FlowMemory, since_boot};
use agent_services::Existing;
use anyhow::{Context as _, Result, bail, ensure};
use datapath_abi::{Address, Be16, FlowKey, FlowRole, Reason, Settings};
use datapath_logic::forward::Through;
use datapath_logic::rewrite;
use fastrand::Rng;
use std::rc::Rc;
use tests_lab::{Lab, isolated};
use tests_packets::host::{CHANCES, Host};
use tests_packets::kernel::{Kernel, serve, unserve};
use tests_packets::mutate::bent;
use tests_packets::onward::{self, Early, early, is_said, routed};
use tests_packets::{Case, Frame, Hook, Names, Node as _, cases, node, settings};

const SEED: u64 = 0x5eed_0004;
const PACKETS: usize = 12;

fn number(name: &str, otherwise: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(otherwise, |text| {
        text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}"))
    })
}

/// What both sides start from.
struct Before {
    settings: Settings,
    maps: Rc<Existing>,
    memory: FlowMemory,
}

impl Before {
    fn host(&self, random: u32) -> Host {
        let now = u64::try_from(since_boot().as_nanos()).expect("no machine runs for centuries");
        Host::with(self.settings, &self.maps, &self.memory).at(now, random)
    }
}

/// In an order, and without what is nobody's to foresee: times, and the port that the node chooses.
fn comparable(mut memory: FlowMemory) -> FlowMemory {
    for (key, flow) in &mut memory.flows {
        flow.seen = 0;
        flow.nat_port = Be16::new(0);
        if flow.role == FlowRole::MASQUERADE {
            flow.port = Be16::new(0);
        }
        if flow.role == FlowRole::UNMASQUERADE {
            key.dport = Be16::new(0);
        }
    }
    memory.affinity.iter_mut().for_each(|(_, a)| a.seen = 0);
    let order = |k: &FlowKey| -> (Address, Address, u16, u16, u8, u8) {
        (k.src, k.dst, k.sport.get(), k.dport.get(), k.proto.0, k.changes)
    };
    memory
        .flows
        .sort_by_key(|(k, f)| (order(k), f.bytes, f.addr, f.port.get(), f.nat, f.state.0));
    memory
        .fragments
        .sort_by_key(|(k, _)| (k.src, k.dst, k.id, k.proto.0));
    memory.affinity.sort_by_key(|(k, _)| (k.client, k.set.0));
    memory
}

/// One packet on both sides. A masqueraded one gets the port that the program chose.
fn compare(datapath: &Datapath, before: &mut Before, hook: Hook, bytes: &[u8]) -> Result<()> {
    let got = Kernel(datapath).meet(hook, bytes)?;
    let after = datapath.flow_memory()?;
    let remembered = comparable(after.clone());
    let mut last = None;
    for random in CHANCES {
        let host = before.host(random);
        let wanted = host.decide(hook, bytes);
        let expected = comparable(host.memory());
        if wanted == got && expected == remembered {
            before.memory = after;
            return Ok(());
        }
        last.get_or_insert((wanted, expected));
    }
    let (wanted, expected) = last.context("no chance was tried")?;
    let same = wanted == got;
    before.memory = after;
    ensure!(same, "the program: {got:02x?}\nthe logic:   {wanted:02x?}");
    let only = |a: &FlowMemory, b: &FlowMemory| {
        let flows: Vec<_> = a.flows.iter().filter(|f| !b.flows.contains(f)).collect();
        format!("{flows:?} {:?} {:?}", a.fragments, a.affinity)
    };
    bail!(
        "{got:02x?}\nthe program remembers {}\nthe logic remembers   {}",
        only(&remembered, &expected),
        only(&expected, &remembered)
    );
}

const HOOKS: [Hook; 4] = [Hook::FromPod, Hook::ToPod, Hook::FromUplink, Hook::ToUplink];

/// A port that the node gave to somebody outside, if it did.
fn given(memory: &FlowMemory) -> u16 {
    let outside = [true, false].map(|v4| Address::from(Names { v4 }.ip("outside")));
    let mut masqueraded = memory.flows.iter().filter(|(_, f)| {
        f.role == FlowRole::UNMASQUERADE && outside.contains(&f.addr) && f.port.get() == 4000
    });
    masqueraded.next().map_or(2000, |(key, _)| key.dport.get())
}

/// What is asked of the programs, and how much of it.
struct Fuzz {
    seed: u64,
    each: usize,
    rng: Rng,
    others: Vec<Frame>,
    count: usize,
}

impl Fuzz {
    fn new(all: &[Case]) -> Self {
        let seed = number("SKEP_FUZZ_SEED", SEED);
        println!("SKEP_FUZZ_SEED={seed}");
        let steps = all.iter().flat_map(|c| &c.steps);
        Self {
            seed,
            each: number("SKEP_FUZZ_PACKETS", PACKETS as u64) as usize,
            rng: Rng::with_seed(seed),
            others: steps.map(|s| s.frame(2000)).collect(),
            count: 0,
        }
    }

    /// A case's packets with its services in place, each as it is first, so that there are flows, and then bent.
    fn case(
        &mut self,
        lab: &mut Lab,
        case: &Case,
        hooks: &[Hook],
        compare: fn(&Datapath, &mut Before, Hook, &[u8]) -> Result<()>,
    ) -> Result<()> {
        serve(lab, case)?;
        let mut before = Before {
            settings: settings(),
            maps: Rc::new(lab.datapath.existing()?),
            memory: FlowMemory::default(),
        };
        for step in case.steps.iter().filter(|s| hooks.contains(&s.hook)) {
            for i in 0..=self.each {
                let frame = step.frame(given(&before.memory));
                let (hook, bytes) = if i == 0 {
                    (step.hook, frame.bytes())
                } else {
                    let other = *self.rng.choice(hooks).context("there are hooks")?;
                    let hook = if self.rng.u8(..4) == 0 { other } else { step.hook };
                    (hook, bent(&mut self.rng, &frame, &self.others))
                };
                self.count += 1;
                compare(&lab.datapath, &mut before, hook, &bytes).with_context(|| {
                    format!(
                        "seed {}, packet {}, {}: {}: {hook:?} {bytes:02x?}",
                        self.seed, self.count, case.name, step.text
                    )
                })?;
            }
        }
        unserve(lab, case)
    }

    fn end(&self) -> Result<()> {
        println!("{} packets", self.count);
        ensure!(self.count > 1000, "only {} packets", self.count);
        Ok(())
    }
}

#[test]
fn programs_and_logic_agree_about_bent_packets() {
    isolated("programs_and_logic_agree_about_bent_packets", |lab| {
        // Else a lookup of a route says that before it says that there is none, and the program tries the packet's device.
        lab.forward()?;
        lab.planner.set_node(node());
        lab.datapath.set_settings(&settings())?;
        let all = cases();
        let mut fuzz = Fuzz::new(&all);
        for case in &all {
            fuzz.case(lab, case, &HOOKS, compare)?;
        }
        fuzz.end()
    });
}

/// The XDP program against both stages in one.
fn compare_early(datapath: &Datapath, before: &mut Before, _: Hook, bytes: &[u8]) -> Result<()> {
    let verdict = early(datapath, bytes)?;
    let decisions = CHANCES.map(|random| before.host(random).through(bytes));
    before.memory = datapath.flow_memory()?;
    ensure!(
        is_said(&verdict, bytes, &decisions),
        "{verdict:02x?}, the logic says {decisions:?}"
    );
    let Early::Sent(got) = verdict else {
        return Ok(());
    };
    // By now the flow is known, with the port that the program chose.
    let Through::Send {
        destination, source, ..
    } = before.host(0).through(bytes)
    else {
        bail!("sent on, and not known afterwards");
    };
    let mut wanted = bytes.to_vec();
    let changed = [destination, source]
        .iter()
        .all(|r| rewrite::apply(&mut wanted[..], r));
    let wanted = routed(wanted);
    ensure!(
        changed && got == wanted,
        "the program: {got:02x?}\nthe logic:   {wanted:02x?}"
    );
    Ok(())
}

#[test]
fn the_xdp_program_and_the_logic_agree_about_bent_packets() {
    let name = "the_xdp_program_and_the_logic_agree_about_bent_packets";
    isolated(name, |lab| {
        let has_devices = onward::uplink(lab)?;
        lab.planner.set_node(node());
        lab.datapath.set_settings(&settings())?;
        if !has_devices {
            tests_packets::skip(name, "before Linux 5.15 a test run names no device");
            return Ok(());
        }
        let all = cases();
        let mut fuzz = Fuzz::new(&all);
        for case in &all {
            fuzz.case(lab, case, &[Hook::FromUplink], compare_early)?;
        }
        let sent = lab.datapath.dump()?.counter(Reason::PacketSentBack);
        ensure!(sent > 100, "only {sent} packets were sent on");
        fuzz.end()
    });
}
