//! The flow table as people see it: one row for each connection, whatever number of entries it has.
use crate::datapath::since_boot;
use crate::dump::Pins;
use crate::error::DatapathError;
use crate::table::Table;
use datapath_abi::{Address, Be16, Flow, FlowKey, FlowRole, FlowState, Owner, Proto, maps};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// One connection, or exchange of datagrams, that is translated per packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionRow {
    /// `namespace/service:port`.
    pub owner: String,
    pub proto: Proto,
    pub client: SocketAddr,
    /// What the client addressed.
    pub front: SocketAddr,
    pub endpoint: SocketAddr,
    /// Under which address of this node the endpoint sees the client, if not under its own.
    pub masquerade: Option<SocketAddr>,
    pub state: &'static str,
    /// Since the last packet of either way.
    pub idle: Duration,
    /// Towards the endpoint.
    pub packets: u64,
    pub bytes: u64,
    /// From the endpoint.
    pub answer_packets: u64,
    pub answer_bytes: u64,
}

/// All that stand in the pinned flow table, by owner and client.
pub fn connections(folder: &Path) -> Result<Vec<ConnectionRow>, DatapathError> {
    let dir = Pins {
        folder: folder.to_owned(),
    }
    .maps();
    if !dir.is_dir() {
        return Err(DatapathError::NotPinned(folder.to_owned()));
    }
    let flows = Table::<FlowKey, Flow>::open(maps::FLOWS, &dir)?.entries()?;
    let owners = Table::<u32, Owner>::open(maps::OWNERS, &dir)?.entries()?;
    Ok(rows(&flows, &owners.into_iter().collect(), since_boot()))
}

fn rows(flows: &[(FlowKey, Flow)], owners: &HashMap<u32, Owner>, now: Duration) -> Vec<ConnectionRow> {
    let entries: HashMap<&FlowKey, &Flow> = flows.iter().map(|(k, f)| (k, f)).collect();
    let forward = flows.iter().filter(|(_, f)| f.role == FlowRole::FORWARD);
    let mut rows: Vec<_> = forward
        .map(|(key, flow)| {
            let answer = FlowKey {
                src: flow.addr,
                dst: key.src,
                sport: flow.port,
                dport: key.sport,
                changes: FlowKey::SOURCE,
                ..*key
            };
            let none = Flow::default();
            row(
                key,
                flow,
                entries.get(&answer).copied().unwrap_or(&none),
                owners,
                now,
            )
        })
        .collect();
    rows.sort_by(|a, b| (&a.owner, a.client, a.front).cmp(&(&b.owner, b.client, b.front)));
    rows
}

fn row(
    key: &FlowKey,
    flow: &Flow,
    answer: &Flow,
    owners: &HashMap<u32, Owner>,
    now: Duration,
) -> ConnectionRow {
    let at = |addr: Address, port: Be16| SocketAddr::new(addr.to_ip(), port.get());
    let seen = Duration::from_nanos(flow.seen.max(answer.seen));
    ConnectionRow {
        owner: owners
            .get(&flow.set.0)
            .map_or_else(|| "-".to_owned(), |o| o.text().to_owned()),
        proto: key.proto,
        client: at(key.src, key.sport),
        front: at(key.dst, key.dport),
        endpoint: at(flow.addr, flow.port),
        masquerade: (flow.nat != Address::default()).then(|| at(flow.nat, flow.nat_port)),
        state: state(flow.state, answer.state),
        idle: now.saturating_sub(seen),
        packets: flow.packets,
        bytes: flow.bytes,
        answer_packets: answer.packets,
        answer_bytes: answer.bytes,
    }
}

/// What one way tells counts for both.
fn state(there: FlowState, back: FlowState) -> &'static str {
    match FlowState(there.0.max(back.0)) {
        FlowState::NEW => "new",
        FlowState::ESTABLISHED => "open",
        FlowState::CLOSING => "closing",
        _ => "closed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_abi::SetId;

    #[test]
    fn both_ways_of_a_connection_are_one_row() {
        let addr = |n: u8| Address::from_v4_word(u32::from_ne_bytes([10, 0, 0, n]));
        let there = FlowKey {
            src: addr(1),
            dst: addr(2),
            sport: Be16::new(4000),
            dport: Be16::new(80),
            proto: Proto::TCP,
            changes: FlowKey::DESTINATION,
            zero: 0,
        };
        let back = FlowKey {
            src: addr(3),
            dst: addr(1),
            sport: Be16::new(8080),
            dport: Be16::new(4000),
            changes: FlowKey::SOURCE,
            ..there
        };
        let flow = |addr, port, role, packets, state| Flow {
            addr,
            port: Be16::new(port),
            role,
            state,
            packets,
            bytes: 60 * packets,
            set: SetId(7),
            seen: 1_000_000_000,
            ..Flow::default()
        };
        let flows = [
            (
                there,
                flow(addr(3), 8080, FlowRole::FORWARD, 2, FlowState::ESTABLISHED),
            ),
            (back, flow(addr(2), 80, FlowRole::REPLY, 3, FlowState::CLOSING)),
        ];
        let owners = HashMap::from([(7, Owner::new("default/web:http"))]);
        let rows = rows(&flows, &owners, Duration::from_secs(4));
        let [row] = rows.as_slice() else {
            panic!("{rows:?}")
        };
        assert_eq!((row.owner.as_str(), row.state), ("default/web:http", "closing"));
        assert_eq!((row.packets, row.answer_packets, row.bytes), (2, 3, 120));
        assert_eq!(row.endpoint, "10.0.0.3:8080".parse().unwrap());
        assert_eq!(row.idle, Duration::from_secs(3));
    }
}
