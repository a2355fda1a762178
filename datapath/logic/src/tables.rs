use crate::flow::{Known, Seen};
use datapath_abi::{Address, Backend, BackendKey, Flow, FlowKey, FrontendKey, FrontendValue};

/// What the service tables answer.
pub trait Tables {
    /// The frontend of this key.
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue>;
    /// The endpoint in this slot.
    fn backend(&self, key: &BackendKey) -> Option<Backend>;
    /// Whether the address lies in a range from which only services get theirs.
    fn is_service_address(&self, addr: Address) -> bool;
    /// 32 random bits.
    fn random(&self) -> u32;
}

/// The flows that are translated per packet.
pub trait FlowTable {
    /// Nanoseconds since boot.
    fn now(&self) -> u64;
    /// Applies [`flow::advance`](crate::flow::advance) to the entry in place; `None` where there is none.
    fn touch(&self, key: &FlowKey, seen: &Seen) -> Option<Known>;
    /// Writes an entry; false where there is no room.
    fn insert(&self, key: &FlowKey, flow: &Flow) -> bool;
}
