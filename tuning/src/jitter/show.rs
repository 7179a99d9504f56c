//! The result as text.

use std::fmt;

use super::JitterReport;
use super::blame::{Blame, Event};
use crate::units::{Ns, grouped, share};

/// How wide the longest bar of the histogram is.
const BAR: usize = 40;
/// Rows of each kind of event.
const ROWS: usize = 8;

impl fmt::Display for JitterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gaps = &self.gaps;
        let early = if self.ended_early { ", ended early" } else { "" };
        writeln!(f, "Core {} for {}{early}; time from {}", self.core, Ns(gaps.measured_ns), self.clock)?;
        write!(
            f,
            "{} gaps longer than {} ({:.1} a second), {} of the time lost ({})",
            grouped(gaps.count),
            Ns(gaps.threshold_ns),
            gaps.per_second(),
            share(gaps.lost_share()),
            Ns(gaps.lost_ns),
        )?;
        if gaps.count > 0 {
            let [p50, p99, p999, max] = [gaps.p50_ns, gaps.p99_ns, gaps.p999_ns, gaps.max_ns].map(Ns);
            write!(f, "\nlength of a gap: p50 {p50}, p99 {p99}, p99.9 {p999}, longest {max}")?;
            self.histogram(f)?;
            self.worst(f)?;
        }
        self.blame.fmt(f)?;
        if let Some(against) = &self.against {
            write!(f, "\n{against}")?;
        }
        f.write_str("\n\nWhat it means")?;
        self.advice.iter().try_for_each(|line| write!(f, "\n  - {line}"))
    }
}

impl JitterReport {
    /// Bars whose length is the logarithm of the count: one of a million is still seen.
    fn histogram(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\n\nHow long (bars are logarithmic)")?;
        let lengths = self.gaps.lengths();
        let most = lengths.iter().map(|length| length.1).max().unwrap_or(1);
        let log = |count: u64| (count as f64).ln() + 1.0;
        lengths.iter().try_for_each(|&(below, count)| {
            let bar = "#".repeat((log(count) / log(most) * BAR as f64).round() as usize);
            write!(f, "\n  below {:>8} {:>10}  {bar}", Ns(below), grouped(count))
        })
    }

    fn worst(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\n\nThe longest gaps, and when they began")?;
        self.gaps.worst.iter().try_for_each(|gap| {
            write!(f, "\n  {:>8} at {:>11.6} s", Ns(gap.gap_ns), gap.at_ns as f64 / 1e9)?;
            if gap.during.is_empty() { Ok(()) } else { write!(f, "  {}", gap.during.join(", ")) }
        })
    }
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\n\nWhat the kernel counted on the core meanwhile")?;
        let number = |n: Option<u64>| n.map_or_else(|| "unknown".into(), grouped);
        let time = |ns: Option<u64>| ns.map_or_else(|| "unknown".into(), |ns| Ns(ns).to_string());
        write!(
            f,
            "\n  the measuring thread was preempted {} times and waited {}; the hypervisor took {}",
            number(self.preempted),
            time(self.waited_ns),
            time(self.steal_ns)
        )?;
        events(f, "interrupt", &self.interrupts)?;
        events(f, "softirq", &self.softirqs)?;
        for task in self.tasks.iter().take(ROWS) {
            let (times, ran) = (grouped(task.times), Ns(task.ran_ns));
            write!(f, "\n  thread    {times:>9}  {} ({}), for {ran} in all", task.name, task.tid)?;
        }
        more(f, "threads", self.tasks.len())?;
        self.traced.iter().take(2 * ROWS).try_for_each(|traced| write!(f, "\n  {traced}"))?;
        self.unknown.iter().try_for_each(|what| write!(f, "\n  unknown: {what}"))
    }
}

fn events(f: &mut fmt::Formatter<'_>, kind: &str, events: &[Event]) -> fmt::Result {
    for event in events.iter().take(ROWS) {
        let what = format!("{} {}", event.id, event.what);
        write!(f, "\n  {kind:<9} {:>9}  {}", grouped(event.count), what.trim_end())?;
    }
    more(f, kind, events.len())
}

fn more(f: &mut fmt::Formatter<'_>, kind: &str, all: usize) -> fmt::Result {
    if all > ROWS { write!(f, "\n  ... and {} more of kind {kind} (--json has all)", all - ROWS) } else { Ok(()) }
}
