//! The data path of one node, as the agent holds it.
use crate::attach::{self, Role, Side};
use crate::collect::{self, Collected, Connection, Survey};
use crate::counts::CountPages;
use crate::dump::{self, Dump, Pins};
use crate::error::DatapathError;
use crate::jobs::Jobs;
use crate::migrate;
use crate::object;
use crate::size::Sizes;
use crate::sockets::{self, Sockets};
use crate::stale::{self, Stale};
use crate::table::{Single, Table};
use crate::traffic::{self, Traffic};
use crate::xdp::{self, XdpChoice, XdpMode};
use agent_services::{Changes, Existing, InUse};
use aya::Ebpf;
use datapath_abi::{
    Affinity, AffinityKey, Backend, BackendKey, Flow, FlowKey, FrontendKey, FrontendValue, LAYOUT, Maglev,
    MaglevKey, Member, MemberKey, Owner, Range, Reason, ReplyKey, ReplyValue, SERVICE_RANGES, SetId,
    Settings, SettingsFlags, SourceRangeKey, maps, programs,
};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    pub(crate) frontends: Table<FrontendKey, FrontendValue>,
    backends: Table<BackendKey, Backend>,
    owners: Table<SetId, Owner>,
    members: Table<MemberKey, Member>,
    maglev: Table<MaglevKey, Maglev>,
    ranges: Table<SourceRangeKey, u8>,
    counts: CountPages,
    pub(crate) flows: Table<FlowKey, Flow>,
    replies: Table<ReplyKey, ReplyValue>,
    affinity: Table<AffinityKey, Affinity>,
    pub(crate) settings: Single<Settings>,
    /// Devices that wait until maps of another layout are taken over.
    waiting: Mutex<Vec<Waiting>>,
}

/// A device that is to be served, and for an uplink whether by XDP too.
struct Waiting {
    role: Role,
    device: String,
    xdp: XdpChoice,
}

impl Datapath {
    /// Loads the programs, taking over the pinned maps of an earlier agent, and attaches the socket hooks.
    ///
    /// Maps of another layout are not touched: new ones are made beside them, and only [`Datapath::commit`], called once
    /// everything is written, puts the new programs in the place of the old ones.
    pub fn open(config: &DatapathConfig) -> Result<Self, DatapathError> {
        Self::open_build(config, object::built_in_object())
    }

    /// As [`Datapath::open`], with the programs of another build of this layout: one to go up or down to.
    pub fn open_build(config: &DatapathConfig, object: &[u8]) -> Result<Self, DatapathError> {
        let pins = Pins::create(&config.pin_dir)?;
        migrate::adopt_maps(&pins)?;
        let sizes = config.sizes.unwrap_or_else(Sizes::of_this_machine);
        let ebpf = object::load(object, &pins.maps(), &sizes)?;
        let dir = pins.maps();
        let datapath = Self {
            ebpf: Mutex::new(ebpf),
            frontends: Table::open(maps::FRONTENDS, &dir)?,
            backends: Table::open(maps::BACKENDS, &dir)?,
            owners: Table::open(maps::OWNERS, &dir)?,
            members: Table::open(maps::MEMBERS, &dir)?,
            maglev: Table::open(maps::MAGLEV, &dir)?,
            ranges: Table::open(maps::SOURCE_RANGES, &dir)?,
            counts: CountPages::open(&dir)?,
            flows: Table::open(maps::FLOWS, &dir)?,
            replies: Table::open(maps::REPLIES, &dir)?,
            affinity: Table::open(maps::AFFINITY, &dir)?,
            settings: Single::open(maps::SETTINGS, &dir)?,
            cgroup: config.cgroup.clone(),
            waiting: Mutex::default(),
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
            let taken = self.take_over();
            self.hold(false)?;
            taken?;
            self.pins.remove_other_layouts()?;
            self.serve_waiting();
        }
        Ok(())
    }

    /// Serves the devices that waited, those too that came while the others were taken over. Served already is fine.
    fn serve_waiting(&self) {
        let waiting = std::mem::take(&mut *self.waiting());
        for Waiting { role, device, xdp } in waiting {
            let served = match role {
                Role::Pod => self.attach_pod_device(&device),
                Role::Uplink => self.attach_uplink(&device, xdp).map(drop),
            };
            if let Err(error) = served {
                // It may be gone by now.
                tracing::warn!(
                    device,
                    error = &error as &dyn std::error::Error,
                    "device is not served"
                );
            }
        }
    }

    /// Puts the programs in the place of those of another layout, so that no flow is ever known to one of both only: those
    /// that begin flows are exchanged first, and begin none; what the old ones began is copied to the end; then those that see
    /// the answers are exchanged.
    fn take_over(&self) -> Result<(), DatapathError> {
        let mut flows = migrate::Flows::new(&self.pins, &self.frontends, &self.flows, &self.replies);
        flows.copy()?;
        self.hold(true)?;
        self.adopt(Side::Ingress)?;
        self.attach_hooks()?;
        flows.copy()?;
        self.adopt(Side::Egress)?;
        flows.number_sockets()
    }

    /// Whether new flows wait.
    fn hold(&self, on: bool) -> Result<(), DatapathError> {
        let mut settings = self.settings.get()?;
        settings.flags = settings.flags.set(SettingsFlags::HOLD, on);
        self.settings.set(&settings)
    }

    fn attach(&self) -> Result<(), DatapathError> {
        for side in Side::BACK_FIRST {
            self.adopt(side)?;
        }
        self.attach_hooks()
    }

    /// Exchanges the programs on one side of the devices that are served, and of those that wait for it.
    fn adopt(&self, side: Side) -> Result<(), DatapathError> {
        let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let (pods, uplinks) = (self.pins.devices(), self.pins.uplinks());
        let mut adopted = attach::adopt_devices(&mut ebpf, Role::Pod, side, &pods)?
            + attach::adopt_devices(&mut ebpf, Role::Uplink, side, &uplinks)?;
        if side == Side::Ingress {
            adopted += xdp::adopt(&mut ebpf, &uplinks)?;
        }
        tracing::debug!(adopted, ?side, "links to devices, of an earlier agent");
        for Waiting { role, device, .. } in self.waiting().iter() {
            let pins = if *role == Role::Pod { &pods } else { &uplinks };
            if let Err(error) = attach::device_side(&mut ebpf, *role, device, side, pins) {
                tracing::debug!(device, %error, "to be served once the others are taken over");
            }
        }
        Ok(())
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a device for [`Datapath::commit`], if maps of another layout are still in use: until then the programs of that layout
    /// serve it, or none, but never ours with maps that are not full. False if it can be served now.
    fn waits(&self, role: Role, device: &str, xdp: XdpChoice) -> bool {
        let waits = self.pins.has_other_layouts();
        if waits {
            let mut waiting = self.waiting();
            waiting.retain(|w| w.device != device);
            waiting.push(Waiting {
                role,
                device: device.to_owned(),
                xdp,
            });
        }
        waits
    }

    fn attach_hooks(&self) -> Result<(), DatapathError> {
        let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
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
        self.counts.grow(c.numbers)?;
        if let Some(first) = c.unused_numbers {
            self.counts.clear_from(first)?;
        }
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
        self.counts.clear(c.gone_numbers.iter().copied())?;
        self.forget_clients(c)?;
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
        self.end_sockets(&stale.sockets(&self.replies.entries()?))
    }

    /// Ends sockets and forgets whose answers they hear. Without this the data path still serves everything new, so a failure is told
    /// and nothing else.
    fn end_sockets(&self, sockets: &Sockets) -> Result<(), DatapathError> {
        let Some(cgroup) = self.cgroup.as_ref().filter(|_| !sockets.is_empty()) else {
            return Ok(());
        };
        match sockets::end(cgroup, sockets) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "UDP sockets ended whose endpoint is gone"),
            Err(error) => {
                tracing::warn!(%error, "UDP sockets of endpoints that are gone cannot be ended");
                return Ok(());
            }
        }
        let keys = sockets
            .iter()
            .map(|(cookie, addr, port)| ReplyKey::new(*cookie, *addr, *port));
        self.replies.delete(&keys.collect::<Vec<_>>())
    }

    /// Clients do not keep endpoints that are gone, nor any of a set that has no affinity any more: nobody would tell them later. Without
    /// affinity, which has members, there is nothing to look at.
    fn forget_clients(&self, c: &Changes) -> Result<(), DatapathError> {
        let ended = stale::endpoints(&c.ended);
        let plain = stale::sets_without_memory(&c.gone_members, &c.frontends);
        if c.gone_members.is_empty() || (ended.is_empty() && plain.is_empty()) {
            return Ok(());
        }
        let mut kept = self.affinity.entries()?;
        kept.retain(|(key, kept)| plain.contains(&key.set) || stale::remembers(key, kept, &ended));
        let keys: Vec<_> = kept.into_iter().map(|(key, _)| key).collect();
        self.affinity.delete(&keys)
    }

    /// Ends whatever leads to an endpoint, or comes by a front, that is not in use: what became of those that went while no
    /// agent ran, nobody told. To be called when everything is written for the first time.
    pub fn end_others(&self, in_use: &InUse) -> Result<(), DatapathError> {
        let mut flows = self.flows.entries()?;
        flows.retain(|(key, flow)| stale::is_flow_of_nobody(key, flow, in_use));
        let keys: Vec<_> = flows.into_iter().map(|(key, _)| key).collect();
        self.flows.delete(&keys)?;
        let mut kept = self.affinity.entries()?;
        kept.retain(|(key, kept)| !stale::remembers(key, kept, &in_use.endpoints));
        let keys: Vec<_> = kept.into_iter().map(|(key, _)| key).collect();
        self.affinity.delete(&keys)?;
        let mut replies = self.replies.entries()?;
        replies.retain(|(key, value)| stale::is_socket_of_nobody(key, value, in_use));
        let of_nobody = replies.iter().map(|(key, _)| (key.cookie, key.addr, key.port));
        self.end_sockets(&of_nobody.collect())
    }

    /// Names every entry that leads to an endpoint or a front that is not in use, and whatever does not hold together in the
    /// service maps: nothing, after everything that was planned is written. Open TCP connections may outlive their endpoint's
    /// part in a service, so their flows do not count.
    pub fn audit(&self, in_use: &InUse) -> Result<Vec<String>, DatapathError> {
        let mut found = self.existing()?.inconsistencies();
        for (key, flow) in self.flows.entries()? {
            if stale::is_flow_of_nobody(&key, &flow, in_use) {
                found.push(format!("a flow of nobody: {key:?} {flow:?}"));
            }
        }
        for (key, value) in self.replies.entries()? {
            if stale::is_socket_of_nobody(&key, &value, in_use) {
                found.push(format!("a socket of nobody: {key:?} {value:?}"));
            }
        }
        for (key, kept) in self.affinity.entries()? {
            if !stale::remembers(&key, &kept, &in_use.endpoints) {
                found.push(format!("a client keeps what is gone: {key:?} {kept:?}"));
            }
        }
        Ok(found)
    }

    /// Deletes flows that are over, and under pressure those that are worth least. `now` is the time since boot
    /// ([`since_boot`](crate::since_boot)). One walk costs about a microsecond for each entry; once in some ten seconds is enough.
    pub fn collect(&self, now: Duration) -> Result<Collected, DatapathError> {
        self.clear(&self.survey(now)?)
    }

    /// The first half of [`Datapath::collect`]: looks at all flows.
    pub fn survey(&self, now: Duration) -> Result<Survey, DatapathError> {
        let entries = self.flows.entries()?;
        Ok(Survey {
            entries: entries.len(),
            plan: collect::plan(entries, now, self.flows.capacity()),
        })
    }

    /// The other half: deletes what was found, but for connections that were used since.
    pub fn clear(&self, found: &Survey) -> Result<Collected, DatapathError> {
        let over = self.delete_unchanged(&found.plan.over)?;
        let pressed_out = self.delete_unchanged(&found.plan.pressed_out)?;
        Ok(Collected {
            deleted: over + pressed_out,
            pressed_out,
            live: found.entries.saturating_sub(over + pressed_out),
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

    /// What was counted for each service port and each endpoint.
    pub fn traffic(&self) -> Result<Traffic, DatapathError> {
        traffic::of(&self.counts, &self.pins.maps())
    }

    /// What was done and refused on the whole node, by reason.
    pub fn counters(&self) -> Result<Vec<(Reason, u64)>, DatapathError> {
        dump::reasons(&self.pins.maps())
    }

    /// How many flows and replies are remembered.
    pub fn remembered(&self) -> Result<(usize, usize), DatapathError> {
        Ok((self.flows.entries()?.len(), self.replies.entries()?.len()))
    }

    /// Serves the packets of a pod: `device` is the host's side of its veth, in the calling thread's network namespace.
    pub fn attach_pod_device(&self, device: &str) -> Result<(), DatapathError> {
        if self.waits(Role::Pod, device, XdpChoice::Never) {
            return Ok(());
        }
        let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        attach::device(&mut ebpf, Role::Pod, device, &self.pins.devices())
    }

    /// Stops serving a pod's device. Not needed when the device itself goes, but tidy.
    pub fn detach_pod_device(&self, device: &str) -> Result<(), DatapathError> {
        self.waiting().retain(|w| w.device != device);
        attach::detach(Role::Pod, device, &self.pins.devices())
    }

    /// Serves what comes from other machines to services of this node: `device` is one through which they are reached, in the
    /// calling thread's network namespace. Attached already is fine. Returns whether XDP does a part of it, or why not.
    pub fn attach_uplink(&self, device: &str, xdp: XdpChoice) -> Result<XdpMode, DatapathError> {
        if self.waits(Role::Uplink, device, xdp) {
            let why = "maps of another layout are still being taken over";
            return Ok(XdpMode::None(why.into()));
        }
        let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let pins = self.pins.uplinks();
        attach::device(&mut ebpf, Role::Uplink, device, &pins)?;
        let mode = xdp::attach(&mut ebpf, device, xdp, &pins)?;
        tracing::info!(device, %mode, "uplink is served");
        Ok(mode)
    }

    /// Stops serving an uplink; one that is gone already is no error.
    pub fn detach_uplink(&self, device: &str) -> Result<(), DatapathError> {
        self.waiting().retain(|w| w.device != device);
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
    Ok(object::xdp_context(frame, index))
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

/// Lets this process have one heap, whatever threads it will have. What an agent holds is allocated now by one thread, now by another: with a
/// heap for each, a tenth of the memory is holes.
pub fn share_one_heap() {
    crate::sys::one_heap();
}

/// The clock of the flows: time since boot, without that spent asleep (`CLOCK_MONOTONIC`, what `bpf_ktime_get_ns` reads).
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
}
