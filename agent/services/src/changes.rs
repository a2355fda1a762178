use datapath_abi::{Address, Backend, BackendKey, Be16, FrontendKey, FrontendValue, Owner, Proto, SetId};

/// What to write, in this order: owners, backends, frontends; then what to delete, in this order: frontends, backends,
/// owners; then whose flows to end.
///
/// New slots stand under a new generation before the frontend names it, and old slots stay until no frontend names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub owners: Vec<(SetId, Owner)>,
    pub backends: Vec<(BackendKey, Backend)>,
    pub frontends: Vec<(FrontendKey, FrontendValue)>,
    pub gone_frontends: Vec<FrontendKey>,
    pub gone_backends: Vec<BackendKey>,
    pub gone_owners: Vec<SetId>,
    /// Endpoints that no longer serve a service: connectionless flows to them end.
    pub ended: Vec<EndedBackend>,
}

/// An endpoint that left a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndedBackend {
    pub set: SetId,
    pub addr: Address,
    pub port: Be16,
    pub proto: Proto,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.entries() == 0 && self.ended.is_empty()
    }

    /// How many map entries are written or deleted.
    pub fn entries(&self) -> usize {
        self.owners.len()
            + self.backends.len()
            + self.frontends.len()
            + self.gone_frontends.len()
            + self.gone_backends.len()
            + self.gone_owners.len()
    }
}
