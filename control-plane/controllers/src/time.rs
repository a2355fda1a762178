//! Times as the API writes them, and spans between them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// `now` as it stands in objects: whole seconds.
#[must_use]
pub fn wire(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).expect("the whole seconds of a valid time are a valid time"))
}

/// How much later than `now` the moment `after` past `since` is; none if it has come.
#[must_use]
pub fn left(since: Timestamp, after: Duration, now: Timestamp) -> Option<Duration> {
    let passed = now.duration_since(since);
    let left = after.as_nanos().cast_signed() - passed.as_nanos();
    (left > 0).then(|| Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX)))
}

/// Whole seconds as a span; negative ones are none.
#[must_use]
pub fn seconds(seconds: impl Into<i64>) -> Duration {
    Duration::from_secs(u64::try_from(seconds.into()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_shrinks_to_none() {
        let start = Timestamp::from_second(100).unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(left(start, seconds(10), at(104)), Some(seconds(6)));
        assert_eq!(left(start, seconds(10), at(110)), None);
        assert_eq!(left(start, seconds(10), at(99)), Some(seconds(11)));
    }
}
