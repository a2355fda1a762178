//! Reading pinned maps without an agent, in rows that name their owners: what `skep services` and `skep maps` show.
use crate::error::DatapathError;
use crate::sys::Plain;
use crate::table::{PerCpu, Single, Table};
use crate::traffic::{self, Names, Traffic};
use datapath_abi::{
    Affinity, AffinityKey, Backend, BackendKey, Flow, FlowKey, FragmentKey, FragmentPorts, FrontendFlags,
    FrontendKey, FrontendValue, LAYOUT, Maglev, MaglevKey, Member, MemberKey, Owner, Proto, Reason, ReplyKey,
    ReplyValue, SetId, Settings, SourceRangeKey, maps,
};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// The folder in which everything of one node is pinned:
/// `v<layout>/<map>`, `links/<hook>`, `devices/<device>:<side>` for pods' devices, `uplinks/<device>:<side or xdp>`.
#[derive(Clone, Debug)]
pub struct Pins {
    pub(crate) folder: PathBuf,
}

/// `f_type` of a BPF file system (`linux/magic.h`).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

impl Pins {
    /// Makes the folders; `folder` has to lie on a bpffs.
    pub(crate) fn create(folder: &Path) -> Result<Self, DatapathError> {
        let pins = Self {
            folder: folder.to_owned(),
        };
        for dir in [
            folder.to_owned(),
            pins.maps(),
            pins.links(),
            pins.devices(),
            pins.uplinks(),
        ] {
            fs::create_dir_all(&dir).map_err(DatapathError::path(&dir))?;
            if !is_bpffs(&dir) {
                return Err(DatapathError::NotBpffs(folder.to_owned()));
            }
        }
        Ok(pins)
    }

    /// Where maps of this layout are.
    pub(crate) fn maps(&self) -> PathBuf {
        self.folder.join(format!("v{LAYOUT}"))
    }

    /// Where the links of socket hooks are.
    pub(crate) fn links(&self) -> PathBuf {
        self.folder.join("links")
    }

    /// Where the links of devices are.
    pub(crate) fn devices(&self) -> PathBuf {
        self.folder.join("devices")
    }

    /// Where the links of uplinks are.
    pub(crate) fn uplinks(&self) -> PathBuf {
        self.folder.join("uplinks")
    }

    fn other_layouts(&self) -> Vec<PathBuf> {
        let own = self.maps();
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries
            .map(|e| e.path())
            .filter(|p| {
                *p != own
                    && p.file_name()
                        .is_some_and(|n| n.to_string_lossy().starts_with('v'))
            })
            .collect()
    }

    pub(crate) fn has_other_layouts(&self) -> bool {
        !self.other_layouts().is_empty()
    }

    pub(crate) fn remove_other_layouts(&self) -> Result<(), DatapathError> {
        for dir in self.other_layouts() {
            fs::remove_dir_all(&dir).map_err(DatapathError::path(&dir))?;
        }
        Ok(())
    }
}

fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type as u64 & 0xffff_ffff == BPF_FS_MAGIC)
}

/// One port of a service in one family, as the maps have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRow {
    /// `namespace/service:port`.
    pub owner: String,
    pub frontend: SocketAddr,
    pub proto: Proto,
    pub set: SetId,
    pub generation: u16,
    /// Endpoints in the order of their slots; `local` of them, the first ones, are on this node.
    pub backends: Vec<SocketAddr>,
    pub local: u16,
    /// Policy Local: only local endpoints are chosen.
    pub local_only: bool,
}

/// One map: entries, room, and how full it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRow {
    pub name: &'static str,
    pub entries: usize,
    pub capacity: u32,
}

impl MapRow {
    /// How full the map is, in percent.
    pub fn pressure(&self) -> f64 {
        100.0 * self.entries as f64 / f64::from(self.capacity.max(1))
    }
}

/// One counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRow {
    pub reason: Reason,
    pub count: u64,
}

/// One direction of a flow that is translated per packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRow {
    pub owner: String,
    pub proto: Proto,
    pub reply: bool,
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// What `to` (of a request) or `from` (of a reply) becomes.
    pub becomes: SocketAddr,
    pub packets: u64,
    pub bytes: u64,
}

/// Everything that is pinned, read once.
#[derive(Clone, Debug)]
pub struct Dump {
    pub services: Vec<ServiceRow>,
    /// Addresses that belong to a service, whatever the port.
    pub addresses: Vec<IpAddr>,
    pub maps: Vec<MapRow>,
    pub counters: Vec<CounterRow>,
    pub traffic: Traffic,
    pub flows: Vec<FlowRow>,
}

impl Dump {
    /// Reads what is pinned under `folder`, with or without a running agent.
    pub fn read(folder: &Path) -> Result<Self, DatapathError> {
        let pins = Pins {
            folder: folder.to_owned(),
        };
        let dir = pins.maps();
        if !dir.is_dir() {
            return Err(DatapathError::NotPinned(folder.to_owned()));
        }
        let settings: Settings = Single::open(maps::SETTINGS, &dir)?.get()?;
        if settings.layout != LAYOUT {
            return Err(DatapathError::Layout {
                found: settings.layout,
            });
        }
        let frontends = Table::<FrontendKey, FrontendValue>::open(maps::FRONTENDS, &dir)?;
        let backends = Table::<BackendKey, Backend>::open(maps::BACKENDS, &dir)?;
        let owners = Table::<u32, Owner>::open(maps::OWNERS, &dir)?;
        let flows = Table::<FlowKey, Flow>::open(maps::FLOWS, &dir)?;
        let replies = Table::<ReplyKey, ReplyValue>::open(maps::REPLIES, &dir)?;
        let (fronts, backs, owned, flowing) = (
            frontends.entries()?,
            backends.entries()?,
            owners.entries()?,
            flows.entries()?,
        );
        let maps = vec![
            row(maps::FRONTENDS, fronts.len(), frontends.capacity()),
            row(maps::BACKENDS, backs.len(), backends.capacity()),
            row(maps::OWNERS, owned.len(), owners.capacity()),
            whole::<MemberKey, Member>(maps::MEMBERS, &dir)?,
            whole::<MaglevKey, Maglev>(maps::MAGLEV, &dir)?,
            whole::<SourceRangeKey, u8>(maps::SOURCE_RANGES, &dir)?,
            whole::<AffinityKey, Affinity>(maps::AFFINITY, &dir)?,
            whole::<FragmentKey, FragmentPorts>(maps::FRAGMENTS, &dir)?,
            row(maps::FLOWS, flowing.len(), flows.capacity()),
            row(maps::REPLIES, replies.entries()?.len(), replies.capacity()),
        ];
        let owned: HashMap<u32, Owner> = owned.into_iter().collect();
        let names = Names {
            frontends: &fronts,
            backends: &backs,
            owners: &owned,
        };
        let traffic = traffic::read(&dir, &names)?;
        let slots: HashMap<BackendKey, Backend> = backs.into_iter().collect();
        Ok(Self {
            services: services(&fronts, &slots, &owned),
            addresses: addresses(&fronts),
            maps,
            counters: counters(&dir)?,
            traffic,
            flows: flowing.iter().map(|(k, f)| flow_row(k, f, &owned)).collect(),
        })
    }

    /// The count of one reason.
    pub fn counter(&self, reason: Reason) -> u64 {
        self.counters
            .iter()
            .find(|c| c.reason == reason)
            .map_or(0, |c| c.count)
    }
}

/// The row of a map of which nothing but its size is shown.
fn whole<K: Plain, V: Plain>(name: &'static str, dir: &Path) -> Result<MapRow, DatapathError> {
    let table = Table::<K, V>::open(name, dir)?;
    Ok(row(name, table.entries()?.len(), table.capacity()))
}

fn row(name: &'static str, entries: usize, capacity: u32) -> MapRow {
    MapRow {
        name,
        entries,
        capacity,
    }
}

fn owner(owners: &HashMap<u32, Owner>, set: SetId) -> String {
    owners
        .get(&set.0)
        .map_or_else(|| format!("set {}", set.0), |o| o.text().to_owned())
}

fn services(
    frontends: &[(FrontendKey, FrontendValue)],
    slots: &HashMap<BackendKey, Backend>,
    owners: &HashMap<u32, Owner>,
) -> Vec<ServiceRow> {
    let mut rows: BTreeMap<_, ServiceRow> = BTreeMap::new();
    for (key, v) in frontends.iter().filter(|(k, _)| k.proto != Proto::ANY) {
        let backends = (0..v.slots()).filter_map(|slot| {
            let b = slots.get(&BackendKey {
                set: v.set,
                generation: v.generation,
                slot,
            })?;
            Some(SocketAddr::new(b.addr.to_ip(), b.port.get()))
        });
        let row = ServiceRow {
            owner: owner(owners, v.set),
            frontend: SocketAddr::new(key.addr.to_ip(), key.port.get()),
            proto: key.proto,
            set: v.set,
            generation: v.generation.0,
            backends: backends.collect(),
            local: v.local,
            local_only: v.flags.has(FrontendFlags::LOCAL_ALWAYS),
        };
        rows.insert((row.owner.clone(), row.frontend, key.proto), row);
    }
    rows.into_values().collect()
}

fn addresses(frontends: &[(FrontendKey, FrontendValue)]) -> Vec<IpAddr> {
    let whole = frontends.iter().filter(|(k, _)| k.proto == Proto::ANY);
    let mut ips: Vec<_> = whole.map(|(k, _)| k.addr.to_ip()).collect();
    ips.sort();
    ips
}

fn counters(dir: &Path) -> Result<Vec<CounterRow>, DatapathError> {
    let reasons = reasons(dir)?.into_iter();
    Ok(reasons
        .map(|(reason, count)| CounterRow { reason, count })
        .collect())
}

/// The counts of all reasons.
pub(crate) fn reasons(dir: &Path) -> Result<Vec<(Reason, u64)>, DatapathError> {
    let map = PerCpu::<u32, u64>::open(maps::COUNTERS, dir)?;
    let count = |&reason: &Reason| Ok((reason, map.get(&reason.index())?.iter().sum()));
    Reason::ALL.iter().map(count).collect()
}

fn flow_row(key: &FlowKey, flow: &Flow, owners: &HashMap<u32, Owner>) -> FlowRow {
    FlowRow {
        owner: owner(owners, flow.set),
        proto: key.proto,
        reply: key.changes == FlowKey::SOURCE,
        from: SocketAddr::new(key.src.to_ip(), key.sport.get()),
        to: SocketAddr::new(key.dst.to_ip(), key.dport.get()),
        becomes: SocketAddr::new(flow.addr.to_ip(), flow.port.get()),
        packets: flow.packets,
        bytes: flow.bytes,
    }
}
