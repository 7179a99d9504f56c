//! Gaps: the moments in which a spinning thread did not get its core.

use serde::{Deserialize, Serialize};
use spinwake::clock::Clock;
use spinwake::telemetry::{LiveHistogram, Snapshot};

/// How many of the longest gaps are kept with their time.
pub(super) const WORST: usize = 20;
/// Equal parts of the measurement, of each of which the longest gap is kept.
pub(super) const SLICES: usize = 100;

/// What a spinning thread saw of its core. All times are in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Gaps {
    /// Shorter gaps are not counted.
    pub threshold_ns: u64,
    /// How long it measured.
    pub measured_ns: u64,
    /// How often it looked at the clock.
    pub looks: u64,
    /// Gaps longer than the threshold.
    pub count: u64,
    /// The time in them.
    pub lost_ns: u64,
    /// Half of the gaps are no longer.
    pub p50_ns: u64,
    /// 99 of 100 gaps are no longer.
    pub p99_ns: u64,
    /// 999 of 1000 gaps are no longer.
    pub p999_ns: u64,
    /// The longest gap.
    pub max_ns: u64,
    /// How many gaps there are of which length, ascending; only lengths that occurred.
    pub histogram: Vec<Bucket>,
    /// The longest gaps, longest first.
    pub worst: Vec<Gap>,
    /// The longest gap in each of a hundred equal parts of the time; zero where there was none.
    pub slices_ns: Vec<u64>,
}

/// Gaps of about one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// The longest that counts here; what is 3% shorter counts in the one before.
    pub up_to_ns: u64,
    /// How many there were.
    pub count: u64,
}

/// One gap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// When it began, counted from the start of the measurement.
    pub at_ns: u64,
    /// How long it was.
    pub gap_ns: u64,
    /// What the kernel's tracers saw in it; empty without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub during: Vec<String>,
}

impl Gaps {
    /// Gaps a second.
    pub fn per_second(&self) -> f64 {
        self.rate(self.count)
    }

    /// The share of time that was lost in gaps.
    pub fn lost_share(&self) -> f64 {
        if self.measured_ns == 0 { 0.0 } else { self.lost_ns as f64 / self.measured_ns as f64 }
    }

    /// How many of something a second, in the time that was measured.
    pub fn rate(&self, count: u64) -> f64 {
        if self.measured_ns == 0 { 0.0 } else { count as f64 * 1e9 / self.measured_ns as f64 }
    }

    /// Gaps by length, in steps of 1, 2, 5, 10 and so on: the step that a length is below, in nanoseconds, and how many.
    pub fn lengths(&self) -> Vec<(u64, u64)> {
        let mut lengths: Vec<(u64, u64)> = Vec::new();
        for bucket in &self.histogram {
            let step = step_above(bucket.up_to_ns);
            match lengths.last_mut() {
                Some((last, count)) if *last == step => *count += bucket.count,
                _ => lengths.push((step, bucket.count)),
            }
        }
        lengths
    }
}

/// The least of 1, 2, 5, 10 and so on that is no less.
fn step_above(ns: u64) -> u64 {
    let mut decade: u64 = 1;
    loop {
        if let Some(step) = [1, 2, 5].iter().map(|digit| decade.saturating_mul(*digit)).find(|step| *step >= ns) {
            return step;
        }
        decade = decade.saturating_mul(10);
    }
}

/// Takes down gaps as they happen. All its memory is there from the start, so that it makes no gaps of its own.
#[derive(Debug)]
pub(super) struct Recorder<'a> {
    live: &'a LiveHistogram,
    length_ticks: u64,
    /// By their length, longest first, in ticks: when, and how long.
    worst: [(u64, u64); WORST],
    slices: [u64; SLICES],
}

impl<'a> Recorder<'a> {
    /// For a measurement of this length. Gaps are also counted in `live`, in nanoseconds, for whoever wants to look
    /// meanwhile.
    pub(super) fn new(live: &'a LiveHistogram, length_ticks: u64) -> Self {
        Self { live, length_ticks: length_ticks.max(1), worst: [(0, 0); WORST], slices: [0; SLICES] }
    }

    /// A gap of `gap_ticks` that began `at_ticks` after the start.
    pub(super) fn record(&mut self, clock: Clock, at_ticks: u64, gap_ticks: u64) {
        self.live.record(clock.ticks_to_ns(gap_ticks));
        let slice = u128::from(at_ticks) * SLICES as u128 / u128::from(self.length_ticks);
        if let Some(longest) = self.slices.get_mut(slice as usize) {
            *longest = (*longest).max(gap_ticks);
        }
        if gap_ticks > self.worst[WORST - 1].1 {
            let place = self.worst.partition_point(|&(_, longer)| longer >= gap_ticks);
            self.worst[place..].rotate_right(1);
            self.worst[place] = (at_ticks, gap_ticks);
        }
    }

    /// What was recorded, with when each of the worst gaps began and ended, in ticks since the start.
    pub(super) fn finish(
        self,
        clock: Clock,
        threshold_ticks: u64,
        measured_ticks: u64,
        looks: u64,
    ) -> (Gaps, Vec<(u64, u64)>) {
        let ns = |ticks| clock.ticks_to_ns(ticks);
        let worst: Vec<(u64, u64)> = self.worst.into_iter().filter(|&(_, gap)| gap > 0).collect();
        let seen: Snapshot = self.live.snapshot();
        let gaps = Gaps {
            threshold_ns: ns(threshold_ticks),
            measured_ns: ns(measured_ticks),
            looks,
            count: seen.count(),
            lost_ns: seen.sum(),
            p50_ns: seen.quantile(0.5),
            p99_ns: seen.quantile(0.99),
            p999_ns: seen.quantile(0.999),
            max_ns: seen.max(),
            histogram: seen.buckets().map(|(up_to_ns, count)| Bucket { up_to_ns, count }).collect(),
            worst: worst.iter().map(|&(at, gap)| Gap { at_ns: ns(at), gap_ns: ns(gap), during: Vec::new() }).collect(),
            slices_ns: self.slices.into_iter().map(ns).collect(),
        };
        (gaps, worst.into_iter().map(|(at, gap)| (at, at.saturating_add(gap))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records gaps of these lengths, in microseconds, one a millisecond.
    fn recorded(gaps_us: &[u64]) -> Gaps {
        let (clock, live) = (Clock::get(), LiveHistogram::new());
        let ticks = |us: u64| clock.ns_to_ticks(us * 1_000);
        let length = ticks(gaps_us.len() as u64 * 1_000);
        let mut recorder = Recorder::new(&live, length);
        for (i, &gap) in gaps_us.iter().enumerate() {
            recorder.record(clock, ticks(i as u64 * 1_000), ticks(gap));
        }
        recorder.finish(clock, ticks(1), length, 7).0
    }

    /// A microsecond that was turned into ticks and back.
    fn clock_us() -> u64 {
        Clock::get().ticks_to_ns(Clock::get().ns_to_ticks(1_000))
    }

    fn close(ns: u64, us: u64) -> bool {
        ns.abs_diff(us * 1_000) <= us * 1_000 / 25
    }

    #[test]
    fn synthetic_gaps_have_the_figures_that_they_were_made_with() {
        // 1 to 1000 us, each once, in an order that is none.
        let lengths: Vec<u64> = (0..1_000).map(|i| i * 367 % 1_000 + 1).collect();
        let gaps = recorded(&lengths);
        assert_eq!((gaps.count, gaps.looks, gaps.threshold_ns), (1_000, 7, clock_us()));
        for (ns, us) in [(gaps.p50_ns, 500), (gaps.p99_ns, 990), (gaps.p999_ns, 999), (gaps.max_ns, 1_000)] {
            assert!(close(ns, us), "{ns} ns, not {us} us");
        }
        assert!(close(gaps.lost_ns, 500_500) && (gaps.lost_share() - 0.5).abs() < 0.01, "{}", gaps.lost_share());
        assert!((gaps.per_second() - 1_000.0).abs() < 1.0);
        assert_eq!(gaps.histogram.iter().map(|bucket| bucket.count).sum::<u64>(), gaps.count);
        assert_eq!(gaps.lengths().iter().map(|length| length.1).sum::<u64>(), gaps.count);
        assert!(gaps.lengths().is_sorted());
    }

    #[test]
    fn the_worst_are_kept_with_their_time() {
        let lengths: Vec<u64> = (0..500).map(|i| i * 211 % 499 + 1).collect();
        let gaps = recorded(&lengths);
        assert_eq!(gaps.worst.len(), WORST);
        for (rank, gap) in gaps.worst.iter().enumerate() {
            assert!(close(gap.gap_ns, 499 - rank as u64) || rank + 1 >= WORST - 1, "{rank}: {gap:?}");
            let at = (gap.at_ns + 500_000) / 1_000_000;
            assert!(close(gap.gap_ns, lengths[at as usize]), "{gap:?} is not what happened then");
        }
        assert!(gaps.worst.is_sorted_by(|a, b| a.gap_ns >= b.gap_ns));
        assert_eq!(gaps.slices_ns.len(), SLICES);
        assert_eq!(gaps.slices_ns.iter().max(), gaps.worst.first().map(|gap| &gap.gap_ns));
    }

    #[test]
    fn lengths_are_in_round_steps() {
        for (ns, step) in [(0, 1), (1, 1), (3, 5), (1_001, 2_000), (5_000, 5_000), (u64::MAX, u64::MAX)] {
            assert_eq!(step_above(ns), step);
        }
    }

    #[test]
    fn few_gaps_or_none_are_no_trouble() {
        let none = recorded(&[]);
        assert_eq!((none.count, none.max_ns, none.worst.len()), (0, 0, 0));
        assert_eq!((none.lost_share(), none.per_second()), (0.0, 0.0));
        let one = recorded(&[5]);
        assert!(close(one.p50_ns, 5) && close(one.max_ns, 5) && one.worst.len() == 1);
    }

    #[test]
    fn a_gap_outside_of_the_time_or_beyond_all_lengths_is_no_panic() {
        let (clock, live) = (Clock::get(), LiveHistogram::new());
        let mut recorder = Recorder::new(&live, 0);
        recorder.record(clock, u64::MAX, u64::MAX);
        let (gaps, when) = recorder.finish(clock, u64::MAX, 0, 0);
        assert_eq!((gaps.count, when), (1, vec![(u64::MAX, u64::MAX)]));
        assert!(!gaps.lengths().is_empty());
    }
}
