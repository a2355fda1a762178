//! A pod as the planner reads it: the object plus the few facts derived from it once per version.

use crate::names::container_hash;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};

/// The role a container plays in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to completion before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: runs beside the regular ones and is stopped after them.
    Sidecar,
    /// An ordinary container.
    Regular,
    /// Added for debugging; never restarted.
    Ephemeral,
}

/// One container of the pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Its role.
    pub role: Role,
    /// Its specification (ephemeral containers are given the same shape).
    pub spec: Container,
    /// For ephemeral containers: whose process namespace it joins.
    pub target: Option<String>,
    /// Changes when the running instance must be replaced.
    pub hash: u64,
}

/// When a container is started again after it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Always.
    Always,
    /// Only after a non-zero exit.
    OnFailure,
    /// Never.
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// Whether a container that ended with `code` is started again.
    #[must_use]
    pub fn restarts(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// A pod prepared for planning. Build it once per received version.
#[derive(Clone, Debug)]
pub struct PodModel {
    /// The object as received.
    pub pod: Pod,
    /// All containers: init and sidecar in their order, then regular, then ephemeral.
    pub members: Vec<Member>,
    /// The pod's restart policy.
    pub restart_policy: RestartPolicy,
}

impl PodModel {
    /// Prepares `pod`.
    #[must_use]
    pub fn new(pod: Pod) -> Self {
        let members = pod.spec.as_ref().map(members).unwrap_or_default();
        let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
        let restart_policy = RestartPolicy::parse(policy);
        Self {
            pod,
            members,
            restart_policy,
        }
    }

    /// The pod's namespace, empty when the object carries none.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The pod's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    /// The pod's unique identifier.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The specification; an empty one when the object has none.
    #[must_use]
    pub fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }

    /// The status as the API server has it.
    #[must_use]
    pub fn reported(&self) -> Option<&PodStatus> {
        self.pod.status.as_ref()
    }

    /// The reported phase, empty when none is.
    #[must_use]
    pub fn reported_phase(&self) -> &str {
        self.reported()
            .and_then(|s| s.phase.as_deref())
            .unwrap_or_default()
    }

    /// Whether the pod shares the node's network namespace.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.spec().host_network == Some(true)
    }

    /// Whether deletion was asked for.
    #[must_use]
    pub fn deleting(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Members of one role.
    pub fn with_role(&self, role: Role) -> impl DoubleEndedIterator<Item = &Member> {
        self.members.iter().filter(move |m| m.role == role)
    }

    /// The member named `name`.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.spec.name == name)
    }

    /// The restart policy that holds for `member`: a container may override the pod's.
    #[must_use]
    pub fn policy_of(&self, member: &Member) -> RestartPolicy {
        match member.role {
            Role::Sidecar => RestartPolicy::Always,
            Role::Ephemeral => RestartPolicy::Never,
            Role::Init | Role::Regular => match member.spec.restart_policy.as_deref() {
                Some(own) => RestartPolicy::parse(Some(own)),
                None if member.role == Role::Init && self.restart_policy == RestartPolicy::Always => {
                    RestartPolicy::OnFailure
                }
                None => self.restart_policy,
            },
        }
    }
}

fn members(spec: &PodSpec) -> Vec<Member> {
    let init = spec.init_containers.iter().flatten().map(|c| {
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        member(if sidecar { Role::Sidecar } else { Role::Init }, c.clone(), None)
    });
    let regular = spec
        .containers
        .iter()
        .map(|c| member(Role::Regular, c.clone(), None));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|e| {
        // The two types differ by this one field, so the JSON form of one reads as the other.
        let value = serde_json::to_value(e).unwrap_or_default();
        let spec = serde_json::from_value(value).unwrap_or_default();
        member(Role::Ephemeral, spec, e.target_container_name.clone())
    });
    init.chain(regular).chain(ephemeral).collect()
}

fn member(role: Role, spec: Container, target: Option<String>) -> Member {
    let hash = container_hash(&spec.name, spec.image.as_deref().unwrap_or_default());
    Member {
        role,
        spec,
        target,
        hash,
    }
}
