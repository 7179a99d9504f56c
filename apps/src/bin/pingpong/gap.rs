//! When requests are due.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::time::Duration;

use spinwake::clock::Clock;

/// The time between two requests: `fixed:10us` or `poisson:100us`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gap {
    /// Always the same.
    Fixed(Duration),
    /// Exponentially distributed around this mean: requests come independently of each other.
    Poisson(Duration),
}

/// A gap was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no gap; write fixed:TIME or poisson:TIME with 100ns to 10s, as in fixed:10us or poisson:1ms")]
pub(crate) struct GapError(String);

/// Gaps that one can ask for, in nanoseconds.
const POSSIBLE_NS: std::ops::RangeInclusive<f64> = 100.0..=1e10;
/// Units of time and their nanoseconds. Those that end like another one stand before it.
const UNITS: [(&str, f64); 4] = [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)];

impl FromStr for Gap {
    type Err = GapError;

    fn from_str(text: &str) -> Result<Self, GapError> {
        let parse = || {
            let (kind, time) = text.split_once(':')?;
            let (number, unit_ns) = UNITS.iter().find_map(|(unit, ns)| Some((time.strip_suffix(unit)?, ns)))?;
            let ns = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.').then(|| number.parse::<f64>());
            let ns = ns?.ok()? * unit_ns;
            let time = POSSIBLE_NS.contains(&ns).then(|| Duration::from_nanos(ns.round() as u64))?;
            match kind {
                "fixed" => Some(Self::Fixed(time)),
                "poisson" => Some(Self::Poisson(time)),
                _ => None,
            }
        };
        parse().ok_or_else(|| GapError(text.into()))
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, time) = match self {
            Self::Fixed(time) => ("fixed", time),
            Self::Poisson(time) => ("poisson", time),
        };
        let ns = time.as_nanos();
        match ns {
            _ if ns.is_multiple_of(1_000_000_000) => write!(f, "{kind}:{}s", ns / 1_000_000_000),
            _ if ns.is_multiple_of(1_000_000) => write!(f, "{kind}:{}ms", ns / 1_000_000),
            _ if ns.is_multiple_of(1_000) => write!(f, "{kind}:{}us", ns / 1_000),
            _ => write!(f, "{kind}:{ns}ns"),
        }
    }
}

/// The times at which requests are due, one after the other, in clock ticks.
#[derive(Debug)]
pub(crate) struct Schedule {
    gap: Gap,
    mean_ticks: f64,
    /// When the next one is due; fractions of a tick add up too.
    whole: u64,
    fraction: f64,
    random: u64,
}

impl Schedule {
    /// Begins at `ticks` of the clock.
    pub(crate) fn new(gap: Gap, clock: Clock, ticks: u64) -> Self {
        let (Gap::Fixed(mean) | Gap::Poisson(mean)) = gap;
        let mean_ticks = mean.as_secs_f64() * clock.ticks_per_sec() as f64;
        Self { gap, mean_ticks, whole: ticks, fraction: 0.0, random: random() }
    }

    /// When the next one is due.
    pub(crate) fn due(&self) -> u64 {
        self.whole
    }

    /// Goes on to the one after it.
    pub(crate) fn advance(&mut self) {
        let gap = match self.gap {
            Gap::Fixed(_) => self.mean_ticks,
            Gap::Poisson(_) => -self.uniform().ln() * self.mean_ticks,
        };
        self.fraction += gap;
        let ticks = self.fraction as u64;
        self.whole += ticks;
        self.fraction -= ticks as f64;
    }

    /// A number above 0, up to 1.
    fn uniform(&mut self) -> f64 {
        // SplitMix64 (G. Steele, D. Lea, C. Flood, Fast Splittable Pseudorandom Number Generators, 2014).
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        ((bits >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

/// A number that differs from run to run.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_prints_and_refuses_the_rest() {
        for text in ["fixed:10us", "poisson:100us", "fixed:100ns", "poisson:10s", "fixed:1500us", "poisson:2ms"] {
            assert_eq!(text.parse::<Gap>().unwrap().to_string(), text);
        }
        assert_eq!("fixed:1.5us".parse::<Gap>().unwrap().to_string(), "fixed:1500ns");
        for text in [
            "",
            "fixed",
            "fixed:",
            "fixed:10",
            "fixed:us",
            "fixed:99ns",
            "fixed:11s",
            "pareto:1us",
            "fixed:-1us",
            "fixed:infs",
        ] {
            let error = text.parse::<Gap>().unwrap_err().to_string();
            assert!(error.contains("fixed:10us"), "{error}");
        }
    }

    #[test]
    fn gaps_have_the_mean_that_was_asked_for() {
        const GAPS: u64 = 200_000;
        let clock = Clock::get();
        for gap in ["fixed:333ns", "poisson:333ns"] {
            let mut schedule = Schedule::new(gap.parse().unwrap(), clock, 1000);
            (0..GAPS).for_each(|_| schedule.advance());
            let mean = (schedule.due() - 1000) as f64 / GAPS as f64;
            let wanted = 333e-9 * clock.ticks_per_sec() as f64;
            // The mean of that many exponential gaps is off by 0.22% (one standard deviation).
            assert!((mean / wanted - 1.0).abs() < 0.02, "{gap}: {mean} for {wanted}");
        }
    }
}
