//! Numbers for people and for programs: rates with units, latency percentiles, the JSON that l2fwd prints.

mod port;
mod worker;

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;
use spinwake::telemetry::Snapshot;

pub use port::{PortReport, QueueReport};
pub use worker::{SourceReport, WorkerReport};

/// A rate in frames per second, with the prefix that keeps it short: `812 pps`, `99.8 kpps`, `1.25 Mpps`.
#[derive(Debug, Clone, Copy)]
pub struct FrameRate(pub f64);

impl fmt::Display for FrameRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, "pps")
    }
}

/// How often something happens in a second: `812 /s`, `10.0 k/s`.
#[derive(Debug, Clone, Copy)]
pub struct Rate(pub f64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, "/s")
    }
}

/// A rate in bits per second: `1.02 Gbit/s`.
#[derive(Debug, Clone, Copy)]
pub struct BitRate(pub f64);

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, "bit/s")
    }
}

/// A share of 1 in per cent: `0.4%`, `12%`, `100%`.
#[derive(Debug, Clone, Copy)]
pub struct Share(pub f64);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.0;
        let decimals = usize::from(percent > 0.0 && percent < 9.95);
        f.pad(&format!("{percent:.decimals$}%"))
    }
}

fn scaled(f: &mut fmt::Formatter<'_>, value: f64, unit: &str) -> fmt::Result {
    let (value, prefix) = match value {
        v if v >= 1e9 => (v / 1e9, "G"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e3 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let decimals = if prefix.is_empty() || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    f.pad(&format!("{value:.decimals$} {prefix}{unit}"))
}

/// Latency percentiles in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LatencyUs {
    /// Frames measured.
    pub frames: u64,
    /// The fastest.
    pub min: f64,
    /// Half of them were at least this fast.
    pub p50: f64,
    /// 90 of 100.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

impl LatencyUs {
    /// The percentiles of a histogram in nanoseconds; `None` when it is empty.
    pub fn of(latency_ns: &Histogram<u64>) -> Option<Self> {
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |quantile| us(latency_ns.value_at_quantile(quantile));
        (!latency_ns.is_empty()).then(|| Self {
            frames: latency_ns.len(),
            min: us(latency_ns.min()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us(latency_ns.max()),
        })
    }
}

impl fmt::Display for LatencyUs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, p50, p90, p99, p999, max, .. } = self;
        write!(f, "min {min:.1}, p50 {p50:.1}, p90 {p90:.1}, p99 {p99:.1}, p99.9 {p999:.1}, max {max:.1} µs")
    }
}

/// Percentiles of what a worker measured, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PercentilesUs {
    /// Values measured.
    pub samples: u64,
    /// Half of them were no more than this.
    pub p50: f64,
    /// 90 of 100.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p999: f64,
    /// 9,999 of 10,000.
    pub p9999: f64,
    /// The largest.
    pub max: f64,
}

impl PercentilesUs {
    /// The percentiles of a histogram in nanoseconds; `None` when it is empty.
    pub fn of(ns: &Snapshot) -> Option<Self> {
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |quantile| us(ns.quantile(quantile));
        (ns.count() > 0).then(|| Self {
            samples: ns.count(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: us(ns.max()),
        })
    }
}

impl fmt::Display for PercentilesUs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p90, p99, p999, p9999, max, .. } = self;
        write!(f, "p50 {p50:.1}, p90 {p90:.1}, p99 {p99:.1}, p99.9 {p999:.1}, p99.99 {p9999:.1}, max {max:.1} µs")
    }
}

/// What a forwarder did, as JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How long it forwarded, in seconds.
    pub seconds: f64,
    /// Its ports, in the order given.
    pub ports: Vec<PortReport>,
    /// Its workers.
    pub workers: Vec<WorkerReport>,
    /// Its pool, after the end.
    pub pool: PoolReport,
    /// From the generator of one port to the sink of the other, where ports have them.
    pub latency_us: Option<LatencyUs>,
}

/// What became of a pool.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PoolReport {
    /// Frames that it was made with.
    pub frames: usize,
    /// Frames that had not come home when all queues were gone. Zero, unless a device would not give them back.
    pub missing: usize,
}

#[cfg(test)]
mod tests {
    use spinwake::telemetry::LiveHistogram;

    use super::*;

    #[test]
    fn rates_keep_three_digits_and_name_their_unit() {
        assert_eq!(FrameRate(0.0).to_string(), "0 pps");
        assert_eq!(FrameRate(99_840.0).to_string(), "99.8 kpps");
        assert_eq!(FrameRate(1_250_000.0).to_string(), "1.25 Mpps");
        assert_eq!(BitRate(812e6).to_string(), "812 Mbit/s");
        assert_eq!(
            [0.0, 0.0004, 0.099, 0.1234, 1.0].map(|share| Share(share).to_string()),
            ["0%", "0.0%", "9.9%", "12%", "100%"]
        );
    }

    #[test]
    fn an_empty_histogram_has_no_percentiles() {
        let mut histogram = Histogram::new(3).unwrap();
        assert!(LatencyUs::of(&histogram).is_none());
        histogram.record(2_000).unwrap();
        let latency = LatencyUs::of(&histogram).unwrap();
        assert_eq!((latency.frames, latency.p50.round()), (1, 2.0));

        let live = LiveHistogram::new();
        assert!(PercentilesUs::of(&live.snapshot()).is_none());
        live.record(2_000);
        let percentiles = PercentilesUs::of(&live.snapshot()).unwrap();
        assert_eq!((percentiles.samples, percentiles.p999, percentiles.max), (1, 2.0, 2.0));
    }
}
