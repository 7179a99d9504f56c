//! What a live histogram held at one moment.

use std::fmt;

use super::histogram::{BUCKETS, highest_of, lowest_of};

/// What a [`LiveHistogram`](super::LiveHistogram) held at one moment, or [between two](Self::since).
///
/// Values are in the unit that was recorded; quantiles are at most 3% above the true ones.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    buckets: Box<[u64]>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Snapshot {
    /// `max` is made to fit the buckets: a reader may see one before the other.
    pub(super) fn new(buckets: Box<[u64]>, sum: u64, max: u64) -> Self {
        let highest = buckets.iter().rposition(|&count| count > 0);
        let count = buckets.iter().sum();
        Self { count, sum, max: highest.map_or(0, |bucket| max.max(lowest_of(bucket))), buckets }
    }

    /// How many values it holds.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum, which stops at the largest number there is.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Their mean; zero when there are none.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }

    /// The smallest, at most 3% below the true one; zero when there are none.
    pub fn min(&self) -> u64 {
        self.buckets.iter().position(|&count| count > 0).map_or(0, lowest_of)
    }

    /// The largest; zero when there are none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that a share `q` of all values does not exceed; zero when there are none. `q` is held to 0 to 1.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        self.buckets()
            .find(|&(_, count)| {
                seen += count;
                seen >= rank
            })
            .map_or(0, |(highest, _)| highest.min(self.max))
    }

    /// What was recorded after `earlier`, a snapshot of the same histogram. Its largest value is known by its bucket only, and
    /// may be given up to 3% too large.
    pub fn since(&self, earlier: &Self) -> Self {
        let between = |(now, then): (&u64, &u64)| now.saturating_sub(*then);
        let buckets: Box<[u64]> = self.buckets.iter().zip(&earlier.buckets).map(between).collect();
        let highest = buckets.iter().rposition(|&count| count > 0);
        let bound = match highest {
            None => 0,
            // What is beyond all buckets is in the last one.
            Some(bucket) if bucket + 1 == BUCKETS => self.max,
            Some(bucket) => self.max.min(highest_of(bucket)),
        };
        Self::new(buckets, self.sum.saturating_sub(earlier.sum), bound)
    }

    /// Its buckets that are not empty, ascending: the largest value that counts in each, and how many did. Each power of two
    /// begins a bucket. What is too large for any stands in the last one.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let full = self.buckets.iter().enumerate().filter(|&(_, &count)| count > 0);
        full.map(|(bucket, &count)| (highest_of(bucket), count))
    }
}

impl Default for Snapshot {
    /// An empty one.
    fn default() -> Self {
        Self::new(vec![0; BUCKETS].into(), 0, 0)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99] = [0.5, 0.99].map(|q| self.quantile(q));
        let Self { count, sum, max, .. } = self;
        write!(f, "Snapshot {{ count: {count}, sum: {sum}, p50: {p50}, p99: {p99}, max: {max} }}")
    }
}
