//! The maps and what the logic asks of them. Sizes here are for a small node; the loader sets the real ones.
use aya_ebpf::bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use core::cell::Cell;
use core::hint::black_box;
use datapath_abi::{
    Affinity, AffinityKey, Backend, BackendKey, COUNT_PAGE, COUNT_PAGES, CountNumber, Counted, Counts, Flow,
    FlowKey, FragmentKey, FragmentPorts, FrontendKey, FrontendValue, Maglev, MaglevKey, Member, MemberKey,
    Owner, ReplyKey, ReplyValue, SetId, Settings, SettingsFlags, SocketRecord, SourceRangeKey,
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
/// Pages that user space makes as it gives numbers out. (A map that can be mapped begins on a page of memory, so that each
/// place has a cache line to itself.)
#[btf_map]
pub static COUNTS: ArrayOfMaps<
    Array<Counts, { COUNT_PAGE as usize }, { BPF_F_MMAPABLE as usize }>,
    { COUNT_PAGES as usize },
> = ArrayOfMaps::new();
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

/// The tables in the kernel.
#[derive(Default)]
pub struct Kernel {
    /// The frontend that was found last: whose refusal a refusal is.
    found: Cell<(SetId, CountNumber)>,
}

impl Kernel {
    /// Whom a refusal counts for: the service that was found last. No set if none was.
    #[inline(always)]
    pub fn found(&self) -> Counted {
        let (set, service) = self.found.get();
        Counted {
            set,
            service,
            backend: CountNumber::NONE,
        }
    }
}

impl Tables for Kernel {
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn serve_own(&self) {
        // SAFETY: the place stays; a write that user space replaces at the same time is done again by the next packet.
        if let Some(s) = SETTINGS.get_ptr_mut(0).and_then(|p| unsafe { p.as_mut() })
            && !s.flags.has(SettingsFlags::OWN)
        {
            s.flags.0 |= SettingsFlags::OWN.0;
        }
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendValue> {
        // SAFETY: the element may be replaced, never changed in place; it is copied at once and freed only after a grace
        // period.
        let value = unsafe { FRONTENDS.get(key).copied() }?;
        self.found.set((value.set, value.number));
        Some(value)
    }

    #[inline(always)]
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        // SAFETY: as for frontends.
        unsafe { BACKENDS.get(key).copied() }
    }

    // A function of its own, for the stack's sake.
    #[inline(never)]
    fn admits(&self, key: &SourceRangeKey) -> bool {
        let mut data = [0; 20];
        data[..4].copy_from_slice(&key.set);
        data[4..].copy_from_slice(&key.addr.v6_bytes());
        SOURCE_RANGES.get(&Key::new(key.bits, data)).is_some()
    }

    #[inline(always)]
    fn member(&self, key: &MemberKey) -> Option<Member> {
        // SAFETY: as for frontends.
        unsafe { MEMBERS.get(key).copied() }
    }

    #[inline(always)]
    fn maglev(&self, key: &MaglevKey, place: u16) -> Option<u16> {
        // SAFETY: as for frontends; one place is read.
        let table = unsafe { MAGLEV.get(key) }?;
        // The compiler knows how `place` came about, and would check its bounds in a way that the verifier does not follow.
        table.0.get(black_box(place as usize)).copied()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: the value is copied at once. One that another CPU changes meanwhile may mix two endpoints: that is no member
        // of the set, or one of its endpoints all the same.
        unsafe { AFFINITY.get(key).copied() }
    }

    #[inline(always)]
    fn keep_affinity(&self, key: &AffinityKey, value: &Affinity) {
        // SAFETY: as for reading.
        match AFFINITY.get_ptr_mut(key).and_then(|p| unsafe { p.as_mut() }) {
            Some(kept) => *kept = *value,
            None => {
                let _ = AFFINITY.insert(key, value, BPF_ANY as u64);
            }
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper takes nothing and has no preconditions.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes nothing and has no preconditions.
        unsafe { bpf_get_prandom_u32() }
    }
}
