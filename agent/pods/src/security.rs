//! The security settings a container ends up with: its own over its pod's.

use crate::model::{Member, PodModel};
use k8s_openapi::api::core::v1::{PodSecurityContext, SeccompProfile, SecurityContext};

/// Effective settings of a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Security {
    /// User; the image's when none.
    pub user: Option<i64>,
    /// Primary group.
    pub group: Option<i64>,
    /// Further groups, `fsGroup` included.
    pub supplemental_groups: Vec<i64>,
    /// Whether only these groups count, not those of the image.
    pub strict_groups: bool,
    /// Whether the image's user must not be root.
    pub non_root: bool,
    /// Full access to the host.
    pub privileged: bool,
    /// Root file system read-only.
    pub read_only_root: bool,
    /// Whether a process cannot gain privileges its parent has not.
    pub no_new_privileges: bool,
    /// Capabilities to add.
    pub add: Vec<String>,
    /// Capabilities to drop.
    pub drop: Vec<String>,
    /// System call filter.
    pub seccomp: Seccomp,
    /// Whether `/proc` is left unmasked.
    pub unmasked_proc: bool,
}

/// A system call filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// None: upstream's default without `seccompDefault`.
    #[default]
    Unconfined,
    /// The runtime's own.
    RuntimeDefault,
    /// A profile on the node, below its seccomp folder.
    Localhost(String),
}

/// Why a container may not run as configured; shown as `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    /// Root although forbidden.
    #[error(
        "container has runAsNonRoot and image will run as root; set runAsUser or use an image with a numeric user"
    )]
    Root,
    /// The image names its user by a word, so that nobody can tell.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root; set runAsUser"
    )]
    NamedUser(String),
}

/// Merges pod and container settings.
#[must_use]
pub fn effective(pod: &PodModel, member: &Member) -> Security {
    let empty = (PodSecurityContext::default(), SecurityContext::default());
    let of_pod = pod.spec().security_context.as_ref().unwrap_or(&empty.0);
    let own = member.spec.security_context.as_ref().unwrap_or(&empty.1);
    let privileged = own.privileged == Some(true);
    let capabilities = own.capabilities.clone().unwrap_or_default();
    Security {
        user: own.run_as_user.or(of_pod.run_as_user),
        group: own.run_as_group.or(of_pod.run_as_group),
        supplemental_groups: groups(of_pod),
        strict_groups: of_pod.supplemental_groups_policy.as_deref() == Some("Strict"),
        non_root: own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true),
        privileged,
        read_only_root: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        add: capabilities.add.unwrap_or_default(),
        drop: capabilities.drop.unwrap_or_default(),
        seccomp: match privileged {
            true => Seccomp::Unconfined,
            false => seccomp(own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref())),
        },
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    }
}

/// The sandbox's own system call filter: the pod's.
#[must_use]
pub fn sandbox_seccomp(pod: &PodModel) -> Seccomp {
    seccomp(
        pod.spec()
            .security_context
            .as_ref()
            .and_then(|c| c.seccomp_profile.as_ref()),
    )
}

/// Whether any container is privileged; the sandbox must be then, too.
#[must_use]
pub fn any_privileged(pod: &PodModel) -> bool {
    pod.members.iter().any(|m| {
        m.spec
            .security_context
            .as_ref()
            .is_some_and(|c| c.privileged == Some(true))
    })
}

/// Checks `runAsNonRoot` against what the image says: a numeric user, a name, or nothing (root).
///
/// # Errors
/// When the container would or could run as root.
pub fn verify_non_root(security: &Security, uid: Option<i64>, name: &str) -> Result<(), SecurityError> {
    match (security.non_root, security.user, uid) {
        (false, _, _) => Ok(()),
        (true, Some(0), _) => Err(SecurityError::Root),
        (true, Some(_), _) => Ok(()),
        (true, None, Some(0)) => Err(SecurityError::Root),
        (true, None, Some(_)) => Ok(()),
        (true, None, None) if name.is_empty() => Err(SecurityError::Root),
        (true, None, None) => Err(SecurityError::NamedUser(name.to_owned())),
    }
}

fn groups(pod: &PodSecurityContext) -> Vec<i64> {
    let mut all = pod.supplemental_groups.clone().unwrap_or_default();
    all.extend(pod.fs_group.filter(|g| !all.contains(g)));
    all
}

fn seccomp(profile: Option<&SeccompProfile>) -> Seccomp {
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.clone())) {
        Some(("RuntimeDefault", _)) => Seccomp::RuntimeDefault,
        Some(("Localhost", file)) => Seccomp::Localhost(file.unwrap_or_default()),
        _ => Seccomp::Unconfined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;
    use serde_json::json;

    #[test]
    fn a_containers_settings_win_over_its_pods() {
        let pod = pod(json!({
            "securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4]},
            "containers": [{"name": "a", "securityContext": {
                "runAsUser": 9, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}));
        let got = effective(&pod, &pod.members[0]);
        assert_eq!(
            (got.user, got.group, got.supplemental_groups),
            (Some(9), Some(2), vec![4, 3])
        );
        assert!(got.no_new_privileges && got.drop == ["ALL"]);
    }

    #[test]
    fn a_privileged_container_has_no_system_call_filter() {
        let pod = pod(json!({
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a"}, {"name": "b", "securityContext": {"privileged": true}}]}));
        assert_eq!(effective(&pod, &pod.members[0]).seccomp, Seccomp::RuntimeDefault);
        assert_eq!(effective(&pod, &pod.members[1]).seccomp, Seccomp::Unconfined);
        assert!(any_privileged(&pod));
    }

    #[test]
    fn run_as_non_root_is_checked_against_the_image() {
        let strict = Security {
            non_root: true,
            ..Security::default()
        };
        assert_eq!(verify_non_root(&strict, None, ""), Err(SecurityError::Root));
        assert_eq!(verify_non_root(&strict, Some(5), ""), Ok(()));
        assert!(matches!(
            verify_non_root(&strict, None, "www"),
            Err(SecurityError::NamedUser(_))
        ));
        let set = Security {
            user: Some(7),
            ..strict
        };
        assert_eq!(verify_non_root(&set, Some(0), ""), Ok(()));
    }
}
