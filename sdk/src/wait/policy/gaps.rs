//! What is known about the lengths of idle gaps.

/// Buckets per octave.
const STEPS: u64 = 16;
/// Gaps shorter than this share the first bucket.
const SHORTEST_NS: u64 = 64;
/// Gaps of this length and longer share the last bucket: 17 s.
const LONGEST_NS: u64 = 1 << 34;
/// How many buckets there are.
const BUCKETS: usize = 1 + index_above_shortest(LONGEST_NS) as usize + 1;
/// The weight of one more gap at which all weights are scaled down. Their ratios keep 12 digits up to there.
const HEAVIEST_UNIT: f64 = 1e60;
/// A bucket of less than this many gaps counts as empty after scaling down.
const LIGHTEST: f64 = 1e-9;

/// A log-scale histogram of idle gaps that forgets: each gap counts a little more than the one before it.
///
/// Each octave has 16 buckets, from 64 ns to 17 s. A bucket knows how many gaps it holds, their sum, and about the
/// longest of them, so that a cluster of gaps is known to within a hundredth and not to within a bucket.
#[derive(Debug, Clone)]
pub struct GapHistogram {
    /// Weight of the next gap.
    unit: f64,
    /// How much heavier each gap is than the one before it.
    growth: f64,
    total: Bucket,
    buckets: Box<[Bucket]>,
}

/// A bucket of a [`GapHistogram`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GapBucket {
    /// Its gaps are at least this long, in nanoseconds.
    pub from_ns: u64,
    /// And shorter than this, in nanoseconds; `u64::MAX` for the last bucket.
    pub to_ns: u64,
    /// How many gaps it holds, of which old ones count less.
    pub weight: f64,
}

/// Gaps of about one length, weighed in units of long ago.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    weight: f64,
    sum_ns: f64,
    /// The longest gap, less a 256th of the distance for each shorter one since.
    longest_ns: u64,
}

/// All gaps up to a length, and a spin time that catches them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caught {
    /// The shortest spin time that sees the end of all of them, with a small margin.
    pub(super) spin_ns: u64,
    /// Which share of all gaps they are.
    pub(super) share: f64,
    /// Their sum over the number of all gaps.
    pub(super) mean_ns: f64,
}

impl GapHistogram {
    /// An empty histogram in which a gap's weight falls to a third after `memory` further ones.
    ///
    /// # Panics
    ///
    /// If `memory` is zero.
    pub(super) fn new(memory: u32) -> Self {
        assert!(memory > 0, "a histogram remembers at least one gap");
        Self {
            unit: 1.0,
            growth: 1.0 + 1.0 / f64::from(memory),
            total: Bucket::default(),
            buckets: vec![Bucket::default(); BUCKETS].into_boxed_slice(),
        }
    }

    /// Adds a gap of this length.
    #[inline]
    pub(super) fn add(&mut self, gap_ns: u64) {
        self.unit *= self.growth;
        if self.unit > HEAVIEST_UNIT {
            self.scale_down();
        }
        let sum_ns = gap_ns as f64 * self.unit;
        self.total.weight += self.unit;
        self.total.sum_ns += sum_ns;
        let bucket = &mut self.buckets[index(gap_ns)];
        bucket.weight += self.unit;
        bucket.sum_ns += sum_ns;
        bucket.longest_ns = gap_ns.max(bucket.longest_ns - (bucket.longest_ns.saturating_sub(gap_ns) >> 8));
    }

    /// How many gaps it knows, of which old ones count less.
    pub fn weight(&self) -> f64 {
        self.total.weight / self.unit
    }

    /// Mean length of a gap, in nanoseconds; zero when there are none.
    pub fn mean_ns(&self) -> f64 {
        if self.total.weight > 0.0 { self.total.sum_ns / self.total.weight } else { 0.0 }
    }

    /// All its buckets, shortest gaps first, empty ones too.
    pub fn buckets(&self) -> impl Iterator<Item = GapBucket> {
        self.buckets.iter().enumerate().map(|(i, bucket)| GapBucket {
            from_ns: start_ns(i),
            to_ns: if i + 1 == BUCKETS { u64::MAX } else { start_ns(i + 1) },
            weight: bucket.weight / self.unit,
        })
    }

    /// What each spin time that is worth considering would catch, shortest first: one just beyond each bucket that is
    /// not empty. Costs are lowest there, because a longer one catches nothing more before the next such bucket.
    pub(super) fn spins(&self) -> impl Iterator<Item = Caught> {
        // Multiplying is much cheaper than dividing, and this runs again and again.
        let per_gap = 1.0 / self.total.weight;
        self.buckets.iter().filter(|bucket| bucket.weight > 0.0).scan((0.0, 0.0), move |(weight, sum_ns), bucket| {
            *weight += bucket.weight;
            *sum_ns += bucket.sum_ns;
            Some(Caught {
                spin_ns: bucket.longest_ns.saturating_add(bucket.longest_ns / 128 + 1),
                share: (*weight * per_gap).min(1.0),
                mean_ns: *sum_ns * per_gap,
            })
        })
    }

    #[cold]
    fn scale_down(&mut self) {
        let scale = 1.0 / self.unit;
        self.total = Bucket::default();
        for bucket in &mut self.buckets {
            bucket.weight *= scale;
            bucket.sum_ns *= scale;
            if bucket.weight < LIGHTEST {
                *bucket = Bucket::default();
            }
            self.total.weight += bucket.weight;
            self.total.sum_ns += bucket.sum_ns;
        }
        self.unit = 1.0;
    }
}

/// The bucket of a gap.
#[inline]
fn index(gap_ns: u64) -> usize {
    if gap_ns < SHORTEST_NS { 0 } else { 1 + index_above_shortest(gap_ns.min(LONGEST_NS)) as usize }
}

/// Which step above the shortest one: octave by octave, each cut into equal steps.
const fn index_above_shortest(gap_ns: u64) -> u64 {
    let octave = gap_ns.ilog2();
    let step = (gap_ns >> (octave - STEPS.ilog2())) - STEPS;
    (octave - SHORTEST_NS.ilog2()) as u64 * STEPS + step
}

/// The shortest gap in a bucket.
fn start_ns(index: usize) -> u64 {
    match index as u64 {
        0 => 0,
        i => (STEPS + (i - 1) % STEPS) << ((i - 1) / STEPS + (SHORTEST_NS / STEPS).ilog2() as u64),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_gap_lies_in_its_bucket(exponent in 0.0..64.0f64) {
            let gap_ns = exponent.exp2() as u64;
            let mut gaps = GapHistogram::new(10);
            gaps.add(gap_ns);
            let bucket = gaps.buckets().find(|bucket| bucket.weight > 0.0).unwrap();
            prop_assert!(bucket.from_ns <= gap_ns && (gap_ns < bucket.to_ns || bucket.to_ns == u64::MAX));
            if (SHORTEST_NS..LONGEST_NS).contains(&gap_ns) {
                prop_assert!((bucket.to_ns - bucket.from_ns) * STEPS <= bucket.from_ns.next_power_of_two());
            }
        }
    }

    #[test]
    fn buckets_join_without_gaps() {
        let gaps = GapHistogram::new(1);
        let mut from_ns = 0;
        for bucket in gaps.buckets() {
            assert_eq!(bucket.from_ns, from_ns);
            assert!(bucket.to_ns > from_ns);
            from_ns = bucket.to_ns;
        }
        assert_eq!(from_ns, u64::MAX);
        assert_eq!(gaps.mean_ns(), 0.0);
    }

    #[test]
    fn old_gaps_fade() {
        let mut gaps = GapHistogram::new(100);
        for _ in 0..10_000 {
            gaps.add(1_000);
        }
        assert!((gaps.weight() - 101.0).abs() < 0.1, "{}", gaps.weight());
        for _ in 0..100 {
            gaps.add(9_000);
        }
        let short: f64 = gaps.buckets().filter(|bucket| bucket.to_ns < 2_000).map(|bucket| bucket.weight).sum();
        assert!((short - 37.2).abs() < 0.5, "{short}");
    }

    #[test]
    fn scaling_down_changes_nothing_but_units() {
        let mut gaps = GapHistogram::new(4);
        // Far more than it takes to reach the heaviest unit.
        for gap_ns in (1..5_000).map(|i| i % 3 * 10_000) {
            gaps.add(gap_ns);
            assert!(gaps.weight() <= 5.01 && gaps.mean_ns() <= 20_000.0);
        }
        let shares: Vec<_> = gaps.spins().map(|caught| (caught.spin_ns, (caught.share * 10.0).round())).collect();
        assert_eq!(shares.len(), 3);
        assert_eq!(shares[2].1, 10.0);
    }

    #[test]
    fn the_longest_gap_that_can_be_told_is_caught_by_a_spin_without_end() {
        let mut gaps = GapHistogram::new(1_000);
        gaps.add(u64::MAX);
        assert_eq!(gaps.spins().next().map(|caught| caught.spin_ns), Some(u64::MAX));
    }

    #[test]
    fn a_spin_sits_just_beyond_a_cluster() {
        let mut gaps = GapHistogram::new(1_000);
        for i in 0..1_000 {
            gaps.add(if i % 2 == 0 { 12_000 } else { 500_000 });
        }
        let first = gaps.spins().next().unwrap();
        assert!((12_000..12_200).contains(&first.spin_ns), "{first:?}");
        assert!((first.share - 0.5).abs() < 0.01 && (first.mean_ns - 6_000.0).abs() < 60.0, "{first:?}");
    }
}
