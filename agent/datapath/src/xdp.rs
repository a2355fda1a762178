//! XDP on uplinks: only where the driver runs the program itself, and only where that is worth it.
//!
//! Generic XDP is never used: it copies each packet for the program first, which costs more than the TC programs that do the
//! same. Where there is no XDP, those do everything.
use crate::attach::{device_index, exchange, is_of, unpin};
use crate::error::DatapathError;
use crate::sys;
use aya::Ebpf;
use aya::programs::Xdp;
use datapath_abi::programs::XDP_UPLINK;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

/// Whether XDP is wanted on an uplink.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XdpChoice {
    /// Where the driver has it and it does not cost more than it saves.
    #[default]
    Auto,
    /// Wherever the driver has it, virtual devices too.
    Always,
    /// Nowhere.
    Never,
}

/// What became of it on one uplink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum XdpMode {
    /// The driver runs the program.
    Native,
    /// The TC programs do everything, for this reason.
    None(String),
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.write_str("native XDP"),
            Self::None(reason) => write!(f, "TC, without XDP: {reason}"),
        }
    }
}

/// Where an uplink's XDP link is pinned.
fn pin(uplinks: &Path, device: &str) -> PathBuf {
    uplinks.join(format!("{}:xdp", device.replace('.', ":")))
}

/// Attaches the XDP program natively, or tells why not.
pub(crate) fn attach(
    ebpf: &mut Ebpf,
    device: &str,
    choice: XdpChoice,
    uplinks: &Path,
) -> Result<XdpMode, DatapathError> {
    let pin = pin(uplinks, device);
    if let Some(reason) = unwanted(device, choice) {
        unpin(&pin)?;
        return Ok(XdpMode::None(reason));
    }
    let Some(program) = program(ebpf) else {
        return Ok(XdpMode::None("this build has no XDP program".into()));
    };
    let fd = program.fd().map_err(|e| DatapathError::Program {
        name: XDP_UPLINK.into(),
        source: Box::new(e),
    })?;
    if pin.exists() {
        if exchange(&pin, fd.as_fd()).is_ok() && is_of(&pin, device) {
            return Ok(XdpMode::Native);
        }
        unpin(&pin)?;
    }
    match create(fd.as_fd(), device, &pin) {
        Ok(()) => Ok(XdpMode::Native),
        Err(e) => Ok(XdpMode::None(why(&e))),
    }
}

fn program(ebpf: &mut Ebpf) -> Option<&mut Xdp> {
    ebpf.program_mut(XDP_UPLINK)?.try_into().ok()
}

fn create(program: BorrowedFd<'_>, device: &str, pin: &Path) -> io::Result<()> {
    let link = sys::xdp_attach_native(program, device_index(device)?)?;
    sys::pin(link.as_fd(), pin)
}

fn unwanted(device: &str, choice: XdpChoice) -> Option<String> {
    match choice {
        XdpChoice::Never => Some("it is switched off".into()),
        XdpChoice::Always => None,
        XdpChoice::Auto => match sys::driver(device).unwrap_or_default().as_str() {
            "veth" => Some("the device is a veth, whose peer would lose its offloads".into()),
            "bridge" | "tun" | "vxlan" | "" => Some("the device is a virtual one".into()),
            _ => None,
        },
    }
}

fn why(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "the device's driver has no native XDP".into(),
        Some(libc::EBUSY | libc::EEXIST) => "another XDP program is on the device".into(),
        // Many drivers want a smaller MTU or spare queues; they tell which in the kernel's log.
        _ => format!("the device's driver refuses native XDP ({e}); the kernel's log may say why"),
    }
}

/// Takes the program off a device; where there is none that is no error.
pub(crate) fn detach(device: &str, uplinks: &Path) -> Result<(), DatapathError> {
    unpin(&pin(uplinks, device)).map(|_| ())
}

/// Exchanges the program of every uplink that an earlier agent attached; links of devices that are gone are removed.
pub(crate) fn adopt(ebpf: &mut Ebpf, uplinks: &Path) -> Result<usize, DatapathError> {
    let mut adopted = 0;
    for entry in fs::read_dir(uplinks).map_err(DatapathError::path(uplinks))? {
        let pin = entry.map_err(DatapathError::path(uplinks))?.path();
        if !pin.to_string_lossy().ends_with(":xdp") {
            continue;
        }
        let exchanged = program(ebpf)
            .and_then(|p| p.fd().ok())
            .is_some_and(|fd| exchange(&pin, fd.as_fd()).is_ok());
        if exchanged {
            adopted += 1;
        } else {
            unpin(&pin)?;
        }
    }
    Ok(adopted)
}
