//! One packet's way through the steps: what they know, and each as a function of its own.
use crate::counts::{count, refused};
use crate::maps::Kernel;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use datapath_abi::{Counted, Reason, SetId};
use datapath_logic::Packet;
use datapath_logic::forward::{self, Gate, Step, Work};

/// What all steps of one run know.
pub struct Run {
    pub work: Work,
    /// The service that was found last: whose refusal a refusal is.
    pub found: Counted,
    /// Ethernet addresses of the next hop and of the device that leads there, for XDP.
    pub next_hop: [u8; 6],
    pub own: [u8; 6],
}

/// Opaque words for the map: user space has no business with them.
const RUN_WORDS: usize = 48;
const _: () = assert!(size_of::<Run>() <= RUN_WORDS * 8 && align_of::<Run>() <= 8);

/// Where programs keep their work: a stack of 512 bytes has no room for it. Nothing interrupts a program for another one on the
/// same CPU that would use it too. Not pinned: no other generation of programs reads what this one writes.
#[btf_map]
static RUN: PerCpuArray<[u64; RUN_WORDS], 1> = PerCpuArray::new();

#[inline(always)]
pub fn current<'a>() -> Option<&'a mut Run> {
    let place = RUN.get_ptr_mut(0)?.cast::<Run>();
    // SAFETY: the place is large and aligned enough, this CPU's own, and used by one program at a time. the programs write
    // all of it before it is read.
    unsafe { place.as_mut() }
}

impl Run {
    /// Begins with the packet that was just parsed.
    #[inline(always)]
    pub fn begin(&mut self, len: u32, gate: Gate) {
        self.work.begin(len, gate);
        self.found = Counted::default();
    }

    /// Counts a refusal, for the service too that was asked for, if it was one.
    #[inline(always)]
    pub fn refuse(&self, reason: Reason) {
        count(reason);
        refused(&self.found, reason);
    }
}

/// Runs one step on this CPU's run.
#[inline(always)]
pub fn step<P: Packet>(step: Step, packet: &P) -> u32 {
    let Some(run) = current() else {
        return 0;
    };
    let tables = Kernel::default();
    let answer = forward::step(step, &tables, packet, &mut run.work);
    let found = tables.found();
    if found.set != SetId::default() {
        run.found = found;
    }
    answer as u32
}

/// For the steps that read no packet. (A function must use its context if it gets one: the compiler passes no argument that nobody
/// uses, and the verifier wants every argument that the function's type names.)
struct NoPacket;

impl Packet for NoPacket {
    #[inline(always)]
    fn read<const N: usize>(&self, _: u32) -> Option<[u8; N]> {
        None
    }
}

macro_rules! steps {
    ($($name:ident: $step:ident),* $(,)?) => {
        $(
            /// Global to the verifier: it walks the function once, not once for each way that leads to it.
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $name() -> u32 {
                step(Step::$step, &NoPacket)
            }
        )*

        /// Runs a step that needs no more of the packet than was parsed.
        #[inline(always)]
        pub fn without_packet(step: Step) -> bool {
            match step {
                $(Step::$step => $name() != 0,)*
                Step::ErrorIn | Step::ErrorOut => false,
            }
        }
    };
}

steps! {
    step_ports: Ports,
    step_front: Front,
    step_known: Known,
    step_known_through: KnownThrough,
    step_no_front: NoFront,
    step_choose: Choose,
    step_open: Open,
    step_rename: Rename,
    step_remember: Remember,
    step_turn: Turn,
    step_serve_own: ServeOwn,
}
