//! What the programs remember of packets, as a whole: tests and measurements read it and put it there.
use crate::datapath::Datapath;
use crate::error::DatapathError;
use crate::table::Table;
use datapath_abi::{Affinity, AffinityKey, Flow, FlowKey, FragmentKey, FragmentPorts, maps};

/// Flows, ports of fragments, and endpoints that clients keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowMemory {
    pub flows: Vec<(FlowKey, Flow)>,
    pub fragments: Vec<(FragmentKey, FragmentPorts)>,
    pub affinity: Vec<(AffinityKey, Affinity)>,
}

impl Datapath {
    /// Everything that is remembered of packets.
    ///
    /// # Errors
    /// The kernel refused to read a map.
    pub fn flow_memory(&self) -> Result<FlowMemory, DatapathError> {
        let dir = self.maps_dir();
        Ok(FlowMemory {
            flows: Table::open(maps::FLOWS, &dir)?.entries()?,
            fragments: Table::open(maps::FRAGMENTS, &dir)?.entries()?,
            affinity: Table::open(maps::AFFINITY, &dir)?.entries()?,
        })
    }

    /// Writes entries in the place of those with the same keys; others stay.
    ///
    /// # Errors
    /// The kernel refused to write a map.
    pub fn set_flow_memory(&self, memory: &FlowMemory) -> Result<(), DatapathError> {
        let dir = self.maps_dir();
        Table::open(maps::FLOWS, &dir)?.write(&memory.flows)?;
        Table::open(maps::FRAGMENTS, &dir)?.write(&memory.fragments)?;
        Table::open(maps::AFFINITY, &dir)?.write(&memory.affinity)
    }

    /// Forgets everything of packets: connections that are translated per packet break.
    ///
    /// # Errors
    /// The kernel refused to clear a map.
    pub fn forget_flows(&self) -> Result<(), DatapathError> {
        let memory = self.flow_memory()?;
        let dir = self.maps_dir();
        let keys: Vec<FlowKey> = memory.flows.iter().map(|(key, _)| *key).collect();
        Table::<_, Flow>::open(maps::FLOWS, &dir)?.delete(&keys)?;
        let keys: Vec<FragmentKey> = memory.fragments.iter().map(|(key, _)| *key).collect();
        Table::<_, FragmentPorts>::open(maps::FRAGMENTS, &dir)?.delete(&keys)?;
        let keys: Vec<AffinityKey> = memory.affinity.iter().map(|(key, _)| *key).collect();
        Table::<_, Affinity>::open(maps::AFFINITY, &dir)?.delete(&keys)
    }
}
