//! Attaching programs so that they stay, and putting new programs in the place of old ones.
use crate::error::DatapathError;
use crate::sys;
use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, LinkOrder, SchedClassifier, TcAttachType, tc};
use datapath_abi::programs;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Where our filter stands among others of a device, before Linux 6.6.
const TC_PRIORITY: u16 = 1;
const TC_HANDLE: TcHandle = TcHandle::new(0, 1);

/// Attaches every socket hook to the cgroup, or exchanges the program of the link that is pinned already.
pub(crate) fn socket_hooks(ebpf: &mut Ebpf, cgroup: &Path, links: &Path) -> Result<(), DatapathError> {
    let folder = File::open(cgroup).map_err(DatapathError::path(cgroup))?;
    for name in programs::SOCKET_HOOKS {
        let program: &mut CgroupSockAddr = ebpf
            .program_mut(name)
            .ok_or_else(|| DatapathError::Missing(name.into()))?
            .try_into()
            .map_err(|_| DatapathError::Missing(name.into()))?;
        socket_hook(program, &folder, &links.join(name)).map_err(|source| DatapathError::Attach {
            program: name.into(),
            to: cgroup.display().to_string(),
            source,
        })?;
    }
    Ok(())
}

type Source = Box<dyn std::error::Error + Send + Sync>;

fn socket_hook(program: &mut CgroupSockAddr, cgroup: &File, pin: &Path) -> Result<(), Source> {
    if pin.exists() {
        match exchange(pin, program.fd()?.as_fd()) {
            Ok(()) => return Ok(()),
            // The cgroup that the link was made for is gone (ENOLINK): this is another one of the same name.
            Err(_) => fs::remove_file(pin)?,
        }
    }
    // A link always allows others beside it, and takes no flag that says so.
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin)?;
    Ok(())
}

fn exchange(pin: &Path, program: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    let link = sys::open_pinned(pin)?;
    sys::link_update(link.as_fd(), program)
}

/// One direction of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Ingress,
    Egress,
}

impl Side {
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

/// Attaches `program` to one side of a device of the calling thread's network namespace.
pub(crate) fn device(
    ebpf: &mut Ebpf,
    program: &str,
    device: &str,
    side: Side,
    devices: &Path,
) -> Result<(), DatapathError> {
    let name = program;
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .ok_or_else(|| DatapathError::Missing(name.into()))?
        .try_into()
        .map_err(|_| DatapathError::Missing(name.into()))?;
    attach(program, device, side, &side.pin(devices, device)).map_err(|source| DatapathError::Attach {
        program: name.into(),
        to: format!("device {device}"),
        source,
    })
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
fn is_of(pin: &Path, device: &str) -> bool {
    let Ok(index) = device_index(device) else {
        return false;
    };
    sys::open_pinned(pin)
        .and_then(|fd| sys::tcx_device(fd.as_fd()))
        .is_ok_and(|of| of == index)
}

/// The index of a device in the calling thread's network namespace.
fn device_index(device: &str) -> rustix::io::Result<u32> {
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

/// Detaches our programs from a device; one that is gone already is no error.
pub(crate) fn detach(device: &str, devices: &Path) -> Result<(), DatapathError> {
    for (side, program) in [
        (Side::Ingress, programs::FROM_POD),
        (Side::Egress, programs::TO_POD),
    ] {
        let pin = side.pin(devices, device);
        match sys::open_pinned(&pin) {
            Ok(link) => {
                // A link that ended with its device has nothing to detach from; whatever else goes wrong, the pin goes.
                let _ = sys::link_detach(link.as_fd());
                fs::remove_file(&pin).map_err(DatapathError::path(&pin))?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // No link: a filter, or nothing.
                let _ = tc::qdisc_detach_program(device, side.attach_type(), program);
            }
            Err(e) => return Err(DatapathError::path(&pin)(e)),
        }
    }
    Ok(())
}

/// Exchanges the programs of all devices that an earlier agent attached; links of devices that are gone are removed.
pub(crate) fn adopt_devices(ebpf: &mut Ebpf, devices: &Path) -> Result<usize, DatapathError> {
    let mut adopted = 0;
    for entry in fs::read_dir(devices).map_err(DatapathError::path(devices))? {
        let pin = entry.map_err(DatapathError::path(devices))?.path();
        let name = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let program = if name.ends_with(":ingress") {
            programs::FROM_POD
        } else {
            programs::TO_POD
        };
        let program: &mut SchedClassifier = ebpf
            .program_mut(program)
            .ok_or_else(|| DatapathError::Missing(program.into()))?
            .try_into()
            .map_err(|_| DatapathError::Missing(program.into()))?;
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

/// Whether a link is pinned here.
pub(crate) fn is_attached(links: &Path) -> bool {
    programs::SOCKET_HOOKS
        .iter()
        .all(|name| PinnedLink::from_pin(links.join(name)).is_ok())
}
