//! `/metrics`: counts and times of requests, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::Duration;

/// Upper bounds of the buckets of `apiserver_request_duration_seconds`.
const BOUNDS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 60.0,
];

type Key = (&'static str, String, String);

#[derive(Default)]
struct Series {
    by_code: BTreeMap<u16, u64>,
    buckets: [u64; BOUNDS.len()],
    seconds: f64,
    count: u64,
}

/// Counters of requests by verb, resource and subresource.
#[derive(Default)]
pub(crate) struct Metrics(Mutex<BTreeMap<Key, Series>>);

impl Metrics {
    /// Counts a request that was answered.
    pub(crate) fn observe(&self, labels: (&'static str, String, Option<String>), code: u16, took: Duration) {
        // Unknown resources all count as one, or a client could make as many series as it likes.
        let (verb, resource, subresource) = labels;
        let key = match code {
            404 => (verb, String::new(), String::new()),
            _ => (verb, resource, subresource.unwrap_or_default()),
        };
        let mut all = self.0.lock().expect("nothing panics while it counts");
        let series = all.entry(key).or_default();
        *series.by_code.entry(code).or_default() += 1;
        series.count += 1;
        series.seconds += took.as_secs_f64();
        if let Some(bucket) = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound) {
            series.buckets[bucket] += 1;
        }
    }

    /// The text form that Prometheus reads.
    pub(crate) fn text(&self) -> String {
        let all = self.0.lock().expect("nothing panics while it counts");
        let mut out = String::from(
            "# HELP apiserver_request_total Requests answered, by verb, resource and code.\n\
             # TYPE apiserver_request_total counter\n",
        );
        for ((verb, resource, sub), series) in all.iter() {
            let verb = verb.to_ascii_uppercase();
            for (code, count) in &series.by_code {
                // Writing to a string cannot fail.
                let _ = writeln!(
                    out,
                    "apiserver_request_total{{code=\"{code}\",resource=\"{resource}\",subresource=\"{sub}\",verb=\"{verb}\"}} {count}"
                );
            }
        }
        out.push_str(
            "# HELP apiserver_request_duration_seconds Time to answer, without the time a stream lasts.\n\
             # TYPE apiserver_request_duration_seconds histogram\n",
        );
        for ((verb, resource, sub), series) in all.iter() {
            let verb = verb.to_ascii_uppercase();
            let labels = format!("resource=\"{resource}\",subresource=\"{sub}\",verb=\"{verb}\"");
            histogram(&mut out, &labels, series);
        }
        out
    }
}

fn histogram(out: &mut String, labels: &str, series: &Series) {
    const NAME: &str = "apiserver_request_duration_seconds";
    let mut sum = 0;
    for (bound, count) in BOUNDS.iter().zip(series.buckets) {
        sum += count;
        let _ = writeln!(out, "{NAME}_bucket{{{labels},le=\"{bound}\"}} {sum}");
    }
    let _ = writeln!(out, "{NAME}_bucket{{{labels},le=\"+Inf\"}} {}", series.count);
    let _ = writeln!(out, "{NAME}_sum{{{labels}}} {}", series.seconds);
    let _ = writeln!(out, "{NAME}_count{{{labels}}} {}", series.count);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_code_and_buckets_add_up() {
        let metrics = Metrics::default();
        metrics.observe(("get", "pods".into(), None), 200, Duration::from_millis(2));
        metrics.observe(("get", "pods".into(), None), 200, Duration::from_secs(100));
        let text = metrics.text();
        assert!(text.contains(
            "apiserver_request_total{code=\"200\",resource=\"pods\",subresource=\"\",verb=\"GET\"} 2"
        ));
        assert!(text.contains("le=\"60\"} 1") && text.contains("le=\"+Inf\"} 2"));
    }
}
