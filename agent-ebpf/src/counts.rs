//! Counting: by reason, and for each service port and endpoint.
use crate::maps::{COUNTERS, COUNTS};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use core::arch::asm;
use core::ptr::{addr_of, addr_of_mut};
use datapath_abi::{CountNumber, Counted, Counts, Reason, SetId};

/// Set by the loader, from the number of CPUs.
#[unsafe(no_mangle)]
static COUNT_SHARDS: u8 = 0;

/// Counts one packet or call.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(n) = COUNTERS.get_ptr_mut(reason.index()) {
        // SAFETY: the value is this CPU's own, and programs of one CPU do not interrupt one another between the read and
        // the write; at worst a count is lost to a nested softirq.
        unsafe { *n += 1 }
    }
}

/// The counts of one number, on this CPU or those that share its place.
#[derive(Clone, Copy)]
pub struct Place(*mut Counts);

/// What is counted, as a field of [`Counts`].
macro_rules! fields {
    ($($name:ident),*) => {
        $(
            #[inline(always)]
            pub fn $name(self, more: u64) {
                // SAFETY: the element of an array lives as long as the program runs.
                unsafe { add(addr_of_mut!((*self.0).$name), more) }
            }
        )*
    };
}

/// Adds in one step. The instruction is there since Linux 3.18; what it adds to is not read, which came with 5.12 only.
/// (The target's `core` has no atomic additions.)
///
/// # Safety
/// `field` points to eight aligned bytes of a map's element.
#[inline(always)]
unsafe fn add(field: *mut u64, more: u64) {
    // SAFETY: as the caller says.
    unsafe { asm!("lock *(u64 *)({field} + 0) += {more}", field = in(reg) field, more = in(reg) more) }
}

impl Place {
    fields!(connections, refusals, drops, packets, bytes, failures, resets);
}

/// The place of a number. With `take`, it becomes this set's; without, it counts only for the set that has it: an older flow
/// may know a number that has gone to another since.
#[inline(always)]
pub fn place(set: SetId, number: CountNumber, take: bool) -> Option<Place> {
    if number == CountNumber::NONE {
        return None;
    }
    // SAFETY: a read-only global that the loader sets; volatile so that the compiler does not take its default for granted.
    let shards = unsafe { addr_of!(COUNT_SHARDS).read_volatile() };
    // SAFETY: the helper takes nothing and has no preconditions.
    let (page, index) = number.place(shards, unsafe { bpf_get_smp_processor_id() } as u32);
    let counts = COUNTS.get_value_ptr_mut(page, &index)?;
    // SAFETY: the element of an array lives as long as the program runs. Who takes it at the same time writes the same.
    unsafe {
        if (*counts).set.0 != set.0 {
            if !take {
                return None;
            }
            addr_of_mut!((*counts).set).write_volatile(set);
        }
    }
    Some(Place(counts))
}

/// Counts for a service port and for its endpoint.
#[inline(always)]
pub fn tally(whose: &Counted, take: bool, what: impl Fn(Place)) {
    if let Some(place) = place(whose.set, whose.service, take) {
        what(place);
    }
    if let Some(place) = place(whose.set, whose.backend, take) {
        what(place);
    }
}

/// Counts a refusal for the service that was asked for, if it was one.
#[inline(always)]
pub fn refused(whose: &Counted, reason: Reason) {
    if let Some(place) = place(whose.set, whose.service, true) {
        match reason {
            Reason::SocketNoEndpoint | Reason::PacketNoEndpoint => place.refusals(1),
            _ => place.drops(1),
        }
    }
}
