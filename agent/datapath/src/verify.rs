//! Loading every program for no other purpose than to hear the verifier.
use crate::error::DatapathError;
use crate::object;
use crate::size::Sizes;
use std::path::Path;

/// A program that this kernel's verifier accepted.
pub struct VerifiedProgram {
    pub name: String,
    /// Instructions that the verifier walked; kernels before 5.16 do not tell.
    pub instructions: Option<u32>,
}

/// Loads all programs over small maps of their own and lets them go again.
///
/// # Errors
/// As loading for real, with the verifier's own words. Needs root and a bpffs on /sys/fs/bpf.
pub fn verified_programs() -> Result<Vec<VerifiedProgram>, DatapathError> {
    let folder = Path::new("/sys/fs/bpf").join(format!("skep-verify-{}", std::process::id()));
    let made = std::fs::create_dir(&folder).map_err(DatapathError::path(&folder));
    let loaded =
        made.and_then(|()| object::load(object::built_in_object(), &folder, &Sizes::for_memory(1 << 28)));
    // Whatever came of it, the pins go: the maps live as long as the programs that are still held here.
    std::fs::remove_dir_all(&folder).ok();
    let ebpf = loaded?;
    let mut programs: Vec<VerifiedProgram> = ebpf
        .programs()
        .map(|(name, program)| VerifiedProgram {
            name: name.to_owned(),
            instructions: program
                .info()
                .ok()
                .and_then(|info| info.verified_instruction_count()),
        })
        .collect();
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}
