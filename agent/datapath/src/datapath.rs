//! The data path of one node, as the agent holds it.
use crate::attach::{self, Role};
use crate::collect::{self, Collected, Connection};
use crate::dump::{Dump, Pins};
use crate::error::DatapathError;
use crate::jobs::Jobs;
use crate::migrate;
use crate::object;
use crate::size::Sizes;
use crate::sockets;
use crate::stale::Stale;
use crate::table::{PerCpu, Single, Table};
use crate::xdp::{self, XdpChoice, XdpMode};
use agent_services::{Changes, Existing};
use aya::Ebpf;
use datapath_abi::{
    Backend, BackendKey, Flow, FlowKey, FrontendKey, FrontendValue, LAYOUT, Maglev, MaglevKey, Member,
    MemberKey, Owner, Range, ReplyKey, ReplyValue, SERVICE_RANGES, SetCounts, SetId, Settings, SettingsFlags,
    SourceRangeKey, maps, programs,
};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What a node's data path needs to know.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// A folder on a bpffs, this node's own; made if missing.
    pub pin_dir: PathBuf,
    /// The cgroup2 folder whose processes' sockets are served; `None` attaches no socket hook.
    pub cgroup: Option<PathBuf>,
    /// ServiceCIDRs as address and prefix length; more than four are ignored.
    pub service_ranges: Vec<(IpAddr, u8)>,
    /// `None` sizes the maps by the machine's memory.
    pub sizes: Option<Sizes>,
}

/// A loaded and attached data path. Dropping it leaves everything in place: that is what the pins are for.
pub struct Datapath {
    pins: Pins,
    cgroup: Option<PathBuf>,
    /// Programs are attached one device at a time.
    ebpf: Mutex<Ebpf>,
    frontends: Table<FrontendKey, FrontendValue>,
    backends: Table<BackendKey, Backend>,
    owners: Table<SetId, Owner>,
    members: Table<MemberKey, Member>,
    maglev: Table<MaglevKey, Maglev>,
    ranges: Table<SourceRangeKey, u8>,
    counts: PerCpu<u32, SetCounts>,
    flows: Table<FlowKey, Flow>,
    replies: Table<ReplyKey, ReplyValue>,
    settings: Single<Settings>,
}

impl Datapath {
    /// Loads the programs, taking over the pinned maps of an earlier agent, and attaches the socket hooks.
    ///
    /// Maps of another layout are not touched: new ones are made beside them, and only [`Datapath::commit`], called once
    /// everything is written, puts the new programs in the place of the old ones.
    pub fn open(config: &DatapathConfig) -> Result<Self, DatapathError> {
        let pins = Pins::create(&config.pin_dir)?;
        let sizes = config.sizes.unwrap_or_else(Sizes::of_this_machine);
        let ebpf = object::load(&pins.maps(), &sizes)?;
        let dir = pins.maps();
        let datapath = Self {
            ebpf: Mutex::new(ebpf),
            frontends: Table::open(maps::FRONTENDS, &dir)?,
            backends: Table::open(maps::BACKENDS, &dir)?,
            owners: Table::open(maps::OWNERS, &dir)?,
            members: Table::open(maps::MEMBERS, &dir)?,
            maglev: Table::open(maps::MAGLEV, &dir)?,
            ranges: Table::open(maps::SOURCE_RANGES, &dir)?,
            counts: PerCpu::open(maps::SET_COUNTS, &dir)?,
            flows: Table::open(maps::FLOWS, &dir)?,
            replies: Table::open(maps::REPLIES, &dir)?,
            settings: Single::open(maps::SETTINGS, &dir)?,
            cgroup: config.cgroup.clone(),
            pins,
        };
        // What an earlier agent told the programs stays true until this one knows better.
        if datapath.settings.get()?.layout != LAYOUT || !config.service_ranges.is_empty() {
            datapath.set_service_ranges(&config.service_ranges)?;
        }
        if !datapath.pins.has_other_layouts() {
            datapath.attach()?;
        }
        Ok(datapath)
    }

    /// Everything that is wanted is written: takes over from maps of another layout, if there were any, and removes those.
    pub fn commit(&self) -> Result<(), DatapathError> {
        if self.pins.has_other_layouts() {
            // Twice: with the new programs in place no old one makes flows any more, and until then both know the same.
            migrate::flows(&self.pins.folder, &self.flows, &self.replies)?;
            self.attach()?;
            migrate::flows(&self.pins.folder, &self.flows, &self.replies)?;
            self.pins.remove_other_layouts()?;
        }
        Ok(())
    }

    fn attach(&self) -> Result<(), DatapathError> {
        let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let adopted = attach::adopt_devices(&mut ebpf, Role::Pod, &self.pins.devices())?
            + attach::adopt_devices(&mut ebpf, Role::Uplink, &self.pins.uplinks())?
            + xdp::adopt(&mut ebpf, &self.pins.uplinks())?;
        tracing::debug!(adopted, "links to devices, of an earlier agent");
        match &self.cgroup {
            Some(cgroup) => attach::socket_hooks(&mut ebpf, cgroup, &self.pins.links()),
            None => Ok(()),
        }
    }

    /// Tells the programs from which ranges services get their addresses.
    pub fn set_service_ranges(&self, ranges: &[(IpAddr, u8)]) -> Result<(), DatapathError> {
        let mut settings = self.settings.get()?;
        settings.layout = LAYOUT;
        settings.service_ranges = Default::default();
        for (place, (addr, bits)) in settings
            .service_ranges
            .iter_mut()
            .zip(ranges.iter().take(SERVICE_RANGES))
        {
            *place = Range::new(*addr, *bits);
        }
        self.settings.set(&settings)
    }

    /// Tells the programs about the node: everything at once, but for what they told themselves.
    pub fn set_settings(&self, settings: &Settings) -> Result<(), DatapathError> {
        let own = self.settings.get()?.flags.0 & SettingsFlags::OWN.0;
        self.settings.set(&Settings {
            flags: SettingsFlags(settings.flags.0 | own),
            ..*settings
        })
    }

    /// Carries out changes in their order, each list in batches, and large ones on several processors. After an error the maps hold a
    /// part of it, in which every frontend still leads to complete slots: read [`Datapath::existing`] and plan anew.
    pub fn apply(&self, c: &Changes) -> Result<(), DatapathError> {
        let ranges: Vec<_> = c.ranges.iter().map(|key| (*key, 1)).collect();
        let gone_counts: Vec<u32> = c.gone_owners.iter().map(|id| id.0).collect();
        Jobs::default()
            .write(&self.owners, &c.owners)
            .write(&self.backends, &c.backends)
            .write(&self.members, &c.members)
            .write(&self.maglev, &c.maglev)
            .write(&self.ranges, &ranges)
            .run()?;
        // Each step only once the one before is complete: what a frontend leads to stands before it and goes after it.
        Jobs::default().write(&self.frontends, &c.frontends).run()?;
        Jobs::default().delete(&self.frontends, &c.gone_frontends).run()?;
        Jobs::default()
            .delete(&self.ranges, &c.gone_ranges)
            .delete(&self.maglev, &c.gone_maglev)
            .delete(&self.members, &c.gone_members)
            .delete(&self.backends, &c.gone_backends)
            .delete(&self.owners, &c.gone_owners)
            .run()?;
        self.counts.delete(&gone_counts)?;
        self.end_flows(&Stale::of(&c.ended, &c.ended_fronts))
    }

    /// Ends what goes on without connections towards endpoints that are gone, or under fronts that are gone. TCP flows stay:
    /// they end themselves.
    fn end_flows(&self, stale: &Stale) -> Result<(), DatapathError> {
        if stale.is_empty() {
            return Ok(());
        }
        let flows = self.flows.entries()?;
        let keys: Vec<_> = flows
            .iter()
            .filter(|(key, flow)| stale.has_flow(key, flow))
            .map(|(key, _)| *key)
            .collect();
        self.flows.delete(&keys)?;
        self.end_sockets(stale)
    }

    /// Without this the data path still serves everything new, so a failure is told and nothing else.
    fn end_sockets(&self, stale: &Stale) -> Result<(), DatapathError> {
        let Some(cgroup) = &self.cgroup else {
            return Ok(());
        };
        let sockets = stale.sockets(&self.replies.entries()?);
        if sockets.is_empty() {
            return Ok(());
        }
        match sockets::end(cgroup, &sockets) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "UDP sockets ended whose endpoint is gone"),
            Err(error) => tracing::warn!(%error, "UDP sockets of endpoints that are gone cannot be ended"),
        }
        Ok(())
    }

    /// Deletes flows that are over, and under pressure those that are worth least. `now` is the time since boot
    /// ([`since_boot`](crate::since_boot)). One walk costs about a microsecond for each entry; once in some ten seconds is enough.
    pub fn collect(&self, now: Duration) -> Result<Collected, DatapathError> {
        let entries = self.flows.entries()?;
        let before = entries.len();
        let plan = collect::plan(entries, now, self.flows.capacity());
        let over = self.delete_unchanged(&plan.over)?;
        let pressed_out = self.delete_unchanged(&plan.pressed_out)?;
        Ok(Collected {
            deleted: over + pressed_out,
            pressed_out,
            live: before - over - pressed_out,
            capacity: self.flows.capacity(),
        })
    }

    /// Deletes the entries of connections none of whose entries has changed since.
    fn delete_unchanged(&self, connections: &[Connection]) -> Result<usize, DatapathError> {
        let mut deleted = 0;
        for connection in connections {
            let mut changed = false;
            for (key, flow) in &connection.entries {
                changed |= self.flows.get(key)?.is_some_and(|now| now != *flow);
            }
            if !changed {
                for (key, _) in &connection.entries {
                    deleted += usize::from(self.flows.delete_one(key)?);
                }
            }
        }
        Ok(deleted)
    }

    /// Where the maps are pinned.
    pub(crate) fn maps_dir(&self) -> PathBuf {
        self.pins.maps()
    }

    /// What stands in the service maps: a planner starts from it.
    pub fn existing(&self) -> Result<Existing, DatapathError> {
        Ok(Existing {
            frontends: self.frontends.entries()?.into_iter().collect(),
            backends: self.backends.entries()?.into_iter().collect(),
            members: self.members.entries()?.into_iter().collect(),
            maglev: self.maglev.entries()?.into_iter().collect(),
            ranges: self.ranges.entries()?.into_iter().map(|(key, _)| key).collect(),
            owners: self.owners.entries()?.into_iter().collect(),
        })
    }

    /// Everything that can be read, with names.
    pub fn dump(&self) -> Result<Dump, DatapathError> {
        Dump::read(&self.pins.folder)
    }

    /// How many flows and replies are remembered.
    pub fn remembered(&self) -> Result<(usize, usize), DatapathError> {
        Ok((self.flows.entries()?.len(), self.replies.entries()?.len()))
    }

    /// Serves the packets of a pod: `device` is the host's side of its veth, in the calling thread's network namespace.
    pub fn attach_pod_device(&self, device: &str) -> Result<(), DatapathError> {
        let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        attach::device(&mut ebpf, Role::Pod, device, &self.pins.devices())
    }

    /// Stops serving a pod's device. Not needed when the device itself goes, but tidy.
    pub fn detach_pod_device(&self, device: &str) -> Result<(), DatapathError> {
        attach::detach(Role::Pod, device, &self.pins.devices())
    }

    /// Serves what comes from other machines to services of this node: `device` is one through which they are reached, in the
    /// calling thread's network namespace. Attached already is fine. Returns whether XDP does a part of it, or why not.
    pub fn attach_uplink(&self, device: &str, xdp: XdpChoice) -> Result<XdpMode, DatapathError> {
        let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let pins = self.pins.uplinks();
        attach::device(&mut ebpf, Role::Uplink, device, &pins)?;
        let mode = xdp::attach(&mut ebpf, device, xdp, &pins)?;
        tracing::info!(device, %mode, "uplink is served");
        Ok(mode)
    }

    /// Stops serving an uplink; one that is gone already is no error.
    pub fn detach_uplink(&self, device: &str) -> Result<(), DatapathError> {
        let pins = self.pins.uplinks();
        xdp::detach(device, &pins)?;
        attach::detach(Role::Uplink, device, &pins)
    }

    /// Sends a made-up frame through the loaded program, with the live maps, without sending it anywhere: returns the
    /// program's verdict (`TC_ACT_*`) and the frame as it left. Counters and flows change as with a real packet.
    pub fn try_packet(&self, program: &str, frame: &[u8]) -> Result<(u32, Vec<u8>), DatapathError> {
        let ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        object::test_run(&ebpf, program, frame, &[])
    }

    /// Runs a program so many times on one frame, each time on what the last one left, through the programs and maps as they are: returns the time
    /// of one, as the kernel measures it.
    pub fn time_packet(&self, program: &str, frame: &[u8], runs: u32) -> Result<Duration, DatapathError> {
        let ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        object::timed_run(&ebpf, program, frame, &[], runs)
    }

    /// As [`time_packet`](Self::time_packet), for [`try_uplink_packet`](Self::try_uplink_packet).
    pub fn time_uplink_packet(
        &self,
        device: &str,
        frame: &[u8],
        runs: u32,
    ) -> Result<Duration, DatapathError> {
        let ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let context = uplink_context(device, frame)?;
        object::timed_run(&ebpf, programs::XDP_UPLINK, frame, &context, runs)
    }

    /// As [`try_packet`](Self::try_packet), through the XDP program and as if the device had received the frame: with the routes and
    /// neighbours of the calling thread's network namespace. Returns `XDP_*` and the frame. Needs Linux 5.15.
    pub fn try_uplink_packet(&self, device: &str, frame: &[u8]) -> Result<(u32, Vec<u8>), DatapathError> {
        let ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let context = uplink_context(device, frame)?;
        object::test_run(&ebpf, programs::XDP_UPLINK, frame, &context)
    }

    /// Whether all socket hooks are in place.
    pub fn is_attached(&self) -> bool {
        attach::is_attached(&self.pins.links())
    }

    /// Takes everything away: links, then maps. Connections that were translated per packet break.
    pub fn remove(pin_dir: &Path) -> Result<(), DatapathError> {
        match fs::remove_dir_all(pin_dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(DatapathError::path(pin_dir)(e)),
            _ => Ok(()),
        }
    }
}

/// `struct xdp_md` of a frame that this device received.
fn uplink_context(device: &str, frame: &[u8]) -> Result<Vec<u8>, DatapathError> {
    let index = attach::device_index(device).map_err(|e| DatapathError::path(device)(e.into()))?;
    // data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, frame.len() as u32, 0, index, 0, 0];
    Ok(context.iter().flat_map(|word| word.to_ne_bytes()).collect())
}

/// The cookie of the network namespace of the calling thread, for [`Settings::host_netns_cookie`]; 0, which no namespace has,
/// before Linux 5.14.
pub fn netns_cookie() -> u64 {
    crate::sys::netns_cookie().unwrap_or(0)
}

/// Gives the machine back what this process has freed: worth some milliseconds after much was read or planned at once, as at a start.
pub fn release_freed_memory() {
    crate::sys::trim_heap();
}

/// The clock of the flows: time since boot, without that spent asleep (`CLOCK_MONOTONIC`, what `bpf_ktime_get_ns` reads).
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
}
