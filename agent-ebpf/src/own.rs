//! What the node's own sockets send to services past the socket hooks (the kernel's own, such as NFS, and those of other cgroups): on its
//! way out it has the route of the service's address, and is sent on by the route of its endpoint.
use crate::counts::count;
use crate::packet::{DROP, Skb, reject, rewrite_packet};
use crate::run::{Run, current};
use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, bpf_fib_lookup as Route};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh};
use core::ptr::null_mut;
use datapath_abi::{Address, Reason};
use datapath_logic::forward::Verdict;
use datapath_logic::rewrite::{self, Rewrite};
use datapath_logic::{Packet, PacketMut};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `BPF_FIB_LKUP_RET_SUCCESS`, `…_FWD_DISABLED`, `…_NO_NEIGH`.
const FOUND: i64 = 0;
const NO_FORWARDING: i64 = 5;
const NO_NEIGHBOUR: i64 = 7;

/// Carries out what was decided of a packet of the node's own.
#[inline(always)]
pub fn carry_out(skb: *mut __sk_buff, run: &Run) -> i32 {
    match run.work.verdict {
        Verdict::Rewrite(_, reason) => {
            // SAFETY: this program's own context.
            let done = unsafe {
                if rewrite_packet(skb) == 0 {
                    None
                } else if run.work.nat != Address::default() {
                    turn_packet(skb)
                } else {
                    route_packet(skb)
                }
            };
            match done {
                Some(verdict) => {
                    count(reason);
                    verdict
                }
                None => {
                    count(Reason::PacketUnfinished);
                    DROP
                }
            }
        }
        Verdict::Reject(reason) => {
            run.refuse(reason);
            reject(&Skb(skb), &run.work.p, BPF_F_INGRESS as u64)
        }
        Verdict::Drop(reason) => {
            run.refuse(reason);
            DROP
        }
        Verdict::Pass => DROP,
    }
}

/// To the node itself: as if it had come in by this device, from the service's address.
///
/// # Safety
/// `skb` is the context that the kernel passed.
#[inline(always)]
unsafe fn turn_packet(skb: *mut __sk_buff) -> Option<i32> {
    // SAFETY: the caller's context; the helper takes numbers only.
    unsafe { (own_source(skb) != 0).then(|| bpf_redirect((*skb).ifindex, BPF_F_INGRESS as u64) as i32) }
}

/// The source becomes the service's, and the Ethernet destination this device; 0 where the kernel does not let us.
///
/// # Safety
/// `skb` is the context that the kernel passed.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn own_source(skb: *mut __sk_buff) -> u32 {
    let (mut packet, Some(run)) = (Skb(skb), current()) else {
        return 0;
    };
    let source = Rewrite::source(&run.work.p, run.work.nat, run.work.nat_port);
    let Some(mac) = packet.read::<6>(6) else {
        return 0;
    };
    (rewrite::apply(&mut packet, &source) && packet.write(0, &mac)) as u32
}

/// To a pod or another machine, by the kernel's routes and neighbours.
///
/// # Safety
/// `skb` is the context that the kernel passed.
#[inline(always)]
unsafe fn route_packet(skb: *mut __sk_buff) -> Option<i32> {
    // SAFETY: the caller's context; no parameters: the helper finds the neighbour itself.
    unsafe {
        let device = own_route(skb);
        (device != 0).then(|| bpf_redirect_neigh(device, null_mut(), 0, 0) as i32)
    }
}

/// The device that leads to the new destination; 0 for none. Before Linux 5.12 it is told for known neighbours only: then this one is
/// tried, which leads to everything but this node's own pods.
///
/// # Safety
/// `skb` is the context that the kernel passed.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn own_route(skb: *mut __sk_buff) -> u32 {
    let (packet, Some(run)) = (Skb(skb), current()) else {
        return 0;
    };
    // SAFETY: integers and unions of integers, for which zeros are valid.
    let mut route: Route = unsafe { core::mem::zeroed() };
    // SAFETY: the context is valid.
    route.ifindex = unsafe { (*packet.0).ifindex };
    route.l4_protocol = run.work.p.proto.0;
    let Verdict::Rewrite(destination, _) = &run.work.verdict else {
        return 0;
    };
    let (from, to) = (run.work.p.src, destination.new_addr);
    if to.is_v4() {
        route.family = AF_INET;
        route.__bindgen_anon_3.ipv4_src = from.v4_word();
        route.__bindgen_anon_4.ipv4_dst = to.v4_word();
    } else {
        route.family = AF_INET6;
        route.__bindgen_anon_3.ipv6_src = from.words();
        route.__bindgen_anon_4.ipv6_dst = to.words();
    }
    // SAFETY: the context is valid, and the structure as long as the helper is told.
    let found = unsafe { bpf_fib_lookup(packet.0.cast(), &mut route, size_of::<Route>() as i32, 0) } as i64;
    match found {
        FOUND | NO_FORWARDING | NO_NEIGHBOUR => route.ifindex,
        _ => 0,
    }
}
