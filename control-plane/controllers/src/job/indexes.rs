//! Sets of indexes as jobs write them: `1,3-5,7`.

use std::collections::BTreeSet;

/// Reads a set; what is malformed is left out.
pub(crate) fn parse(text: &str) -> BTreeSet<i32> {
    let mut all = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            all.extend(first..=last);
        }
    }
    all
}

/// Writes a set with runs of two as two numbers and longer ones as a range, as upstream does.
pub(crate) fn format(all: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for index in all {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let parts = runs.into_iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let all = BTreeSet::from([0, 2, 3, 5, 6, 7]);
        assert_eq!(format(&all), "0,2,3,5-7");
        assert_eq!(parse("0,2,3,5-7"), all);
        assert_eq!(format(&BTreeSet::new()), "");
    }
}
