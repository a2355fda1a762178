//! Taking a node over from another proxy, and leaving it to one, with no connection lost.
use crate::attach::{self, Role};
use crate::collect;
use crate::conntrack::{self, Translated};
use crate::datapath::Datapath;
use crate::dump::Pins;
use crate::error::DatapathError;
use crate::nat;
use crate::table::{Single, Table};
use datapath_abi::{
    Address, Be16, Flow, FlowKey, FlowRole, FlowState, FrontendKey, Proto, Settings, SettingsFlags, maps,
};
use datapath_logic::open::is_given;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

/// The hooks that choose endpoints: they go first when a node is left.
const CHOOSING: [&str; 4] = ["connect4", "connect6", "sendmsg4", "sendmsg6"];

impl Datapath {
    /// Looks for connections to services that another proxy has the kernel translate. If there are any, they are left to it from
    /// then on: the kernel goes on translating, none of their ports is given away, and the programs pass on what they do not know
    /// of TCP. Returns how many there are. `every`: before there are services, whatever is translated counts.
    ///
    /// # Errors
    /// When the maps cannot be read or written. A kernel without connection tracking has no such connections.
    pub fn spare_others(&self, every: bool, now: Duration) -> Result<usize, DatapathError> {
        let found = conntrack::translated().unwrap_or_else(|error| {
            tracing::debug!(%error, "connection tracking cannot be read");
            Vec::new()
        });
        let settings = self.settings.get()?;
        let mut theirs = Vec::new();
        for one in found {
            if every || self.is_front(&settings, &one)? {
                theirs.push(one);
            }
        }
        if theirs.is_empty() {
            return Ok(0);
        }
        if let Err(error) = nat::keep() {
            tracing::info!(%error, "nf_tables cannot be used: connections of another proxy may end with its rules");
        }
        self.reserve(&theirs, now)?;
        self.set_foreign(true)?;
        Ok(theirs.len())
    }

    /// The last connection of another proxy has ended.
    ///
    /// # Errors
    /// When the settings cannot be written.
    pub fn spare_nobody(&self) -> Result<(), DatapathError> {
        if let Err(error) = nat::release() {
            tracing::debug!(%error, "the table for connections of another proxy stays");
        }
        self.set_foreign(false)
    }

    fn set_foreign(&self, wanted: bool) -> Result<(), DatapathError> {
        let mut settings = self.settings.get()?;
        settings.flags = settings.flags.set(SettingsFlags::FOREIGN, wanted);
        self.settings.set(&settings)
    }

    fn is_front(&self, settings: &Settings, one: &Translated) -> Result<bool, DatapathError> {
        let (addr, port) = one.front;
        let key = FrontendKey::new(addr, port, Proto::TCP);
        Ok(settings.is_service_address(addr) || self.frontends.get(&key)?.is_some())
    }

    /// Ports of this node in use towards an endpoint are not given to our clients too.
    fn reserve(&self, theirs: &[Translated], now: Duration) -> Result<(), DatapathError> {
        for one in theirs {
            if one.answered == one.client || !is_given(one.answered.1.get()) {
                continue;
            }
            let (key, flow) = placeholder(one, now);
            if self.flows.get(&key)?.is_none() {
                self.flows.write(&[(key, flow)])?;
            }
        }
        Ok(())
    }
}

fn placeholder(one: &Translated, now: Duration) -> (FlowKey, Flow) {
    let key = way_back(one.endpoint, one.answered);
    let flow = Flow {
        role: FlowRole::FOREIGN,
        state: FlowState::ESTABLISHED,
        seen: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        addr: one.client.0,
        port: one.client.1,
        nat: one.front.0,
        nat_port: one.front.1,
        ..Flow::default()
    };
    (key, flow)
}

fn way_back(endpoint: (Address, Be16), own: (Address, Be16)) -> FlowKey {
    FlowKey {
        src: endpoint.0,
        sport: endpoint.1,
        dst: own.0,
        dport: own.1,
        proto: Proto::TCP,
        changes: FlowKey::DESTINATION,
        zero: 0,
    }
}

/// A node on its way from us to another proxy: what is new is left to that one, what we translate goes on until it ends.
pub struct Leaving {
    pins: Pins,
    flows: Table<FlowKey, Flow>,
    /// Ports that connection tracking was told of, with the endpoints they are in use towards.
    kept: HashSet<((Address, Be16), (Address, Be16))>,
    /// Nobody else may serve the node meanwhile.
    _lock: File,
}

impl Leaving {
    /// From here on everything new is left to others; `None` where nothing of ours is pinned.
    ///
    /// # Errors
    /// When an agent still serves the node, or the maps are of another layout.
    pub fn begin(pin_dir: &Path) -> Result<Option<Self>, DatapathError> {
        let pins = Pins {
            folder: pin_dir.to_owned(),
        };
        if !pin_dir.is_dir() {
            return Ok(None);
        }
        let lock = lock(pin_dir)?;
        if !pins.maps().join(maps::SETTINGS).exists() {
            return Ok(None);
        }
        let settings: Single<Settings> = Single::open(maps::SETTINGS, &pins.maps())?;
        let mut leaving = Self {
            flows: Table::open(maps::FLOWS, &pins.maps())?,
            pins,
            kept: HashSet::new(),
            _lock: lock,
        };
        leaving.keep_ports()?;
        let mut now = settings.get()?;
        now.flags = now.flags.set(SettingsFlags::LEAVING, true);
        settings.set(&now)?;
        for hook in CHOOSING {
            attach::unpin(&leaving.pins.links().join(hook))?;
        }
        Ok(Some(leaving))
    }

    /// How many connections still go on; what is over is forgotten. `now`: see [`since_boot`](crate::since_boot).
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn connections(&mut self, now: Duration) -> Result<usize, DatapathError> {
        self.keep_ports()?;
        let all = self.flows.entries()?;
        let ours: Vec<_> = all
            .into_iter()
            .filter(|(_, flow)| flow.role != FlowRole::FOREIGN)
            .collect();
        let (over, going) = collect::ended(ours, now);
        for (key, _) in over.iter().flat_map(|c| &c.entries) {
            self.flows.delete_one(key)?;
        }
        Ok(going.len())
    }

    /// The other proxy chooses ports for its clients by what connection tracking knows.
    fn keep_ports(&mut self) -> Result<(), DatapathError> {
        for (key, flow) in self.flows.entries()? {
            if flow.role != FlowRole::UNMASQUERADE || key.proto != Proto::TCP {
                continue;
            }
            let (own, endpoint) = ((key.dst, key.dport), (key.src, key.sport));
            if !self.kept.insert((own, endpoint)) {
                continue;
            }
            if let Err(error) = conntrack::keep_port(own, endpoint) {
                tracing::debug!(%error, "a port is not kept");
            }
        }
        Ok(())
    }

    /// Takes the programs off and forgets everything; connections that still go on break. `devices`: all of this network namespace.
    ///
    /// # Errors
    /// When something stays.
    pub fn finish(self, devices: &[String]) -> Result<(), DatapathError> {
        for folder in [self.pins.devices(), self.pins.uplinks(), self.pins.links()] {
            unpin_all(&folder)?;
        }
        for device in devices {
            for (role, pins) in [
                (Role::Pod, self.pins.devices()),
                (Role::Uplink, self.pins.uplinks()),
            ] {
                attach::detach(role, device, &pins)?;
            }
        }
        for (own, endpoint) in &self.kept {
            if let Err(error) = conntrack::give_back(*own, *endpoint) {
                tracing::debug!(%error, "a port is given back later");
            }
        }
        if let Err(error) = nat::release() {
            tracing::debug!(%error, "the table for connections of another proxy stays");
        }
        Datapath::remove(&self.pins.folder)
    }
}

fn unpin_all(folder: &Path) -> Result<(), DatapathError> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(DatapathError::path(folder))?,
    };
    for entry in entries {
        attach::unpin(&entry.map_err(DatapathError::path(folder))?.path())?;
    }
    Ok(())
}

/// One process at a time writes what is pinned here; held until dropped.
///
/// # Errors
/// When another process holds it.
pub fn lock(pin_dir: &Path) -> Result<File, DatapathError> {
    use rustix::fs::{FlockOperation, flock};
    fs::create_dir_all(pin_dir).map_err(DatapathError::path(pin_dir))?;
    let folder = File::open(pin_dir).map_err(DatapathError::path(pin_dir))?;
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(folder),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DatapathError::InUse(pin_dir.to_owned())),
        Err(e) => Err(DatapathError::path(pin_dir)(e.into())),
    }
}
