//! What a wake-up costs, kept up to date.

use std::fmt;

use super::Ns;

/// What it costs to sleep once, all in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeCost {
    /// What a sleep adds to the latency of the work that ends it: the median.
    pub latency_ns: u64,
    /// The same, at the 99th percentile.
    pub latency_p99_ns: u64,
    /// Processor time of going to sleep and waking up.
    pub cpu_ns: u64,
}

impl fmt::Display for WakeCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { latency_ns, latency_p99_ns, cpu_ns } = *self;
        let (median, p99, cpu) = (Ns(latency_ns), Ns(latency_p99_ns), Ns(cpu_ns));
        write!(f, "{median} at the median, {p99} at p99, and {cpu} of processor time")
    }
}

/// A [`WakeCost`] that follows measured wake-ups.
#[derive(Debug, Clone)]
pub(super) struct LiveCost {
    median: Quantile,
    p99: Quantile,
    cpu_ns: u64,
}

impl LiveCost {
    pub(super) fn new(cost: WakeCost) -> Self {
        Self {
            median: Quantile::new(cost.latency_ns, 0.5, 1.0 / 64.0),
            p99: Quantile::new(cost.latency_p99_ns.max(cost.latency_ns), 0.99, 1.0 / 8.0),
            cpu_ns: cost.cpu_ns,
        }
    }

    /// A sleep added this much.
    pub(super) fn measured(&mut self, latency_ns: u64) {
        self.median.add(latency_ns);
        self.p99.add(latency_ns);
    }

    /// Sleeps took this much processor time each, of late.
    pub(super) fn cpu_measured(&mut self, cpu_ns: u64) {
        // However far off, it moves the estimate by a quarter at most.
        let measured = cpu_ns.clamp(self.cpu_ns / 2, self.cpu_ns.saturating_mul(3) / 2);
        self.cpu_ns = (self.cpu_ns / 2 + measured / 2).max(LEAST_NS as u64);
    }

    /// Processor time of one sleep.
    #[inline]
    pub(super) fn cpu_ns(&self) -> u64 {
        self.cpu_ns
    }

    pub(super) fn get(&self) -> WakeCost {
        let latency_ns = self.median.at_ns as u64;
        WakeCost { latency_ns, latency_p99_ns: (self.p99.at_ns as u64).max(latency_ns), cpu_ns: self.cpu_ns }
    }
}

/// An estimated quantile: goes up a step for each value above it and down a step for each below it, the steps such that
/// they cancel out where the quantile is. However large a value, it moves the estimate by a step and no more.
#[derive(Debug, Clone)]
struct Quantile {
    at_ns: f64,
    quantile: f64,
    /// As a share of the estimate.
    step: f64,
}

/// The least estimate: from less, steps would take forever to come back.
const LEAST_NS: f64 = 100.0;

impl Quantile {
    fn new(at_ns: u64, quantile: f64, step: f64) -> Self {
        Self { at_ns: (at_ns as f64).max(LEAST_NS), quantile, step }
    }

    fn add(&mut self, value_ns: u64) {
        let toward = if value_ns as f64 > self.at_ns { self.quantile } else { self.quantile - 1.0 };
        self.at_ns = (self.at_ns * (1.0 + self.step * toward)).max(LEAST_NS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: WakeCost = WakeCost { latency_ns: 20_000, latency_p99_ns: 40_000, cpu_ns: 5_000 };

    #[test]
    fn the_cost_follows_what_is_measured() {
        let mut cost = LiveCost::new(COST);
        assert_eq!(cost.get(), COST);
        // Evenly from 5 to 10 us.
        for i in 0..20_000u64 {
            cost.measured(5_000 + i * 7_919 % 5_000);
        }
        let now = cost.get();
        assert!((7_000..8_000).contains(&now.latency_ns), "{now:?}");
        assert!((9_000..11_500).contains(&now.latency_p99_ns), "{now:?}");
        assert_eq!(now.cpu_ns, COST.cpu_ns);
    }

    #[test]
    fn processor_time_follows_what_is_measured() {
        for cpu_ns in [0, 1_200, 25_000, u64::MAX / 4] {
            let mut cost = LiveCost::new(COST);
            let mut before = COST.cpu_ns;
            for _ in 0..100 {
                cost.cpu_measured(cpu_ns);
                assert!(cost.cpu_ns().abs_diff(before) <= before / 4 + 2);
                before = cost.cpu_ns();
            }
            let expected = cpu_ns.max(LEAST_NS as u64);
            assert!(cost.cpu_ns().abs_diff(expected) <= expected / 100 || cpu_ns > 1 << 40, "{cost:?}");
        }
    }

    #[test]
    fn one_wild_value_moves_little() {
        let mut cost = LiveCost::new(COST);
        cost.measured(u64::MAX);
        cost.measured(0);
        let now = cost.get();
        assert!(now.latency_ns.abs_diff(COST.latency_ns) < 400, "{now:?}");
        assert!(now.latency_p99_ns.abs_diff(COST.latency_p99_ns) < 5_100, "{now:?}");
    }
}
