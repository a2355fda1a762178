//! The embedded object, and loading it over pinned maps.
use crate::counts;
use crate::error::DatapathError;
use crate::jobs;
use crate::size::Sizes;
use aya::programs::{Program, ProgramType, TestRun as _, TestRunOptions, TestRunResult};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader};
use datapath_abi::{globals, maps};
use std::num::NonZero;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/skep.o"));

/// The object that this build carries; empty where none was built.
pub fn built_in_object() -> &'static [u8] {
    OBJECT
}

/// Loads all programs of an object. Maps that are pinned in `maps_dir` are taken from there, others are made and pinned.
pub(crate) fn load(object: &[u8], maps_dir: &Path, sizes: &Sizes) -> Result<Ebpf, DatapathError> {
    let mut ebpf = load_maps(object, maps_dir, &maps::ALL, sizes)?;
    load_some(&mut ebpf, |_| true)?;
    Ok(ebpf)
}

/// The object with its maps and no program loaded yet. Maps of these names are those pinned in `maps_dir`, or made and pinned;
/// others are made for this process alone.
pub(crate) fn load_maps(
    object: &[u8],
    maps_dir: &Path,
    pinned: &[&str],
    sizes: &Sizes,
) -> Result<Ebpf, DatapathError> {
    if object.is_empty() {
        return Err(DatapathError::NoObject);
    }
    let has_set_retval = u8::from(has_set_retval());
    let shards = counts::shards()?;
    let mut loader = EbpfLoader::new();
    loader
        // Nothing in the object depends on the layout of the kernel's own types.
        .btf(None)
        .override_global(globals::HAS_SET_RETVAL, &has_set_retval, true)
        // Programs of layout 1 have none.
        .override_global(globals::COUNT_SHARDS, &shards, false)
        .map_max_entries(maps::FRONTENDS, sizes.frontends)
        .map_max_entries(maps::BACKENDS, sizes.backends)
        .map_max_entries(maps::OWNERS, sizes.owners)
        .map_max_entries(maps::REPLIES, sizes.replies)
        .map_max_entries(maps::FLOWS, sizes.flows)
        .map_max_entries(maps::MEMBERS, sizes.members)
        .map_max_entries(maps::AFFINITY, sizes.affinity)
        .map_max_entries(maps::MAGLEV, sizes.maglev)
        .map_max_entries(maps::SOURCE_RANGES, sizes.ranges)
        .map_max_entries(maps::FRAGMENTS, sizes.fragments);
    for name in pinned {
        loader.map_pin_path(name, maps_dir.join(name));
    }
    loader.load(object).map_err(|e| DatapathError::Load(Box::new(e)))
}

/// Linux 5.18 lets socket hooks choose the error that the caller sees. Older kernels get another way to refuse at once.
fn has_set_retval() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval).unwrap_or(false)
}

/// Loads the programs whose names are wanted. Several at once, where there are several processors: the time is the verifier's.
pub(crate) fn load_some(ebpf: &mut Ebpf, wanted: impl Fn(&str) -> bool) -> Result<(), DatapathError> {
    let programs = ebpf.programs_mut().filter(|(name, _)| wanted(name));
    let programs: Vec<_> = programs.map(Mutex::new).collect();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    jobs::run(threads.min(programs.len()), programs.len(), |i| {
        let mut program = programs[i].lock().unwrap_or_else(PoisonError::into_inner);
        let (name, program) = &mut *program;
        load_program(name, program)
    })
}

fn load_program(name: &str, program: &mut Program) -> Result<(), DatapathError> {
    let result = match program {
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::SchedClassifier(p) => p.load(),
        Program::Xdp(p) => p.load(),
        _ => return Ok(()),
    };
    result.map_err(|source| DatapathError::Program {
        name: name.to_owned(),
        source: Box::new(source),
    })
}

/// Runs a TC or XDP program once on a frame.
/// With a context, where it is not empty.
pub(crate) fn test_run(
    ebpf: &Ebpf,
    name: &str,
    frame: &[u8],
    context: &[u8],
) -> Result<(u32, Vec<u8>), DatapathError> {
    // An answer may be longer than the frame that caused it.
    let mut out = vec![0; frame.len() + 256];
    let result = run(
        ebpf,
        name,
        TestRunOptions {
            data_in: Some(frame),
            ctx_in: (!context.is_empty()).then_some(context),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        },
    )?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

/// Runs it so many times, each on what the last one left; the time of one.
pub(crate) fn timed_run(
    ebpf: &Ebpf,
    name: &str,
    frame: &[u8],
    context: &[u8],
    runs: u32,
) -> Result<Duration, DatapathError> {
    let result = run(
        ebpf,
        name,
        TestRunOptions {
            data_in: Some(frame),
            ctx_in: (!context.is_empty()).then_some(context),
            repeat: runs,
            ..TestRunOptions::default()
        },
    )?;
    Ok(result.duration)
}

fn run(ebpf: &Ebpf, name: &str, options: TestRunOptions<'_>) -> Result<TestRunResult, DatapathError> {
    let missing = || DatapathError::Missing(name.to_owned());
    let result = match ebpf.program(name).ok_or_else(missing)? {
        Program::SchedClassifier(p) => p.test_run(options),
        Program::Xdp(p) => p.test_run(options),
        _ => return Err(missing()),
    };
    result.map_err(|source| DatapathError::Program {
        name: name.to_owned(),
        source: Box::new(source),
    })
}

/// The context of a test run as if the frame had come in at a device.
pub(crate) fn xdp_context(frame: &[u8], device: u32) -> Vec<u8> {
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let words = [0, frame.len() as u32, 0, device, 0, 0];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
