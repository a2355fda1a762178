//! The XDP program: packets that only pass this node on their way to a remote endpoint, and their answers, are sent out again
//! before the stack sees them. Everything else goes to the stack unchanged, where the TC programs decide.
use crate::counts::{What, count, tally};
use crate::maps::{FLOWS, Kernel};
use crate::run::{Run, current, without_packet};
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{bpf_fib_lookup as Route, xdp_md};
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use core::hint::black_box;
use core::ptr::addr_of;
use datapath_abi::{Address, FlowKey, Proto, Reason};
use datapath_logic::checksum::update;
use datapath_logic::forward::{self, Gate, Passing, Step, Steps, Verdict, Work};
use datapath_logic::packet::{ETHERNET, Mend, parse};
use datapath_logic::rewrite::{self, IPV4_CHECK, Part, Rewrite};
use datapath_logic::{Packet, PacketMut};

/// Nothing that is read or changed lies further in: no options, no extension headers.
const FURTHEST: usize = 128;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A packet as it lies in the driver's memory.
struct Frame(*mut xdp_md);

impl Frame {
    /// `N` bytes at `at`, if they are there.
    #[inline(always)]
    fn place<const N: usize>(&self, at: u32) -> Option<*mut [u8; N]> {
        // Opaque: else the compiler checks a copy, and the verifier does not know the bounds of what is added.
        let at = black_box(at as usize);
        if at > FURTHEST {
            return None;
        }
        // SAFETY: the context is valid for the whole run. Read anew each time: the verifier wants the bounds next to their use.
        let (data, end) = unsafe {
            (
                addr_of!((*self.0).data).read_volatile() as usize,
                addr_of!((*self.0).data_end).read_volatile() as usize,
            )
        };
        let place = data + at;
        (place + N <= end).then_some(place as *mut [u8; N])
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        // SAFETY: within the packet, as `place` checked.
        self.place::<N>(at).map(|p| unsafe { p.read_unaligned() })
    }
}

impl PacketMut for Frame {
    #[inline(always)]
    fn write<const N: usize>(&mut self, at: u32, bytes: &[u8; N]) -> bool {
        match self.place::<N>(at) {
            Some(p) => {
                // SAFETY: within the packet, as `place` checked.
                unsafe { p.write_unaligned(*bytes) };
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn mend<const N: usize>(&mut self, check: u32, old: &[u8; N], new: &[u8; N], mend: Mend) -> bool {
        let Some(before) = self.read::<2>(check) else {
            return false;
        };
        let udp = matches!(mend, Mend::Transport { udp: true, .. });
        if udp && before == [0, 0] {
            return true;
        }
        let mut after = update(before, old, new);
        if udp && after == [0, 0] {
            after = [0xff, 0xff];
        }
        self.write(check, &after)
    }
}

/// Parses; 0 for whatever is unusual. The rest of the run is left to the caller ([`Run::begin`]).
///
/// # Safety
/// `ctx` is the context that the kernel passed.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn xdp_parse(ctx: *mut xdp_md) -> u32 {
    let (frame, Some(run)) = (Frame(ctx), current()) else {
        return 0;
    };
    let Some(h) = frame.read::<24>(0) else {
        return 0;
    };
    let proto = match [h[12], h[13], h[14] >> 4] {
        [8, 0, 4] if h[14] == 0x45 => h[23],
        [0x86, 0xdd, 6] => h[20],
        _ => return 0,
    };
    if proto != Proto::TCP.0 && proto != Proto::UDP.0 {
        return 0;
    }
    match parse(&frame) {
        Ok(p) => {
            run.work.p = p;
            1
        }
        Err(_) => 0,
    }
}

/// Finds the way to the new destination and keeps the Ethernet addresses of its next hop; 0, and nothing changed, where the packet does
/// not go out where it came in, or the kernel does not know at once how.
///
/// # Safety
/// `ctx` is the context that the kernel passed.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn xdp_route(ctx: *mut xdp_md) -> u32 {
    let (frame, Some(run)) = (Frame(ctx), current()) else {
        return 0;
    };
    let Verdict::Rewrite(destination, _) = &run.work.verdict else {
        return 0;
    };
    let to = destination.new_addr;
    match route(&frame, run.work.nat, to, run.work.p.proto) {
        Some(route) => {
            run.next_hop = route.dmac;
            run.own = route.smac;
            1
        }
        None => 0,
    }
}

/// Rewrites the source or the destination; 0 if the packet is too short.
///
/// # Safety
/// `ctx` is the context that the kernel passed.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn xdp_change(ctx: *mut xdp_md, source: u32) -> u32 {
    let (mut frame, Some(run)) = (Frame(ctx), current()) else {
        return 0;
    };
    let Verdict::Rewrite(destination, _) = &run.work.verdict else {
        return 0;
    };
    let changed = if source != 0 {
        apply(
            &mut frame,
            &Rewrite::source(&run.work.p, run.work.nat, run.work.nat_port),
        )
    } else {
        apply(&mut frame, destination)
    };
    changed as u32
}

/// One hop less, and the next one's Ethernet addresses; 0 if the packet is too short.
///
/// # Safety
/// `ctx` is the context that the kernel passed.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn xdp_hop(ctx: *mut xdp_md) -> u32 {
    let (mut frame, Some(run)) = (Frame(ctx), current()) else {
        return 0;
    };
    let done =
        hop(&mut frame, run.work.p.src.is_v4()) && frame.write(0, &run.next_hop) && frame.write(6, &run.own);
    done as u32
}

/// The route to the new destination, if it leads out of the same device to a known neighbour and the packet may go that way.
#[inline(always)]
fn route(frame: &Frame, from: Address, to: Address, proto: Proto) -> Option<Route> {
    let v4 = to.is_v4();
    // SAFETY: integers and unions of integers, for which zeros are valid.
    let mut route: Route = unsafe { core::mem::zeroed() };
    // SAFETY: the context is valid.
    let device = unsafe { addr_of!((*frame.0).ingress_ifindex).read_volatile() };
    route.ifindex = device;
    route.l4_protocol = proto.0;
    let length: [u8; 2] = frame.read(ETHERNET + if v4 { 2 } else { 4 })?;
    let hops: [u8; 1] = frame.read(ETHERNET + if v4 { 8 } else { 7 })?;
    if hops[0] <= 1 {
        return None;
    }
    route.__bindgen_anon_1.tot_len = u16::from_be_bytes(length).wrapping_add(if v4 { 0 } else { 40 });
    if v4 {
        route.family = AF_INET;
        route.__bindgen_anon_3.ipv4_src = from.v4_word();
        route.__bindgen_anon_4.ipv4_dst = to.v4_word();
    } else {
        route.family = AF_INET6;
        route.__bindgen_anon_3.ipv6_src = from.words();
        route.__bindgen_anon_4.ipv6_dst = to.words();
    }
    // SAFETY: the context is valid, and the structure as long as the helper is told.
    let found = unsafe { bpf_fib_lookup(frame.0.cast(), &mut route, size_of::<Route>() as i32, 0) };
    (found == 0 && route.ifindex == device).then_some(route)
}

/// One hop less.
#[inline(always)]
fn hop(frame: &mut Frame, v4: bool) -> bool {
    if !v4 {
        let Some([hops]) = frame.read::<1>(ETHERNET + 7) else {
            return false;
        };
        return frame.write(ETHERNET + 7, &[hops.wrapping_sub(1)]);
    }
    let Some([hops, proto]) = frame.read::<2>(ETHERNET + 8) else {
        return false;
    };
    let less = [hops.wrapping_sub(1), proto];
    frame.mend(IPV4_CHECK, &[hops, proto], &less, Mend::Header) && frame.write(ETHERNET + 8, &less)
}

/// Applies a rewrite of a whole packet of TCP or UDP: what it is not need not be walked through.
#[inline(always)]
fn apply(frame: &mut Frame, r: &Rewrite) -> bool {
    let plain = Rewrite {
        part: Part::Whole,
        ..*r
    };
    if r.proto == Proto::TCP {
        rewrite::apply(
            frame,
            &Rewrite {
                proto: Proto::TCP,
                ..plain
            },
        )
    } else {
        rewrite::apply(
            frame,
            &Rewrite {
                proto: Proto::UDP,
                ..plain
            },
        )
    }
}

/// The steps, none of which reads the packet.
struct Decision<'a>(&'a mut Run);

impl Steps for Decision<'_> {
    #[inline(always)]
    fn work(&mut self) -> &mut Work {
        &mut self.0.work
    }
    #[inline(always)]
    fn run(&mut self, step: Step) -> bool {
        without_packet(step)
    }
}

/// The stack will count the packet again: it is taken out of its flow's counts.
#[inline(never)]
fn uncount(work: &Work) {
    let key = FlowKey {
        src: work.p.src,
        dst: work.p.dst,
        sport: work.p.sport,
        dport: work.p.dport,
        proto: work.p.proto,
        changes: FlowKey::DESTINATION,
        zero: 0,
    };
    // SAFETY: as for the steps that count.
    if let Some(flow) = FLOWS.get_ptr_mut(&key).and_then(|p| unsafe { p.as_mut() }) {
        flow.packets = flow.packets.wrapping_sub(1);
        flow.bytes = flow.bytes.wrapping_sub(work.len as u64);
        tally(&flow.counted(), What::NO_PACKET, work.len);
    }
}

/// Rewrites the packet and sends it back out, or leaves it to the stack.
///
/// # Safety
/// `ctx` is the context that the kernel passed.
#[inline(always)]
unsafe fn send(ctx: *mut xdp_md, run: &Run) -> u32 {
    // SAFETY: the caller's context.
    unsafe {
        if xdp_route(ctx) == 0 {
            uncount(&run.work);
            return XDP_PASS;
        }
        if xdp_change(ctx, 0) != 0 && xdp_change(ctx, 1) != 0 && xdp_hop(ctx) != 0 {
            count(Reason::PacketSentBack);
            return XDP_TX;
        }
    }
    count(Reason::PacketUnfinished);
    XDP_DROP
}

/// Packets that come in from other machines, before the stack.
#[xdp]
pub fn xdp_uplink(ctx: XdpContext) -> u32 {
    // SAFETY: this program's own context.
    if !forward::serves_uplink(&Kernel::default()) || unsafe { xdp_parse(ctx.ctx) } == 0 {
        return XDP_PASS;
    }
    let Some(run) = current() else {
        return XDP_PASS;
    };
    // SAFETY: the context is valid.
    let len = unsafe { addr_of!((*ctx.ctx).data_end).read_volatile() - addr_of!((*ctx.ctx).data).read_volatile() };
    run.begin(len, Gate::Uplink);
    let mut decision = Decision(run);
    match forward::pass_through(&mut decision) {
        Passing::ToStack => XDP_PASS,
        Passing::Drop => {
            if let Verdict::Drop(reason) = decision.0.work.verdict {
                decision.0.refuse(reason);
            }
            XDP_DROP
        }
        Passing::Send => {
            // SAFETY: as above.
            unsafe { send(ctx.ctx, decision.0) }
        }
    }
}
