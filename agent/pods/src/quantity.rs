//! Kubernetes quantities as whole numbers, rounded up as `Quantity.Value()` and `MilliValue()` do.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The amount in whole units (bytes, cores), rounded up; none when the text is no quantity.
#[must_use]
pub fn units(q: &Quantity) -> Option<i64> {
    parsed(q).map(api::quantity::Quantity::value)
}

/// The amount in thousandths, rounded up.
#[must_use]
pub fn milli(q: &Quantity) -> Option<i64> {
    parsed(q).map(api::quantity::Quantity::milli_value)
}

fn parsed(q: &Quantity) -> Option<api::quantity::Quantity> {
    api::quantity::Quantity::parse(q.0.trim()).ok()
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
