//! TC programs: the same decisions per packet, for clients that the socket hooks do not serve.
use crate::counts::count;
use crate::maps::Kernel;
use crate::own;
use crate::run::{Run, current, step, without_packet};
use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_tail,
    bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use core::mem::MaybeUninit;
use datapath_abi::{Proto, Reason};
use datapath_logic::forward::{self, Gate, Step, Verdict, Work};
use datapath_logic::packet::{ETHERNET, Mend, NotParsed, parse};
use datapath_logic::rewrite::Rewrite;
use datapath_logic::{Packet, PacketMut, Parsed, reject, rewrite, sctp};

/// Go on; with clsact and TCX alike.
pub(crate) const PASS: i32 = TC_ACT_OK as i32;
pub(crate) const DROP: i32 = TC_ACT_SHOT as i32;

/// A packet in the kernel, whose bytes are copied out: they need not lie in one piece.
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

impl Packet for Skb {
    #[inline(always)]
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the context is valid for the whole run; the helper writes all N bytes or fails.
        let r = unsafe { bpf_skb_load_bytes(self.0.cast(), at, bytes.as_mut_ptr().cast(), N as u32) };
        // SAFETY: the helper succeeded, so all bytes are written.
        (r == 0).then(|| unsafe { bytes.assume_init() })
    }
}

impl PacketMut for Skb {
    #[inline(always)]
    fn write<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> bool {
        self.store(at, bytes)
    }

    /// Through the helpers that know how far a checksum is left to the hardware.
    #[inline(always)]
    fn mend<const N: usize>(&mut self, check: u32, old: &[u8; N], new: &[u8; N], mend: Mend) -> bool {
        let (from, to, size) = match N {
            2 => (word(old), word(new), 2),
            4 => (word(old), word(new), 4),
            // The helper takes a difference where it gets no size.
            _ => match difference(old, new) {
                Some(diff) => (0, diff, 0),
                None => return false,
            },
        };
        match mend {
            // SAFETY: the context is valid; the helper checks the offset.
            Mend::Header => unsafe { bpf_l3_csum_replace(self.0, check, from, to, size) == 0 },
            Mend::Transport { pseudo, udp } => {
                // A UDP checksum of zero stays zero, and never comes out as zero.
                let zero = if udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
                let header = if pseudo { BPF_F_PSEUDO_HDR as u64 } else { 0 };
                // SAFETY: as above.
                unsafe { bpf_l4_csum_replace(self.0, check, from, to, zero | header | size) == 0 }
            }
        }
    }

    #[inline(always)]
    fn mend_sctp(&mut self, r: &Rewrite) -> bool {
        sctp::mend(self, r, |bits, behind| sctp_delta(bits as u32, behind))
    }
}

/// How an SCTP checksum changes. Global to the verifier: hundreds of steps, walked once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sctp_delta(bits: u32, behind: u32) -> u32 {
    sctp::delta(bits as u16, behind)
}

/// Up to four bytes as the helpers want them.
#[inline(always)]
fn word<const N: usize>(bytes: &[u8; N]) -> u64 {
    if N == 2 {
        u16::from_ne_bytes([bytes[0], bytes[1]]) as u64
    } else {
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as u64
    }
}

#[inline(always)]
fn difference<const N: usize>(old: &[u8; N], new: &[u8; N]) -> Option<u64> {
    // SAFETY: both arrays have N bytes, a multiple of four as the helper wants, and are only read.
    let diff = unsafe {
        bpf_csum_diff(
            old.as_ptr().cast_mut().cast(),
            N as u32,
            new.as_ptr().cast_mut().cast(),
            N as u32,
            0,
        )
    };
    (diff >= 0).then_some(diff as u64)
}

impl Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid for the whole run.
        unsafe { (*self.0).len }
    }

    /// Writes bytes; checksums are the caller's business.
    #[inline(always)]
    pub(crate) fn store<const N: usize>(&self, at: u32, bytes: &[u8; N]) -> bool {
        // SAFETY: the helper reads N bytes from the array.
        unsafe { bpf_skb_store_bytes(self.0.cast(), at, bytes.as_ptr().cast(), N as u32, 0) == 0 }
    }
}

/// Parses; 0 for what cannot be. The rest of the run is left to the caller ([`Run::begin`]). Only packets to services are ours to drop: a malformed one may be anybody's, and the stack
/// behind us drops it anyway.
///
/// # Safety
/// `skb` is the context that the kernel passed.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn parse_packet(skb: *mut __sk_buff) -> u32 {
    let Some(run) = current() else {
        return 0;
    };
    let skb = Skb(skb);
    match parse(&skb) {
        Ok(p) => {
            run.work.p = p;
            1
        }
        Err(NotParsed::OtherProtocol) => 0,
        Err(NotParsed::Malformed) => {
            count(Reason::PacketMalformed);
            0
        }
    }
}

/// A packet and what is known of it.
struct Steps<'a> {
    skb: *mut __sk_buff,
    run: &'a mut Run,
}

impl forward::Steps for Steps<'_> {
    #[inline(always)]
    fn work(&mut self) -> &mut Work {
        &mut self.run.work
    }

    #[inline(always)]
    fn run(&mut self, step: Step) -> bool {
        match step {
            // SAFETY: this program's own context.
            Step::ErrorIn => unsafe { step_error_in(self.skb) != 0 },
            // SAFETY: as above.
            Step::ErrorOut => unsafe { step_error_out(self.skb) != 0 },
            other => without_packet(other),
        }
    }
}

/// # Safety
/// `skb` is the context that the kernel passed.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn step_error_in(skb: *mut __sk_buff) -> u32 {
    step(Step::ErrorIn, &Skb(skb))
}

/// # Safety
/// `skb` is the context that the kernel passed.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn step_error_out(skb: *mut __sk_buff) -> u32 {
    step(Step::ErrorOut, &Skb(skb))
}

/// The way out of every program: counts, and turns the verdict into the kernel's.
#[inline(always)]
fn carry_out(skb: *mut __sk_buff, run: &Run) -> i32 {
    match run.work.verdict {
        Verdict::Pass => PASS,
        Verdict::Rewrite(_, reason) => {
            // SAFETY: this program's own context.
            if unsafe { rewrite_packet(skb) } != 0 {
                count(reason);
                PASS
            } else {
                count(Reason::PacketUnfinished);
                DROP
            }
        }
        Verdict::Reject(reason) => {
            run.refuse(reason);
            reject(&Skb(skb), &run.work.p, 0)
        }
        Verdict::Drop(reason) => {
            run.refuse(reason);
            DROP
        }
    }
}

/// Carries out the rewrite that was decided; 0 where the kernel does not let us.
///
/// # Safety
/// `skb` is the context that the kernel passed.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) unsafe extern "C" fn rewrite_packet(skb: *mut __sk_buff) -> u32 {
    match current().map(|run| &run.work.verdict) {
        Some(Verdict::Rewrite(r, _)) => rewrite::apply(&mut Skb(skb), r) as u32,
        _ => 0,
    }
}

/// Each answer is a subprogram: together with what the deciding program holds, their buffers would not fit on one stack.
#[inline(always)]
pub(crate) fn reject(skb: &Skb, p: &Parsed, direction: u64) -> i32 {
    // SAFETY: this program's own context.
    let written = unsafe {
        match (p.src.is_v4(), p.proto) {
            (true, Proto::TCP) => reset4(skb.0, p.l4),
            (false, Proto::TCP) => reset6(skb.0, p.l4),
            (true, _) => unreachable4(skb.0, p.l4),
            (false, _) => unreachable6(skb.0, p.l4),
        }
    };
    if written == 0 {
        count(Reason::PacketUnfinished);
        return DROP;
    }
    // SAFETY: the helper takes numbers only; the answer goes back through the device by which the packet came.
    unsafe { bpf_redirect((*skb.0).ifindex, direction) as i32 }
}

macro_rules! answer {
    ($name:ident, $length:literal) => {
        /// Global to the verifier: it walks the function once, not once for each way in which it can be called.
        ///
        /// # Safety
        /// `skb` is the context that the kernel passed.
        #[unsafe(no_mangle)]
        #[inline(never)]
        unsafe extern "C" fn $name(skb: *mut __sk_buff, l4: u32) -> u32 {
            let skb = Skb(skb);
            let mut bytes = [0; $length];
            let written = reject::$name(&skb, l4, &mut bytes).is_some() && replace(&skb, &bytes);
            written as u32
        }
    };
}

answer!(reset4, 40);
answer!(reset6, 60);
answer!(unreachable4, 56);
answer!(unreachable6, 96);

/// The packet becomes its Ethernet header, turned round, and these bytes.
#[inline(always)]
fn replace<const N: usize>(skb: &Skb, bytes: &[u8; N]) -> bool {
    // SAFETY: the context is valid; the helper takes a length.
    let resized = unsafe { bpf_skb_change_tail(skb.0, ETHERNET + N as u32, 0) == 0 };
    resized && skb.store(ETHERNET, bytes) && turn(skb)
}

/// Exchanges source and destination of the Ethernet header.
#[inline(always)]
fn turn(skb: &Skb) -> bool {
    let Some(h) = skb.read::<12>(0) else {
        return false;
    };
    skb.store(
        0,
        &[
            h[6], h[7], h[8], h[9], h[10], h[11], h[0], h[1], h[2], h[3], h[4], h[5],
        ],
    )
}

/// One hook: its decision in between of what is the same for all.
macro_rules! hook {
    ($(#[$doc:meta])* $name:ident, $gate:expr, $decide:ident) => {
        $(#[$doc])*
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            let skb = ctx.skb.skb;
            if matches!($gate, Gate::Uplink) && !forward::serves_uplink(&Kernel::default()) {
                return PASS;
            }
            // SAFETY: this program's own context.
            if unsafe { parse_packet(skb) } == 0 {
                return PASS;
            }
            let Some(run) = current() else {
                return PASS;
            };
            run.begin(Skb(skb).len(), $gate);
            let mut steps = Steps { skb, run };
            forward::$decide(&mut steps);
            carry_out(skb, steps.run)
        }
    };
}

hook!(
    /// Ingress of a pod's device on the host's side: packets from the pod.
    from_pod,
    Gate::Pod,
    arrive
);
hook!(
    /// Egress of a pod's device on the host's side: packets to the pod.
    to_pod,
    Gate::Pod,
    leave
);
hook!(
    /// Ingress of a device that leads out of the node: packets from other machines.
    from_uplink,
    Gate::Uplink,
    arrive
);

/// Egress of a device that leads out of the node: packets to other machines, and what the node's own sockets send to services.
#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid for the whole run. What came in by no device comes from the node itself.
    let own = unsafe { (*skb).ingress_ifindex } == 0;
    let tables = Kernel::default();
    if !own && !forward::serves_uplink(&tables) {
        return PASS;
    }
    // SAFETY: this program's own context.
    if unsafe { parse_packet(skb) } == 0 {
        return PASS;
    }
    let Some(run) = current() else {
        return PASS;
    };
    run.begin(Skb(skb).len(), if own { Gate::Own } else { Gate::Uplink });
    let mut steps = Steps { skb, run };
    if own && forward::serves_own(&tables, &steps.run.work.p) {
        forward::depart(&mut steps);
        if !matches!(steps.run.work.verdict, Verdict::Pass) {
            return own::carry_out(skb, steps.run);
        }
    }
    if forward::serves_uplink(&tables) {
        forward::leave(&mut steps);
    }
    carry_out(skb, steps.run)
}
