//! What was counted, with the names of those it was counted for.
use crate::counts::{CountPages, Counted};
use crate::dump::Pins;
use crate::error::DatapathError;
use crate::table::Table;
use datapath_abi::{
    Backend, BackendKey, CountNumber, Counts, FrontendKey, FrontendValue, Owner, Proto, SetId, maps,
};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;

/// What became of one service port's traffic in one family, since its set of endpoints came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficRow {
    /// `namespace/service:port`.
    pub owner: String,
    pub set: SetId,
    pub v4: bool,
    pub proto: Proto,
    pub counts: Counts,
}

/// The same of one of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointTrafficRow {
    /// `namespace/service:port`.
    pub owner: String,
    pub set: SetId,
    pub endpoint: SocketAddr,
    pub proto: Proto,
    /// On this node.
    pub local: bool,
    pub counts: Counts,
}

/// Both, by owner; only what was used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub services: Vec<TrafficRow>,
    pub endpoints: Vec<EndpointTrafficRow>,
}

impl Traffic {
    /// What is pinned under `folder`, with or without a running agent.
    pub fn read(folder: &Path) -> Result<Self, DatapathError> {
        let pins = Pins {
            folder: folder.to_owned(),
        };
        let dir = pins.maps();
        if !dir.is_dir() {
            return Err(DatapathError::NotPinned(folder.to_owned()));
        }
        of(&CountPages::open(&dir)?, &dir)
    }
}

/// Where the names are.
pub(crate) struct Names<'a> {
    pub frontends: &'a [(FrontendKey, FrontendValue)],
    pub backends: &'a [(BackendKey, Backend)],
    pub owners: &'a HashMap<u32, Owner>,
}

/// Reads the pinned counts and names them.
pub(crate) fn read(folder: &Path, names: &Names<'_>) -> Result<Traffic, DatapathError> {
    Ok(name(&CountPages::open(folder)?.read()?, names))
}

/// Reads counts and names, and nothing else.
pub(crate) fn of(counts: &CountPages, folder: &Path) -> Result<Traffic, DatapathError> {
    let counted = counts.read()?;
    if counted.is_empty() {
        return Ok(Traffic::default());
    }
    let frontends = Table::open(maps::FRONTENDS, folder)?.entries()?;
    let backends = Table::open(maps::BACKENDS, folder)?.entries()?;
    let owners = Table::<u32, Owner>::open(maps::OWNERS, folder)?.entries()?;
    let names = Names {
        frontends: &frontends,
        backends: &backends,
        owners: &owners.into_iter().collect(),
    };
    Ok(name(&counted, &names))
}

/// A set's family and protocol, and the number under which it is counted itself.
struct Set {
    v4: bool,
    proto: Proto,
    number: CountNumber,
}

fn name(counted: &Counted, names: &Names<'_>) -> Traffic {
    let sets = sets(names.frontends);
    let mut endpoints: HashMap<(SetId, CountNumber), &Backend> = HashMap::new();
    for (key, backend) in names.backends {
        if counted.contains_key(&(key.set, backend.number)) {
            endpoints.insert((key.set, backend.number), backend);
        }
    }
    let mut traffic = Traffic::default();
    for (&(set, number), counts) in counted {
        let (Some(owner), Some(of)) = (names.owners.get(&set.0), sets.get(&set)) else {
            // What is gone is cleared in a moment.
            continue;
        };
        let owner = owner.text().to_owned();
        if number == of.number {
            traffic.services.push(TrafficRow {
                owner,
                set,
                v4: of.v4,
                proto: of.proto,
                counts: *counts,
            });
        } else if let Some(b) = endpoints.get(&(set, number)) {
            traffic.endpoints.push(EndpointTrafficRow {
                owner,
                set,
                endpoint: SocketAddr::new(b.addr.to_ip(), b.port.get()),
                proto: of.proto,
                local: b.is_local(),
                counts: *counts,
            });
        }
    }
    traffic
        .services
        .sort_by(|a, b| (&a.owner, a.set).cmp(&(&b.owner, b.set)));
    let place = |e: &EndpointTrafficRow| (e.owner.clone(), e.set, e.endpoint);
    traffic.endpoints.sort_by_cached_key(place);
    traffic
}

fn sets(frontends: &[(FrontendKey, FrontendValue)]) -> BTreeMap<SetId, Set> {
    let mut sets = BTreeMap::new();
    for (key, value) in frontends.iter().filter(|(k, _)| k.proto != Proto::ANY) {
        let set = Set {
            v4: key.addr.is_v4(),
            proto: key.proto,
            number: value.number,
        };
        sets.insert(value.set, set);
    }
    sets
}
