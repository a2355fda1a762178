//! Who asks.

use std::collections::BTreeMap;

/// The group of administrators: allowed everything, before any rule is looked at.
pub const MASTERS: &str = "system:masters";
/// The group of every caller whose identity was proven.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of callers without credentials.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user name of callers without credentials.
pub const ANONYMOUS: &str = "system:anonymous";

/// A user as authentication found it (`authentication.k8s.io/v1` `UserInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User name.
    pub user: String,
    /// Unique id of the user, empty when the credential has none.
    pub uid: String,
    /// Groups the user is in.
    pub groups: Vec<String>,
    /// Further facts about the credential, for example which pod a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A user with these groups; `system:authenticated` is added.
    #[must_use]
    pub fn new(user: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
        if !groups.iter().any(|g| g == AUTHENTICATED) {
            groups.push(AUTHENTICATED.into());
        }
        Self {
            user: user.into(),
            groups,
            ..Self::default()
        }
    }

    /// The administrator: `kubernetes-admin` in `system:masters`.
    #[must_use]
    pub fn admin() -> Self {
        Self::new("kubernetes-admin", &[MASTERS])
    }

    /// A caller without credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            user: ANONYMOUS.into(),
            groups: vec![UNAUTHENTICATED.into()],
            ..Self::default()
        }
    }

    /// Whether the caller has no credentials.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.user == ANONYMOUS
    }

    /// Whether the user is in this group.
    #[must_use]
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node's name when this is a kubelet (`system:node:NAME` in `system:nodes`).
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        self.in_group("system:nodes")
            .then(|| self.user.strip_prefix("system:node:"))
            .flatten()
    }
}
