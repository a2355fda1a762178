//! What Skep needs of a kernel is there.

use std::path::Path;

#[test]
fn the_kernel_describes_its_types() {
    assert!(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        "no BTF: the programs cannot be related to this kernel"
    );
}

#[test]
fn the_bpf_filesystem_is_mounted() {
    let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts can be read");
    assert!(
        mounts.lines().any(|l| l.contains(" bpf ")),
        "no bpffs: nothing can be pinned"
    );
}
