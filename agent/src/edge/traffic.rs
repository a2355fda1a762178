//! What the data path counted, as metrics: read from the maps when somebody asks, with the names of Kubernetes' objects.

use agent_datapath::{Datapath, DatapathError, EndpointTrafficRow, Traffic, TrafficRow};
use datapath_abi::{Counts, Proto, Reason};
use machinery_lifecycle::metrics::client::collector::Collector;
use machinery_lifecycle::metrics::client::encoding::{DescriptorEncoder, EncodeMetric};
use machinery_lifecycle::metrics::client::metrics::counter::ConstCounter;
use std::fmt;
use std::sync::Arc;

/// Where the counts are.
pub trait Source: Send + Sync + 'static {
    /// Of each service port and endpoint that was used.
    ///
    /// # Errors
    /// When the maps cannot be read.
    fn traffic(&self) -> Result<Traffic, DatapathError>;
    /// By reason, all of them.
    ///
    /// # Errors
    /// When the maps cannot be read.
    fn reasons(&self) -> Result<Vec<(Reason, u64)>, DatapathError>;
}

impl Source for Datapath {
    fn traffic(&self) -> Result<Traffic, DatapathError> {
        Self::traffic(self)
    }
    fn reasons(&self) -> Result<Vec<(Reason, u64)>, DatapathError> {
        self.counters()
    }
}

/// Tells what was counted. Only services that were used on this node have rows, and endpoints only where the operator asks for
/// them: a large cluster has more of them than a time series database likes.
pub struct TrafficMetrics {
    source: Arc<dyn Source>,
    endpoints: bool,
}

impl TrafficMetrics {
    /// With rows for endpoints, or without.
    #[must_use]
    pub fn new(source: Arc<dyn Source>, endpoints: bool) -> Self {
        Self { source, endpoints }
    }
}

impl fmt::Debug for TrafficMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrafficMetrics {{ endpoints: {} }}", self.endpoints)
    }
}

/// A number that is told, by what it counts.
type Field = (&'static str, &'static str, fn(&Counts) -> u64);

/// The names of metrics behind `skep_service_` and `skep_endpoint_`.
const FIELDS: [Field; 7] = [
    (
        "connections",
        "New connections, and datagram sockets and flows that were given an endpoint",
        |c| c.connections,
    ),
    (
        "no_endpoint_refusals",
        "Connections and packets refused because there is no endpoint",
        |c| c.refusals,
    ),
    (
        "drops",
        "Connections and packets refused or dropped for another reason",
        |c| c.drops,
    ),
    ("packets", "Packets translated, both ways together", |c| c.packets),
    ("bytes", "Bytes of the packets translated", |c| c.bytes),
    (
        "connect_failures",
        "Connections translated per packet that the endpoint refused",
        |c| c.failures,
    ),
    (
        "resets",
        "Connections translated per packet that were reset after they had come to be",
        |c| c.resets,
    ),
];

/// Fields that an endpoint has: it refuses nothing for want of endpoints.
const OF_ENDPOINTS: [usize; 5] = [0, 3, 4, 5, 6];

impl Collector for TrafficMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        match self.source.reasons() {
            Ok(reasons) => encode_reasons(&mut encoder, &reasons)?,
            Err(error) => unread(&error),
        }
        let traffic = match self.source.traffic() {
            Ok(traffic) => traffic,
            Err(error) => {
                unread(&error);
                return Ok(());
            }
        };
        for (name, help, value) in FIELDS {
            let rows = traffic.services.iter();
            let rows = rows.map(|row| (service_labels(row), value(&row.counts)));
            encode_rows(&mut encoder, &format!("skep_service_{name}"), help, rows)?;
        }
        if !self.endpoints {
            return Ok(());
        }
        for (name, help, value) in OF_ENDPOINTS.map(|i| FIELDS[i]) {
            let rows = traffic.endpoints.iter();
            let rows = rows.map(|row| (endpoint_labels(row), value(&row.counts)));
            encode_rows(&mut encoder, &format!("skep_endpoint_{name}"), help, rows)?;
        }
        Ok(())
    }
}

/// The other metrics are told all the same.
fn unread(error: &DatapathError) {
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "what the data path counted cannot be read"
    );
}

type Labels = Vec<(&'static str, String)>;

fn encode_rows(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    let kind = ConstCounter::new(0_u64).metric_type();
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in rows {
        ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// What was done, refused and dropped on the whole node.
fn encode_reasons(encoder: &mut DescriptorEncoder<'_>, reasons: &[(Reason, u64)]) -> fmt::Result {
    let of = |refusals: bool| {
        let rows = reasons.iter().filter(move |(r, _)| r.is_refusal() == refusals);
        rows.map(|(reason, count)| (vec![("reason", reason.label().to_owned())], *count))
    };
    encode_rows(
        encoder,
        "skep_datapath_refusals",
        "Connections and packets of this node refused or dropped, by reason",
        of(true),
    )?;
    encode_rows(
        encoder,
        "skep_datapath_events",
        "What the data path of this node did with connections and packets",
        of(false),
    )
}

fn service_labels(row: &TrafficRow) -> Labels {
    labels(&row.owner, row.proto, row.v4)
}

fn endpoint_labels(row: &EndpointTrafficRow) -> Labels {
    let mut labels = labels(&row.owner, row.proto, row.endpoint.is_ipv4());
    labels.push(("endpoint", row.endpoint.to_string()));
    labels
}

/// `namespace/service:port`, taken apart.
fn labels(owner: &str, proto: Proto, v4: bool) -> Labels {
    let (name, port) = owner.rsplit_once(':').unwrap_or((owner, ""));
    let (namespace, service) = name.split_once('/').unwrap_or(("", name));
    let family = if v4 { "IPv4" } else { "IPv6" };
    vec![
        ("namespace", namespace.to_owned()),
        ("service", service.to_owned()),
        ("port", port.to_owned()),
        ("protocol", format!("{proto:?}")),
        ("ip_family", family.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_abi::SetId;
    use machinery_lifecycle::metrics::Metrics;

    struct Fixed;

    impl Source for Fixed {
        fn traffic(&self) -> Result<Traffic, DatapathError> {
            let counts = Counts {
                connections: 3,
                refusals: 1,
                bytes: 120,
                ..Counts::default()
            };
            Ok(Traffic {
                services: vec![TrafficRow {
                    owner: "default/web:http".into(),
                    set: SetId(1),
                    v4: true,
                    proto: Proto::TCP,
                    counts,
                }],
                endpoints: vec![EndpointTrafficRow {
                    owner: "default/web:http".into(),
                    set: SetId(1),
                    endpoint: "10.244.0.2:8080".parse().unwrap(),
                    proto: Proto::TCP,
                    local: true,
                    counts,
                }],
            })
        }
        fn reasons(&self) -> Result<Vec<(Reason, u64)>, DatapathError> {
            Ok(vec![(Reason::SocketConnected, 3), (Reason::SocketNoEndpoint, 1)])
        }
    }

    fn text(endpoints: bool) -> String {
        let metrics = Metrics::new();
        let traffic = TrafficMetrics::new(Arc::new(Fixed), endpoints);
        metrics.register(|r| r.register_collector(Box::new(traffic)));
        metrics.encode()
    }

    #[test]
    fn a_services_counts_have_its_kubernetes_names() {
        let text = text(false);
        let labels = r#"namespace="default",service="web",port="http",protocol="TCP",ip_family="IPv4""#;
        for line in [
            format!("skep_service_connections_total{{{labels}}} 3"),
            format!("skep_service_no_endpoint_refusals_total{{{labels}}} 1"),
            format!("skep_service_bytes_total{{{labels}}} 120"),
            r#"skep_datapath_refusals_total{reason="socket_no_endpoint"} 1"#.to_owned(),
            r#"skep_datapath_events_total{reason="socket_connected"} 3"#.to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn endpoints_have_rows_only_where_they_are_asked_for() {
        assert!(!text(false).contains("skep_endpoint"));
        let line = r#"ip_family="IPv4",endpoint="10.244.0.2:8080"} 3"#;
        assert!(text(true).contains(line), "{}", text(true));
    }
}
