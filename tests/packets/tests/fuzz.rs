//! Bent packets through the loaded programs and through the logic on the host, with the same maps before: verdict, bytes and (of the TC programs) what
//! is remembered afterwards are the same (root). `SKEP_FUZZ_SEED` and `SKEP_FUZZ_PACKETS` (for each packet of the fixtures) choose others.
use agent_datapath::{Datapath, FlowMemory, since_boot};
use agent_services::Existing;
use anyhow::{Context as _, Result, bail, ensure};
use datapath_abi::{Address, Be16, FlowKey, FlowRole, Settings};
use datapath_logic::forward::{Through, through};
use datapath_logic::packet::{ETHERNET, parse};
use datapath_logic::rewrite;
use fastrand::Rng;
use std::rc::Rc;
use tests_lab::{Lab, UPLINK, isolated, run};
use tests_packets::host::Host;
use tests_packets::kernel::{Kernel, serve, unserve};
use tests_packets::mutate::bent;
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

/// Chances that lead to each of up to four endpoints.
const CHANCES: [u32; 4] = [0x2000_0000, 0x6000_0000, 0xa000_0000, 0xe000_0000];

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

/// The next hop of everybody beyond the uplink.
const NEXT_HOP: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];

/// An uplink with a route and a neighbour for every destination.
fn uplink(lab: &Lab) -> Result<()> {
    let sh = |line: &str| run(&line.split(' ').collect::<Vec<_>>());
    lab.forward()?;
    sh(&format!("ip link add {UPLINK} type veth peer name far"))?;
    sh(&format!("ip link set {UPLINK} up"))?;
    sh("ip link set far up")?;
    let hop = NEXT_HOP.map(|b| format!("{b:02x}")).join(":");
    for (v4, ip, bits) in [(true, "ip", 24), (false, "ip -6", 64)] {
        let [own, router] = ["node", "router"].map(|n| Names { v4 }.ip(n));
        let nodad = if v4 { "" } else { " nodad" };
        sh(&format!("{ip} addr add {own}/{bits} dev {UPLINK}{nodad}"))?;
        sh(&format!(
            "{ip} neigh replace {router} lladdr {hop} dev {UPLINK} nud permanent"
        ))?;
        sh(&format!("{ip} route add default via {router}"))?;
    }
    Ok(())
}

fn own_mac() -> Result<Vec<u8>> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{UPLINK}/address"))?;
    let bytes = text.trim().split(':').map(|b| u8::from_str_radix(b, 16));
    Ok(bytes.collect::<Result<_, _>>()?)
}

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// The XDP program against both stages in one. A packet that it sends on has to be one that the kernel would forward.
fn compare_through(datapath: &Datapath, before: &mut Before, _: Hook, bytes: &[u8]) -> Result<()> {
    let (verdict, got) = datapath.try_uplink_packet(UPLINK, bytes)?;
    let after = datapath.flow_memory()?;
    let decisions = CHANCES.map(|random| decided(&before.host(random), bytes));
    before.memory = after;
    match verdict {
        XDP_DROP => ensure!(
            decisions.iter().any(|d| matches!(d, Through::Drop(_))),
            "dropped: {decisions:?}"
        ),
        XDP_PASS => {
            ensure!(got == bytes, "left to the stack and changed: {got:02x?}");
            let left = |d: &Through| *d == Through::ToStack || (is_send(d) && !is_forwarded(bytes));
            ensure!(decisions.iter().any(left), "left to the stack: {decisions:?}");
        }
        XDP_TX => {
            ensure!(
                decisions.iter().any(is_send) && is_forwarded(bytes),
                "sent on: {decisions:?}"
            );
            // By now the flow is known, with the port that the program chose.
            let wanted = sent(&before.host(0), bytes)?;
            ensure!(
                got == wanted,
                "the program: {got:02x?}\nthe logic:   {wanted:02x?}"
            );
        }
        other => bail!("verdict {other}"),
    }
    Ok(())
}

fn is_send(d: &Through) -> bool {
    matches!(d, Through::Send { .. })
}

/// What the logic says where the program looks at the packet at all: no options, no extension headers.
fn decided(host: &Host, bytes: &[u8]) -> Through {
    match parse(bytes) {
        Ok(p) if p.l4 == ETHERNET + if p.src.is_v4() { 20 } else { 40 } => {
            through(host, &p, bytes.len() as u32)
        }
        _ => Through::ToStack,
    }
}

/// Whether hops are left and the packet is, as it says itself, no longer than the device allows.
fn is_forwarded(bytes: &[u8]) -> bool {
    let v4 = bytes[12..14] == [8, 0];
    let (hops, length, more) = if v4 { (22, 16, 0) } else { (21, 18, 40) };
    let says = u16::from_be_bytes([bytes[length], bytes[length + 1]]).wrapping_add(more);
    bytes[hops] > 1 && says <= 1500
}

/// The bytes of a packet that is sent on.
fn sent(host: &Host, bytes: &[u8]) -> Result<Vec<u8>> {
    let Through::Send {
        destination, source, ..
    } = decided(host, bytes)
    else {
        bail!("the flow is not known afterwards");
    };
    let mut all = bytes.to_vec();
    ensure!(rewrite::apply(&mut all[..], &destination) && rewrite::apply(&mut all[..], &source));
    all[..6].copy_from_slice(&NEXT_HOP);
    all[6..12].copy_from_slice(&own_mac()?);
    if all[12..14] == [8, 0] {
        // RFC 1624, equation 3, for the one word that changes.
        let word = |all: &[u8], at: usize| u16::from_be_bytes([all[at], all[at + 1]]);
        let before = word(&all, 22);
        all[22] -= 1;
        let mut sum = u32::from(!word(&all, 24)) + u32::from(!before) + u32::from(word(&all, 22));
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        all[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    } else {
        all[21] -= 1;
    }
    Ok(all)
}

/// Before Linux 5.15 a test run cannot name the device.
fn a_test_run_names_devices(lab: &Lab) -> bool {
    let frame = [0; 64];
    lab.datapath.try_uplink_packet(UPLINK, &frame).is_ok()
}

#[test]
fn the_xdp_program_and_the_logic_agree_about_bent_packets() {
    isolated("the_xdp_program_and_the_logic_agree_about_bent_packets", |lab| {
        uplink(lab)?;
        lab.planner.set_node(node());
        lab.datapath.set_settings(&settings())?;
        if !a_test_run_names_devices(lab) {
            println!("this kernel's test runs name no device");
            return Ok(());
        }
        let all = cases();
        let mut fuzz = Fuzz::new(&all);
        for case in &all {
            fuzz.case(lab, case, &[Hook::FromUplink], compare_through)?;
        }
        fuzz.end()
    });
}
