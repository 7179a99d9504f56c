//! Multiplication by a fraction that is fixed beforehand, without division and without overflow.

/// Multiplies by `num / den`, rounding down.
///
/// The factor is kept as `mult / 2^shift`, rounded up to 63 significant bits. So whole multiples of `den` come out exact,
/// and any result below 2^62 (146 years of nanoseconds) is at most one too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scale {
    mult: u64,
    shift: u32,
}

impl Scale {
    /// # Panics
    ///
    /// If either is zero, or `num` is 2^62 times `den` or more: no frequency that was checked makes it so.
    pub(super) fn new(num: u64, den: u64) -> Self {
        assert!(num > 0 && den > 0 && num / den < 1 << 62, "not a ratio of two clock rates");
        let up = u128::from(num).leading_zeros();
        let quotient = (u128::from(num) << up).div_ceil(u128::from(den));
        // `quotient` has at least 64 bits: its dividend has 128 and `den` at most 64.
        let drop = 128 - quotient.leading_zeros() - 63;
        let mult = quotient.div_ceil(1 << drop) as u64;
        Self { mult, shift: up - drop }
    }

    #[inline]
    pub(super) fn apply(self, value: u64) -> u64 {
        let scaled = (u128::from(value) * u128::from(self.mult)) >> self.shift;
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exact(value: u64, num: u64, den: u64) -> u64 {
        u64::try_from(u128::from(value) * u128::from(num) / u128::from(den)).unwrap_or(u64::MAX)
    }

    proptest! {
        #[test]
        fn at_most_one_too_large(value: u64, num in 1_000_000u64..100_000_000_000, den in 1_000_000u64..100_000_000_000) {
            let (got, want) = (Scale::new(num, den).apply(value), exact(value, num, den));
            let slack = if want < 1 << 62 { 1 } else { 4 };
            prop_assert!(got >= want && got - want <= slack, "{value} * {num} / {den}: {got}, not {want}");
        }

        #[test]
        fn larger_values_never_scale_smaller(a: u64, b: u64, den in 1_000_000u64..100_000_000_000) {
            let scale = Scale::new(1_000_000_000, den);
            prop_assert!(scale.apply(a.min(b)) <= scale.apply(a.max(b)));
        }

        #[test]
        fn whole_seconds_are_exact(seconds in 0u64..3_000_000_000, hz in 1_000_000u64..3_000_000_000) {
            prop_assert_eq!(Scale::new(1_000_000_000, hz).apply(seconds * hz), seconds * 1_000_000_000);
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        assert_eq!(Scale::new(7, 7).apply(u64::MAX), u64::MAX);
        assert_eq!(Scale::new(2, 1).apply(u64::MAX), u64::MAX);
        assert_eq!(Scale::new(1, u64::MAX).apply(u64::MAX), 1);
        assert_eq!(Scale::new((1 << 62) - 1, 1).apply(1), (1 << 62) - 1);
        assert_eq!(Scale::new(3, 1).apply(0), 0);
    }
}
