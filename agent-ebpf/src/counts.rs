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
struct Place(*mut Counts);

/// What is counted, as a field of [`Counts`].
macro_rules! fields {
    ($($name:ident),*) => {
        $(
            #[inline(always)]
            fn $name(self, more: u64) {
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

/// What to count, as bits of a word: the verifier takes numbers for the arguments of a function that it walks by itself.
#[derive(Clone, Copy)]
pub struct What(u32);

impl What {
    pub const CONNECTION: Self = Self(1);
    pub const PACKET: Self = Self(1 << 1);
    /// A packet that was counted, and is counted again further on.
    pub const NO_PACKET: Self = Self(1 << 2);
    pub const REFUSAL: Self = Self(1 << 3);
    pub const DROP: Self = Self(1 << 4);
    pub const FAILURE: Self = Self(1 << 5);
    pub const RESET: Self = Self(1 << 6);
    pub const NOTHING: Self = Self(0);
    /// The place becomes this set's.
    const TAKE: Self = Self(1 << 7);

    #[inline(always)]
    pub const fn and(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    #[inline(always)]
    const fn has(self, what: Self) -> bool {
        self.0 & what.0 != 0
    }
}

/// The place of a number. With `take`, it becomes this set's; without, it counts only for the set that has it: an older flow
/// may know a number that has gone to another since.
#[inline(always)]
fn place(set: SetId, number: CountNumber, take: bool) -> Option<Place> {
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

/// Counts at one place; whether there is one. Global to the verifier: it walks the function once, not once for each way that
/// leads to it, which made a program six times as long for Linux 6.1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_at(set: u32, number: u32, what: u32, bytes: u32) -> u32 {
    let what = What(what);
    let Some(place) = place(SetId(set), CountNumber(number), what.has(What::TAKE)) else {
        return 0;
    };
    let bytes = u64::from(bytes);
    if what.has(What::CONNECTION) {
        place.connections(1);
    }
    if what.has(What::PACKET) {
        place.packets(1);
        place.bytes(bytes);
    }
    if what.has(What::NO_PACKET) {
        place.packets(u64::MAX);
        place.bytes(bytes.wrapping_neg());
    }
    if what.has(What::REFUSAL) {
        place.refusals(1);
    }
    if what.has(What::DROP) {
        place.drops(1);
    }
    if what.has(What::FAILURE) {
        place.failures(1);
    }
    if what.has(What::RESET) {
        place.resets(1);
    }
    1
}

#[inline(always)]
fn count_for(set: SetId, number: CountNumber, what: What, bytes: u32) {
    if number != CountNumber::NONE {
        count_at(set.0, number.0, what.0, bytes);
    }
}

/// Counts for a service port and for its endpoint, where their places are this set's.
#[inline(always)]
pub fn tally(whose: &Counted, what: What, bytes: u32) {
    count_for(whose.set, whose.service, what, bytes);
    count_for(whose.set, whose.backend, what, bytes);
}

/// As [`tally`]; the places become this set's.
#[inline(always)]
pub fn tally_first(whose: &Counted, what: What, bytes: u32) {
    tally(whose, what.and(What::TAKE), bytes);
}

/// Counts a refusal for the service that was asked for, if it was one.
#[inline(always)]
pub fn refused(whose: &Counted, reason: Reason) {
    let what = match reason {
        Reason::SocketNoEndpoint | Reason::PacketNoEndpoint => What::REFUSAL,
        _ => What::DROP,
    };
    count_for(whose.set, whose.service, what.and(What::TAKE), 0);
}
