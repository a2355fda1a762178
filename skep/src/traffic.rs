//! `skep top services` and `skep flows`: what the data path of each node counts, live.
use crate::cli::{FlowsArgs, TopArgs};
use crate::inspect::{is_of, pins};
use crate::output::{self, Format, Row};
use agent_datapath::{ConnectionRow, Traffic, connections};
use anyhow::{Context, Result};
use datapath_abi::Counts;
use serde::Serialize;
use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// One service port in one family on one node, or one of its endpoints.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TrafficLine {
    node: String,
    service: String,
    protocol: String,
    family: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    /// New connections a second, since the last look.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections_per_second: Option<f64>,
    /// Bytes a second that were translated, since the last look.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_second: Option<f64>,
    connections: u64,
    no_endpoint_refusals: u64,
    drops: u64,
    connect_failures: u64,
    resets: u64,
    packets: u64,
    bytes: u64,
}

/// What stays the same of a line from one look to the next.
type Key = (String, String, String, &'static str, Option<String>);

impl TrafficLine {
    fn new(
        node: &str,
        service: &str,
        protocol: String,
        v4: bool,
        endpoint: Option<String>,
        c: &Counts,
    ) -> Self {
        Self {
            node: node.to_owned(),
            service: service.to_owned(),
            protocol,
            family: if v4 { "IPv4" } else { "IPv6" },
            endpoint,
            connections_per_second: None,
            bytes_per_second: None,
            connections: c.connections,
            no_endpoint_refusals: c.refusals,
            drops: c.drops,
            connect_failures: c.failures,
            resets: c.resets,
            packets: c.packets,
            bytes: c.bytes,
        }
    }

    fn key(&self) -> Key {
        (
            self.service.clone(),
            self.node.clone(),
            self.protocol.clone(),
            self.family,
            self.endpoint.clone(),
        )
    }
}

impl Row for TrafficLine {
    const COLUMNS: &'static [&'static str] = &[
        "SERVICE",
        "NODE",
        "PROTO",
        "FAMILY",
        "ENDPOINT",
        "CONN/S",
        "BYTES/S",
        "CONNECTIONS",
        "REFUSED",
        "DROPPED",
        "FAILED",
        "RESET",
        "PACKETS",
        "BYTES",
    ];
    const WIDE_FROM: usize = 12;

    fn cells(&self) -> Vec<String> {
        let rate = |r: Option<f64>| r.map_or_else(|| "-".to_owned(), |r| format!("{r:.1}"));
        vec![
            self.service.clone(),
            self.node.clone(),
            self.protocol.clone(),
            self.family.to_owned(),
            self.endpoint.clone().unwrap_or_else(|| "-".to_owned()),
            rate(self.connections_per_second),
            rate(self.bytes_per_second),
            self.connections.to_string(),
            self.no_endpoint_refusals.to_string(),
            self.drops.to_string(),
            self.connect_failures.to_string(),
            self.resets.to_string(),
            self.packets.to_string(),
            self.bytes.to_string(),
        ]
    }

    fn name(&self) -> String {
        self.service.clone()
    }
}

/// `skep top services`.
///
/// # Errors
/// When a node's maps cannot be read.
pub fn top(args: &TopArgs) -> Result<()> {
    let pins = pins(&args.maps.which.name, args.maps.node.as_deref())?;
    let mut before: HashMap<Key, TrafficLine> = HashMap::new();
    let mut looked: Option<Instant> = None;
    loop {
        let mut lines = look(&pins, args)?;
        let now = Instant::now();
        if let Some(then) = looked.replace(now) {
            rates(&mut lines, &before, now - then);
        }
        sort(&mut lines);
        show(args.maps.output, args.once, &lines)?;
        if args.once {
            return Ok(());
        }
        before = lines.into_iter().map(|line| (line.key(), line)).collect();
        pause(Duration::from_secs_f64(args.interval));
    }
}

/// Until the next look: counts tell nobody when they change, so whoever watches says how often.
fn pause(interval: Duration) {
    let begun = Instant::now();
    // A parked thread may be woken for no reason.
    while let Some(rest) = interval
        .checked_sub(begun.elapsed())
        .filter(|rest| !rest.is_zero())
    {
        thread::park_timeout(rest);
    }
}

fn look(pins: &[(String, PathBuf)], args: &TopArgs) -> Result<Vec<TrafficLine>> {
    let mut lines = Vec::new();
    for (node, folder) in pins {
        let traffic = Traffic::read(folder).with_context(|| format!("cannot read the maps of {node}"))?;
        lines.extend(lines_of(node, &traffic, args.endpoints, args.service.as_deref()));
    }
    Ok(lines)
}

fn lines_of(node: &str, traffic: &Traffic, endpoints: bool, only: Option<&str>) -> Vec<TrafficLine> {
    let wanted = |owner: &str| only.is_none_or(|name| is_of(owner, name));
    let mut lines = Vec::new();
    if endpoints {
        for row in traffic.endpoints.iter().filter(|row| wanted(&row.owner)) {
            let (proto, v4) = (format!("{:?}", row.proto), row.endpoint.is_ipv4());
            let endpoint = Some(row.endpoint.to_string());
            lines.push(TrafficLine::new(
                node,
                &row.owner,
                proto,
                v4,
                endpoint,
                &row.counts,
            ));
        }
    } else {
        for row in traffic.services.iter().filter(|row| wanted(&row.owner)) {
            let proto = format!("{:?}", row.proto);
            lines.push(TrafficLine::new(
                node,
                &row.owner,
                proto,
                row.v4,
                None,
                &row.counts,
            ));
        }
    }
    lines
}

/// What came since the last look, by time. Counts that are smaller than before are those of a new service.
fn rates(lines: &mut [TrafficLine], before: &HashMap<Key, TrafficLine>, passed: Duration) {
    let per_second = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now) as f64 / passed.as_secs_f64();
    for line in lines {
        let then = before.get(&line.key());
        let (connections, bytes) = then.map_or((0, 0), |l| (l.connections, l.bytes));
        line.connections_per_second = Some(per_second(line.connections, connections));
        line.bytes_per_second = Some(per_second(line.bytes, bytes));
    }
}

/// The busiest first.
fn sort(lines: &mut [TrafficLine]) {
    lines.sort_by(|a, b| {
        let busy = |l: &TrafficLine| {
            (
                l.connections_per_second.unwrap_or(0.0),
                l.bytes_per_second.unwrap_or(0.0),
            )
        };
        let ((a_new, a_bytes), (b_new, b_bytes)) = (busy(a), busy(b));
        b_new
            .total_cmp(&a_new)
            .then(b_bytes.total_cmp(&a_bytes))
            .then(b.connections.cmp(&a.connections))
            .then_with(|| a.key().cmp(&b.key()))
    });
}

/// A live table begins at the top of the terminal each time; what programs read is one list on one line each time.
fn show<R: Row>(format: Format, once: bool, rows: &[R]) -> Result<()> {
    let mut out = std::io::stdout();
    if !once && format == Format::Json {
        writeln!(out, "{}", serde_json::to_string(rows)?)?;
        return Ok(());
    }
    if !once && out.is_terminal() {
        out.write_all(b"\x1b[H\x1b[2J")?;
    }
    output::print(format, rows)
}

/// One connection that is translated per packet.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FlowLine {
    node: String,
    service: String,
    protocol: String,
    client: String,
    front: String,
    endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    masquerade: Option<String>,
    state: &'static str,
    idle_seconds: f64,
    packets: u64,
    bytes: u64,
    answer_packets: u64,
    answer_bytes: u64,
}

impl FlowLine {
    fn new(node: &str, row: &ConnectionRow) -> Self {
        Self {
            node: node.to_owned(),
            service: row.owner.clone(),
            protocol: format!("{:?}", row.proto),
            client: row.client.to_string(),
            front: row.front.to_string(),
            endpoint: row.endpoint.to_string(),
            masquerade: row.masquerade.map(|m| m.to_string()),
            state: row.state,
            idle_seconds: row.idle.as_secs_f64(),
            packets: row.packets,
            bytes: row.bytes,
            answer_packets: row.answer_packets,
            answer_bytes: row.answer_bytes,
        }
    }
}

impl Row for FlowLine {
    const COLUMNS: &'static [&'static str] = &[
        "SERVICE",
        "NODE",
        "PROTO",
        "CLIENT",
        "FRONT",
        "ENDPOINT",
        "STATE",
        "IDLE",
        "PACKETS",
        "BYTES",
        "ANSWERED",
        "BYTES BACK",
        "SEEN AS",
    ];
    const WIDE_FROM: usize = 12;

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.node.clone(),
            self.protocol.clone(),
            self.client.clone(),
            self.front.clone(),
            self.endpoint.clone(),
            self.state.to_owned(),
            format!("{:.1}s", self.idle_seconds),
            self.packets.to_string(),
            self.bytes.to_string(),
            self.answer_packets.to_string(),
            self.answer_bytes.to_string(),
            self.masquerade.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }

    fn name(&self) -> String {
        format!("{}->{}", self.client, self.front)
    }
}

/// `skep flows`.
///
/// # Errors
/// When a node's maps cannot be read.
pub fn flows(args: &FlowsArgs) -> Result<()> {
    let pins = pins(&args.maps.which.name, args.maps.node.as_deref())?;
    loop {
        let mut lines = Vec::new();
        for (node, folder) in &pins {
            let all = connections(folder).with_context(|| format!("cannot read the maps of {node}"))?;
            let wanted = |row: &&ConnectionRow| args.service.as_ref().is_none_or(|s| is_of(&row.owner, s));
            lines.extend(all.iter().filter(wanted).map(|row| FlowLine::new(node, row)));
        }
        show(args.maps.output, !args.follow, &lines)?;
        if !args.follow {
            return Ok(());
        }
        pause(Duration::from_secs_f64(args.interval));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_datapath::TrafficRow;
    use datapath_abi::{Proto, SetId};

    fn traffic(web: u64, dns: u64) -> Traffic {
        let row = |owner: &str, connections| TrafficRow {
            owner: owner.to_owned(),
            set: SetId(1),
            v4: true,
            proto: Proto::TCP,
            counts: Counts {
                connections,
                bytes: 100 * connections,
                ..Counts::default()
            },
        };
        Traffic {
            services: vec![row("default/web:http", web), row("kube-system/dns:dns", dns)],
            endpoints: Vec::new(),
        }
    }

    #[test]
    fn the_busiest_service_since_the_last_look_comes_first() {
        let before = lines_of("n", &traffic(100, 5), false, None);
        let before = before.into_iter().map(|l| (l.key(), l)).collect();
        let mut lines = lines_of("n", &traffic(104, 25), false, None);
        rates(&mut lines, &before, Duration::from_secs(2));
        sort(&mut lines);
        let shown: Vec<_> = lines
            .iter()
            .map(|l| (l.service.as_str(), l.connections_per_second))
            .collect();
        assert_eq!(
            shown,
            [
                ("kube-system/dns:dns", Some(10.0)),
                ("default/web:http", Some(2.0))
            ]
        );
    }

    #[test]
    fn a_service_that_is_asked_for_is_the_only_one() {
        let lines = lines_of("n", &traffic(1, 1), false, Some("kube-system/dns"));
        assert_eq!(lines.len(), 1);
        let json = serde_json::to_value(&lines).ok();
        let field = |name: &str| json.as_ref().and_then(|j| j[0].get(name).cloned());
        assert_eq!(field("service"), Some("kube-system/dns:dns".into()));
        assert_eq!(field("noEndpointRefusals"), Some(0.into()));
        assert_eq!(field("connectionsPerSecond"), None, "there is no rate yet");
    }

    #[test]
    fn every_column_of_a_line_has_a_cell() {
        let lines = lines_of("n", &traffic(1, 1), false, None);
        assert!(
            lines
                .iter()
                .all(|l| l.cells().len() == TrafficLine::COLUMNS.len())
        );
    }
}
