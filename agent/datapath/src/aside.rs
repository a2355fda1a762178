//! The programs once more, aside from traffic: over the live service maps, with flows, affinities and counters of their own.
//!
//! What the programs only read is the node's own, by its pins; what they write is made anew for this process and ends with it.
//! So whatever is run here is decided as the node decides at this moment, and no packet, flow or count of the node's is touched.
use crate::attach;
use crate::dump::Pins;
use crate::error::DatapathError;
use crate::object;
use crate::size::Sizes;
use crate::sys;
use crate::table::{PerCpu, Single, Table};
use aya::Ebpf;
use aya::maps::Map;
use aya::programs::{Program, loaded_programs};
use aya::util::KernelVersion;
use datapath_abi::{Affinity, AffinityKey, Flow, FlowKey, LAYOUT, Reason, Settings, maps, programs};
use datapath_logic::host::{Fate, Hook, Ran, StageError, Stages};
use std::cell::RefCell;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

/// What programs read and never write.
const SHARED: [&str; 6] = [
    maps::FRONTENDS,
    maps::BACKENDS,
    maps::SOURCE_RANGES,
    maps::MEMBERS,
    maps::MAGLEV,
    maps::SETTINGS,
];
/// What packets are run through.
const PROGRAMS: [&str; 5] = [
    programs::FROM_POD,
    programs::TO_POD,
    programs::FROM_UPLINK,
    programs::TO_UPLINK,
    programs::XDP_UPLINK,
];
/// Room for the flows of a few hundred packets, each in four directions, next to what is copied.
const OWN_FLOWS: u32 = 1 << 12;
/// After so many tries their flows are forgotten.
const TRIES: u32 = 512;

const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// How a program that is loaded here stands to the one of the same name that works on the node's maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The same instructions, by the kernel's tag.
    Same,
    /// Other instructions: the node's agent is of another build.
    Other,
    /// None works on the node's maps.
    Absent,
}

/// The programs aside.
pub struct Aside {
    ebpf: Ebpf,
    flows: Table<FlowKey, Flow>,
    affinity: Table<AffinityKey, Affinity>,
    counters: PerCpu<u32, u64>,
    /// The map by which the node's own programs are known.
    live_flows: u32,
    /// As if packets from other machines came in here.
    device: Option<u32>,
    memory: Vec<(AffinityKey, Affinity)>,
    taken: Vec<(FlowKey, Flow)>,
    /// Since flows were forgotten.
    tries: u32,
    /// Refusals by reason, as they were read last.
    refused: RefCell<Vec<u64>>,
}

impl Aside {
    /// Loads the programs next to those whose maps are pinned under `folder`.
    ///
    /// # Errors
    /// Nothing is pinned there, or maps of another layout; the kernel refuses the programs.
    pub fn open(folder: &Path) -> Result<Self, DatapathError> {
        let dir = Pins {
            folder: folder.to_owned(),
        }
        .maps();
        // A map that is missing would be made and pinned.
        if SHARED.iter().any(|name| !dir.join(name).exists()) {
            return Err(DatapathError::NotPinned(folder.to_owned()));
        }
        let settings: Settings = Single::open(maps::SETTINGS, &dir)?.get()?;
        if settings.layout != LAYOUT {
            return Err(DatapathError::Layout {
                found: settings.layout,
            });
        }
        let live = sys::open_pinned(&dir.join(maps::FLOWS)).map_err(DatapathError::path(&dir))?;
        let live = sys::map_info(live.as_fd()).map_err(DatapathError::path(&dir))?;
        let sizes = Sizes {
            flows: live.max_entries.max(OWN_FLOWS),
            ..Sizes::for_memory(0)
        };
        let mut ebpf = object::load_maps(object::built_in_object(), &dir, &SHARED, &sizes)?;
        object::load_some(&mut ebpf, |name| PROGRAMS.contains(&name))?;
        Ok(Self {
            flows: Table::new(maps::FLOWS, own(&ebpf, maps::FLOWS)?)?,
            affinity: Table::new(maps::AFFINITY, own(&ebpf, maps::AFFINITY)?)?,
            counters: PerCpu::new(maps::COUNTERS, own(&ebpf, maps::COUNTERS)?)?,
            live_flows: live.id,
            ebpf,
            device: None,
            memory: Vec::new(),
            taken: Vec::new(),
            tries: 0,
            refused: RefCell::new(vec![0; Reason::ALL.len()]),
        })
    }

    /// What clients keep, and flows that are in the way of new ones: every try starts from these.
    pub fn recall(&mut self, memory: Vec<(AffinityKey, Affinity)>, taken: Vec<(FlowKey, Flow)>) {
        (self.memory, self.taken, self.tries) = (memory, taken, 0);
    }

    /// Packets before the stack come in at this device of the calling thread's network namespace, whose routes and neighbours
    /// count from now on. Without a device such packets find no route, and are left to the stack; so they are before Linux 5.15,
    /// where a run cannot name one. Returns whether it could.
    ///
    /// # Errors
    /// There is no such device.
    pub fn at_device(&mut self, device: &str) -> Result<bool, DatapathError> {
        let index = attach::device_index(device).map_err(|e| DatapathError::path(device)(e.into()))?;
        let can = KernelVersion::current().is_ok_and(|v| v >= KernelVersion::new(5, 15, 0));
        self.device = can.then_some(index);
        Ok(can)
    }

    /// How many of the packets that were run here were counted for this reason.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn count(&self, reason: Reason) -> Result<u64, DatapathError> {
        Ok(self.counters.get(&reason.index())?.iter().sum())
    }

    /// What clients keep after what was run.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn memory(&self) -> Result<Vec<(AffinityKey, Affinity)>, DatapathError> {
        self.affinity.entries()
    }

    /// Whether a packet here meets the same instructions as one on the node, program by program. Where several generations of a
    /// program work on the node's maps, one that differs counts.
    ///
    /// # Errors
    /// The kernel's list of programs cannot be read.
    pub fn standing(&self, hook: Hook) -> Result<Standing, DatapathError> {
        let name = name_of(hook);
        let failed = |source| DatapathError::Program {
            name: name.to_owned(),
            source: Box::new(source),
        };
        let own = match self.ebpf.program(name) {
            Some(Program::SchedClassifier(p)) => p.info().map_err(failed)?,
            Some(Program::Xdp(p)) => p.info().map_err(failed)?,
            _ => return Err(DatapathError::Missing(name.to_owned())),
        };
        let mut standing = Standing::Absent;
        // A program may end between being listed and being asked: then it is none that counts.
        for other in loaded_programs().flatten() {
            let of_node = other.name_as_str() == Some(name)
                && other
                    .map_ids()
                    .ok()
                    .flatten()
                    .is_some_and(|ids| ids.contains(&self.live_flows));
            if of_node && other.tag() != own.tag() {
                return Ok(Standing::Other);
            }
            if of_node {
                standing = Standing::Same;
            }
        }
        Ok(standing)
    }

    fn refill(&mut self) -> Result<(), DatapathError> {
        // Few or none: going through them one by one is quicker than reading all.
        self.affinity.clear()?;
        self.affinity.write(&self.memory)?;
        // Each try comes from a port of its own, so flows of earlier ones are in nobody's way as long as there is room.
        if self.tries == 0 {
            let flows: Vec<_> = self.flows.entries()?.into_iter().map(|(key, _)| key).collect();
            self.flows.delete(&flows)?;
            self.flows.write(&self.taken)?;
        }
        self.tries = (self.tries + 1) % TRIES;
        Ok(())
    }

    /// Runs a frame; what the verdict is called depends on the kind of program.
    fn test(&self, hook: Hook, frame: &[u8]) -> Result<Ran, DatapathError> {
        let context = match (hook, self.device) {
            (Hook::BeforeStack, Some(device)) => object::xdp_context(frame, device),
            _ => Vec::new(),
        };
        let (verdict, bytes) = object::test_run(&self.ebpf, name_of(hook), frame, &context)?;
        let fate = match (hook, verdict) {
            (Hook::BeforeStack, XDP_PASS) => Fate::Untouched,
            (Hook::BeforeStack, XDP_TX) => Fate::Changed(bytes),
            (Hook::BeforeStack, XDP_DROP) | (_, TC_ACT_SHOT) => Fate::Dropped,
            (_, TC_ACT_OK) if bytes == frame => Fate::Untouched,
            (_, TC_ACT_OK) => Fate::Changed(bytes),
            (_, TC_ACT_REDIRECT) => Fate::Rejected,
            (_, other) => return Err(DatapathError::Verdict(name_of(hook), other)),
        };
        let refused = matches!(fate, Fate::Rejected | Fate::Dropped);
        let reason = if refused { self.reason()? } else { None };
        Ok(Ran { fate, reason })
    }

    /// Why the last packet was refused: what is counted more often than when this was asked before.
    fn reason(&self) -> Result<Option<Reason>, DatapathError> {
        let counts: Vec<u64> = Reason::ALL
            .into_iter()
            .map(|reason| self.count(reason))
            .collect::<Result<_, _>>()?;
        let before = self.refused.replace(counts.clone());
        let counted = Reason::ALL.into_iter().zip(before.into_iter().zip(counts));
        let mut more = counted.filter(|(r, (before, now))| r.is_refusal() && before != now);
        Ok(more.next_back().map(|(r, _)| r))
    }
}

impl Stages for Aside {
    fn again(&mut self, _: u32) -> Result<(), StageError> {
        self.refill().map_err(told)
    }

    fn run(&self, hook: Hook, frame: &[u8]) -> Result<Ran, StageError> {
        self.test(hook, frame).map_err(told)
    }
}

/// With its causes: whoever runs stages knows nothing of ours.
fn told(error: DatapathError) -> StageError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    StageError(text)
}

fn name_of(hook: Hook) -> &'static str {
    match hook {
        Hook::FromPod => programs::FROM_POD,
        Hook::ToPod => programs::TO_POD,
        Hook::FromUplink => programs::FROM_UPLINK,
        Hook::ToUplink => programs::TO_UPLINK,
        Hook::BeforeStack => programs::XDP_UPLINK,
    }
}

/// A descriptor of a map that this process made.
fn own(ebpf: &Ebpf, name: &str) -> Result<OwnedFd, DatapathError> {
    let data = match ebpf.map(name) {
        Some(Map::LruHashMap(data) | Map::PerCpuArray(data)) => data,
        _ => return Err(DatapathError::Missing(format!("map {name} of this layout"))),
    };
    data.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(DatapathError::path(name))
}

/// What clients keep, and flows.
pub type Met = (Vec<(AffinityKey, Affinity)>, Vec<(FlowKey, Flow)>);

/// The node's flows that a new connection's ports may collide with, and what `client` keeps: for [`Aside::recall`].
///
/// # Errors
/// The node's maps cannot be read.
pub fn in_the_way(folder: &Path, client: datapath_abi::Address) -> Result<Met, DatapathError> {
    let dir = Pins {
        folder: folder.to_owned(),
    }
    .maps();
    let kept = Table::<AffinityKey, Affinity>::open(maps::AFFINITY, &dir)?.entries()?;
    let flows = Table::<FlowKey, Flow>::open(maps::FLOWS, &dir)?.entries()?;
    Ok((
        kept.into_iter().filter(|(key, _)| key.client == client).collect(),
        flows
            .into_iter()
            .filter(|(_, flow)| flow.role == datapath_abi::FlowRole::UNMASQUERADE)
            .collect(),
    ))
}

/// The devices before whose stack a program of the node stands (XDP).
pub fn devices_before_stack(folder: &Path) -> Vec<String> {
    let pins = Pins {
        folder: folder.to_owned(),
    };
    let entries = fs::read_dir(pins.uplinks()).into_iter().flatten().flatten();
    let names = entries.filter_map(|e| e.file_name().into_string().ok());
    let mut devices: Vec<_> = names
        // A bpffs allows no dots in names.
        .filter_map(|n| Some(n.strip_suffix(":xdp")?.replace(':', ".")))
        .collect();
    devices.sort();
    devices
}
