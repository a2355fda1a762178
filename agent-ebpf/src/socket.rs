//! Socket hooks: the endpoint is chosen once per connection, packets are never touched.
use crate::counts::{What, count, refused, tally_first};
use crate::maps::{Kernel, REPLIES, SOCKETS};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval, bpf_sk_storage_get};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use core::ptr::{addr_of, addr_of_mut, null_mut};
use datapath_abi::{Address, Be16, Proto, Reason, ReplyKey, ReplyValue, SocketRecord};
use datapath_logic::choose::Front;
use datapath_logic::socket::{self, Verdict};

/// Go on with the system call.
const ALLOW: i32 = 1;
/// End it with an error.
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// Set by the loader; the branch for the other kind of kernel is pruned by the verifier.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u8 = 1;

/// Reads and writes of one family's fields. The context admits only whole 4-byte accesses, hence volatile.
trait Family {
    fn peer(ctx: *mut bpf_sock_addr) -> Address;
    fn set_peer(ctx: *mut bpf_sock_addr, addr: Address);
    /// An address of this family at which nobody listens, with port 0.
    const NOBODY: Address;
}

struct V4;
struct V6;

impl Family for V4 {
    #[inline(always)]
    fn peer(ctx: *mut bpf_sock_addr) -> Address {
        // SAFETY: the kernel passes a valid context for the whole run of the program.
        Address::from_v4_word(unsafe { addr_of!((*ctx).user_ip4).read_volatile() })
    }
    #[inline(always)]
    fn set_peer(ctx: *mut bpf_sock_addr, addr: Address) {
        // SAFETY: as for reading; the field is writable in all the hooks that call this.
        unsafe { addr_of_mut!((*ctx).user_ip4).write_volatile(addr.v4_word()) }
    }
    const NOBODY: Address = Address::from_v4_word(0x7f00_0001_u32.to_be());
}

impl Family for V6 {
    #[inline(always)]
    fn peer(ctx: *mut bpf_sock_addr) -> Address {
        // SAFETY: as for IPv4.
        unsafe {
            Address::from_words([
                addr_of!((*ctx).user_ip6[0]).read_volatile(),
                addr_of!((*ctx).user_ip6[1]).read_volatile(),
                addr_of!((*ctx).user_ip6[2]).read_volatile(),
                addr_of!((*ctx).user_ip6[3]).read_volatile(),
            ])
        }
    }
    #[inline(always)]
    fn set_peer(ctx: *mut bpf_sock_addr, addr: Address) {
        let [a, b, c, d] = addr.words();
        // SAFETY: as for IPv4.
        unsafe {
            addr_of_mut!((*ctx).user_ip6[0]).write_volatile(a);
            addr_of_mut!((*ctx).user_ip6[1]).write_volatile(b);
            addr_of_mut!((*ctx).user_ip6[2]).write_volatile(c);
            addr_of_mut!((*ctx).user_ip6[3]).write_volatile(d);
        }
    }
    const NOBODY: Address = Address::from_words([0, 0, 0, 1_u32.to_be()]);
}

#[inline(always)]
fn port(ctx: *mut bpf_sock_addr) -> Be16 {
    // SAFETY: as for addresses. The port is the low half of the word, in network order.
    Be16::from_raw(unsafe { addr_of!((*ctx).user_port).read_volatile() } as u16)
}

#[inline(always)]
fn set_port(ctx: *mut bpf_sock_addr, port: Be16) {
    // SAFETY: as for addresses.
    unsafe { addr_of_mut!((*ctx).user_port).write_volatile(port.raw() as u32) }
}

/// TCP, UDP or SCTP; `None` for what no service can have.
#[inline(always)]
fn proto(ctx: *mut bpf_sock_addr) -> Option<Proto> {
    // SAFETY: as for addresses.
    match unsafe { addr_of!((*ctx).protocol).read_volatile() } {
        6 => Some(Proto::TCP),
        17 => Some(Proto::UDP),
        132 => Some(Proto::SCTP),
        _ => None,
    }
}

/// Where the call goes.
#[inline(always)]
fn front<F: Family>(ctx: &SockAddrContext, proto: Proto) -> Front {
    Front {
        addr: F::peer(ctx.sock_addr),
        port: port(ctx.sock_addr),
        proto,
    }
}

/// The cookie of the caller's network namespace.
#[inline(always)]
fn netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper accepts this context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn record(ctx: &SockAddrContext) -> Option<SocketRecord> {
    // SAFETY: the kernel keeps the record as long as the socket, and the socket as long as this call.
    unsafe { SOCKETS.get_ptr_mut(ctx).as_ref().copied() }
}

/// Keeps the record with the socket; without memory for it only the peer's name is lost.
#[inline(always)]
fn keep(ctx: &SockAddrContext, record: &mut SocketRecord) {
    // SAFETY: as for reading; the socket is locked or owned by this call in all the hooks that write.
    unsafe {
        let kept = SOCKETS.get_or_insert_ptr_mut(ctx, Some(record));
        if !kept.is_null() {
            *kept = *record;
        }
    }
}

/// The one way to say no: the caller gets ECONNREFUSED (over UDP on kernels before 5.18: EPERM), at once.
#[inline(always)]
fn refuse<F: Family>(tables: &Kernel, ctx: &SockAddrContext, proto: Proto, reason: Reason) -> i32 {
    count(reason);
    refused(&tables.found(), reason);
    // SAFETY: a read-only global that the loader sets; volatile so that the compiler does not take its default for granted.
    if unsafe { addr_of!(HAS_SET_RETVAL).read_volatile() } == 1 {
        // SAFETY: the helper sets this call's result and nothing else.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        return DENY;
    }
    // Before Linux 5.18 a hook can only answer EPERM. That must do for UDP.
    if proto == Proto::UDP {
        return DENY;
    }
    // Port 0 on loopback has no listener ever: the kernel itself refuses TCP there.
    F::set_peer(ctx.sock_addr, F::NOBODY);
    set_port(ctx.sock_addr, Be16::new(0));
    ALLOW
}

#[inline(always)]
fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    let Some(proto) = proto(ctx.sock_addr) else {
        return ALLOW;
    };
    let tables = Kernel::default();
    match socket::connect(&tables, &front::<F>(ctx, proto), || netns(ctx)) {
        Verdict::Pass => {
            forget(ctx);
            ALLOW
        }
        Verdict::Refuse(reason) => refuse::<F>(&tables, ctx, proto, reason),
        Verdict::To {
            mut record, counted, ..
        } => {
            if proto == Proto::UDP {
                remember(ctx, &record);
            }
            keep(ctx, &mut record);
            F::set_peer(ctx.sock_addr, record.backend);
            set_port(ctx.sock_addr, record.backend_port);
            count(Reason::SocketConnected);
            tally_first(&counted, What::CONNECTION, 0);
            ALLOW
        }
    }
}

/// A socket that connects elsewhere is no longer what its record says.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    // SAFETY: as for `keep`.
    if let Some(old) = unsafe { SOCKETS.get_ptr_mut(ctx).as_mut() } {
        *old = SocketRecord::default();
    }
}

#[inline(always)]
fn sendmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let tables = Kernel::default();
    match socket::send(&tables, &front::<F>(ctx, Proto::UDP), netns(ctx), record(ctx)) {
        Verdict::Pass => ALLOW,
        Verdict::Refuse(reason) => refuse::<F>(&tables, ctx, Proto::UDP, reason),
        Verdict::To {
            mut record,
            counted,
            renewed,
        } => {
            if renewed {
                remember(ctx, &record);
                keep(ctx, &mut record);
                count(Reason::SocketSent);
                tally_first(&counted, What::CONNECTION, 0);
            }
            F::set_peer(ctx.sock_addr, record.backend);
            set_port(ctx.sock_addr, record.backend_port);
            ALLOW
        }
    }
}

/// An unconnected socket may talk to many services at once: answers of each endpoint find their service here. A connected one
/// is found here by user space when its endpoint goes. (A function of its own, for the stack's sake.)
#[inline(never)]
fn remember(ctx: &SockAddrContext, record: &SocketRecord) {
    let key = ReplyKey::new(cookie(ctx), record.backend, record.backend_port);
    let value = ReplyValue {
        addr: record.service,
        port: record.service_port,
        zero: 0,
        set: record.set,
    };
    if REPLIES.insert(&key, &value, 0).is_err() {
        count(Reason::ReplyTableFull);
    }
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper accepts this context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// The name under which the peer is shown, from the socket's record or, for unconnected sockets, from the table of replies.
#[inline(always)]
fn shown<F: Family>(ctx: &SockAddrContext, others: bool) -> Option<(Address, Be16)> {
    let (peer, from) = (F::peer(ctx.sock_addr), port(ctx.sock_addr));
    // A socket without a record never talked to a service.
    let record = record(ctx)?;
    if let Some(name) = socket::shown(&record, peer, from) {
        return Some(name);
    }
    if !others {
        return None;
    }
    // SAFETY: values are replaced, never changed in place, and copied here at once.
    let value = unsafe { REPLIES.get(&ReplyKey::new(cookie(ctx), peer, from)).copied() }?;
    Some((value.addr, value.port))
}

#[inline(always)]
fn rename<F: Family>(ctx: &SockAddrContext, others: bool, reason: Reason) -> i32 {
    if let Some((addr, service_port)) = shown::<F>(ctx, others) {
        F::set_peer(ctx.sock_addr, addr);
        set_port(ctx.sock_addr, service_port);
        count(reason);
    }
    ALLOW
}

/// A socket that ends takes its entry in the table of replies along: what is left there are sockets that live, however many
/// come and go, and user space finds those whose endpoint is gone.
#[inline(always)]
fn released(ctx: &SockContext) {
    // SAFETY: the kernel passes a valid socket; its type admits this read of four bytes.
    if unsafe { addr_of!((*ctx.sock).protocol).read_volatile() } != Proto::UDP.0 as u32 {
        return;
    }
    let sockets = addr_of!(SOCKETS).cast_mut().cast();
    // SAFETY: the helper finds the record or nothing; nobody else uses the socket any more.
    let record = unsafe {
        bpf_sk_storage_get(sockets, ctx.as_ptr(), null_mut(), 0)
            .cast::<SocketRecord>()
            .as_ref()
            .copied()
    };
    if let Some(r) = record
        && r.service_port.raw() != 0
    {
        // SAFETY: the helper accepts this context.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        let _ = REPLIES.remove(&ReplyKey::new(cookie, r.backend, r.backend_port));
    }
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    released(&ctx);
    ALLOW
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect::<V6>(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg::<V6>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    rename::<V4>(&ctx, true, Reason::SocketAnswered)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    rename::<V6>(&ctx, true, Reason::SocketAnswered)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    rename::<V4>(&ctx, false, Reason::SocketNamed)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    rename::<V6>(&ctx, false, Reason::SocketNamed)
}
