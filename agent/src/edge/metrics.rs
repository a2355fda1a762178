//! What is told about services in numbers: kube-proxy's names where it has one, and our own below `skep_`.

use super::health::Family as IpFamily;
use agent_datapath::Collected;
use jiff::Timestamp;
use machinery_lifecycle::metrics::Metrics;
use machinery_lifecycle::metrics::client::metrics::counter::Counter;
use machinery_lifecycle::metrics::client::metrics::family::Family;
use machinery_lifecycle::metrics::client::metrics::gauge::Gauge;
use machinery_lifecycle::metrics::client::metrics::histogram::{Histogram, exponential_buckets};
use machinery_lifecycle::metrics::client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

type Labels = [(&'static str, String); 1];
type Seconds = Gauge<f64, AtomicU64>;

/// kube-proxy's buckets of the time that writing takes: a millisecond, doubled.
fn writing() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// kube-proxy's buckets of the time from a pod's change until it is in force; the service level of
/// `sig-scalability/slos/network_programming_latency.md` is read from them.
fn programming() -> Histogram {
    let quarters = [0.25, 0.5].into_iter();
    let seconds = (1..60).map(f64::from);
    let fives = (0..12).map(|n| 60.0 + 5.0 * f64::from(n));
    let minutes = (0..7).map(|n| 120.0 + 30.0 * f64::from(n));
    Histogram::new(quarters.chain(seconds).chain(fives).chain(minutes))
}

/// The numbers; clones share them.
#[derive(Clone)]
pub struct ServiceMetrics {
    registry: Metrics,
    all: Family<Labels, Histogram>,
    full: Family<Labels, Histogram>,
    partial: Family<Labels, Histogram>,
    programming: Family<Labels, Histogram, fn() -> Histogram>,
    last_written: Family<Labels, Seconds>,
    last_queued: Family<Labels, Seconds>,
    endpoint_changes: Counter,
    endpoints_waiting: Gauge,
    service_changes: Counter,
    services_waiting: Gauge,
    health_answers: Family<Labels, Counter>,
    live_answers: Family<Labels, Counter>,
    failures: Counter,
    written_entries: Counter,
    flows: Gauge,
    flow_room: Gauge,
    flow_pressure: Seconds,
    flows_ended: Family<Labels, Counter>,
    announced: Gauge,
}

impl Default for ServiceMetrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Metrics::new(),
            all: Family::new_with_constructor(writing),
            full: Family::new_with_constructor(writing),
            partial: Family::new_with_constructor(writing),
            programming: Family::new_with_constructor(programming),
            last_written: Family::default(),
            last_queued: Family::default(),
            endpoint_changes: Counter::default(),
            endpoints_waiting: Gauge::default(),
            service_changes: Counter::default(),
            services_waiting: Gauge::default(),
            health_answers: Family::default(),
            live_answers: Family::default(),
            failures: Counter::default(),
            written_entries: Counter::default(),
            flows: Gauge::default(),
            flow_room: Gauge::default(),
            flow_pressure: Seconds::default(),
            flows_ended: Family::default(),
            announced: Gauge::default(),
        };
        metrics.registry.register(|r| metrics.register_upstream(r));
        metrics.registry.register(|r| metrics.register_own(r));
        metrics
    }
}

fn family(of: IpFamily) -> Labels {
    [("ip_family", of.name().to_owned())]
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds of our time fit")]
fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

impl ServiceMetrics {
    fn register_upstream(&self, all: &mut Registry) {
        let to = all.sub_registry_with_prefix("kubeproxy");
        let s = Unit::Seconds;
        to.register_with_unit(
            "sync_proxy_rules_duration",
            "Time that writing changes to the maps took",
            s.clone(),
            self.all.clone(),
        );
        to.register_with_unit(
            "sync_full_proxy_rules_duration",
            "The same, where everything was compared with what stands in the maps",
            s.clone(),
            self.full.clone(),
        );
        to.register_with_unit(
            "sync_partial_proxy_rules_duration",
            "The same, where only changes were written",
            s.clone(),
            self.partial.clone(),
        );
        to.register_with_unit(
            "network_programming_duration",
            "Time from the change of a pod or service until this node had written it",
            s.clone(),
            self.programming.clone(),
        );
        to.register_with_unit(
            "sync_proxy_rules_last_timestamp",
            "When everything was written last",
            s.clone(),
            self.last_written.clone(),
        );
        to.register_with_unit(
            "sync_proxy_rules_last_queued_timestamp",
            "When a change arrived last",
            s,
            self.last_queued.clone(),
        );
        to.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of endpoint slices that arrived",
            self.endpoint_changes.clone(),
        );
        to.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of endpoint slices that are not written yet",
            self.endpoints_waiting.clone(),
        );
        to.register(
            "sync_proxy_rules_service_changes",
            "Changes of services that arrived",
            self.service_changes.clone(),
        );
        to.register(
            "sync_proxy_rules_service_changes_pending",
            "Changes of services that are not written yet",
            self.services_waiting.clone(),
        );
        to.register(
            "proxy_healthz",
            "Answers of /healthz",
            self.health_answers.clone(),
        );
        to.register("proxy_livez", "Answers of /livez", self.live_answers.clone());
    }

    fn register_own(&self, all: &mut Registry) {
        let to = all.sub_registry_with_prefix("skep");
        to.register(
            "service_map_write_failures",
            "Writes to the service maps that the kernel refused",
            self.failures.clone(),
        );
        to.register(
            "service_map_entries_written",
            "Map entries written or deleted",
            self.written_entries.clone(),
        );
        to.register(
            "flows",
            "Entries of connections that are translated per packet",
            self.flows.clone(),
        );
        to.register(
            "flow_table_capacity",
            "Entries that the flow table has room for",
            self.flow_room.clone(),
        );
        to.register(
            "flow_table_pressure_ratio",
            "How full the flow table is, from 0 to 1",
            self.flow_pressure.clone(),
        );
        to.register(
            "flows_ended",
            "Flow entries deleted, because they were over or for want of room",
            self.flows_ended.clone(),
        );
        to.register(
            "announced_addresses",
            "LoadBalancer addresses that this node answers for",
            self.announced.clone(),
        );
    }

    /// Where more is registered.
    #[must_use]
    pub fn registry(&self) -> &Metrics {
        &self.registry
    }

    /// A Service changed.
    pub fn service_changed(&self) {
        self.service_changes.inc();
        self.services_waiting.inc();
    }

    /// An EndpointSlice changed.
    pub fn slice_changed(&self) {
        self.endpoint_changes.inc();
        self.endpoints_waiting.inc();
    }

    /// Something waits to be written.
    pub fn queued(&self, now: Timestamp) {
        for of in IpFamily::BOTH {
            self.last_queued.get_or_create(&family(of)).set(seconds(now));
        }
    }

    /// All that had arrived is written: `entries` of the maps, in `took`, comparing everything or not. `changed` are the
    /// moments at which what was written had changed.
    pub fn written(&self, entries: usize, took: Duration, full: bool, changed: &[Timestamp], now: Timestamp) {
        self.services_waiting.set(0);
        self.endpoints_waiting.set(0);
        self.written_entries.inc_by(entries as u64);
        for of in IpFamily::BOTH {
            let labels = family(of);
            let took = took.as_secs_f64();
            self.last_written.get_or_create(&labels).set(seconds(now));
            if entries == 0 {
                continue;
            }
            self.all.get_or_create(&labels).observe(took);
            let kind = if full { &self.full } else { &self.partial };
            kind.get_or_create(&labels).observe(took);
        }
        // A change concerns one family as a rule; which one is not told by its moment.
        for at in changed {
            let since = now.duration_since(*at).as_secs_f64().max(0.0);
            self.programming
                .get_or_create(&family(IpFamily::V4))
                .observe(since);
        }
    }

    /// The maps refused a write.
    pub fn failed(&self) {
        self.failures.inc();
    }

    /// `/healthz` or `/livez` was answered.
    pub fn answered(&self, path: &str, status: u16) {
        let answers = match path {
            "/healthz" => &self.health_answers,
            "/livez" => &self.live_answers,
            _ => return,
        };
        answers.get_or_create(&[("code", status.to_string())]).inc();
    }

    /// The flows were gone through.
    pub fn collected(&self, found: &Collected) {
        self.flows.set(i64::try_from(found.live).unwrap_or(i64::MAX));
        self.flow_room.set(i64::from(found.capacity));
        self.flow_pressure.set(found.pressure() / 100.0);
        let over = found.deleted.saturating_sub(found.pressed_out);
        for (reason, count) in [("over", over), ("pressure", found.pressed_out)] {
            self.flows_ended
                .get_or_create(&[("reason", reason.to_owned())])
                .inc_by(count as u64);
        }
    }

    /// This node answers for so many LoadBalancer addresses.
    pub fn announces(&self, count: usize) {
        self.announced.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// All of it, as text.
    #[must_use]
    pub fn encode(&self) -> String {
        self.registry.encode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn dashboards_made_for_kube_proxy_find_its_names() {
        let metrics = ServiceMetrics::default();
        metrics.service_changed();
        metrics.slice_changed();
        metrics.queued(at(99));
        metrics.written(
            7,
            Duration::from_micros(1500),
            false,
            &[Timestamp::from_millisecond(99_600).unwrap()],
            at(100),
        );
        metrics.answered("/healthz", 503);
        let text = metrics.encode();
        for line in [
            r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.002",ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1"#,
            r#"kubeproxy_network_programming_duration_seconds_bucket{le="0.5",ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 100.0"#,
            r#"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"} 99.0"#,
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
            r#"kubeproxy_proxy_healthz_total{code="503"} 1"#,
            "skep_service_map_entries_written_total 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_flow_table_tells_how_full_it_is_and_what_was_taken_out_of_it() {
        let metrics = ServiceMetrics::default();
        metrics.collected(&Collected {
            deleted: 5,
            pressed_out: 2,
            live: 25,
            capacity: 100,
        });
        let text = metrics.encode();
        assert!(text.contains("skep_flow_table_pressure_ratio 0.25"), "{text}");
        assert!(
            text.contains(r#"skep_flows_ended_total{reason="over"} 3"#),
            "{text}"
        );
        assert!(
            text.contains(r#"skep_flows_ended_total{reason="pressure"} 2"#),
            "{text}"
        );
    }
}
