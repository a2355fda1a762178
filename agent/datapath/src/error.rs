use std::io;
use std::path::PathBuf;

/// Why the data path could not be loaded, attached, written or read.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error("this binary was built without eBPF objects: run `cargo xtask build-ebpf`, then build it again")]
    NoObject,
    #[error("{0} is not on a BPF file system: mount one there (`mount -t bpf bpf <folder>`)")]
    NotBpffs(PathBuf),
    #[error("cannot use {path}")]
    Path { path: PathBuf, source: io::Error },
    #[error("the eBPF object cannot be loaded; the kernel has to be 5.10 or newer, with BTF")]
    Load(#[source] Box<aya::EbpfError>),
    #[error("program {name} is refused by the kernel")]
    Program {
        name: String,
        source: Box<aya::programs::ProgramError>,
    },
    #[error("the eBPF object has no {0}: it was built from other sources than this binary")]
    Missing(String),
    #[error("program {program} cannot be attached to {to}")]
    Attach {
        program: String,
        to: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "map {0} is full ({1} entries): this node serves fewer services than there are; give it more memory"
    )]
    Full(&'static str, u32),
    #[error("map {map} cannot be {verb}")]
    Map {
        map: &'static str,
        verb: &'static str,
        source: io::Error,
    },
    #[error(
        "the pinned maps have layout {found}, this binary has {}",
        datapath_abi::LAYOUT
    )]
    Layout { found: u32 },
    #[error(
        "program {0} answers a packet with verdict {1}, which none of ours does: it was built from other sources"
    )]
    Verdict(&'static str, u32),
    #[error(
        "another process serves services with what is pinned at {0}: stop it first, or wait until it has ended"
    )]
    InUse(PathBuf),
    #[error("no data path is pinned at {0}: is an agent running on this node?")]
    NotPinned(PathBuf),
}

impl DatapathError {
    pub(crate) fn path(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { path, source }
    }
}
