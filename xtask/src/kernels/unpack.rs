//! From Debian packages to what a virtual machine boots: the uncompressed kernel and the modules it needs, in order.

use super::{Kernel, fetch};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What the tests need that is a module in this flavour; what they depend on is added.
const MODULES: &[&str] = &[
    "veth",
    "sch_ingress",
    "cls_bpf",
    "overlay",
    "bridge",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "nf_conntrack",
    "dummy",
    "sctp",
];

/// A kernel ready to boot.
pub struct Bootable {
    pub vmlinux: PathBuf,
    /// Modules in load order, decompressed.
    pub modules: Vec<PathBuf>,
}

/// Unpacks once and keeps the result beside the cached packages.
pub fn ensure(kernel: &Kernel) -> Result<Bootable> {
    let pin: String = kernel
        .packages
        .iter()
        .map(|p| &p.sha256[..8])
        .collect::<Vec<_>>()
        .join("-");
    let dir = fetch::cache_dir().join(format!("{}-{pin}-2", kernel.label));
    if !dir.join("complete").exists() {
        std::fs::remove_dir_all(&dir).ok();
        std::fs::create_dir_all(dir.join("modules"))?;
        unpack(kernel, &dir).with_context(|| format!("kernel {}", kernel.label))?;
        std::fs::write(dir.join("complete"), "")?;
    }
    let mut modules: Vec<PathBuf> = std::fs::read_dir(dir.join("modules"))?
        .map(|e| Ok(e?.path()))
        .collect::<Result<_>>()?;
    modules.sort();
    Ok(Bootable {
        vmlinux: dir.join("vmlinux"),
        modules,
    })
}

fn unpack(kernel: &Kernel, dir: &Path) -> Result<()> {
    let mut modules = BTreeMap::<String, Vec<u8>>::new();
    let mut image = None;
    for package in &kernel.packages {
        let deb = std::fs::read(fetch::package(kernel, package)?)?;
        let mut tar = tar::Archive::new(data_member(&deb)?);
        for entry in tar.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            let name = path.rsplit('/').next().unwrap_or_default().to_string();
            if name.starts_with("vmlinuz") && entry.header().entry_type().is_file() {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                image = Some(bytes);
            } else if let Some((stem, compressed)) = module_name(&name) {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                modules.insert(stem, if compressed { unxz(&bytes)? } else { bytes });
            }
        }
    }
    let image = image.context("no vmlinuz in the pinned packages")?;
    std::fs::write(dir.join("vmlinux"), vmlinux(&image)?)?;
    for (number, name) in load_order(&modules)?.iter().enumerate() {
        std::fs::write(dir.join(format!("modules/{number:02}-{name}.ko")), &modules[name])?;
    }
    Ok(())
}

/// `nf_conntrack.ko.xz` → (`nf_conntrack`, compressed).
fn module_name(file: &str) -> Option<(String, bool)> {
    let (stem, compressed) = match file.strip_suffix(".ko.xz") {
        Some(stem) => (stem, true),
        None => (file.strip_suffix(".ko")?, false),
    };
    Some((stem.replace('-', "_"), compressed))
}

/// The `data.tar.*` member of a `.deb` (an `ar` archive: 60-byte headers, even offsets), decompressed as a stream.
fn data_member(deb: &[u8]) -> Result<Box<dyn Read + '_>> {
    let mut rest = deb.strip_prefix(b"!<arch>\n").context("not a Debian package")?;
    while rest.len() > 60 {
        let name = String::from_utf8_lossy(&rest[..16])
            .trim_end()
            .trim_end_matches('/')
            .to_string();
        let size: usize = String::from_utf8_lossy(&rest[48..58])
            .trim()
            .parse()
            .context("broken ar header")?;
        let body = rest.get(60..60 + size).context("the package is cut short")?;
        match name.as_str() {
            "data.tar.xz" => return Ok(Box::new(xz2::read::XzDecoder::new(body))),
            "data.tar.zst" => return Ok(Box::new(zstd::Decoder::new(body)?)),
            "data.tar" => return Ok(Box::new(body)),
            _ => rest = rest.get(60 + size + size % 2..).unwrap_or_default(),
        }
    }
    bail!("no data member in the package")
}

fn unxz(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    xz2::read::XzDecoder::new(bytes).read_to_end(&mut out)?;
    Ok(out)
}

/// The ELF kernel inside a bzImage. Booting it saves a second or two of emulated decompression.
///
/// The boot protocol gives the payload's place: `setup_sects` at 0x1f1, `payload_offset` and `_length` at 0x248.
fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes: [u8; 4] = image
            .get(at..at + 4)
            .context("the kernel image is cut short")?
            .try_into()?;
        Ok(u32::from_le_bytes(bytes) as usize)
    };
    let setup = (usize::from(*image.get(0x1f1).context("the kernel image is cut short")?) + 1) * 512;
    let start = setup + word(0x248)?;
    let payload = image
        .get(start..start + word(0x24c)?)
        .context("the kernel image is cut short")?;
    match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            // The payload's last four bytes are its decompressed size, behind the frame.
            let mut out = Vec::new();
            zstd::Decoder::new(payload)?
                .single_frame()
                .read_to_end(&mut out)?;
            Ok(out)
        }
        [0x02, 0x21, 0x4c, 0x18, rest @ ..] => lz4_legacy(rest),
        [0xfd, b'7', b'z', ..] => unxz(payload),
        _ => bail!(
            "the kernel is compressed in a way that is not known here: {:02x?}",
            &payload[..4]
        ),
    }
}

/// The legacy lz4 frame: blocks of at most 8 MiB, each after its length.
fn lz4_legacy(mut rest: &[u8]) -> Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut out = Vec::new();
    while rest.len() > 4 {
        let size = u32::from_le_bytes(rest[..4].try_into()?) as usize;
        let Some(block) = rest.get(4..4 + size) else { break };
        out.extend(lz4_flex::block::decompress(block, BLOCK).context("broken lz4 block")?);
        rest = &rest[4 + size..];
    }
    Ok(out)
}

/// Wanted modules and what they depend on, each after its dependencies.
fn load_order(modules: &BTreeMap<String, Vec<u8>>) -> Result<Vec<String>> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in MODULES {
        visit(name, modules, &mut seen, &mut order);
    }
    Ok(order)
}

fn visit(
    name: &str,
    modules: &BTreeMap<String, Vec<u8>>,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<String>,
) {
    // What is not there as a module is built in.
    let Some(module) = modules.get(name) else { return };
    if !seen.insert(name.to_string()) {
        return;
    }
    for dependency in dependencies(module) {
        visit(&dependency, modules, seen, order);
    }
    order.push(name.to_string());
}

/// The `depends=` entry of the module's `.modinfo` section.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|w| w == key) else {
        return Vec::new();
    };
    let value = module[at + key.len()..]
        .split(|b| *b == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|d| !d.is_empty())
        .map(|d| d.replace('-', "_"))
        .collect()
}
