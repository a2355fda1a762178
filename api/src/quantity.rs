//! `resource.Quantity`: exact amounts of resources, as `500m`, `1.5Gi`, `1e3`.
//!
//! Follows the published rules: nothing finer than 10⁻⁹ (rounded away from zero), nothing beyond ±(2⁶³−1), one
//! canonical form per amount and suffix family.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
const MAX: i128 = i64::MAX as i128 * NANO;

/// Which family of suffixes a quantity is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `n u m k M G T P E`.
    Decimal,
    /// `Ki Mi Gi Ti Pi Ei`.
    Binary,
    /// `e3`, `E-6`.
    Exponent,
}

/// An exact amount. Compares by amount alone: `1000m` equals `1`.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a suffix at all.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Malformed,
    /// The suffix is none of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// A suffix as `base^power` and its family.
fn suffix(text: &str) -> Result<(u32, i32, Format), QuantityError> {
    let decimal = |power| Ok((10, power, Format::Decimal));
    let binary = |power| Ok((2, power, Format::Binary));
    match text {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        other => exponent(other),
    }
}

fn exponent(text: &str) -> Result<(u32, i32, Format), QuantityError> {
    let digits = text.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
    let power: i32 = digits.parse().map_err(|_| QuantityError::Suffix)?;
    Ok((10, power, Format::Exponent))
}

/// `digits × 10^power10 × 2^power2` in nanos: rounded away from zero, capped.
///
/// 30 significant digits count (20 with a binary suffix, so that the product fits); that is beyond the cap of 2⁶³−1
/// with nine decimals, and any digit after them only rounds up.
fn scaled(digits: &[u8], power10: i32, power2: u32) -> i128 {
    let Some(first) = digits.iter().position(|d| *d != 0) else {
        return 0;
    };
    let digits = &digits[first..];
    let (kept, dropped) = digits.split_at(digits.len().min(if power2 > 0 { 20 } else { 30 }));
    let mut value = kept
        .iter()
        .fold(0i128, |sum, digit| sum * 10 + i128::from(*digit))
        << power2;
    let mut inexact = dropped.iter().any(|d| *d != 0);
    let shift = i64::from(power10) + 9 + dropped.len() as i64;
    if shift >= 0 {
        let factor = u32::try_from(shift)
            .ok()
            .and_then(|shift| 10i128.checked_pow(shift));
        return factor
            .and_then(|f| value.checked_mul(f))
            .map_or(MAX, |v| v.min(MAX));
    }
    for _ in 0..(-shift).min(40) {
        inexact |= value % 10 != 0;
        value /= 10;
    }
    (value + i128::from(inexact)).min(MAX)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(QuantityError::Malformed);
        }
        let (base, power, format) = suffix(tail)?;
        let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
        let places = -i32::try_from(fraction.len()).map_err(|_| QuantityError::Malformed)?;
        let nanos = match base {
            2 => scaled(&digits, places, power as u32),
            _ => scaled(&digits, power.saturating_add(places), 0),
        };
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }
}

fn div_ceil(value: i128, by: i128) -> i64 {
    let (quotient, rest) = (value.div_euclid(by), value.rem_euclid(by));
    i64::try_from(quotient + i128::from(rest > 0)).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl Quantity {
    /// Nothing, in decimal format.
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::Decimal,
    };

    /// Parses a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        text.parse()
    }

    /// Parses what JSON may hold for a quantity: a string or a number.
    pub fn from_json(value: &serde_json::Value) -> Result<Self, QuantityError> {
        match value {
            serde_json::Value::String(text) => text.parse(),
            serde_json::Value::Number(number) => number.to_string().parse(),
            _ => Err(QuantityError::Malformed),
        }
    }

    /// `value` whole units.
    pub fn from_value(value: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(value) * NANO,
            format,
        }
    }

    /// `value` thousandths.
    pub fn from_milli(value: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(value) * (NANO / 1000),
            format,
        }
    }

    /// The amount in whole units, fractions rounded up.
    pub fn value(self) -> i64 {
        div_ceil(self.nanos, NANO)
    }

    /// The amount in thousandths, finer fractions rounded up; saturates.
    pub fn milli_value(self) -> i64 {
        div_ceil(self.nanos, NANO / 1000)
    }

    /// The amount in units as a float, for ratios only.
    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// Whether the amount is zero.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn sign(self) -> i32 {
        self.nanos.signum() as i32
    }

    /// The suffix family it was written in.
    pub fn format(self) -> Format {
        self.format
    }

    fn combined(self, nanos: i128, other: Self) -> Self {
        // Zero takes the format of the other side, as upstream's Add does.
        let format = if self.is_zero() { other.format } else { self.format };
        Self {
            nanos: nanos.clamp(-MAX, MAX),
            format,
        }
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.combined(self.nanos + other.nanos, other)
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.combined(self.nanos - other.nanos, other)
    }
}

impl std::ops::Neg for Quantity {
    type Output = Self;
    fn neg(self) -> Self {
        Self {
            nanos: -self.nanos,
            ..self
        }
    }
}

const DECIMAL_SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
const BINARY_SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.nanos.abs() < 1024 * NANO;
        match self.format {
            _ if self.nanos == 0 => f.write_str("0"),
            Format::Binary if !small && self.nanos % NANO == 0 => write_binary(f, self.nanos / NANO),
            Format::Exponent => write_decimal(f, self.nanos, true),
            _ => write_decimal(f, self.nanos, false),
        }
    }
}

fn write_binary(f: &mut fmt::Formatter<'_>, mut value: i128) -> fmt::Result {
    let mut step = 0;
    while value % 1024 == 0 && step + 1 < BINARY_SUFFIXES.len() {
        value /= 1024;
        step += 1;
    }
    write!(f, "{value}{}", BINARY_SUFFIXES[step])
}

fn write_decimal(f: &mut fmt::Formatter<'_>, mut value: i128, exponent: bool) -> fmt::Result {
    let mut step = 0;
    while value % 1000 == 0 && step + 1 < DECIMAL_SUFFIXES.len() {
        value /= 1000;
        step += 1;
    }
    match (exponent, (step as i32 - 3) * 3) {
        (true, 0) => write!(f, "{value}"),
        (true, power) => write!(f, "{value}e{power}"),
        (false, _) => write!(f, "{value}{}", DECIMAL_SUFFIXES[step]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().unwrap().to_string()
    }

    #[test]
    fn canonical_forms_are_the_published_ones() {
        let cases = [
            ("0", "0"),
            ("0n", "0"),
            ("0Mi", "0"),
            ("1000m", "1"),
            ("100m", "100m"),
            ("1.5", "1500m"),
            ("0.5Gi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("1000Ki", "1000Ki"),
            ("100Ki", "100Ki"),
            ("512Ki", "512Ki"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1.1Ki", "1126400m"),
            ("12e6", "12e6"),
            ("1e3", "1e3"),
            ("100e1", "1e3"),
            ("1E", "1E"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1.0", "1"),
            ("0.0001", "100u"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("-1500m", "-1500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("+3", "3"),
            ("99999999999999999999", "9223372036854775807"),
            ("16Ei", "9223372036854775807"),
            ("1.30Gi", "1395864371200m"),
            ("128974848", "128974848"),
            ("129M", "129M"),
            ("123Mi", "123Mi"),
            ("0.000000000000000000001", "1n"),
            ("1e-30", "1e-9"),
        ];
        for (text, wanted) in cases {
            assert_eq!(canonical(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for bad in [
            "", "-", ".", "1.2.3", "1x", "1 ", "Mi", "1e", "1KI", "1mm", "e3", "1K",
        ] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn integers_round_up() {
        let q = |t: &str| t.parse::<Quantity>().unwrap();
        assert_eq!(
            (q("1m").value(), q("1001m").value(), q("-1500m").value()),
            (1, 2, -1)
        );
        assert_eq!(
            (q("1u").milli_value(), q("2").milli_value(), q("1Ki").value()),
            (1, 2000, 1024)
        );
        assert_eq!(q("9E").milli_value(), i64::MAX);
        assert_eq!((q("1Gi") + q("1k")).to_string(), "1073742824");
        assert_eq!((Quantity::ZERO + q("1Gi")).to_string(), "1Gi");
    }

    proptest! {
        #[test]
        fn the_canonical_form_parses_to_the_same_amount(value in -1_000_000_000_000i64..1_000_000_000_000, suffix in
            prop::sample::select(vec!["n", "u", "m", "", "k", "M", "Ki", "Mi", "e3", "e-3"]), fraction in 0u32..1000) {
            let q: Quantity = format!("{value}.{fraction:03}{suffix}").parse().unwrap();
            let again: Quantity = q.to_string().parse().unwrap();
            prop_assert_eq!(q, again);
            prop_assert_eq!(q.to_string(), again.to_string());
        }

        #[test]
        fn addition_is_undone_by_subtraction(a in -1_000_000_000i64..1_000_000_000, b in -1_000_000_000i64..1_000_000_000) {
            let (a, b) = (Quantity::from_milli(a, Format::Decimal), Quantity::from_milli(b, Format::Binary));
            prop_assert_eq!(a + b - b, a);
            prop_assert_eq!(a < b, a.milli_value() < b.milli_value());
        }

        #[test]
        fn parsing_never_panics(text in "[-+]?[0-9.]{0,50}[a-zA-Z]{0,2}[-+]?[0-9]{0,12}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
