//! What layout 1 was, as far as it has to be known still: its flows, which are taken along, and how its maps were filled, so that
//! tests can have one under load to take over from. Its programs are those of an object that was built then.
use crate::attach::{self, Role};
use crate::datapath::DatapathConfig;
use crate::dump::Pins;
use crate::error::DatapathError;
use crate::object;
use crate::size::Sizes;
use crate::table::{Single, Table};
use aya::Ebpf;
use datapath_abi::{
    Address, BackendKey, Be16, Flow, FlowKey, FlowRole, FlowState, FrontendKey, Generation, Proto, Range,
    SERVICE_RANGES, SetId, maps,
};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A flow of layout 1. Its key had the bytes of today's.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Flow1 {
    pub addr: Address,
    pub port: Be16,
    pub state: FlowState,
    pub zero: u8,
    pub set: SetId,
    pub seen: u64,
    pub packets: u64,
    pub bytes: u64,
}

impl Flow1 {
    /// The number of its set is another today: `set` is that of the same front.
    pub fn today(&self, key: &FlowKey, set: SetId) -> Flow {
        let forward = key.changes == FlowKey::DESTINATION;
        Flow {
            addr: self.addr,
            port: self.port,
            set,
            state: self.state,
            role: if forward {
                FlowRole::FORWARD
            } else {
                FlowRole::REPLY
            },
            seen: self.seen,
            packets: self.packets,
            bytes: self.bytes,
            ..Flow::default()
        }
    }

    /// The front that the client addressed.
    pub fn front(&self, key: &FlowKey) -> (Address, Be16) {
        if key.changes == FlowKey::DESTINATION {
            (key.dst, key.dport)
        } else {
            (self.addr, self.port)
        }
    }
}

/// A frontend of layout 1.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FrontendValue1 {
    set: SetId,
    generation: Generation,
    flags: u16,
    count: u16,
    local: u16,
    affinity: u32,
}

/// An endpoint of layout 1.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Backend1 {
    addr: Address,
    port: Be16,
    flags: u16,
}

/// The settings of layout 1.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Settings1 {
    layout: u32,
    service_ranges: [Range; SERVICE_RANGES],
}

/// A data path of layout 1, loaded and attached as its agent did it. Dropping it leaves everything in place.
pub struct Layout1 {
    ebpf: Ebpf,
    pins: Pins,
    maps: PathBuf,
}

impl Layout1 {
    /// Where its maps are pinned, below the node's folder.
    pub(crate) fn folder(folder: &Path) -> PathBuf {
        folder.join("v1")
    }

    /// Loads the programs of an object of layout 1 with empty maps, and attaches its socket hooks.
    ///
    /// # Errors
    /// The object is of another layout, or the kernel refuses it.
    pub fn open(object: &[u8], config: &DatapathConfig) -> Result<Self, DatapathError> {
        let pins = Pins::create(&config.pin_dir)?;
        let maps = Self::folder(&config.pin_dir);
        // What `create` makes for today's maps is not there before today's agent has run.
        let _ = std::fs::remove_dir(pins.maps());
        std::fs::create_dir_all(&maps).map_err(DatapathError::path(&maps))?;
        let sizes = config.sizes.unwrap_or_else(Sizes::of_this_machine);
        let mut ebpf = object::load(object, &maps, &sizes)?;
        let mut settings = Settings1 {
            layout: 1,
            service_ranges: Default::default(),
        };
        for (place, (addr, bits)) in settings.service_ranges.iter_mut().zip(&config.service_ranges) {
            *place = Range::new(*addr, *bits);
        }
        Single::open(maps::SETTINGS, &maps)?.set(&settings)?;
        if let Some(cgroup) = &config.cgroup {
            attach::socket_hooks(&mut ebpf, cgroup, &pins.links())?;
        }
        Ok(Self { ebpf, pins, maps })
    }

    /// Serves the packets of a pod.
    ///
    /// # Errors
    /// As [`Datapath::attach_pod_device`](crate::Datapath::attach_pod_device).
    pub fn attach_pod_device(&mut self, device: &str) -> Result<(), DatapathError> {
        attach::device(&mut self.ebpf, Role::Pod, device, &self.pins.devices())
    }

    /// Writes a service of one address and port, all of whose endpoints are on this node.
    ///
    /// # Errors
    /// A map cannot be written.
    pub fn serve(
        &self,
        set: SetId,
        vip: SocketAddr,
        proto: Proto,
        endpoints: &[SocketAddr],
    ) -> Result<(), DatapathError> {
        let backends = endpoints.iter().zip(0..).map(|(endpoint, slot)| {
            let key = BackendKey {
                set,
                generation: Generation(1),
                slot,
            };
            let backend = Backend1 {
                addr: endpoint.ip().into(),
                port: Be16::new(endpoint.port()),
                flags: 0,
            };
            (key, backend)
        });
        let count = u16::try_from(endpoints.len()).unwrap_or(u16::MAX);
        let front = FrontendValue1 {
            set,
            generation: Generation(1),
            flags: 0,
            count,
            local: count,
            affinity: 0,
        };
        let key = FrontendKey::new(vip.ip().into(), Be16::new(vip.port()), proto);
        Table::open(maps::BACKENDS, &self.maps)?.write(&backends.collect::<Vec<_>>())?;
        let whole = FrontendKey::whole_address(vip.ip().into());
        Table::open(maps::FRONTENDS, &self.maps)?.write(&[(key, front), (whole, front)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_of_layout_1_keeps_where_it_leads_and_how_far_it_is() {
        assert_eq!(size_of::<Flow1>(), 48);
        assert_eq!((size_of::<FrontendValue1>(), size_of::<Settings1>()), (16, 84));
        assert_eq!(size_of::<Backend1>(), 20);
        let old = Flow1 {
            addr: Address::from_v4_word(7),
            port: Be16::new(80),
            state: FlowState::ESTABLISHED,
            set: SetId(9),
            seen: 5,
            packets: 2,
            bytes: 120,
            ..Flow1::default()
        };
        let reply = FlowKey {
            changes: FlowKey::SOURCE,
            ..FlowKey::default()
        };
        let new = old.today(&reply, SetId(3));
        assert_eq!((new.addr, new.port, new.state), (old.addr, old.port, old.state));
        assert_eq!((new.role, new.set), (FlowRole::REPLY, SetId(3)));
        assert_eq!(old.front(&reply), (old.addr, old.port));
        assert_eq!(old.today(&FlowKey::default(), SetId(3)).role, FlowRole::FORWARD);
    }
}
