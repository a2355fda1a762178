use crate::{Address, Be16, CountNumber, Counted, Generation, Proto, SetId};
use core::mem::{align_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a socket was promised: kept with the socket itself, so it ends with it and nothing has to be collected.
///
/// For a connected socket it names the peer that `getpeername` and `recvmsg` shall show; for an unconnected UDP socket
/// it is the last choice, so that datagrams to one service keep to one endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketRecord {
    pub service: Address,
    pub backend: Address,
    pub service_port: Be16,
    pub backend_port: Be16,
    pub set: SetId,
    pub generation: Generation,
    pub slot: u16,
}

/// Who answers a UDP socket: socket cookie and endpoint. Unconnected sockets may have several; user space finds connected ones
/// here whose endpoint is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReplyKey {
    pub cookie: u64,
    pub addr: Address,
    pub port: Be16,
    pub zero: [u16; 3],
}

impl ReplyKey {
    /// The key for this socket and endpoint.
    #[inline(always)]
    pub const fn new(cookie: u64, addr: Address, port: Be16) -> Self {
        Self {
            cookie,
            addr,
            port,
            zero: [0; 3],
        }
    }
}

/// The service address that the socket sent to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReplyValue {
    pub addr: Address,
    pub port: Be16,
    pub zero: u16,
    /// The set from which the endpoint was chosen.
    pub set: SetId,
}

/// One direction of a flow that is translated per packet, as the packets look before that translation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowKey {
    pub src: Address,
    pub dst: Address,
    pub sport: Be16,
    pub dport: Be16,
    pub proto: Proto,
    /// Which end of the packet the entry changes: [`FlowKey::DESTINATION`] or [`FlowKey::SOURCE`]. What an entry is there for
    /// is its [`FlowRole`]: a hook needs one look-up, not one for each role.
    pub changes: u8,
    pub zero: u16,
}

impl FlowKey {
    /// Looked up where packets come in.
    pub const DESTINATION: u8 = 0;
    /// Looked up where packets go out.
    pub const SOURCE: u8 = 1;
}

/// What an entry is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FlowRole(pub u8);

impl FlowRole {
    /// Client → front: the destination becomes the endpoint; `nat` is the source that the client is given, if any.
    pub const FORWARD: Self = Self(0);
    /// Endpoint → client: the source becomes the front.
    pub const REPLY: Self = Self(1);
    /// Client → endpoint: the source becomes this node's.
    pub const MASQUERADE: Self = Self(2);
    /// Endpoint → this node: the destination becomes the client; `nat` is the front.
    pub const UNMASQUERADE: Self = Self(3);
    /// Endpoint → this node, of a connection that another proxy translates: the packet is left to it, and the port is taken.
    pub const FOREIGN: Self = Self(5);

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FORWARD => "forward",
            Self::REPLY => "reply",
            Self::MASQUERADE => "masquerade",
            Self::FOREIGN => "foreign",
            _ => "unmasquerade",
        }
    }

    /// Whether packets of this entry come from the endpoint.
    #[inline(always)]
    pub const fn is_answer(self) -> bool {
        self.0 & 1 != 0
    }
}

/// How far a flow has come; decides its lifetime.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct FlowState(pub u8);

impl FlowState {
    /// Only the client has sent.
    pub const NEW: Self = Self(0);
    /// The endpoint has answered.
    pub const ESTABLISHED: Self = Self(1);
    /// A FIN was seen.
    pub const CLOSING: Self = Self(2);
    /// A RST was seen, or both FINs.
    pub const CLOSED: Self = Self(3);
}

/// What is done to packets of one direction, and what became of them so far.
///
/// Changed in place through the map's pointer; `seen` is in nanoseconds since boot. (Jiffies would be cheaper to read, but how
/// many make a second is not told to user space; only packets that are translated per packet pay for the clock.)
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flow {
    /// What the changed end of the packet becomes.
    pub addr: Address,
    /// What the other end becomes too, where both are changed in one place; the unspecified IPv6 address for nothing.
    pub nat: Address,
    pub port: Be16,
    pub nat_port: Be16,
    pub set: SetId,
    pub state: FlowState,
    pub role: FlowRole,
    pub zero: [u8; 6],
    pub service_number: CountNumber,
    pub backend_number: CountNumber,
    pub seen: u64,
    pub packets: u64,
    pub bytes: u64,
}

impl Flow {
    /// For whom packets count.
    #[inline(always)]
    pub const fn counted(&self) -> Counted {
        Counted {
            set: self.set,
            service: self.service_number,
            backend: self.backend_number,
        }
    }

    /// The endpoint of the flow that this entry of that key belongs to.
    pub const fn endpoint(&self, key: &FlowKey) -> (Address, Be16) {
        match self.role {
            FlowRole::FORWARD => (self.addr, self.port),
            FlowRole::MASQUERADE => (key.dst, key.dport),
            _ => (key.src, key.sport),
        }
    }
}

/// A datagram in fragments; only the first of them has ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FragmentKey {
    pub src: Address,
    pub dst: Address,
    /// The identification field, as it is on the wire.
    pub id: u32,
    pub proto: Proto,
    pub zero: [u8; 3],
}

/// The ports of the first fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FragmentPorts {
    pub sport: Be16,
    pub dport: Be16,
}

const _: () = assert!(size_of::<SocketRecord>() == 44 && align_of::<SocketRecord>() == 4);
const _: () = assert!(size_of::<ReplyKey>() == 32 && align_of::<ReplyKey>() == 8);
const _: () = assert!(size_of::<ReplyValue>() == 24);
const _: () = assert!(size_of::<FlowKey>() == 40 && align_of::<FlowKey>() == 4);
const _: () = assert!(size_of::<Flow>() == 80 && align_of::<Flow>() == 8);
const _: () = assert!(size_of::<FragmentKey>() == 40 && size_of::<FragmentPorts>() == 4);
