//! Map keys and values, globals, counters and layout version shared by kernel and user space (no_std).
//!
//! Every record is `repr(C)` without padding (zerocopy's `IntoBytes` refuses padding at compile time), so the bytes that
//! user space writes are the bytes that a program reads. Both families share one form: an IPv4 address stands as the
//! IPv4-mapped IPv6 address. That makes one code path and one map where two would need two of everything; the price, 12
//! more bytes hashed per look-up, is a few nanoseconds.
#![no_std]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod count;
mod flow;
mod reason;
mod service;
mod settings;

pub use address::{Address, Be16, Proto};
pub use count::{COUNT_PAGE, COUNT_PAGES, COUNT_SHARDS, CountNumber, Counted, Counts};
pub use flow::{
    Flow, FlowKey, FlowRole, FlowState, FragmentKey, FragmentPorts, ReplyKey, ReplyValue, SocketRecord,
};
pub use reason::Reason;
pub use service::{
    Affinity, AffinityKey, Backend, BackendKey, FrontendFlags, FrontendKey, FrontendValue, Generation,
    MAGLEV_PLACES, Maglev, MaglevKey, Member, MemberKey, OWNER_TEXT, Owner, Scope, SetId, SourceRangeKey,
};
pub use settings::{NODE_ADDRS, POD_RANGES, Range, SERVICE_RANGES, Settings, SettingsFlags};

/// Version of the layout of all maps. A change of any record or of a map's meaning raises it: an agent never adopts
/// pinned maps of another version, it fills new ones beside them.
pub const LAYOUT: u32 = 2;

/// Names of the maps, as the object declares them and as they are pinned.
pub mod maps {
    /// [`FrontendKey`](crate::FrontendKey) → [`FrontendValue`](crate::FrontendValue).
    pub const FRONTENDS: &str = "FRONTENDS";
    /// [`BackendKey`](crate::BackendKey) → [`Backend`](crate::Backend).
    pub const BACKENDS: &str = "BACKENDS";
    /// [`SetId`](crate::SetId) → [`Owner`](crate::Owner); only user space reads it.
    pub const OWNERS: &str = "OWNERS";
    /// Socket → [`SocketRecord`](crate::SocketRecord); ends with the socket.
    pub const SOCKETS: &str = "SOCKETS";
    /// [`ReplyKey`](crate::ReplyKey) → [`ReplyValue`](crate::ReplyValue), LRU.
    pub const REPLIES: &str = "REPLIES";
    /// [`FlowKey`](crate::FlowKey) → [`Flow`](crate::Flow), LRU.
    pub const FLOWS: &str = "FLOWS";
    /// [`Reason`](crate::Reason) → packets or calls, one value per CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// One [`Settings`](crate::Settings).
    pub const SETTINGS: &str = "SETTINGS";
    /// [`SourceRangeKey`](crate::SourceRangeKey) → 1, longest prefix match; only sets with frontends that ask for it.
    pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
    /// [`AffinityKey`](crate::AffinityKey) → [`Affinity`](crate::Affinity), LRU.
    pub const AFFINITY: &str = "AFFINITY";
    /// [`MemberKey`](crate::MemberKey) → [`Member`](crate::Member); only sets with affinity.
    pub const MEMBERS: &str = "MEMBERS";
    /// [`MaglevKey`](crate::MaglevKey) → [`Maglev`](crate::Maglev); only sets with external fronts.
    pub const MAGLEV: &str = "MAGLEV";
    /// [`FragmentKey`](crate::FragmentKey) → [`FragmentPorts`](crate::FragmentPorts), LRU.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Pages of [`Counts`](crate::Counts), by [`CountNumber`](crate::CountNumber): an array of arrays.
    pub const COUNTS: &str = "COUNTS";
    /// All of them, in the order in which a reader wants to see them.
    pub const ALL: [&str; 14] = [
        FRONTENDS,
        BACKENDS,
        OWNERS,
        SOURCE_RANGES,
        AFFINITY,
        MEMBERS,
        MAGLEV,
        COUNTS,
        SOCKETS,
        REPLIES,
        FLOWS,
        FRAGMENTS,
        COUNTERS,
        SETTINGS,
    ];
}

/// Names of the programs in the object.
pub mod programs {
    /// Socket hooks, in the order in which they are attached: the ways back first, so that no socket is sent to an
    /// endpoint before its replies can be named.
    pub const SOCKET_HOOKS: [&str; 8] = [
        "getpeername4",
        "getpeername6",
        "recvmsg4",
        "recvmsg6",
        "sendmsg4",
        "sendmsg6",
        "connect4",
        "connect6",
    ];
    /// Host side of a pod's device, packets from the pod.
    pub const FROM_POD: &str = "from_pod";
    /// Host side of a pod's device, packets to the pod.
    pub const TO_POD: &str = "to_pod";
    /// A device that leads out of the node, packets that come in.
    pub const FROM_UPLINK: &str = "from_uplink";
    /// A device that leads out of the node, packets that go out.
    pub const TO_UPLINK: &str = "to_uplink";
    /// The same decisions in one stage, before the stack (XDP).
    pub const XDP_UPLINK: &str = "xdp_uplink";
}

/// Names of read-only globals, set before the load.
pub mod globals {
    /// 1 where `bpf_set_retval` may be called from socket hooks (Linux 5.18).
    pub const HAS_SET_RETVAL: &str = "HAS_SET_RETVAL";
    /// Places of each count number, as a power of two ([`CountNumber::shards`](crate::CountNumber::shards)).
    pub const COUNT_SHARDS: &str = "COUNT_SHARDS";
}
