//! Medians, quantiles, and the rows of results.
use crate::peer::{Measure, Peer};
use serde::Serialize;

/// One row of the results.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub measure: &'static str,
    pub peer: &'static str,
    pub services: u32,
    /// Of a measure with several situations, which one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
    /// Median of the medians of all repetitions.
    pub p50: Option<f64>,
    /// Over all samples; where more is better, what 99 of 100 exceed.
    pub p99: Option<f64>,
    pub unit: &'static str,
    /// Repetitions.
    pub runs: usize,
    /// Distance of the quartiles of the repetitions' medians.
    pub spread: Option<f64>,
    /// Median of the quotients with `direct` in the same turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_direct: Option<f64>,
    /// Why there is no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// What was measured of one peer: the samples of each repetition.
pub type Runs = Vec<Vec<f64>>;

/// Makes a row of repetitions.
pub fn row(measure: Measure, peer: Peer, services: u32, runs: &Runs, direct: Option<&Runs>) -> Row {
    let medians: Vec<f64> = runs.iter().map(|r| quantile(r, 0.5)).collect();
    let all: Vec<f64> = runs.iter().flatten().copied().collect();
    let tail = if measure.more_is_better() { 0.01 } else { 0.99 };
    let quotients: Vec<f64> = direct
        .into_iter()
        .flatten()
        .zip(&medians)
        .map(|(d, m)| m / quantile(d, 0.5))
        .collect();
    Row {
        measure: measure.name(),
        peer: peer.name(),
        services,
        case: None,
        p50: Some(round(quantile(&medians, 0.5))),
        p99: Some(round(quantile(&all, tail))),
        unit: measure.unit(),
        runs: runs.len(),
        spread: Some(round(quantile(&medians, 0.75) - quantile(&medians, 0.25))),
        to_direct: (!quotients.is_empty()).then(|| round(quantile(&quotients, 0.5))),
        skipped: None,
    }
}

/// A row for what could not be measured.
pub fn skipped(measure: Measure, peer: Peer, services: u32, reason: &str) -> Row {
    Row {
        measure: measure.name(),
        peer: peer.name(),
        services,
        case: None,
        p50: None,
        p99: None,
        unit: measure.unit(),
        runs: 0,
        spread: None,
        to_direct: None,
        skipped: Some(reason.to_owned()),
    }
}

/// The value below which the part `q` of all lies, between neighbours in proportion; 0 of nothing.
pub fn quantile(of: &[f64], q: f64) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = q * (sorted.len().saturating_sub(1)) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * place.fract(),
        _ => 0.0,
    }
}

/// Four digits that count.
fn round(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let scale = 10_f64.powi(3 - x.abs().log10().floor() as i32);
    (x * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&values, 0.5), 2.5);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 1.0), 4.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn a_row_compares_each_repetition_with_the_direct_one_of_its_turn() {
        let (runs, direct) = (vec![vec![2.0], vec![40.0]], vec![vec![1.0], vec![20.0]]);
        let row = row(Measure::Connect, Peer::Skep, 1, &runs, Some(&direct));
        assert_eq!(row.to_direct, Some(2.0));
        assert_eq!(row.runs, 2);
    }

    #[test]
    fn numbers_keep_four_digits() {
        assert_eq!(round(123_456.0), 123_500.0);
        assert_eq!(round(0.012_345_6), 0.01235);
    }
}
