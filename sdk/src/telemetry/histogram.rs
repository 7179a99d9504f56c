//! Histograms that a worker fills while others look.

use std::array;
use std::fmt;

use super::{Counter, Gauge, Snapshot};

/// Sub-buckets an octave, as a power of two: 32, so that a bucket is at most a 32nd of its values wide.
const SUB_BITS: u32 = 5;

/// The largest value with a bucket of its own range is just below `1 << VALUE_BITS`.
const VALUE_BITS: u32 = 40;

/// What larger values count as.
const VALUE_MAX: u64 = (1 << VALUE_BITS) - 1;

/// One for each value below 32, then 32 for each power of two.
pub(super) const BUCKETS: usize = ((VALUE_BITS - SUB_BITS + 1) << SUB_BITS) as usize;

/// A histogram with one writer and any number of readers, none of whom waits for another.
///
/// ```text
/// 0 1 2 .. 31 │ 32 33 .. 63 │ 64-65 66-67 .. 126-127 │ 128-131 ..  │ .. 2^40-1
///  one each   │  one each   │  32 buckets of 2       │ 32 of 4     │
/// ```
///
/// Buckets are 3% wide at most, up to 2^40 (18 minutes in nanoseconds); larger values count in the last one. Their largest
/// and their sum are kept exactly. All of its 9 KiB are there from the start, in cache lines of their own.
///
/// Nothing orders what a reader sees of one `record`: it may find a value in the sum and not yet in its bucket, or the other
/// way round. A [`Snapshot`] counts what is in the buckets, so its quantiles and its count always agree; its mean may be off by
/// the values being recorded meanwhile.
#[repr(align(128))]
pub struct LiveHistogram {
    buckets: [Counter; BUCKETS],
    sum: Gauge,
    max: Gauge,
}

impl LiveHistogram {
    /// An empty one.
    pub fn new() -> Self {
        Self { buckets: array::from_fn(|_| Counter::default()), sum: Gauge::default(), max: Gauge::default() }
    }

    /// Counts `value`. Only the histogram's one writer may call it: a second one would lose values.
    #[inline]
    pub fn record(&self, value: u64) {
        // Always there; asking spares the data path a panic.
        if let Some(bucket) = self.buckets.get(bucket_of(value)) {
            bucket.add(1);
        }
        self.sum.set(self.sum.get().saturating_add(value));
        if value > self.max.get() {
            self.max.set(value);
        }
    }

    /// What it holds now, for any thread to look at in peace.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.buckets.iter().map(Counter::get).collect(), self.sum.get(), self.max.get())
    }
}

impl Default for LiveHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LiveHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LiveHistogram").field(&self.snapshot()).finish()
    }
}

/// The bucket of `value`: its highest six bits, and how far they stand above the lowest.
#[inline(always)]
fn bucket_of(value: u64) -> usize {
    let value = value.min(VALUE_MAX);
    // Below 32 the lowest bits count as the highest: `1 << SUB_BITS` stands in for them.
    let shift = u64::BITS - 1 - SUB_BITS - (value | 1 << SUB_BITS).leading_zeros();
    ((shift as usize) << SUB_BITS) + (value >> shift) as usize
}

/// The smallest value that counts in `bucket`.
pub(super) const fn lowest_of(bucket: usize) -> u64 {
    let octave = (bucket >> SUB_BITS) as u32;
    let shift = octave.saturating_sub(1);
    ((bucket as u64) - ((shift as u64) << SUB_BITS)) << shift
}

/// The largest value that counts in `bucket`, disregarding what is beyond all buckets.
pub(super) const fn highest_of(bucket: usize) -> u64 {
    lowest_of(bucket + 1) - 1
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use hdrhistogram::Histogram;
    use proptest::prelude::*;

    use super::*;

    /// Values of every magnitude, small and boundary ones among them.
    fn value() -> impl Strategy<Value = u64> {
        let of_bits = (0u32..=40).prop_flat_map(|bits| (1u64 << bits) - 1..=(1u64 << bits) + 1);
        let spread = (0u32..40, any::<u64>()).prop_map(|(bits, random)| random & ((2 << bits) - 1));
        prop_oneof![of_bits, spread, 0u64..100].prop_map(|value| value.min(VALUE_MAX))
    }

    #[test]
    fn buckets_follow_one_another_without_gap_and_are_3_percent_wide_at_most() {
        assert_eq!((lowest_of(0), highest_of(BUCKETS - 1)), (0, VALUE_MAX));
        for bucket in 0..BUCKETS {
            let (lowest, highest) = (lowest_of(bucket), highest_of(bucket));
            assert_eq!((bucket_of(lowest), bucket_of(highest)), (bucket, bucket), "{lowest} to {highest}");
            assert!((highest - lowest) * 32 <= lowest, "{lowest} to {highest}");
        }
    }

    #[test]
    fn what_is_too_large_counts_in_the_last_bucket_and_is_not_forgotten() {
        let histogram = LiveHistogram::new();
        for value in [u64::MAX, VALUE_MAX + 1, 0] {
            histogram.record(value);
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.buckets().collect::<Vec<_>>(), [(0, 1), (VALUE_MAX, 2)]);
        assert_eq!((snapshot.max(), snapshot.sum()), (u64::MAX, u64::MAX));
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_hdrhistogram(values in prop::collection::vec(value(), 1..300), q in 0.0..=1.0) {
            let ours = LiveHistogram::new();
            let mut oracle = Histogram::<u64>::new(5).unwrap();
            for &value in &values {
                ours.record(value);
                oracle.record(value).unwrap();
            }
            let ours = ours.snapshot();
            prop_assert_eq!(ours.count(), oracle.len());
            prop_assert_eq!(ours.sum(), values.iter().sum::<u64>());
            prop_assert_eq!(Some(ours.max()), values.iter().copied().max());
            for q in [0.0, 0.5, 0.99, 0.999, 1.0, q] {
                let (got, expected) = (ours.quantile(q) as f64, oracle.value_at_quantile(q) as f64);
                // hdrhistogram rounds up, too, by one in 100,000 here.
                prop_assert!(got <= expected * (1.0 + 1.0 / 32.0) && got >= expected * (1.0 - 1e-5), "{q}: {got}, {expected}");
            }
            let mean = values.iter().map(|&value| value as f64).sum::<f64>() / values.len() as f64;
            prop_assert!((ours.mean() - mean).abs() <= mean * 1e-9);
        }

        #[test]
        fn a_difference_holds_what_came_between(
            before in prop::collection::vec(value(), 0..100),
            after in prop::collection::vec(value(), 0..100),
        ) {
            let (whole, later) = (LiveHistogram::new(), LiveHistogram::new());
            before.iter().for_each(|&value| whole.record(value));
            let earlier = whole.snapshot();
            for &value in &after {
                whole.record(value);
                later.record(value);
            }
            let (between, expected) = (whole.snapshot().since(&earlier), later.snapshot());
            prop_assert!(between.buckets().eq(expected.buckets()));
            prop_assert_eq!((between.count(), between.sum()), (expected.count(), expected.sum()));
            // Of the largest only its bucket is known.
            prop_assert!(between.max() >= expected.max() && between.max() - expected.max() <= expected.max() / 32);
        }
    }

    #[test]
    fn readers_never_see_it_shrink_or_contradict_itself() {
        let histogram = LiveHistogram::new();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..200_000u64).for_each(|n| histogram.record(n * n));
                done.store(true, Ordering::Relaxed);
            });
            let mut earlier = histogram.snapshot();
            while !done.load(Ordering::Relaxed) {
                let now = histogram.snapshot();
                assert_eq!(now.count(), now.buckets().map(|(_, count)| count).sum::<u64>());
                assert!(now.quantile(1.0) <= now.max());
                assert_eq!(now.since(&earlier).count(), now.count() - earlier.count());
                // The wrong way round it is empty rather than negative.
                assert_eq!(earlier.since(&now).count(), 0);
                earlier = now;
            }
        });
        assert_eq!(histogram.snapshot().count(), 200_000);
    }
}
