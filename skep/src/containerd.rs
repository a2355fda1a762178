//! The container runtime's configuration for one node, for containerd 1.6 to 2.x.
use crate::layout::{Node, PAUSE_IMAGE};
use std::fmt::Write;

/// What the configuration depends on besides the node.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The runtime's version, such as 1.6 or 2.1.
    pub version: (u32, u32),
    /// Where runc lies.
    pub runc: String,
}

/// Reads the version that `containerd --version` prints: `containerd github.com/containerd/containerd v1.6.20 …`.
pub fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some((major, minor))
    })
}

/// The text of `containerd.toml`.
pub fn configuration(node: &Node, facts: &Facts) -> String {
    let mut text = common(node, facts);
    if facts.version.0 >= 2 {
        second(&mut text, node, facts)
    } else {
        first(&mut text, node, facts)
    }
    text
}

fn common(node: &Node, facts: &Facts) -> String {
    let (version, mut off) = if facts.version.0 >= 2 {
        (3, vec!["erofs", "blockfile"])
    } else {
        (2, vec!["aufs"])
    };
    off.extend(["btrfs", "devmapper", "zfs"]);
    let mut disabled: Vec<String> = off
        .iter()
        .map(|s| format!("io.containerd.snapshotter.v1.{s}"))
        .collect();
    disabled.push("io.containerd.tracing.processor.v1.otlp".to_owned());
    disabled.push("io.containerd.internal.v1.tracing".to_owned());
    if facts.version >= (1, 7) {
        // It would touch /var/run/nri, which nodes on one machine share.
        disabled.push("io.containerd.nri.v1.nri".to_owned());
    }
    let state = node.state.join("containerd");
    format!(
        "version = {version}\nroot = {root:?}\nstate = {run:?}\ntemp = {temp:?}\noom_score = 0\ndisabled_plugins = {disabled:?}\n\
         [grpc]\n  address = {socket:?}\n[ttrpc]\n  address = {ttrpc:?}\n[debug]\n  level = \"info\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\n  path = {opt:?}\n",
        root = state.join("root"),
        run = node.run.join("containerd"),
        temp = state.join("tmp"),
        socket = node.cri_socket(),
        ttrpc = node.run.join("containerd.sock.ttrpc"),
        opt = state.join("opt"),
    )
}

/// Options that both generations have, of the runtime itself.
const RUNTIME: &str = "  disable_apparmor = true\n  netns_mounts_under_state_dir = true\n  restrict_oom_score_adj = true\n  \
     disable_hugetlb_controller = true\n  tolerate_missing_hugetlb_controller = true\n";
const STREAMS: &str =
    "  disable_tcp_service = true\n  stream_server_address = \"127.0.0.1\"\n  stream_server_port = \"0\"\n";

fn first(text: &mut String, node: &Node, facts: &Facts) {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "[{cri}]\n  sandbox_image = {PAUSE_IMAGE:?}\n{RUNTIME}{STREAMS}  [{cri}.containerd]\n    snapshotter = \"overlayfs\"\n    \
         default_runtime_name = \"runc\"\n"
    );
    runc(text, cri, node, facts);
    let _ = write!(
        text,
        "  [{cri}.cni]\n    bin_dir = {:?}\n    conf_dir = {:?}\n",
        node.cni_bin(),
        node.cni_conf()
    );
}

fn second(text: &mut String, node: &Node, facts: &Facts) {
    let (images, cri) = (
        "plugins.\"io.containerd.cri.v1.images\"",
        "plugins.\"io.containerd.cri.v1.runtime\"",
    );
    let _ = write!(
        text,
        "[{images}]\n  snapshotter = \"overlayfs\"\n  [{images}.pinned_images]\n    sandbox = {PAUSE_IMAGE:?}\n\
         [{cri}]\n{RUNTIME}  [{cri}.containerd]\n    default_runtime_name = \"runc\"\n"
    );
    runc(text, cri, node, facts);
    let _ = write!(
        text,
        "  [{cri}.cni]\n    bin_dirs = [{:?}]\n    conf_dir = {:?}\n    use_internal_loopback = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n{STREAMS}",
        node.cni_bin(),
        node.cni_conf()
    );
}

fn runc(text: &mut String, cri: &str, node: &Node, facts: &Facts) {
    let _ = write!(
        text,
        "    [{cri}.containerd.runtimes.runc]\n      runtime_type = \"io.containerd.runc.v2\"\n      \
         [{cri}.containerd.runtimes.runc.options]\n        SystemdCgroup = false\n        BinaryName = {:?}\n        \
         Root = {:?}\n",
        facts.runc,
        node.run.join("runc"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::cluster;

    fn text(version: (u32, u32)) -> String {
        configuration(
            &cluster(2).nodes()[1],
            &Facts {
                version,
                runc: "/usr/sbin/runc".to_owned(),
            },
        )
    }

    #[test]
    fn versions_are_read_from_every_distribution() {
        assert_eq!(
            parse_version("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1"),
            Some((1, 6))
        );
        assert_eq!(
            parse_version("containerd github.com/containerd/containerd/v2 v2.1.9 abc"),
            Some((2, 1))
        );
        assert_eq!(parse_version("nonsense"), None);
    }

    #[test]
    fn each_generation_gets_its_own_plugins() {
        assert!(
            text((1, 6)).contains("version = 2")
                && text((1, 6)).contains("sandbox_image = \"skep.local/pause:1\"")
        );
        assert!(
            text((2, 1)).contains("version = 3") && text((2, 1)).contains("io.containerd.cri.v1.runtime")
        );
        assert!(!text((1, 6)).contains("nri") && text((1, 7)).contains("nri"));
    }

    #[test]
    fn nothing_lies_outside_of_the_folders_of_the_node() {
        for version in [(1, 6), (2, 1)] {
            for path in text(version).split('"').filter(|w| w.starts_with('/')) {
                let own = ["/var/lib/skep/a/a-2", "/run/skep/a/a-2", "/usr/sbin/runc"];
                assert!(own.iter().any(|p| path.starts_with(p)), "{path}");
            }
        }
    }
}
