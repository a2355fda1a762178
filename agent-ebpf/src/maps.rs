//! The maps and what the logic asks of them. Sizes here are for a small node; the loader sets the real ones.
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::btf_map;
use datapath_abi::{
    Address, Affinity, AffinityKey, Backend, BackendKey, Flow, FlowKey, FragmentKey, FragmentPorts,
    FrontendKey, FrontendValue, Maglev, MaglevKey, Member, MemberKey, Owner, Reason, ReplyKey, ReplyValue,
    Settings, SocketRecord,
};
use datapath_logic::Tables;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static FRONTENDS: HashMap<FrontendKey, FrontendValue, 1024, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static BACKENDS: HashMap<BackendKey, Backend, 1024, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static OWNERS: HashMap<u32, Owner, 1024, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static SOURCE_RANGES: LpmTrie<[u8; 20], u8, 1024> = LpmTrie::new();
#[btf_map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity, 1024> = LruHashMap::new();
#[btf_map]
pub static MEMBERS: HashMap<MemberKey, Member, 1024, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static MAGLEV: HashMap<MaglevKey, Maglev, 1024, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, 1024> = LruHashMap::new();
#[btf_map]
pub static SOCKETS: SkStorage<SocketRecord> = SkStorage::new();
#[btf_map]
pub static REPLIES: LruHashMap<ReplyKey, ReplyValue, 1024> = LruHashMap::new();
#[btf_map]
pub static FLOWS: LruHashMap<FlowKey, Flow, 1024> = LruHashMap::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, 32> = PerCpuArray::new();
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// Counts one packet or call.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(n) = COUNTERS.get_ptr_mut(reason.index()) {
        // SAFETY: the value is this CPU's own, and programs of one CPU do not interrupt one another between the read and
        // the write; at worst a count is lost to a nested softirq.
        unsafe { *n += 1 }
    }
}

/// The tables in the kernel.
pub struct Kernel;

impl Tables for Kernel {
    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        // SAFETY: the element may be replaced, never changed in place; it is copied at once and freed only after a grace
        // period.
        unsafe { FRONTENDS.get(key).copied() }
    }

    #[inline(always)]
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        // SAFETY: as for frontends.
        unsafe { BACKENDS.get(key).copied() }
    }

    #[inline(always)]
    fn is_service_address(&self, addr: Address) -> bool {
        SETTINGS.get(0).is_some_and(|s| s.is_service_address(addr))
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes nothing and has no preconditions.
        unsafe { bpf_get_prandom_u32() }
    }
}
