//! TC programs: the same decisions per packet, for clients that the socket hooks do not serve.
use crate::maps::{FLOWS, Kernel, count};
use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_ktime_get_ns, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect,
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use core::mem::MaybeUninit;
use datapath_abi::{Flow, FlowKey, Proto, Reason};
use datapath_logic::flow::{Known, Seen, advance};
use datapath_logic::forward::{self, Verdict};
use datapath_logic::packet::{ETHERNET, NotParsed, parse};
use datapath_logic::rewrite::{IPV4_CHECK, Rewrite};
use datapath_logic::{FlowTable, Packet, Parsed, reject};

/// Go on; with clsact and TCX alike.
const PASS: i32 = TC_ACT_OK as i32;
const DROP: i32 = TC_ACT_SHOT as i32;

/// A packet in the kernel, whose bytes are copied out: they need not lie in one piece.
struct Skb(*mut __sk_buff);

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

impl Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid for the whole run.
        unsafe { (*self.0).len }
    }

    /// Writes bytes; checksums are the caller's business.
    #[inline(always)]
    fn write<const N: usize>(&self, at: u32, bytes: &[u8; N]) -> bool {
        // SAFETY: the helper reads N bytes from the array.
        unsafe { bpf_skb_store_bytes(self.0.cast(), at, bytes.as_ptr().cast(), N as u32, 0) == 0 }
    }
}

impl FlowTable for Kernel {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper takes nothing and has no preconditions.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn touch(&self, key: &FlowKey, seen: &Seen) -> Option<Known> {
        // SAFETY: the entry stays readable and writable for this run, even if it is evicted meanwhile; two packets of one
        // flow on two CPUs may lose a count, nothing else.
        let flow = unsafe { FLOWS.get_ptr_mut(key)?.as_mut()? };
        Some(advance(flow, seen))
    }

    #[inline(always)]
    fn insert(&self, key: &FlowKey, flow: &Flow) -> bool {
        FLOWS.insert(key, flow, 0).is_ok()
    }
}

/// The way out of every program: counts, and turns the verdict into the kernel's.
#[inline(always)]
fn carry_out(skb: &Skb, p: &Parsed, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => PASS,
        Verdict::Rewrite(r, reason) => {
            if rewrite(skb, &r) {
                count(reason);
                PASS
            } else {
                count(Reason::PacketUnfinished);
                DROP
            }
        }
        Verdict::Reject(reason) => {
            count(reason);
            reject(skb, p)
        }
        Verdict::Drop(reason) => {
            count(reason);
            DROP
        }
    }
}

/// Each answer is a subprogram: together with what the deciding program holds, their buffers would not fit on one stack.
#[inline(always)]
fn reject(skb: &Skb, p: &Parsed) -> i32 {
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
    // SAFETY: the helper takes numbers only; the answer goes out of the device through which the packet came in.
    unsafe { bpf_redirect((*skb.0).ifindex, 0) as i32 }
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
    resized && skb.write(ETHERNET, bytes) && turn(skb)
}

/// Exchanges source and destination of the Ethernet header.
#[inline(always)]
fn turn(skb: &Skb) -> bool {
    let Some(h) = skb.read::<12>(0) else {
        return false;
    };
    skb.write(
        0,
        &[
            h[6], h[7], h[8], h[9], h[10], h[11], h[0], h[1], h[2], h[3], h[4], h[5],
        ],
    )
}

/// Applies a rewrite through the helpers that know how far the checksum is left to the hardware.
#[inline(always)]
fn rewrite(skb: &Skb, r: &Rewrite) -> bool {
    let (old_port, new_port) = (r.old_port.raw(), r.new_port.raw());
    let check = r.check_at();
    // A UDP checksum of zero stays zero, and never comes out as zero.
    let mangled = if r.proto == Proto::UDP {
        BPF_F_MARK_MANGLED_0 as u64
    } else {
        0
    };
    let pseudo = mangled | BPF_F_PSEUDO_HDR as u64;
    let addresses = if r.old_addr.is_v4() {
        ipv4(skb, r, check, pseudo)
    } else {
        ipv6(skb, r, check, pseudo)
    };
    // SAFETY: the context is valid; the helper checks the offset.
    let ports =
        unsafe { bpf_l4_csum_replace(skb.0, check, old_port as u64, new_port as u64, mangled | 2) == 0 };
    addresses && ports && skb.write(r.port_at(), &new_port.to_ne_bytes())
}

#[inline(always)]
fn ipv4(skb: &Skb, r: &Rewrite, check: u32, pseudo: u64) -> bool {
    let (old, new) = (r.old_addr.v4_word(), r.new_addr.v4_word());
    // SAFETY: the context is valid; the helpers check the offsets.
    unsafe {
        bpf_l4_csum_replace(skb.0, check, old as u64, new as u64, pseudo | 4) == 0
            && bpf_l3_csum_replace(skb.0, IPV4_CHECK, old as u64, new as u64, 4) == 0
            && skb.write(r.addr_at(), &new.to_ne_bytes())
    }
}

#[inline(always)]
fn ipv6(skb: &Skb, r: &Rewrite, check: u32, pseudo: u64) -> bool {
    let (mut old, mut new) = (r.old_addr.words(), r.new_addr.words());
    // SAFETY: both arrays are 16 bytes, as the helper is told; the context is valid and the helpers check offsets.
    unsafe {
        let diff = bpf_csum_diff(old.as_mut_ptr(), 16, new.as_mut_ptr(), 16, 0);
        diff >= 0
            && bpf_l4_csum_replace(skb.0, check, 0, diff as u64, pseudo) == 0
            && skb.write(r.addr_at(), &r.new_addr.v6_bytes())
    }
}

/// Parses, or says what to do with what cannot be parsed. Only packets to services are ours to drop: a malformed one may be
/// anybody's, and the stack behind us drops it anyway.
#[inline(always)]
fn parsed(skb: &Skb) -> Result<Parsed, i32> {
    match parse(skb) {
        Ok(p) => Ok(p),
        Err(NotParsed::OtherProtocol) => Err(PASS),
        Err(NotParsed::Malformed) => {
            count(Reason::PacketMalformed);
            Err(PASS)
        }
    }
}

#[inline(always)]
fn request(ctx: &TcContext) -> i32 {
    let skb = Skb(ctx.skb.skb);
    match parsed(&skb) {
        Ok(p) => carry_out(&skb, &p, forward::request(&Kernel, &p, skb.len())),
        Err(action) => action,
    }
}

#[inline(always)]
fn reply(ctx: &TcContext) -> i32 {
    let skb = Skb(ctx.skb.skb);
    match parsed(&skb) {
        Ok(p) => carry_out(&skb, &p, forward::reply(&Kernel, &p, skb.len())),
        Err(action) => action,
    }
}

/// Ingress of a pod's device on the host's side: packets from the pod.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    request(&ctx)
}

/// Egress of a pod's device on the host's side: packets to the pod.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    reply(&ctx)
}

/// Ingress of a device that leads out of the node: packets from other machines.
#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    request(&ctx)
}

/// Egress of a device that leads out of the node: packets to other machines.
#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    reply(&ctx)
}
