//! The flows in the kernel.
use crate::counts::{What, tally, tally_first};
use crate::maps::{FLOWS, FRAGMENTS, Kernel};
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use datapath_abi::{Flow, FlowKey, FlowRole, FlowState, FragmentKey, FragmentPorts};
use datapath_logic::FlowTable;
use datapath_logic::flow::{Known, Seen, advance, known, spent};

/// Whether a packet of an entry counts for the service: it meets another entry in the other stage, and counts once.
#[inline(always)]
fn is_counted(role: FlowRole, seen: &Seen) -> bool {
    role == FlowRole::FORWARD || (role != FlowRole::FOREIGN && (role == FlowRole::REPLY) != seen.one_stage)
}

/// What a packet ended: a connection, or the attempt to make one.
#[inline(always)]
fn ended(before: FlowState, now: FlowState) -> What {
    match (before, now) {
        (FlowState::CLOSED, _) => What::NOTHING,
        (FlowState::NEW, FlowState::CLOSED) => What::FAILURE,
        (_, FlowState::CLOSED) => What::RESET,
        _ => What::NOTHING,
    }
}

impl FlowTable for Kernel {
    #[inline(always)]
    fn touch(&self, key: &FlowKey, seen: &Seen) -> Option<Known> {
        // SAFETY: the entry stays readable and writable for this run, even if it is evicted meanwhile; two packets of one
        // flow on two CPUs may lose a count, nothing else.
        let flow = unsafe { FLOWS.get_ptr_mut(key)?.as_mut()? };
        let before = flow.state;
        let known = advance(flow, seen);
        if !known.over && is_counted(known.role, seen) {
            let what = What::PACKET.and(ended(before, flow.state));
            tally(&flow.counted(), what, seen.bytes);
        }
        Some(known)
    }

    #[inline(always)]
    fn look(&self, key: &FlowKey) -> Option<Known> {
        // SAFETY: as for `touch`.
        unsafe { FLOWS.get(key).map(known) }
    }

    #[inline(always)]
    fn insert(&self, key: &FlowKey, flow: &Flow) -> bool {
        if flow.role == FlowRole::FORWARD {
            // With the packet that opened it.
            let what = What::CONNECTION.and(What::PACKET);
            tally_first(&flow.counted(), what, flow.bytes as u32);
        }
        FLOWS.insert(key, flow, BPF_ANY as u64).is_ok()
    }

    #[inline(always)]
    fn claim(&self, key: &FlowKey, flow: &Flow) -> bool {
        FLOWS.insert(key, flow, BPF_NOEXIST as u64).is_ok()
    }

    #[inline(always)]
    fn is_spent(&self, key: &FlowKey, now: u64) -> bool {
        // SAFETY: as for `touch`.
        unsafe { FLOWS.get(key).is_some_and(|f| spent(f, key.proto, now)) }
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        // SAFETY: the value is copied at once.
        unsafe { FRAGMENTS.get(key).copied() }
    }

    #[inline(always)]
    fn keep_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        let _ = FRAGMENTS.insert(key, ports, BPF_ANY as u64);
    }
}
