//! Loads, attaches, pins, adopts and dumps the eBPF programs and maps; the only user of aya.
//!
//! Everything that moves packets is pinned under one folder of a bpffs, so it outlives the agent: the next one finds the
//! maps, checks their layout, and puts its own programs in the place of the old ones, link by link.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod aside;
mod attach;
mod collect;
mod connections;
mod conntrack;
mod counts;
mod datapath;
mod dump;
mod error;
mod handover;
mod jobs;
mod layout1;
mod memory;
mod migrate;
mod nat;
mod netlink;
mod object;
mod size;
mod sockets;
mod stale;
mod still;
mod sys;
mod table;
mod traffic;
mod verify;
mod xdp;

pub use agent_services::{Changes, Existing};
pub use aside::{Aside, Standing, devices_before_stack, in_the_way};
pub use collect::{Collected, Survey};
pub use connections::{ConnectionRow, connections};
pub use datapath::{
    Datapath, DatapathConfig, netns_cookie, release_freed_memory, share_one_heap, since_boot,
};
pub use dump::{CounterRow, Dump, FlowRow, MapRow, Pins, ServiceRow};
pub use error::DatapathError;
pub use handover::{Leaving, lock};
pub use layout1::Layout1;
pub use memory::FlowMemory;
pub use object::built_in_object;
pub use size::Sizes;
pub use still::Still;
pub use traffic::{EndpointTrafficRow, Traffic, TrafficRow};
pub use verify::{VerifiedProgram, verified_programs};
pub use xdp::{XdpChoice, XdpMode};
