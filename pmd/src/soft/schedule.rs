//! When a generator's frames are due: a pure function of rate, gaps and chance, so it can be tested in virtual time.

use super::fault::Rng;
use super::spec::{Gap, Rate};

/// A generator that fell behind by more frames than this (or two bursts) lets the rest go: a burst that no real sender
/// would make.
const CATCH_UP: u64 = 64;
/// Binary digits of a nanosecond that the schedule keeps, so that no rate drifts.
const FRACTION: u32 = 32;
const SECOND: u128 = 1_000_000_000 << FRACTION;
/// Frames in an on-time of [`Gap::Pareto`], and how many times the mean rate they come at.
const TRAIN: u16 = 16;
const TRAIN_SPEED_UP: u128 = 10;
/// The longest off-time; ten times the mean one where that is longer.
const LONGEST_OFF: u128 = SECOND;

/// The due times of one generator's frames.
#[derive(Debug)]
pub(super) struct Schedule {
    rate: Rate,
    gap: Gap,
    /// When the next frame is due, in nanoseconds with [`FRACTION`]; `None` until the schedule starts.
    next: Option<u128>,
    /// Frames of the burst that has begun, after the next one.
    left: u16,
    rng: Rng,
}

impl Schedule {
    pub(super) fn new(rate: Rate, gap: Gap, seed: u64) -> Self {
        Self { rate, gap, next: None, left: 0, rng: Rng::new(seed) }
    }

    pub(super) fn set(&mut self, rate: Rate, gap: Gap) {
        (self.rate, self.gap) = (rate, gap);
        self.hold();
    }

    pub(super) fn gap(&self) -> Gap {
        self.gap
    }

    /// Starts anew at the next look.
    pub(super) fn hold(&mut self) {
        (self.next, self.left) = (None, 0);
    }

    /// Whether frames come as long as there is room, whatever the time.
    pub(super) fn is_greedy(&self) -> bool {
        self.rate == Rate::Max
    }

    /// Takes the next frame off the schedule, if it is due.
    pub(super) fn take(&mut self, now_ns: u64) -> bool {
        let Some(mean) = self.mean() else { return self.is_greedy() };
        let now = u128::from(now_ns) << FRACTION;
        let mut next = match self.next {
            Some(next) => next,
            None => now + self.draw(mean),
        };
        let forgiven = CATCH_UP.max(if let Gap::Burst(frames) = self.gap { 2 * u64::from(frames) } else { 0 });
        let oldest = now.saturating_sub(mean * u128::from(forgiven - 1));
        if next + mean < oldest {
            (next, self.left) = (oldest, 0);
        }
        let due = next <= now;
        if due {
            next += self.draw(mean);
        }
        self.next = Some(next);
        due
    }

    /// When the next frame is due, in nanoseconds; `u64::MAX` when no clock decides that.
    pub(super) fn next_ns(&self) -> u64 {
        let next = self.next.filter(|_| self.mean().is_some());
        next.map_or(u64::MAX, |next| next.div_ceil(1 << FRACTION) as u64)
    }

    /// The mean time from frame to frame; `None` when no clock decides.
    fn mean(&self) -> Option<u128> {
        match self.rate {
            Rate::PerSecond(rate) => SECOND.checked_div(rate.into()),
            Rate::Silent | Rate::Max => None,
        }
    }

    /// The time from the next frame to the one after.
    fn draw(&mut self, mean: u128) -> u128 {
        match self.gap {
            Gap::Even => mean,
            Gap::Poisson => self.exponential(mean),
            Gap::Burst(frames) => {
                if self.within_burst(frames) {
                    0
                } else {
                    self.exponential(mean * u128::from(frames))
                }
            }
            Gap::Pareto => {
                let fast = mean / TRAIN_SPEED_UP;
                if self.within_burst(TRAIN) {
                    fast
                } else {
                    self.pareto(mean * u128::from(TRAIN) - fast * u128::from(TRAIN - 1))
                }
            }
        }
    }

    /// Whether the frame to come belongs to the burst of the one before; if not, it begins one of `frames`.
    fn within_burst(&mut self, frames: u16) -> bool {
        let within = self.left > 0;
        self.left = if within { self.left - 1 } else { frames.saturating_sub(1) };
        within
    }

    /// A number from 0 (exclusive) to 1.
    fn uniform(&mut self) -> f64 {
        ((self.rng.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: u128) -> u128 {
        (-self.uniform().ln() * mean as f64) as u128
    }

    /// From the Pareto distribution with shape 1.5 between a shortest and a longest time, with this mean.
    fn pareto(&mut self, mean: u128) -> u128 {
        let longest = LONGEST_OFF.max(10 * mean) as f64;
        // With x the root of shortest/longest, the mean is 3 x^2 / (1 + x + x^2) of the longest. This is that solved for x.
        let part = mean as f64 / (3.0 * longest);
        let x = (part + (part * part + 4.0 * part * (1.0 - part)).sqrt()) / (2.0 * (1.0 - part));
        let left = 1.0 - self.uniform() * (1.0 - x.powi(3));
        (longest * x * x * left.powf(-2.0 / 3.0)) as u128
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gaps between the first `frames` due times, in nanoseconds, as seen by somebody who looks exactly then.
    fn gaps(rate: u32, gap: Gap, frames: usize, seed: u64) -> Vec<u64> {
        let mut schedule = Schedule::new(Rate::PerSecond(rate), gap, seed);
        let mut now_ns = 1;
        let mut last_ns = None;
        let mut gaps = Vec::new();
        while gaps.len() < frames {
            if schedule.take(now_ns) {
                gaps.extend(last_ns.map(|last: u64| now_ns - last));
                last_ns = Some(now_ns);
            } else {
                assert!(schedule.next_ns() > now_ns);
                now_ns = schedule.next_ns();
            }
        }
        gaps
    }

    fn mean(values: &[u64]) -> f64 {
        values.iter().map(|v| *v as f64).sum::<f64>() / values.len() as f64
    }

    fn share(values: &[u64], of: impl Fn(u64) -> bool) -> f64 {
        values.iter().filter(|v| of(**v)).count() as f64 / values.len() as f64
    }

    #[track_caller]
    fn near(value: f64, expected: f64, tolerance: f64) {
        assert!((value / expected - 1.0).abs() < tolerance, "{value}, not {expected}");
    }

    #[test]
    fn every_pattern_keeps_the_mean_rate() {
        for rate in [7, 1000, 333_333, 5_000_000] {
            let expected = 1e9 / f64::from(rate);
            near(mean(&gaps(rate, Gap::Even, 100_000, 1)), expected, 1e-3);
            for seed in 1..4 {
                near(mean(&gaps(rate, Gap::Poisson, 200_000, seed)), expected, 0.01);
                near(mean(&gaps(rate, Gap::Burst(20), 1_000_000, seed)), expected, 0.02);
                near(mean(&gaps(rate, Gap::Pareto, 1_000_000, seed)), expected, 0.06);
            }
        }
    }

    #[test]
    fn even_gaps_are_even_and_do_not_drift() {
        let gaps = gaps(3, Gap::Even, 3000, 1);
        assert!(gaps.iter().all(|g| (333_333_333..=333_333_334).contains(g)));
        near(gaps.iter().sum::<u64>() as f64, 1e12, 1e-11);
    }

    #[test]
    fn poisson_gaps_are_exponential() {
        let gaps = gaps(10_000, Gap::Poisson, 200_000, 5);
        for multiple in [0.1, 0.5, 1.0, 2.0, 4.0_f64] {
            near(share(&gaps, |g| g as f64 > multiple * 100_000.0), f64::exp(-multiple), 0.05);
        }
        let spread = mean(&gaps.iter().map(|g| g * g).collect::<Vec<_>>());
        near(spread, 2e10, 0.03);
    }

    #[test]
    fn bursts_come_back_to_back_with_exponential_gaps_between() {
        let gaps = gaps(10_000, Gap::Burst(8), 400_000, 5);
        let between: Vec<u64> = gaps.iter().copied().filter(|g| *g > 0).collect();
        near(between.len() as f64, 50_000.0, 0.001);
        for multiple in [0.5, 1.0, 2.0] {
            near(share(&between, |g| g as f64 > multiple * 800_000.0), f64::exp(-multiple), 0.05);
        }
        let longest_run = gaps.split(|g| *g > 0).map(<[u64]>::len).max();
        assert_eq!(longest_run, Some(7));
    }

    #[test]
    fn off_times_have_a_heavy_tail_that_ends_at_a_second() {
        let gaps = gaps(10_000, Gap::Pareto, 4_000_000, 5);
        assert!(gaps.iter().all(|g| *g <= 1_000_000_000));
        let off: Vec<u64> = gaps.iter().copied().filter(|g| *g > 10_001).collect();
        near(off.len() as f64, 250_000.0, 0.001);
        let shortest = *off.iter().min().unwrap() as f64;
        for factor in [4.0, 16.0, 64.0_f64] {
            near(share(&off, |g| g as f64 > factor * shortest), factor.powf(-1.5), 0.15);
        }
    }

    #[test]
    fn a_seed_decides_all_times() {
        for gap in [Gap::Poisson, Gap::Burst(3), Gap::Pareto] {
            assert_eq!(gaps(1000, gap, 1000, 1), gaps(1000, gap, 1000, 1));
            assert_ne!(gaps(1000, gap, 1000, 1), gaps(1000, gap, 1000, 2));
        }
    }

    #[test]
    fn frames_become_due_by_the_clock_and_a_long_pause_makes_no_burst() {
        let mut schedule = Schedule::new(Rate::PerSecond(1_000_000), Gap::Even, 1);
        let mut due = |now_ns| {
            let count = std::iter::repeat_with(|| schedule.take(now_ns)).take_while(|taken| *taken).count() as u64;
            (count, schedule.next_ns())
        };
        assert_eq!(due(10_000), (0, 11_000), "the schedule starts here");
        assert_eq!(due(15_000), (5, 16_000));
        assert_eq!(due(10_000_000).0, CATCH_UP);
        assert_eq!(due(10_000_000).0, 0, "the rest is let go");
    }

    #[test]
    fn a_burst_longer_than_what_is_caught_up_with_comes_whole() {
        let mut schedule = Schedule::new(Rate::PerSecond(1000), Gap::Burst(1000), 3);
        assert!(!schedule.take(1));
        let start_ns = schedule.next_ns();
        let mut taken = 0;
        while taken < 1000 {
            // Slowly: a microsecond a frame.
            assert!(schedule.take(start_ns + taken * 1000), "{taken}");
            taken += 1;
        }
    }

    #[test]
    fn silence_and_greed_have_no_times() {
        for (rate, greedy) in [(Rate::Silent, false), (Rate::PerSecond(0), false), (Rate::Max, true)] {
            let mut schedule = Schedule::new(rate, Gap::Poisson, 1);
            assert_eq!((schedule.take(5), schedule.is_greedy(), schedule.next_ns()), (greedy, greedy, u64::MAX));
        }
    }
}
