use datapath_abi::{
    Address, Backend, BackendKey, Be16, CountNumber, FrontendKey, FrontendValue, Maglev, MaglevKey, Member,
    MemberKey, Owner, Proto, SetId, SourceRangeKey,
};

/// What to write, in this order: owners, backends, members, Maglev tables, source ranges, frontends; then what to delete, in
/// this order: frontends, source ranges, Maglev tables, members, backends, owners; then whose flows to end.
///
/// Everything that a frontend leads to stands under a new generation before the frontend names it, and what it led to stays
/// until no frontend names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub owners: Vec<(SetId, Owner)>,
    pub backends: Vec<(BackendKey, Backend)>,
    pub members: Vec<(MemberKey, Member)>,
    pub maglev: Vec<(MaglevKey, Maglev)>,
    /// The value is 1 for each.
    pub ranges: Vec<SourceRangeKey>,
    pub frontends: Vec<(FrontendKey, FrontendValue)>,
    pub gone_frontends: Vec<FrontendKey>,
    pub gone_ranges: Vec<SourceRangeKey>,
    pub gone_maglev: Vec<MaglevKey>,
    pub gone_members: Vec<MemberKey>,
    pub gone_backends: Vec<BackendKey>,
    pub gone_owners: Vec<SetId>,
    /// All count numbers in use are below; their places are there before any entry names them.
    pub numbers: u32,
    /// What is counted from this number on is cleared before anything else; set once after a start.
    pub unused_numbers: Option<CountNumber>,
    /// What is counted under these numbers is cleared in the end: they are given to others from the next plan on.
    pub gone_numbers: Vec<CountNumber>,
    /// Endpoints that no longer serve a service: connectionless flows to them end.
    pub ended: Vec<EndedBackend>,
    /// Addresses and ports that lead to a set no longer, while the set or its endpoints may go on: connectionless flows that
    /// came by them end.
    pub ended_fronts: Vec<EndedFront>,
}

/// An endpoint that left a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndedBackend {
    pub set: SetId,
    pub addr: Address,
    pub port: Be16,
    pub proto: Proto,
}

/// A front that left a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndedFront {
    pub set: SetId,
    pub addr: Address,
    pub port: Be16,
    pub proto: Proto,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.entries() == 0
            && self.ended.is_empty()
            && self.ended_fronts.is_empty()
            && self.gone_numbers.is_empty()
    }

    /// How many map entries are written or deleted.
    pub fn entries(&self) -> usize {
        self.written() + self.deleted()
    }

    fn written(&self) -> usize {
        self.owners.len()
            + self.backends.len()
            + self.members.len()
            + self.maglev.len()
            + self.ranges.len()
            + self.frontends.len()
    }

    fn deleted(&self) -> usize {
        self.gone_frontends.len()
            + self.gone_ranges.len()
            + self.gone_maglev.len()
            + self.gone_members.len()
            + self.gone_backends.len()
            + self.gone_owners.len()
    }
}
