//! Which flows are over, and which have to go before their time.
//!
//! The entries of one connection (there and back, and two more where its client was given this node's address) live and end
//! together: as long as one of them sees packets, all are kept. An entry is deleted only if it still is what was looked at: the
//! table never loses a flow that came to life again meanwhile.
use datapath_abi::{Address, Be16, Flow, FlowKey, FlowRole, FlowState, Proto};
use datapath_logic::flow::lifetime;
use std::collections::HashMap;
use std::time::Duration;

/// The table is to stay below this share of its room, in percent: beyond its room the kernel takes entries that it guesses to
/// be old, established ones among them.
const PRESSURE: usize = 75;

/// How long both sides of a closed connection are silent before nothing is to come, in nanoseconds.
const SILENT: u64 = 2_000_000_000;

/// What a walk through the flows did and found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// Entries that were deleted, and how many of these only for want of room.
    pub deleted: usize,
    pub pressed_out: usize,
    /// Entries that are left, and room for how many there is.
    pub live: usize,
    pub capacity: u32,
}

impl Collected {
    /// How full the table is, in percent.
    pub fn pressure(&self) -> f64 {
        100.0 * self.live as f64 / f64::from(self.capacity.max(1))
    }

    /// Whether the table is so full that flows had to make room before their time, or that new ones may push out old ones: worth
    /// an Event.
    pub fn is_pressed(&self) -> bool {
        self.pressed_out > 0 || self.live > limit(self.capacity)
    }

    /// How many entries there may be more until then.
    pub fn room(&self) -> usize {
        limit(self.capacity).saturating_sub(self.live)
    }
}

/// How many entries a table of this room may have without pressure.
fn limit(capacity: u32) -> usize {
    capacity as usize * PRESSURE / 100
}

/// What a walk found to be deleted, and when the table was looked at. Nothing is deleted yet.
#[derive(Debug)]
pub struct Survey {
    pub(crate) plan: Plan,
    /// Entries that were there.
    pub entries: usize,
}

/// One entry as it was looked at.
pub(crate) type Entry = (FlowKey, Flow);

/// A connection: its entries.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    pub entries: Vec<Entry>,
}

/// What the entries of one connection have in common: client, endpoint, protocol.
type Ends = ((Address, Be16), (Address, Be16), Proto);

fn ends(key: &FlowKey, flow: &Flow) -> Ends {
    let (source, destination) = ((key.src, key.sport), (key.dst, key.dport));
    let client = match flow.role {
        FlowRole::REPLY => destination,
        FlowRole::UNMASQUERADE => (flow.addr, flow.port),
        _ => source,
    };
    (client, flow.endpoint(key), key.proto)
}

/// In which order connections go that are not over yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Worth {
    /// Being closed, or reset.
    Closed,
    /// Never answered.
    OneWay,
    /// Without connection, answered.
    Datagrams,
    /// An open TCP or SCTP connection: not ours to end.
    Open,
}

impl Connection {
    /// Nanoseconds since boot of the last packet, in whatever direction.
    fn seen(&self) -> u64 {
        self.entries.iter().map(|(_, f)| f.seen).max().unwrap_or(0)
    }

    fn proto(&self) -> Proto {
        self.entries.first().map_or(Proto::ANY, |(k, _)| k.proto)
    }

    /// The state of the whole: what one direction tells counts for both.
    fn state(&self) -> FlowState {
        self.entries
            .iter()
            .map(|(_, f)| f.state)
            .max_by_key(|s| s.0)
            .unwrap_or_default()
    }

    fn is_over(&self, now: u64) -> bool {
        now.saturating_sub(self.seen()) > lifetime(self.proto(), self.state())
    }

    /// Both sides have closed it, or one has reset it.
    fn is_closed(&self) -> bool {
        let has = |wanted: &[FlowState], answers: bool| {
            let of_side = self.entries.iter().filter(|(_, f)| f.role.is_answer() == answers);
            of_side.into_iter().any(|(_, f)| wanted.contains(&f.state))
        };
        let closed = |answers| has(&[FlowState::CLOSING, FlowState::CLOSED], answers);
        let reset = |answers| has(&[FlowState::CLOSED], answers);
        (closed(true) && closed(false)) || reset(true) || reset(false)
    }

    fn worth(&self) -> Worth {
        match (self.proto(), self.state()) {
            (_, FlowState::CLOSING | FlowState::CLOSED) => Worth::Closed,
            (_, FlowState::NEW) => Worth::OneWay,
            (Proto::UDP, _) => Worth::Datagrams,
            _ => Worth::Open,
        }
    }
}

/// What is to be deleted.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub over: Vec<Connection>,
    /// Not over, but there is no room for them: the least worth first, of these the oldest first.
    pub pressed_out: Vec<Connection>,
}

fn connections(entries: Vec<Entry>) -> impl Iterator<Item = Connection> {
    let mut connections: HashMap<Ends, Connection> = HashMap::new();
    for (key, flow) in entries {
        let one = connections.entry(ends(&key, &flow)).or_default();
        one.entries.push((key, flow));
    }
    connections.into_values()
}

/// The connections that have ended, whatever their endpoint may remember of them, and all others.
pub(crate) fn ended(entries: Vec<Entry>, now: Duration) -> (Vec<Connection>, Vec<Connection>) {
    let now = nanos(now);
    connections(entries).partition(|c| {
        let silent = now.saturating_sub(c.seen()) > SILENT;
        c.is_over(now) || (silent && c.is_closed())
    })
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Looks at all entries of a table with this much room.
pub(crate) fn plan(entries: Vec<Entry>, now: Duration, capacity: u32) -> Plan {
    let now = nanos(now);
    let (over, rest): (Vec<_>, Vec<_>) = connections(entries).partition(|c| c.is_over(now));
    Plan {
        over,
        pressed_out: press_out(rest, limit(capacity)),
    }
}

/// Those that have to go until at most `room` entries are left.
fn press_out(connections: Vec<Connection>, room: usize) -> Vec<Connection> {
    let mut left: usize = connections.iter().map(|c| c.entries.len()).sum();
    if left <= room {
        return Vec::new();
    }
    let mut candidates: Vec<_> = connections
        .into_iter()
        .filter(|c| c.worth() != Worth::Open)
        .collect();
    candidates.sort_by_key(|c| (c.worth(), c.seen()));
    let go = candidates.into_iter().take_while(|c| {
        let wanted = left > room;
        left -= if wanted { c.entries.len() } else { 0 };
        wanted
    });
    go.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_abi::SetId;

    const SECOND: u64 = 1_000_000_000;

    fn address(n: u32) -> Address {
        Address::from_v4_word(n.to_be())
    }

    /// Both entries of a connection from port `n`: when each was last seen, and its state.
    fn connection(n: u16, proto: Proto, there: (u64, FlowState), back: (u64, FlowState)) -> Vec<Entry> {
        let (client, front, endpoint) = (
            (address(1), Be16::new(n)),
            (address(2), Be16::new(80)),
            (address(3), Be16::new(8080)),
        );
        let key = |from: (Address, Be16), to: (Address, Be16), changes| FlowKey {
            src: from.0,
            dst: to.0,
            sport: from.1,
            dport: to.1,
            proto,
            changes,
            zero: 0,
        };
        let flow = |becomes: (Address, Be16), role, (seen, state): (u64, FlowState)| Flow {
            addr: becomes.0,
            port: becomes.1,
            role,
            state,
            set: SetId(1),
            seen: seen * SECOND,
            ..Flow::default()
        };
        vec![
            (
                key(client, front, FlowKey::DESTINATION),
                flow(endpoint, FlowRole::FORWARD, there),
            ),
            (
                key(endpoint, client, FlowKey::SOURCE),
                flow(front, FlowRole::REPLY, back),
            ),
        ]
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const NEW: FlowState = FlowState::NEW;
    const OPEN: FlowState = FlowState::ESTABLISHED;

    #[test]
    fn a_direction_without_packets_is_kept_as_long_as_the_other_has_some() {
        let stream = connection(1, Proto::UDP, (0, OPEN), (1000, OPEN));
        assert!(plan(stream.clone(), at(1100), 100).over.is_empty());
        assert_eq!(plan(stream, at(1121), 100).over[0].entries.len(), 2);
    }

    #[test]
    fn a_reset_in_one_direction_ends_both_soon() {
        let reset = connection(1, Proto::TCP, (10, FlowState::CLOSED), (9, OPEN));
        assert!(plan(reset.clone(), at(100), 100).over.is_empty());
        assert_eq!(plan(reset, at(131), 100).over.len(), 1);
    }

    #[test]
    fn an_open_connection_lives_for_days() {
        let open = connection(1, Proto::TCP, (0, OPEN), (0, OPEN));
        assert!(plan(open.clone(), at(4 * 24 * 3600), 100).over.is_empty());
        assert_eq!(plan(open, at(6 * 24 * 3600), 100).over.len(), 1);
    }

    #[test]
    fn under_pressure_the_oldest_closed_ones_go_first_and_open_ones_never() {
        let all = [
            connection(1, Proto::TCP, (1, OPEN), (1, OPEN)),
            connection(2, Proto::TCP, (50, FlowState::CLOSING), (50, FlowState::CLOSING)),
            connection(3, Proto::TCP, (40, FlowState::CLOSED), (40, OPEN)),
            connection(4, Proto::UDP, (45, NEW), (45, NEW)),
            connection(5, Proto::UDP, (30, OPEN), (30, OPEN)),
        ]
        .concat();
        let ports = |capacity| -> Vec<u16> {
            let plan = plan(all.clone(), at(60), capacity);
            assert!(plan.over.is_empty());
            let keys = plan.pressed_out.iter().map(|c| c.entries[0].0);
            keys.map(|k| {
                if k.changes == 0 {
                    k.sport.get()
                } else {
                    k.dport.get()
                }
            })
            .collect()
        };
        assert!(ports(100).is_empty());
        assert_eq!(ports(12), [3], "nine of ten entries may stay");
        assert_eq!(ports(8), [3, 2]);
        assert_eq!(ports(1), [3, 2, 4, 5]);
    }

    #[test]
    fn a_connection_has_ended_when_both_sides_have_closed_it_and_are_silent() {
        let at = |there, back, now| {
            let entries = connection(1, Proto::TCP, (1, there), (1, back));
            let (over, going) = ended(entries, Duration::from_secs(now));
            assert_eq!(over.len() + going.len(), 1);
            !over.is_empty()
        };
        use FlowState as S;
        assert!(at(S::CLOSING, S::CLOSING, 4));
        assert!(at(S::ESTABLISHED, S::CLOSED, 4), "it was reset");
        assert!(!at(S::CLOSING, S::CLOSING, 2), "a packet may still come");
        assert!(!at(S::CLOSING, S::ESTABLISHED, 100), "half of it is open");
        assert!(!at(S::ESTABLISHED, S::ESTABLISHED, 1000));
        assert!(at(S::NEW, S::NEW, 1000), "nobody answered");
    }
}
