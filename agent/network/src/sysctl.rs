//! Kernel network settings of the calling thread's network namespace, `Documentation/networking/ip-sysctl`.
use std::io;
use std::path::PathBuf;

/// Writes `/proc/sys/net/<key>`. A value that already stands is not written again: `/proc/sys` may be read-only there.
///
/// # Errors
/// The error of the file, with its path.
pub fn set(key: &str, value: &str) -> io::Result<()> {
    let path = PathBuf::from("/proc/sys/net").join(key);
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// Like [`set`], for settings that a kernel without IPv6 lacks.
///
/// # Errors
/// As [`set`], but a missing file is fine.
pub fn set_if_there(key: &str, value: &str) -> io::Result<()> {
    match set(key, value) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Lets the namespace pass packets between its devices, for both families.
///
/// # Errors
/// As [`set`].
pub fn forward() -> io::Result<()> {
    set("ipv4/ip_forward", "1")?;
    // Strict reverse-path checks would drop replies that come back over another device than the route says.
    set("ipv4/conf/all/rp_filter", "0")?;
    set("ipv4/conf/default/rp_filter", "0")?;
    set_if_there("ipv6/conf/all/disable_ipv6", "0")?;
    set_if_there("ipv6/conf/default/disable_ipv6", "0")?;
    set_if_there("ipv6/conf/all/forwarding", "1")
}

/// Makes IPv6 addresses of devices that come from now on usable at once: no duplicate detection (each address is given
/// by us, once), no router solicitations.
///
/// # Errors
/// As [`set`].
pub fn no_address_probing() -> io::Result<()> {
    for (key, value) in [("accept_dad", "0"), ("dad_transmits", "0"), ("accept_ra", "0")] {
        set_if_there(&format!("ipv6/conf/default/{key}"), value)?;
    }
    set_if_there("ipv6/conf/all/accept_dad", "0")
}
