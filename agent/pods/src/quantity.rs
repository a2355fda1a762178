//! Kubernetes quantities as whole numbers, rounded up as `Quantity.Value()` and `MilliValue()` do.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The amount in whole units (bytes, cores), rounded up; none when the text is no quantity.
#[must_use]
pub fn units(q: &Quantity) -> Option<i64> {
    scaled(&q.0, 1)
}

/// The amount in thousandths, rounded up.
#[must_use]
pub fn milli(q: &Quantity) -> Option<i64> {
    scaled(&q.0, 1000)
}

fn scaled(text: &str, by: i128) -> Option<i64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (numerator, denominator) = decimal(number)?;
    let (up, down) = factor(suffix)?;
    let top = numerator.checked_mul(up)?.checked_mul(by)?;
    let bottom = denominator.checked_mul(down)?;
    let rounded = if top >= 0 {
        (top + bottom - 1) / bottom
    } else {
        top / bottom
    };
    i64::try_from(rounded).ok()
}

/// `12.5` as 125/10.
fn decimal(text: &str) -> Option<(i128, i128)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{fraction}");
    let power = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    Some((digits.parse().ok()?, power))
}

/// What a suffix multiplies and divides by.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    let (up, down) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => return exponent(suffix),
    };
    Some((up, down))
}

fn exponent(suffix: &str) -> Option<(i128, i128)> {
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let scale = 10_i128.checked_pow(power.unsigned_abs())?;
    Some(if power < 0 { (1, scale) } else { (scale, 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(text: &str) -> (Option<i64>, Option<i64>) {
        let q = Quantity(text.into());
        (units(&q), milli(&q))
    }

    #[test]
    fn suffixes_scale_and_fractions_round_up() {
        assert_eq!(both("100m"), (Some(1), Some(100)));
        assert_eq!(both("1.5Gi"), (Some(3 << 29), Some((3 << 29) * 1000)));
        assert_eq!(both("2k"), (Some(2000), Some(2_000_000)));
        assert_eq!(both("1e3"), (Some(1000), Some(1_000_000)));
        assert_eq!(both("1E-1"), (Some(1), Some(100)));
        assert_eq!(both("100u"), (Some(1), Some(1)));
        assert_eq!(both("0"), (Some(0), Some(0)));
    }

    #[test]
    fn what_is_no_quantity_is_none() {
        assert_eq!(both("12x"), (None, None));
        assert_eq!(both(""), (None, None));
    }
}
