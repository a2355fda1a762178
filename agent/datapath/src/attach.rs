//! Attaching programs so that they stay, and putting new programs in the place of old ones.
use crate::error::DatapathError;
use crate::sys;
use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, Program, SchedClassifier, TcAttachType, tc};
use datapath_abi::programs;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

/// The socket hooks and their attach types (`enum bpf_attach_type`), in the order in which they are attached: the ways back
/// first, so that no socket is sent to an endpoint before its replies can be named.
pub(crate) const SOCKET_HOOKS: [(&str, u32); 9] = [
    ("sock_release", 34),
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("connect4", 10),
    ("connect6", 11),
];

/// Where our filter stands among others of a device, before Linux 6.6.
const TC_PRIORITY: u16 = 1;
const TC_HANDLE: TcHandle = TcHandle::new(0, 1);

/// Attaches every socket hook to the cgroup, or exchanges the program of the link that is pinned already.
pub(crate) fn socket_hooks(ebpf: &mut Ebpf, cgroup: &Path, links: &Path) -> Result<(), DatapathError> {
    let folder = File::open(cgroup).map_err(DatapathError::path(cgroup))?;
    for (name, attach_type) in SOCKET_HOOKS {
        // Layout 1 did not have all of them.
        if ebpf.program(name).is_none() {
            continue;
        }
        let program = loaded(ebpf, name)?;
        socket_hook(program, attach_type, &folder, &links.join(name)).map_err(|source| {
            DatapathError::Attach {
                program: name.into(),
                to: cgroup.display().to_string(),
                source: source.into(),
            }
        })?;
    }
    Ok(())
}

/// The descriptor of a loaded program.
fn loaded<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, DatapathError> {
    let fd = match ebpf.program(name) {
        Some(Program::CgroupSockAddr(p)) => p.fd(),
        Some(Program::CgroupSock(p)) => p.fd(),
        _ => return Err(DatapathError::Missing(name.into())),
    };
    fd.map(|fd| fd.as_fd()).map_err(|e| DatapathError::Program {
        name: name.into(),
        source: Box::new(e),
    })
}

pub(crate) type Source = Box<dyn std::error::Error + Send + Sync>;

fn socket_hook(program: BorrowedFd<'_>, attach_type: u32, cgroup: &File, pin: &Path) -> io::Result<()> {
    if pin.exists() {
        match exchange(pin, program) {
            Ok(()) => return Ok(()),
            // The cgroup that the link was made for is gone (ENOLINK): this is another one of the same name.
            Err(_) => fs::remove_file(pin)?,
        }
    }
    // A link always allows others beside it.
    let link = sys::link_create(program, cgroup.as_raw_fd() as u32, attach_type, 0)?;
    sys::pin(link.as_fd(), pin)
}

pub(crate) fn exchange(pin: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = sys::open_pinned(pin)?;
    sys::link_update(link.as_fd(), program)
}

/// What a device is to us; decides its programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// The host's side of a pod's device.
    Pod,
    /// A device through which other machines are reached.
    Uplink,
}

impl Role {
    fn program(self, side: Side) -> &'static str {
        match (self, side) {
            (Self::Pod, Side::Ingress) => programs::FROM_POD,
            (Self::Pod, Side::Egress) => programs::TO_POD,
            (Self::Uplink, Side::Ingress) => programs::FROM_UPLINK,
            (Self::Uplink, Side::Egress) => programs::TO_UPLINK,
        }
    }
}

/// One direction of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Ingress,
    Egress,
}

impl Side {
    /// The ways back first: no packet is sent to an endpoint before its answer can be shown as the service's.
    pub(crate) const BACK_FIRST: [Self; 2] = [Self::Egress, Self::Ingress];

    /// That of a pin's name.
    fn of_pin(name: &str) -> Option<Self> {
        match name.rsplit_once(':')?.1 {
            "ingress" => Some(Self::Ingress),
            "egress" => Some(Self::Egress),
            _ => None,
        }
    }

    fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// Where the link of a device's side is pinned. A bpffs allows no dots in names, devices do.
    fn pin(self, devices: &Path, device: &str) -> PathBuf {
        let side = match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        };
        devices.join(format!("{}:{side}", device.replace('.', ":")))
    }
}

/// Attaches the programs of `role` to both sides of a device of the calling thread's network namespace.
pub(crate) fn device(ebpf: &mut Ebpf, role: Role, device: &str, pins: &Path) -> Result<(), DatapathError> {
    for side in Side::BACK_FIRST {
        device_side(ebpf, role, device, side, pins)?;
    }
    Ok(())
}

/// The same on one side only.
pub(crate) fn device_side(
    ebpf: &mut Ebpf,
    role: Role,
    device: &str,
    side: Side,
    pins: &Path,
) -> Result<(), DatapathError> {
    let name = role.program(side);
    let program = classifier(ebpf, name)?;
    attach(program, device, side, &side.pin(pins, device)).map_err(|source| DatapathError::Attach {
        program: name.into(),
        to: format!("device {device}"),
        source,
    })
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, DatapathError> {
    let missing = || DatapathError::Missing(name.into());
    ebpf.program_mut(name)
        .ok_or_else(missing)?
        .try_into()
        .map_err(|_| missing())
}

fn attach(program: &mut SchedClassifier, device: &str, side: Side, pin: &Path) -> Result<(), Source> {
    if pin.exists() {
        // A link ends with its device; a new device of the same name needs a new link.
        let fd = program.fd()?;
        if exchange(pin, fd.as_fd()).is_ok() && is_of(pin, device) {
            return Ok(());
        }
        fs::remove_file(pin)?;
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    match program.attach_with_options(device, side.attach_type(), order) {
        Ok(id) => {
            let link: FdLink = program.take_link(id)?.try_into()?;
            link.pin(pin)?;
            Ok(())
        }
        Err(e) if has_tcx() => Err(e.into()),
        Err(_) => attach_filter(program, device, side),
    }
}

/// Whether the kernel has TCX links (Linux 6.6).
fn has_tcx() -> bool {
    aya::util::KernelVersion::current().is_ok_and(|v| v >= aya::util::KernelVersion::new(6, 6, 0))
}

/// Whether the pinned link is that of the device that now has this name.
pub(crate) fn is_of(pin: &Path, device: &str) -> bool {
    let Ok(index) = device_index(device) else {
        return false;
    };
    sys::open_pinned(pin)
        .and_then(|fd| sys::link_device(fd.as_fd()))
        .is_ok_and(|of| of == index)
}

/// The index of a device in the calling thread's network namespace.
pub(crate) fn device_index(device: &str) -> rustix::io::Result<u32> {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    netdevice::name_to_index(socket(AddressFamily::INET, SocketType::DGRAM, None)?, device)
}

/// Before TCX: a filter of fixed place in the clsact qdisc. It stays when we end, and is replaced in place by the next one.
fn attach_filter(program: &mut SchedClassifier, device: &str, side: Side) -> Result<(), Source> {
    // "Exists already" is what the error means on every device but the first time.
    let _ = tc::qdisc_add_clsact(device);
    let place = NlOptions {
        priority: TC_PRIORITY,
        handle: TC_HANDLE,
        classid: None,
    };
    let id = match program.attach_with_options(device, side.attach_type(), TcAttachOptions::Netlink(place)) {
        Ok(id) => id,
        Err(_) => {
            let old =
                SchedClassifierLink::attached(device, side.attach_type(), TC_PRIORITY, TC_HANDLE, None)?;
            program.attach_to_link(old)?
        }
    };
    // Dropping the link would take the filter away.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Detaches the programs of `role` from a device; one that is gone already is no error.
pub(crate) fn detach(role: Role, device: &str, pins: &Path) -> Result<(), DatapathError> {
    for side in [Side::Ingress, Side::Egress] {
        if !unpin(&side.pin(pins, device))? {
            // No link: a filter, or nothing.
            let _ = tc::qdisc_detach_program(device, side.attach_type(), role.program(side));
        }
    }
    Ok(())
}

/// Detaches a pinned link and removes its pin; false if there was none.
pub(crate) fn unpin(pin: &Path) -> Result<bool, DatapathError> {
    match sys::open_pinned(pin) {
        Ok(link) => {
            // A link that ended with its device has nothing to detach from; whatever else goes wrong, the pin goes.
            let _ = sys::link_detach(link.as_fd());
            fs::remove_file(pin).map_err(DatapathError::path(pin))?;
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(DatapathError::path(pin)(e)),
    }
}

/// Exchanges the programs on one side of all devices that an earlier agent attached; links of devices that are gone are removed.
pub(crate) fn adopt_devices(
    ebpf: &mut Ebpf,
    role: Role,
    only: Side,
    pins: &Path,
) -> Result<usize, DatapathError> {
    let mut adopted = 0;
    for entry in fs::read_dir(pins).map_err(DatapathError::path(pins))? {
        let pin = entry.map_err(DatapathError::path(pins))?.path();
        let name = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(side) = Side::of_pin(&name).filter(|side| *side == only) else {
            continue;
        };
        let program = classifier(ebpf, role.program(side))?;
        let fd = program.fd().map_err(|e| DatapathError::Program {
            name: name.clone(),
            source: Box::new(e),
        })?;
        if exchange(&pin, fd.as_fd()).is_ok() {
            adopted += 1;
        } else {
            fs::remove_file(&pin).map_err(DatapathError::path(&pin))?;
        }
    }
    Ok(adopted)
}

/// Whether every socket hook's link is pinned here.
pub(crate) fn is_attached(links: &Path) -> bool {
    SOCKET_HOOKS
        .iter()
        .all(|(name, _)| PinnedLink::from_pin(links.join(name)).is_ok())
}
