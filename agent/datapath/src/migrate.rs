//! Flows of an earlier layout, taken along.
//!
//! Connections that were translated per packet go on. What does not go along: the names under which connected sockets show their
//! peers (they lie with the sockets, and user space cannot reach them there), so such a socket shows its endpoint from then on; and the
//! counts of the old maps.
use crate::error::DatapathError;
use crate::table::Table;
use datapath_abi::{Address, Be16, Flow, FlowKey, FlowRole, FlowState, ReplyKey, ReplyValue, SetId, maps};
use std::path::Path;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A flow of layout 1. Its key had the bytes of today's.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Flow1 {
    addr: Address,
    port: Be16,
    state: FlowState,
    zero: u8,
    set: SetId,
    seen: u64,
    packets: u64,
    bytes: u64,
}

impl Flow1 {
    /// The number of its set is not taken along: new sets have numbers of their own.
    fn today(&self, key: &FlowKey) -> Flow {
        let forward = key.changes == FlowKey::DESTINATION;
        Flow {
            addr: self.addr,
            port: self.port,
            state: self.state,
            role: if forward {
                FlowRole::FORWARD
            } else {
                FlowRole::REPLY
            },
            seen: self.seen,
            packets: self.packets,
            bytes: self.bytes,
            ..Flow::default()
        }
    }
}

/// Takes along what stands in maps of layout 1 below `folder`, if there are any, and is not known yet.
pub(crate) fn flows(
    folder: &Path,
    flows: &Table<FlowKey, Flow>,
    replies: &Table<ReplyKey, ReplyValue>,
) -> Result<(), DatapathError> {
    let old = folder.join("v1");
    if !old.join(maps::FLOWS).exists() {
        return Ok(());
    }
    let found = Table::<FlowKey, Flow1>::open(maps::FLOWS, &old)?.entries()?;
    let mut new = Vec::new();
    for (key, flow) in found {
        if flows.get(&key)?.is_none() {
            new.push((key, flow.today(&key)));
        }
    }
    flows.write(&new)?;
    let found = Table::<ReplyKey, ReplyValue>::open(maps::REPLIES, &old)?.entries()?;
    let answers: Vec<_> = found
        .into_iter()
        .map(|(key, value)| {
            (
                key,
                ReplyValue {
                    set: SetId(0),
                    ..value
                },
            )
        })
        .collect();
    replies.write(&answers)?;
    tracing::info!(
        flows = new.len(),
        answers = answers.len(),
        "taken along from layout 1"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_of_layout_1_keeps_where_it_leads_and_how_far_it_is() {
        assert_eq!(size_of::<Flow1>(), 48);
        let old = Flow1 {
            addr: Address::from_v4_word(7),
            port: Be16::new(80),
            state: FlowState::ESTABLISHED,
            zero: 0,
            set: SetId(9),
            seen: 5,
            packets: 2,
            bytes: 120,
        };
        let reply = FlowKey {
            changes: FlowKey::SOURCE,
            ..FlowKey::default()
        };
        let new = old.today(&reply);
        assert_eq!((new.addr, new.port, new.state), (old.addr, old.port, old.state));
        assert_eq!((new.role, new.set), (FlowRole::REPLY, SetId(0)));
        assert_eq!(old.today(&FlowKey::default()).role, FlowRole::FORWARD);
    }
}
