use datapath_abi::{Address, Be16, SetId};
use std::collections::HashSet;

/// What flows may lead to and come by. Whatever else is remembered of flows is of an endpoint, or of an address, that is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Endpoints of each set: those that get new connections, and those that still serve the ones they have.
    pub endpoints: HashSet<(SetId, Address, Be16)>,
    /// Addresses and ports that lead to each set.
    pub fronts: HashSet<(SetId, Address, Be16)>,
}
