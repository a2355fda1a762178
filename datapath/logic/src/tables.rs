use crate::flow::{Known, Seen};
use datapath_abi::{
    Affinity, AffinityKey, Backend, BackendKey, Flow, FlowKey, FragmentKey, FragmentPorts, FrontendKey,
    FrontendValue, MaglevKey, Member, MemberKey, Settings, SourceRangeKey,
};

/// What the service tables answer.
pub trait Tables {
    /// What user space told; `None` before it did.
    fn settings(&self) -> Option<&Settings>;
    /// The frontend of this key.
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue>;
    /// The endpoint in this slot.
    fn backend(&self, key: &BackendKey) -> Option<Backend>;
    /// Whether a range of the key's set contains the key's client.
    fn admits(&self, key: &SourceRangeKey) -> bool;
    /// Where an endpoint stands in a set with affinity.
    fn member(&self, key: &MemberKey) -> Option<Member>;
    /// The slot at a place (below [`datapath_abi::MAGLEV_PLACES`]) of a Maglev table.
    fn maglev(&self, key: &MaglevKey, place: u16) -> Option<u16>;
    /// The endpoint that a client keeps.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Remembers the endpoint that a client keeps; where there is no room, the client keeps none.
    fn keep_affinity(&self, key: &AffinityKey, value: &Affinity);
    /// Sets [`SettingsFlags::OWN`](datapath_abi::SettingsFlags::OWN). A table that only answers need not.
    #[inline(always)]
    fn serve_own(&self) {}
    /// Nanoseconds since boot.
    fn now(&self) -> u64;
    /// 32 random bits.
    fn random(&self) -> u32;
}

/// The flows that are translated per packet.
pub trait FlowTable {
    /// Applies [`flow::advance`](crate::flow::advance) to the entry in place; `None` where there is none.
    fn touch(&self, key: &FlowKey, seen: &Seen) -> Option<Known>;
    /// The entry as [`flow::known`](crate::flow::known) tells it, unchanged.
    fn look(&self, key: &FlowKey) -> Option<Known>;
    /// Writes an entry, whether or not there is one; false where there is no room.
    fn insert(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Writes an entry only where there is none (`BPF_NOEXIST`); false otherwise.
    fn claim(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Whether there is an entry that is [`spent`](crate::flow::spent). Without an answer of its own, a table gives no port
    /// twice.
    #[inline(always)]
    fn is_spent(&self, _key: &FlowKey, _now: u64) -> bool {
        false
    }
    /// The ports of a datagram's first fragment.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// Remembers them; where there is no room, later fragments are not translated.
    fn keep_fragment(&self, key: &FragmentKey, ports: &FragmentPorts);
}
