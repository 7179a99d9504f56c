//! What many sleeps came to.

use std::fmt;
use std::ops::AddAssign;

use hdrhistogram::Histogram;
use spinwake::wait::WaitCounters;

use crate::witness::Drops;

/// The counters of one worker or of many.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sleeps {
    pub(crate) parks: u64,
    pub(crate) wakes: u64,
    pub(crate) turned_back: u64,
    pub(crate) spurious: u64,
    pub(crate) timeouts: u64,
    pub(crate) rescues: u64,
}

impl Sleeps {
    pub(crate) fn of(waits: &WaitCounters) -> Self {
        Self {
            parks: waits.parks.get(),
            wakes: waits.wakes.get(),
            turned_back: waits.turned_back.get(),
            spurious: waits.spurious.get(),
            timeouts: waits.timeouts.get(),
            rescues: waits.rescues.get(),
        }
    }
}

impl AddAssign for Sleeps {
    fn add_assign(&mut self, other: Self) {
        self.parks += other.parks;
        self.wakes += other.wakes;
        self.turned_back += other.turned_back;
        self.spurious += other.spurious;
        self.timeouts += other.timeouts;
        self.rescues += other.rescues;
    }
}

/// Episodes of one sort.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) sleeps: Sleeps,
    pub(crate) frames: u64,
    /// Faults made, of the sort that the episodes were about.
    pub(crate) faults: u64,
    pub(crate) drops: Drops,
    /// How long frames waited for the worker, in nanoseconds.
    pub(crate) response_ns: Histogram<u64>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.sleeps += other.sleeps;
        self.frames += other.frames;
        self.faults += other.faults;
        self.drops.slept_on += other.drops.slept_on;
        self.drops.turned_back += other.drops.turned_back;
        self.drops.woken_otherwise += other.drops.woken_otherwise;
        self.drops.after_sleep += other.drops.after_sleep;
        self.response_ns.add(&other.response_ns).expect("histograms of one shape");
    }
}

impl Default for Tally {
    fn default() -> Self {
        let response_ns = Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("constant bounds");
        Self { sleeps: Sleeps::default(), frames: 0, faults: 0, drops: Drops::default(), response_ns }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |quantile| self.response_ns.value_at_quantile(quantile) as f64 / 1e3;
        write!(
            f,
            "{:>10} sleeps {:>10} frames {:>9} turned back {:>8} spurious {:>6} timeouts {:>6} faults {:>5} dropped {:>5} slept on \
             {:>5} rescues; waited us p50 {:.0} p99 {:.0} p99.99 {:.0} max {:.0}",
            self.sleeps.parks,
            self.frames,
            self.sleeps.turned_back,
            self.sleeps.spurious,
            self.sleeps.timeouts,
            self.faults,
            self.drops.all(),
            self.drops.slept_on,
            self.sleeps.rescues,
            us(0.5),
            us(0.99),
            us(0.9999),
            self.response_ns.max() as f64 / 1e3,
        )
    }
}
