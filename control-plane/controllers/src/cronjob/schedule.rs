//! Schedules in the five fields of cron, and their short names.

use std::collections::BTreeSet;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp, ToSpan};

/// Why a schedule cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ScheduleError {
    #[error("expected five fields or a short name such as @daily, found {0} fields")]
    Fields(usize),
    #[error("`{0}` is no number, name or range of the field")]
    Part(String),
    #[error("`{0}` is no duration such as 1h30m")]
    Duration(String),
}

/// When something is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Schedule {
    /// At these minutes.
    Fields {
        minutes: BTreeSet<i8>,
        hours: BTreeSet<i8>,
        days: BTreeSet<i8>,
        months: BTreeSet<i8>,
        weekdays: BTreeSet<i8>,
        /// Whether a day has to match both its day fields: it does unless both are restricted.
        both_days: bool,
    },
    /// Again and again after this time.
    Every(SignedDuration),
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// No pattern of days takes longer to come back: the 29th of February around a century without one.
const HORIZON_YEARS: i64 = 9;

impl Schedule {
    pub(crate) fn parse(text: &str) -> Result<Self, ScheduleError> {
        let text = text.trim();
        if let Some(span) = text.strip_prefix("@every ") {
            return Self::every(span);
        }
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            fields => fields,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else {
            return Err(ScheduleError::Fields(fields.len()));
        };
        let free = |field: &str| field.starts_with('*') || field.starts_with('?');
        let mut on = field(weekdays, 0, 7, &WEEKDAYS, 0)?;
        if on.remove(&7) {
            on.insert(0);
        }
        Ok(Self::Fields {
            minutes: field(minutes, 0, 59, &[], 0)?,
            hours: field(hours, 0, 23, &[], 0)?,
            days: field(days, 1, 31, &[], 0)?,
            months: field(months, 1, 12, &MONTHS, 1)?,
            weekdays: on,
            both_days: free(days) || free(weekdays),
        })
    }

    fn every(span: &str) -> Result<Self, ScheduleError> {
        let bad = || ScheduleError::Duration(span.to_owned());
        let span: SignedDuration = span.trim().parse().map_err(|_| bad())?;
        let whole = SignedDuration::from_secs(span.as_secs().max(1));
        Ok(Self::Every(whole))
    }

    /// The first time after `since`.
    pub(crate) fn after(&self, since: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Self::Every(span) = self {
            return Timestamp::from_second(since.as_second())
                .ok()?
                .checked_add(*span)
                .ok();
        }
        let start = zone.to_datetime(since);
        let last = start.date().checked_add(Span::new().years(HORIZON_YEARS)).ok()?;
        let mut date = start.date();
        while date <= last {
            if self.has_date(date) {
                let times = self.times().map(|time| date.to_datetime(time));
                let found = times.filter_map(|at| existing(at, zone)).find(|at| *at > since);
                if found.is_some() {
                    return found;
                }
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// The last time that is not after `now`.
    pub(crate) fn before(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Self::Every(_) = self {
            return None;
        }
        let start = zone.to_datetime(now).date();
        let first = start.checked_sub(HORIZON_YEARS.years()).ok()?;
        let mut date = start;
        while date >= first {
            if self.has_date(date) {
                let times = self.times().map(|time| date.to_datetime(time));
                let found = times
                    .filter_map(|at| existing(at, zone))
                    .filter(|at| *at <= now)
                    .last();
                if found.is_some() {
                    return found;
                }
            }
            date = date.yesterday().ok()?;
        }
        None
    }

    fn has_date(&self, date: Date) -> bool {
        let Self::Fields {
            days,
            months,
            weekdays,
            both_days,
            ..
        } = self
        else {
            return false;
        };
        let day = days.contains(&date.day());
        let weekday = weekdays.contains(&date.weekday().to_sunday_zero_offset());
        months.contains(&date.month())
            && if *both_days {
                day && weekday
            } else {
                day || weekday
            }
    }

    fn times(&self) -> impl Iterator<Item = Time> + '_ {
        let (minutes, hours) = match self {
            Self::Fields { minutes, hours, .. } => (Some(minutes), Some(hours)),
            Self::Every(_) => (None, None),
        };
        hours.into_iter().flatten().flat_map(move |hour| {
            let minutes = minutes.into_iter().flatten();
            minutes.filter_map(|minute| Time::new(*hour, *minute, 0, 0).ok())
        })
    }
}

/// The moment that clocks show `at`; a time that is left out when clocks go forward never comes.
fn existing(at: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let found = zone.to_ambiguous_timestamp(at).compatible().ok()?;
    (zone.to_datetime(found) == at).then_some(found)
}

/// `*`, `a`, `a-b`, each with `/step`, and lists of them.
fn field(text: &str, least: i8, most: i8, names: &[&str], base: i8) -> Result<BTreeSet<i8>, ScheduleError> {
    let mut all = BTreeSet::new();
    for part in text.split(',') {
        let bad = || ScheduleError::Part(part.to_owned());
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (
                range,
                step.parse::<usize>()
                    .ok()
                    .filter(|step| *step > 0)
                    .ok_or_else(bad)?,
            ),
            None => (part, 1),
        };
        let number = |text: &str| {
            let name = names.iter().position(|name| text.eq_ignore_ascii_case(name));
            let named = name
                .and_then(|index| i8::try_from(index).ok())
                .map(|index| index + base);
            named
                .or_else(|| text.parse::<i8>().ok())
                .filter(|n| (least..=most).contains(n))
                .ok_or_else(bad)
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (least, most),
            Some((first, last)) => (number(first)?, number(last)?),
            None if part.contains('/') => (number(range)?, most),
            None => (number(range)?, number(range)?),
        };
        if first > last {
            return Err(bad());
        }
        all.extend((first..=last).step_by(step));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, since: &str) -> String {
        let since: Timestamp = since.parse().unwrap();
        Schedule::parse(schedule)
            .unwrap()
            .after(since, &TimeZone::UTC)
            .unwrap()
            .to_string()
    }

    #[test]
    fn fields_lists_ranges_steps_and_names_are_understood() {
        let since = "2026-01-31T10:07:30Z";
        assert_eq!(next("*/15 * * * *", since), "2026-01-31T10:15:00Z");
        assert_eq!(next("5 9-17/4 * * *", since), "2026-01-31T13:05:00Z");
        assert_eq!(next("0 0 1,15 * *", since), "2026-02-01T00:00:00Z");
        assert_eq!(next("0 12 * feb mon-fri", since), "2026-02-02T12:00:00Z");
        assert_eq!(next("0 0 29 2 *", since), "2028-02-29T00:00:00Z");
        assert_eq!(next("@hourly", since), "2026-01-31T11:00:00Z");
        assert_eq!(next("@every 1h30m", since), "2026-01-31T11:37:30Z");
        assert_eq!(next("0 0 * * 7", since), "2026-02-01T00:00:00Z");
    }

    #[test]
    fn two_restricted_day_fields_mean_either() {
        assert_eq!(
            next("0 0 13 * fri", "2026-01-31T00:00:00Z"),
            "2026-02-06T00:00:00Z"
        );
        assert_eq!(
            next("0 0 3 * fri", "2026-01-31T00:00:00Z"),
            "2026-02-03T00:00:00Z"
        );
    }

    #[test]
    fn the_last_time_is_found_backwards() {
        let now: Timestamp = "2026-01-31T10:07:30Z".parse().unwrap();
        let before = |text| {
            Schedule::parse(text)
                .unwrap()
                .before(now, &TimeZone::UTC)
                .unwrap()
                .to_string()
        };
        assert_eq!(before("*/5 * * * *"), "2026-01-31T10:05:00Z");
        assert_eq!(before("0 0 1 * *"), "2026-01-01T00:00:00Z");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "x * * * *",
            "@every soon",
        ] {
            assert!(Schedule::parse(bad).is_err(), "{bad}");
        }
    }
}
