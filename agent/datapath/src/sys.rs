//! System calls that aya 0.14 has no function for: batched map operations and the exchange of a link's program.
//!
//! Attributes are laid out as in `union bpf_attr` of `linux/bpf.h`. Keys and values go as bytes of types without padding.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const MAP_GET_FD_BY_ID: u32 = 14;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const BTF_LOAD: u32 = 18;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const MAP_DELETE_BATCH: u32 = 27;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// A type whose bytes can be a key or a value.
pub(crate) trait Plain: IntoBytes + FromBytes + Immutable + Copy {}
impl<T: IntoBytes + FromBytes + Immutable + Copy> Plain for T {}

#[repr(C)]
#[derive(Default)]
struct ElemAttr {
    map_fd: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct LinkCreateAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkDetachAttr {
    link_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// The head of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default, Clone, Copy, Debug)]
pub(crate) struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

/// # Safety
/// Every address in `attr` must be valid for what command `cmd` reads and writes there.
unsafe fn bpf<A>(cmd: u32, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is a live object of the given size; the addresses in it are the caller's duty.
    let r = unsafe { libc::syscall(libc::SYS_bpf, cmd, std::ptr::from_mut(attr), size_of::<A>()) };
    if r < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(r as i32)
    }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn addr<T>(slice: &[T]) -> u64 {
    slice.as_ptr() as u64
}

/// Opens a pinned object.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        ..ObjAttr::default()
    };
    // SAFETY: the path is a C string that outlives the call.
    let fd = unsafe { bpf(OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The head of the attributes of `BPF_MAP_CREATE`.
#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
    numa: u32,
    name: [u8; 16],
    device: u32,
    types: u32,
    key_type: u32,
    value_type: u32,
}

/// `BPF_MAP_TYPE_ARRAY` and `BPF_F_MMAPABLE`.
const ARRAY: u32 = 2;
const MMAPABLE: u32 = 1 << 10;

/// An array as the programs declare the pages of counts; `types` describe its key and its value, by these numbers.
pub(crate) fn create_count_page(
    places: u32,
    value_size: u32,
    types: BorrowedFd<'_>,
    (key_type, value_type): (u32, u32),
) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        kind: ARRAY,
        key_size: size_of::<u32>() as u32,
        value_size,
        max_entries: places,
        flags: MMAPABLE,
        types: raw(types),
        key_type,
        value_type,
        ..CreateAttr::default()
    };
    // SAFETY: no addresses.
    let fd = unsafe { bpf(MAP_CREATE, &mut attr) }?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
struct TypesAttr {
    types: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    /// Named, so that it is zero: older kernels refuse what they do not know.
    zero: u32,
}

/// Gives the kernel a description of types (BTF).
pub(crate) fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = TypesAttr {
        types: addr(types),
        log: 0,
        size: u32::try_from(types.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        log_size: 0,
        log_level: 0,
        zero: 0,
    };
    // SAFETY: the address is that of a slice that outlives the call, and the size is its own.
    let fd = unsafe { bpf(BTF_LOAD, &mut attr) }?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a map into an array of maps, which holds it from then on.
pub(crate) fn put_page(outer: BorrowedFd<'_>, index: u32, page: BorrowedFd<'_>) -> io::Result<()> {
    update(outer, &index, &raw(page))
}

#[repr(C)]
struct IdAttr {
    id: u32,
    next: u32,
    flags: u32,
}

/// The map with this id.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = IdAttr {
        id,
        next: 0,
        flags: 0,
    };
    // SAFETY: no addresses.
    let fd = unsafe { bpf(MAP_GET_FD_BY_ID, &mut attr) }?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel knows of a map.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let mut attr = InfoAttr {
        fd: raw(map),
        len: size_of::<MapInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `info` is as long as `len` says, and the kernel fills at most that.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// The head of `struct bpf_link_info` of a TCX or XDP link.
#[repr(C)]
#[derive(Default)]
struct DeviceLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    zero: u32,
    ifindex: u32,
    attach_type: u32,
}

/// `BPF_LINK_TYPE_XDP` and `BPF_LINK_TYPE_TCX`.
const DEVICE_LINKS: [u32; 2] = [6, 11];

/// The index of the device that a TCX or XDP link is on; 0 once the device is gone.
pub(crate) fn link_device(link: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = DeviceLinkInfo::default();
    let mut attr = InfoAttr {
        fd: raw(link),
        len: size_of::<DeviceLinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `info` is as long as `len` says, and the kernel fills at most that.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    if !DEVICE_LINKS.contains(&info.kind) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(info.ifindex)
}

/// `BPF_XDP` and `XDP_FLAGS_DRV_MODE`.
const ATTACH_XDP: u32 = 37;
const DRIVER_MODE: u32 = 1 << 2;

/// Attaches an XDP program to a device's driver, and nowhere else: the error is the driver's own.
pub(crate) fn xdp_attach_native(program: BorrowedFd<'_>, device: u32) -> io::Result<OwnedFd> {
    link_create(program, device, ATTACH_XDP, DRIVER_MODE)
}

/// Attaches a program to a device (by its index) or a cgroup (by its descriptor).
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: raw(program),
        target,
        attach_type,
        flags,
    };
    // SAFETY: no addresses.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr) }?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: raw(object),
        ..ObjAttr::default()
    };
    // SAFETY: the path is a C string that outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ifreq` with an address in its union.
#[repr(C)]
struct DeviceRequest {
    name: [u8; libc::IFNAMSIZ],
    data: u64,
    rest: [u64; 2],
}

const ETHTOOL_GDRVINFO: u32 = 3;
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// The name of a device's driver.
pub(crate) fn driver(device: &str) -> io::Result<String> {
    let mut info = DriverInfo {
        cmd: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    let mut request = DeviceRequest {
        name: [0; libc::IFNAMSIZ],
        data: std::ptr::from_mut(&mut info) as u64,
        rest: [0; 2],
    };
    let n = device.len().min(libc::IFNAMSIZ - 1);
    request.name[..n].copy_from_slice(&device.as_bytes()[..n]);
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: request and info are live, and laid out as the kernel reads and writes them for this command.
    let r = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, std::ptr::from_mut(&mut request)) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    let end = info
        .driver
        .iter()
        .position(|&b| b == 0)
        .unwrap_or(info.driver.len());
    Ok(String::from_utf8_lossy(&info.driver[..end]).into_owned())
}

/// `SO_NETNS_COOKIE` of `asm-generic/socket.h`.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the network namespace in which the calling thread makes sockets.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option's value is a u64, for which there is room, and both pointers are live over the call.
    let r = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut length,
        )
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// Gives the machine back what this process has freed and its allocator still holds.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator takes its own locks, and memory in use is not touched.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets all threads that come allocate from one heap.
pub(crate) fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator takes its own locks; the call only sets a number.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Exchanges the program of a link in one step: no packet or call meets neither.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: raw(link),
        new_prog_fd: raw(program),
        ..LinkUpdateAttr::default()
    };
    // SAFETY: no addresses.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Ends a link now. (Closing or unpinning the last handle ends it too, but some time later.)
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link_fd: raw(link) };
    // SAFETY: no addresses.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

/// Writes one entry.
pub(crate) fn update<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attr = elem(map, key, std::ptr::from_ref(value) as u64);
    // SAFETY: key and value are live; the table's constructor checked that their sizes are the map's.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Reads one entry into `value`, whose size must be the map's (times the possible CPUs, for per-CPU maps).
pub(crate) fn lookup<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K, value: &mut [V]) -> io::Result<bool> {
    let mut attr = elem(map, key, value.as_mut_ptr() as u64);
    // SAFETY: as for `update`; callers size `value` by the map's kind.
    found(unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) })
}

/// Deletes one entry; false if there was none.
pub(crate) fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = elem(map, key, 0);
    // SAFETY: the key is live and of the map's key size.
    found(unsafe { bpf(MAP_DELETE_ELEM, &mut attr) })
}

/// The key after `key`, or the first one.
pub(crate) fn next_key<K: Plain>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = K::new_zeroed();
    let mut attr = ElemAttr {
        map_fd: raw(map),
        key: key.map_or(0, |k| std::ptr::from_ref(k) as u64),
        value: std::ptr::from_mut(&mut next) as u64,
        ..ElemAttr::default()
    };
    // SAFETY: both keys are live and of the map's key size.
    Ok(found(unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) })?.then_some(next))
}

fn elem<K: Plain>(map: BorrowedFd<'_>, key: &K, value: u64) -> ElemAttr {
    ElemAttr {
        map_fd: raw(map),
        key: std::ptr::from_ref(key) as u64,
        value,
        ..ElemAttr::default()
    }
}

fn found(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// How a batch ended: how many entries were done, and why not all.
pub(crate) struct Batch {
    pub done: usize,
    pub error: Option<io::Error>,
}

/// Writes `keys[i]` → `values[i]` for all `i`, until one fails.
pub(crate) fn update_batch<K: Plain, V: Plain>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> Batch {
    assert_eq!(keys.len(), values.len(), "one value per key");
    let mut attr = BatchAttr {
        keys: addr(keys),
        values: addr(values),
        count: keys.len() as u32,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    // SAFETY: both arrays are live, hold `count` elements of the map's key and value size, and are only read.
    let result = unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) };
    batch(result, attr.count, keys.len())
}

/// Deletes `keys`, until one fails (a missing key fails with ENOENT).
pub(crate) fn delete_batch<K: Plain>(map: BorrowedFd<'_>, keys: &[K]) -> Batch {
    let mut attr = BatchAttr {
        keys: addr(keys),
        count: keys.len() as u32,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    // SAFETY: as for `update_batch`.
    let result = unsafe { bpf(MAP_DELETE_BATCH, &mut attr) };
    batch(result, attr.count, keys.len())
}

fn batch(result: io::Result<i32>, count: u32, all: usize) -> Batch {
    match result {
        Ok(_) => Batch {
            done: all,
            error: None,
        },
        // Where the command is unknown, or refused before its first entry, the kernel leaves `count` as it was.
        Err(e) if unsupported(&e) => Batch {
            done: 0,
            error: Some(e),
        },
        Err(e) => Batch {
            done: (count as usize).min(all),
            error: Some(e),
        },
    }
}

/// Whether the kernel has no batches for this kind of map.
pub(crate) fn unsupported(e: &io::Error) -> bool {
    const ENOTSUPP: i32 = 524;
    matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP))
}

/// Some entries, and where to go on.
pub(crate) type Page<K, V> = (Vec<(K, V)>, Option<u32>);

/// Reads some entries of a hash map from `cursor` on. `None` as new cursor: that was the end.
pub(crate) fn lookup_batch<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    cursor: Option<u32>,
    room: usize,
) -> io::Result<Page<K, V>> {
    let mut keys = vec![K::new_zeroed(); room];
    let mut values = vec![V::new_zeroed(); room];
    let from = cursor.unwrap_or(0);
    let mut to = 0_u32;
    let mut attr = BatchAttr {
        in_batch: cursor.map_or(0, |_| std::ptr::from_ref(&from) as u64),
        out_batch: std::ptr::from_mut(&mut to) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: room as u32,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    // SAFETY: both arrays have room for `count` elements; cursors of hash maps are 32 bits.
    let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) };
    let end = match result {
        Ok(_) => false,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
        Err(e) => return Err(e),
    };
    let pairs = keys.into_iter().zip(values).take(attr.count as usize);
    Ok((pairs.collect(), (!end).then_some(to)))
}
