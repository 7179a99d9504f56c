//! The result as text.

use std::fmt;

use super::{Cell, WakeReport};
use crate::units::{Ns, grouped};

impl fmt::Display for WakeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "What a sleep on core {} adds to the latency of what ends it, and its processor time", self.core)?;
        heading(f)?;
        self.cells.iter().try_for_each(|cell| row(f, cell))?;
        f.write_str(FEW)?;
        self.absent.iter().try_for_each(|what| write!(f, "\n  not here: {what}"))?;
        if let Some(device) = &self.device {
            let by = if device.by_device {
                "raised by the device itself"
            } else {
                "triggered by the kernel in the device's place: without the device and the interrupt controller"
            };
            writeln!(f, "\n\nInterrupts of {} ({}), {by}", device.bdf, device.kind)?;
            heading(f)?;
            device.cells.iter().try_for_each(|cell| row(f, cell))?;
        }
        write!(f, "\n\nRecommended: --wait {}", self.advice.policy)?;
        self.advice.reasons.iter().try_for_each(|why| write!(f, "\n  - {why}"))?;
        self.advice
            .alternatives
            .iter()
            .try_for_each(|other| write!(f, "\nor --wait {}, if {}", other.policy, other.when))
    }
}

/// What a reader of percentiles must know.
const FEW: &str = "\n  (of fewer than 100 sleeps, p99 is the longest; --seconds N measures more)";

fn heading(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let [idle, sleeps, p50, p99, max, cpu] = ["asleep", "sleeps", "p50", "p99", "longest", "processor"];
    write!(f, "  {:<14}{idle:>8} {sleeps:>8} {p50:>10} {p99:>10} {max:>10} {cpu:>10}", "")
}

fn row(f: &mut fmt::Formatter<'_>, cell: &Cell) -> fmt::Result {
    let Cell { way, idle_ns, sleeps, p50_ns, p99_ns, max_ns, cpu_ns } = cell;
    let [idle, p50, p99, max, cpu] = [*idle_ns, *p50_ns, *p99_ns, *max_ns, *cpu_ns].map(Ns);
    write!(f, "\n  {way:<14}{idle:>8} {:>8} {p50:>10} {p99:>10} {max:>10} {cpu:>10}", grouped(*sleeps))
}
