//! Sandbox and container configurations: from what `agent-pods` decided to the runtime's messages.

use agent_pods::dns::Resolver;
use agent_pods::model::{Member, PodModel, Role};
use agent_pods::names::{
    ANNOTATION_BACKOFF, ANNOTATION_GRACE, ANNOTATION_HASH, ANNOTATION_RESTART_COUNT,
    ANNOTATION_TERMINATION_PATH, ANNOTATION_TERMINATION_POLICY, LABEL_CONTAINER_NAME, LABEL_POD_NAME,
    LABEL_POD_NAMESPACE, LABEL_POD_UID, log_file,
};
use agent_pods::resources::{self, CPU_PERIOD};
use agent_pods::security::{self, Seccomp, Security};
use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, DnsConfig, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    SecurityProfile, SupplementalGroupsPolicy,
};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Paths a container does not see or cannot write, unless its proc mount is unmasked (the runtimes' common default).
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What a sandbox gets besides what its pod says.
#[derive(Clone, Debug)]
pub struct SandboxInput<'a> {
    /// Attempt number.
    pub attempt: u32,
    /// Host name; empty for host-network pods, which keep the node's.
    pub hostname: String,
    /// Log folder.
    pub logs: &'a str,
    /// Resolver configuration.
    pub resolver: Resolver,
    /// The pod's cgroup.
    pub cgroup: &'a str,
    /// Annotations to add to the pod's own (its addresses, for the CNI plugin).
    pub annotations: &'a BTreeMap<String, String>,
    /// Folder of seccomp profiles.
    pub seccomp: &'a str,
}

/// The configuration of a sandbox.
#[must_use]
pub fn sandbox(pod: &PodModel, input: &SandboxInput) -> PodSandboxConfig {
    let meta = &pod.pod.metadata;
    let own = meta.annotations.clone().unwrap_or_default();
    let mut annotations: HashMap<String, String> = own.into_iter().chain(input.annotations.clone()).collect();
    annotations.insert(
        ANNOTATION_GRACE.to_owned(),
        agent_pods::terminate::spec_grace(pod).to_string(),
    );
    let labels = meta
        .labels
        .clone()
        .unwrap_or_default()
        .into_iter()
        .chain(pod_labels(pod));
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            namespace: pod.namespace().to_owned(),
            attempt: input.attempt,
        }),
        hostname: input.hostname.clone(),
        log_directory: input.logs.to_owned(),
        dns_config: Some(dns(&input.resolver)),
        port_mappings: Vec::new(),
        labels: labels.collect(),
        annotations,
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: input.cgroup.to_owned(),
            security_context: Some(sandbox_security(pod, input)),
            sysctls: sysctls(pod),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

/// Never empty: containerd takes that as the wish for a copy of the machine's `/etc/resolv.conf`, which a pod with the
/// policy `None` must not have, and refuses the sandbox on a machine that has none.
fn dns(resolver: &Resolver) -> DnsConfig {
    let mut options = resolver.options.clone();
    if resolver.servers.is_empty() && resolver.searches.is_empty() && options.is_empty() {
        // What a resolver assumes anyway (resolv.conf(5)).
        options.push("ndots:1".to_owned());
    }
    DnsConfig {
        servers: resolver.servers.clone(),
        searches: resolver.searches.clone(),
        options,
    }
}

fn pod_labels(pod: &PodModel) -> [(String, String); 3] {
    [
        (LABEL_POD_NAME.to_owned(), pod.name().to_owned()),
        (LABEL_POD_NAMESPACE.to_owned(), pod.namespace().to_owned()),
        (LABEL_POD_UID.to_owned(), pod.uid().to_owned()),
    ]
}

fn sysctls(pod: &PodModel) -> HashMap<String, String> {
    let list = pod
        .spec()
        .security_context
        .as_ref()
        .and_then(|c| c.sysctls.clone())
        .unwrap_or_default();
    // Some are written with a slash in place of the dot.
    list.into_iter()
        .map(|s| (s.name.replace('/', "."), s.value))
        .collect()
}

fn namespaces(pod: &PodModel) -> NamespaceOption {
    let spec = pod.spec();
    let node_or = |host: Option<bool>, other| {
        if host == Some(true) {
            NamespaceMode::Node
        } else {
            other
        }
    };
    let shared = match spec.share_process_namespace {
        Some(true) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    NamespaceOption {
        network: node_or(spec.host_network, NamespaceMode::Pod) as i32,
        pid: node_or(spec.host_pid, shared) as i32,
        ipc: node_or(spec.host_ipc, NamespaceMode::Pod) as i32,
        ..NamespaceOption::default()
    }
}

fn sandbox_security(pod: &PodModel, input: &SandboxInput) -> LinuxSandboxSecurityContext {
    let context = pod.spec().security_context.clone().unwrap_or_default();
    let groups = context.supplemental_groups.clone().unwrap_or_default();
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: context.run_as_user.map(|value| Int64Value { value }),
        // The runtime refuses a group without a user.
        run_as_group: context
            .run_as_user
            .and(context.run_as_group)
            .map(|value| Int64Value { value }),
        supplemental_groups: groups.into_iter().chain(context.fs_group).collect(),
        privileged: security::any_privileged(pod),
        seccomp: Some(profile(&security::sandbox_seccomp(pod), input.seccomp)),
        ..LinuxSandboxSecurityContext::default()
    }
}

fn profile(seccomp: &Seccomp, folder: &str) -> SecurityProfile {
    let (kind, localhost_ref) = match seccomp {
        Seccomp::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        Seccomp::Unconfined => (ProfileType::Unconfined, String::new()),
        Seccomp::Localhost(file) => (
            ProfileType::Localhost,
            Path::new(folder).join(file).to_string_lossy().into_owned(),
        ),
    };
    SecurityProfile {
        profile_type: kind as i32,
        localhost_ref,
    }
}

/// What a container gets besides what its specification says.
#[derive(Clone, Debug, Default)]
pub struct ContainerInput<'a> {
    /// Number of this run.
    pub attempt: u32,
    /// Back-off after this run, in seconds.
    pub backoff: u32,
    /// Resolved environment.
    pub env: &'a [(String, String)],
    /// Mounts, all of them.
    pub mounts: Vec<Mount>,
    /// The image's reference in the runtime.
    pub image: &'a str,
    /// The container whose processes an ephemeral one sees.
    pub target: Option<String>,
    /// Bytes of memory of the node.
    pub node_memory: i64,
    /// Folder of seccomp profiles.
    pub seccomp: &'a str,
}

/// The configuration of a container.
#[must_use]
pub fn container(pod: &PodModel, member: &Member, input: &ContainerInput) -> ContainerConfig {
    let spec = &member.spec;
    let (command, args) = agent_pods::env::command(member, input.env);
    let image = spec.image.clone().unwrap_or_default();
    let envs = input.env.iter().map(|(key, value)| KeyValue {
        key: key.clone(),
        value: value.clone(),
    });
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: spec.name.clone(),
            attempt: input.attempt,
        }),
        image: Some(ImageSpec {
            image: input.image.to_owned(),
            user_specified_image: image,
            ..ImageSpec::default()
        }),
        command,
        args,
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        envs: envs.collect(),
        mounts: input.mounts.clone(),
        labels: pod_labels(pod)
            .into_iter()
            .chain([(LABEL_CONTAINER_NAME.to_owned(), spec.name.clone())])
            .collect(),
        annotations: annotations(pod, member, input),
        log_path: log_file(&spec.name, input.attempt),
        stdin: spec.stdin == Some(true),
        stdin_once: spec.stdin_once == Some(true),
        tty: spec.tty == Some(true),
        linux: Some(LinuxContainerConfig {
            resources: Some(limits(pod, member, input.node_memory)),
            security_context: Some(container_security(pod, member, input)),
        }),
        ..ContainerConfig::default()
    }
}

/// Where the container writes its termination message.
#[must_use]
pub fn termination_path(member: &Member) -> String {
    let set = member
        .spec
        .termination_message_path
        .clone()
        .filter(|p| !p.is_empty());
    set.unwrap_or_else(|| "/dev/termination-log".to_owned())
}

fn annotations(pod: &PodModel, member: &Member, input: &ContainerInput) -> HashMap<String, String> {
    let policy = member
        .spec
        .termination_message_policy
        .clone()
        .unwrap_or_else(|| "File".to_owned());
    let list = [
        (ANNOTATION_HASH, format!("{:x}", member.hash)),
        (ANNOTATION_RESTART_COUNT, input.attempt.to_string()),
        (ANNOTATION_TERMINATION_PATH, termination_path(member)),
        (ANNOTATION_TERMINATION_POLICY, policy),
        (
            ANNOTATION_GRACE,
            agent_pods::terminate::spec_grace(pod).to_string(),
        ),
        (ANNOTATION_BACKOFF, input.backoff.to_string()),
    ];
    list.into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn limits(pod: &PodModel, member: &Member, node_memory: i64) -> LinuxContainerResources {
    let limits = resources::container(&member.spec);
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: limits.cpu_quota,
        cpu_shares: limits.cpu_shares,
        memory_limit_in_bytes: limits.memory,
        oom_score_adj: resources::oom_score(pod.spec(), &member.spec, node_memory),
        ..LinuxContainerResources::default()
    }
}

/// The limits of a container that runs: to the runtime zero means no change, and -1 none.
#[must_use]
pub fn new_limits(member: &Member) -> LinuxContainerResources {
    let limits = resources::container(&member.spec);
    let or_none = |value: i64| if value == 0 { -1 } else { value };
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: or_none(limits.cpu_quota),
        cpu_shares: limits.cpu_shares,
        memory_limit_in_bytes: or_none(limits.memory),
        ..LinuxContainerResources::default()
    }
}

fn container_security(
    pod: &PodModel,
    member: &Member,
    input: &ContainerInput,
) -> LinuxContainerSecurityContext {
    let s = security::effective(pod, member);
    let mut namespaces = namespaces(pod);
    if let (Role::Ephemeral, Some(target)) = (member.role, &input.target) {
        namespaces.pid = NamespaceMode::Target as i32;
        namespaces.target_id.clone_from(target);
    }
    let hidden = !s.privileged && !s.unmasked_proc;
    let policy = if s.strict_groups {
        SupplementalGroupsPolicy::Strict
    } else {
        SupplementalGroupsPolicy::Merge
    };
    LinuxContainerSecurityContext {
        capabilities: Some(capabilities(&s)),
        privileged: s.privileged,
        namespace_options: Some(namespaces),
        run_as_user: s.user.map(|value| Int64Value { value }),
        run_as_group: s.group.map(|value| Int64Value { value }),
        readonly_rootfs: s.read_only_root,
        supplemental_groups: s.supplemental_groups.clone(),
        supplemental_groups_policy: policy as i32,
        no_new_privs: s.no_new_privileges,
        masked_paths: list(hidden, &MASKED),
        readonly_paths: list(hidden, &READ_ONLY),
        seccomp: Some(profile(&s.seccomp, input.seccomp)),
        ..LinuxContainerSecurityContext::default()
    }
}

fn list(wanted: bool, paths: &[&str]) -> Vec<String> {
    let paths = if wanted { paths } else { &[] };
    paths.iter().map(|p| (*p).to_owned()).collect()
}

fn capabilities(s: &Security) -> Capability {
    Capability {
        add_capabilities: s.add.clone(),
        drop_capabilities: s.drop.clone(),
        ..Capability::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> PodModel {
        let object = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u", "labels": {"x": "y"}}, "spec": spec});
        PodModel::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_sandbox_carries_labels_addresses_and_its_cgroup() {
        let pod = pod(json!({"containers": []}));
        let more = BTreeMap::from([("ip".to_owned(), "10.0.0.5".to_owned())]);
        let input = SandboxInput {
            attempt: 2,
            cgroup: "/n/podu",
            annotations: &more,
            logs: "/l",
            seccomp: "/s",
            ..make(&more)
        };
        let got = sandbox(&pod, &input);
        assert_eq!(got.labels["x"], "y");
        assert_eq!(got.labels[LABEL_POD_UID], "u");
        assert_eq!(got.annotations["ip"], "10.0.0.5");
        assert_eq!(got.metadata.unwrap().attempt, 2);
        assert_eq!(got.linux.unwrap().cgroup_parent, "/n/podu");
    }

    #[test]
    fn a_pod_on_a_machine_without_a_resolver_is_not_given_a_copy_of_its_missing_file() {
        let none = dns(&Resolver::default());
        assert_eq!(none.options, ["ndots:1"]);
        let own = Resolver {
            servers: vec!["192.0.2.1".into()],
            ..Resolver::default()
        };
        assert!(dns(&own).options.is_empty());
    }

    fn make(annotations: &BTreeMap<String, String>) -> SandboxInput<'_> {
        SandboxInput {
            attempt: 0,
            hostname: "p".into(),
            logs: "",
            resolver: Resolver::default(),
            cgroup: "",
            annotations,
            seccomp: "",
        }
    }

    #[test]
    fn a_limit_that_is_taken_away_is_named_to_the_runtime() {
        let pod = pod(json!({"containers": [{"name": "a", "resources": {"limits": {"memory": "1Mi"}}}]}));
        let got = new_limits(&pod.members[0]);
        assert_eq!((got.cpu_quota, got.memory_limit_in_bytes), (-1, 1 << 20));
    }

    #[test]
    fn host_namespaces_are_the_nodes() {
        let got = namespaces(&pod(
            json!({"hostNetwork": true, "hostPID": true, "containers": []}),
        ));
        assert_eq!(
            (got.network, got.pid),
            (NamespaceMode::Node as i32, NamespaceMode::Node as i32)
        );
        let own = namespaces(&pod(json!({"containers": []})));
        assert_eq!(
            (own.network, own.pid),
            (NamespaceMode::Pod as i32, NamespaceMode::Container as i32)
        );
    }

    #[test]
    fn a_container_carries_its_hash_back_off_and_expanded_command() {
        let pod = pod(json!({"containers": [{"name": "a", "image": "i", "command": ["x", "$(A)"]}]}));
        let env = [("A".to_owned(), "1".to_owned())];
        let input = ContainerInput {
            attempt: 3,
            backoff: 40,
            env: &env,
            ..ContainerInput::default()
        };
        let got = container(&pod, &pod.members[0], &input);
        assert_eq!(got.command, ["x", "1"]);
        assert_eq!(got.annotations[ANNOTATION_BACKOFF], "40");
        assert_eq!(
            got.annotations[ANNOTATION_HASH],
            format!("{:x}", pod.members[0].hash)
        );
        assert_eq!(got.log_path, "a/3.log");
    }

    #[test]
    fn a_privileged_container_hides_no_paths() {
        let pod = pod(
            json!({"containers": [{"name": "a", "securityContext": {"privileged": true}}, {"name": "b"}]}),
        );
        let masked = |n: usize| {
            container_security(&pod, &pod.members[n], &ContainerInput::default())
                .masked_paths
                .len()
        };
        assert_eq!((masked(0), masked(1)), (0, MASKED.len()));
    }
}
