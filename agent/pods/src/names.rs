//! Names and labels under which a pod's things are known to the runtime and on disk; upstream's, so that tools find them.

/// Label of sandboxes and containers: the pod's name.
pub const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
/// Label of sandboxes and containers: the pod's namespace.
pub const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label of sandboxes and containers: the pod's uid.
pub const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
/// Label of containers: the container's name in the pod.
pub const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation of containers: hash of what makes a running instance stale.
pub const ANNOTATION_HASH: &str = "io.kubernetes.container.hash";
/// Annotation of containers: how often it was restarted before.
pub const ANNOTATION_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation of containers: where the termination message is, inside.
pub const ANNOTATION_TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation of containers: the termination message policy.
pub const ANNOTATION_TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation of containers and sandboxes: the pod's grace period in seconds, for when the object is gone.
pub const ANNOTATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Annotation of containers: seconds to wait after this instance ended before the next one starts. It makes the
/// crash loop's back-off survive the agent.
pub const ANNOTATION_BACKOFF: &str = "skep.io/restart-backoff-seconds";

/// FNV-1a over the parts of a container that, when changed in place, ask for a new instance.
#[must_use]
pub fn container_hash(name: &str, image: &str) -> u64 {
    let bytes = name.bytes().chain([0]).chain(image.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The folder of a pod's logs below the log root: `<namespace>_<name>_<uid>`.
#[must_use]
pub fn log_folder(namespace: &str, name: &str, uid: &str) -> String {
    format!("{namespace}_{name}_{uid}")
}

/// A container's log below its pod's log folder: `<container>/<attempt>.log`.
#[must_use]
pub fn log_file(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// The pod's host name: `spec.hostname`, else its name, cut to the 63 bytes of a DNS label.
#[must_use]
pub fn hostname(spec_hostname: Option<&str>, pod_name: &str) -> String {
    let name = spec_hostname.filter(|h| !h.is_empty()).unwrap_or(pod_name);
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_changes_with_the_image_and_not_between_calls() {
        assert_eq!(container_hash("a", "x:1"), container_hash("a", "x:1"));
        assert_ne!(container_hash("a", "x:1"), container_hash("a", "x:2"));
        assert_ne!(container_hash("ab", "c"), container_hash("a", "bc"));
    }

    #[test]
    fn a_long_pod_name_becomes_a_host_name_of_63_bytes_without_a_trailing_dash() {
        let name = format!("{}-tail", "a".repeat(62));
        assert_eq!(hostname(None, &name), "a".repeat(62));
        assert_eq!(hostname(Some("set"), &name), "set");
    }
}
