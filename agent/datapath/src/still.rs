//! The tables of a node as they stand at one moment, read from the pins: for whoever explains, with or without an agent.
use crate::datapath::since_boot;
use crate::dump::Pins;
use crate::error::DatapathError;
use crate::table::{Single, Table};
use agent_services::Existing;
use datapath_abi::{
    Affinity, AffinityKey, Backend, BackendKey, FrontendKey, FrontendValue, LAYOUT, Maglev, MaglevKey,
    Member, MemberKey, Owner, SetId, Settings, SourceRangeKey, maps,
};
use std::path::Path;

/// What stands in the maps that decide about new connections.
#[derive(Clone, Debug)]
pub struct Still {
    pub settings: Settings,
    pub maps: Existing,
    pub affinity: Vec<(AffinityKey, Affinity)>,
    /// When, in nanoseconds since boot.
    pub now: u64,
}

impl Still {
    /// Reads what is pinned under `folder`.
    pub fn read(folder: &Path) -> Result<Self, DatapathError> {
        let dir = Pins {
            folder: folder.to_owned(),
        }
        .maps();
        if !dir.is_dir() {
            return Err(DatapathError::NotPinned(folder.to_owned()));
        }
        let settings: Settings = Single::open(maps::SETTINGS, &dir)?.get()?;
        if settings.layout != LAYOUT {
            return Err(DatapathError::Layout {
                found: settings.layout,
            });
        }
        // The ways in are read first: a slot that a flip removes meanwhile is seen as missing, never as another's.
        let frontends = Table::<FrontendKey, FrontendValue>::open(maps::FRONTENDS, &dir)?.entries()?;
        let backends = Table::<BackendKey, Backend>::open(maps::BACKENDS, &dir)?.entries()?;
        let members = Table::<MemberKey, Member>::open(maps::MEMBERS, &dir)?.entries()?;
        let maglev = Table::<MaglevKey, Maglev>::open(maps::MAGLEV, &dir)?.entries()?;
        let ranges = Table::<SourceRangeKey, u8>::open(maps::SOURCE_RANGES, &dir)?.entries()?;
        let owners = Table::<u32, Owner>::open(maps::OWNERS, &dir)?.entries()?;
        Ok(Self {
            settings,
            maps: Existing {
                frontends: frontends.into_iter().collect(),
                backends: backends.into_iter().collect(),
                members: members.into_iter().collect(),
                maglev: maglev.into_iter().collect(),
                ranges: ranges.into_iter().map(|(key, _)| key).collect(),
                owners: owners.into_iter().map(|(id, o)| (SetId(id), o)).collect(),
            },
            affinity: Table::open(maps::AFFINITY, &dir)?.entries()?,
            now: u64::try_from(since_boot().as_nanos()).unwrap_or(u64::MAX),
        })
    }
}
