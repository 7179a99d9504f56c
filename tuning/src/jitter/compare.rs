//! Before and after.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::gaps::Gaps;
use crate::units::{Ns, share};

/// Two measurements, figure by figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Where the earlier one was read.
    pub file: String,
    /// The core of the earlier one.
    pub core_before: usize,
    /// The figures.
    pub rows: Vec<Row>,
    /// What makes the two hard to compare; empty when nothing does.
    pub caveats: Vec<String>,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What it is.
    pub what: String,
    /// Its unit.
    pub unit: Unit,
    /// In the earlier measurement.
    pub before: f64,
    /// In this one.
    pub after: f64,
    /// After to before; `None` where before was zero.
    pub ratio: Option<f64>,
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Events a second.
    PerSecond,
    /// A part of the time, 1 being all of it.
    Share,
    /// Nanoseconds.
    Ns,
}

impl Unit {
    /// A value with its unit, for people.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::PerSecond if value < 10.0 => format!("{value:.2}/s"),
            Self::PerSecond => format!("{value:.0}/s"),
            Self::Share => share(value),
            Self::Ns => Ns(value as u64).to_string(),
        }
    }
}

impl Comparison {
    /// Compares `after`, on core `core_after`, with what was read from `file`.
    pub fn new(file: &str, (core_before, before): (usize, &Gaps), (core_after, after): (usize, &Gaps)) -> Self {
        let row = |what: &str, unit, figure: &dyn Fn(&Gaps) -> f64| {
            let (before, after) = (figure(before), figure(after));
            Row { what: what.into(), unit, before, after, ratio: (before > 0.0).then(|| after / before) }
        };
        let rows = vec![
            row("gaps", Unit::PerSecond, &Gaps::per_second),
            row("time lost", Unit::Share, &Gaps::lost_share),
            row("p50", Unit::Ns, &|gaps| gaps.p50_ns as f64),
            row("p99", Unit::Ns, &|gaps| gaps.p99_ns as f64),
            row("p99.9", Unit::Ns, &|gaps| gaps.p999_ns as f64),
            row("longest", Unit::Ns, &|gaps| gaps.max_ns as f64),
        ];
        let mut caveats = Vec::new();
        if core_before != core_after {
            caveats.push(format!("core {core_before} was measured before, core {core_after} now"));
        }
        if before.threshold_ns != after.threshold_ns {
            let (before, after) = (Ns(before.threshold_ns), Ns(after.threshold_ns));
            caveats.push(format!("gaps counted from {before} before, from {after} now"));
        }
        if before.measured_ns.max(after.measured_ns) / 2 > before.measured_ns.min(after.measured_ns) {
            let (before, after) = (Ns(before.measured_ns), Ns(after.measured_ns));
            caveats.push(format!("{before} were measured before, {after} now: the longer one sees rarer gaps"));
        }
        Self { file: file.into(), core_before, rows, caveats }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\nAgainst {}\n  {:<10} {:>12} {:>12}   now to before", self.file, "", "before", "now")?;
        for row in &self.rows {
            let ratio = row.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
            let (before, after) = (row.unit.show(row.before), row.unit.show(row.after));
            write!(f, "\n  {:<10} {before:>12} {after:>12}   {ratio}", row.what)?;
        }
        self.caveats.iter().try_for_each(|caveat| write!(f, "\n  note: {caveat}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_beside_each_other_with_their_ratio() {
        let before =
            Gaps { measured_ns: 1_000_000_000, count: 100, lost_ns: 10_000_000, max_ns: 4_000, ..Gaps::default() };
        let after = Gaps {
            measured_ns: 4_000_000_000,
            count: 100,
            lost_ns: 0,
            max_ns: 1_000,
            threshold_ns: 5,
            ..before.clone()
        };
        let comparison = Comparison::new("old.json", (1, &before), (2, &after));
        let row = |what: &str| comparison.rows.iter().find(|row| row.what == what).unwrap();
        assert_eq!((row("gaps").before, row("gaps").after, row("gaps").ratio), (100.0, 25.0, Some(0.25)));
        assert_eq!((row("time lost").ratio, row("longest").ratio, row("p50").ratio), (Some(0.0), Some(0.25), None));
        assert_eq!(comparison.caveats.len(), 3, "{:?}", comparison.caveats);
        let text = comparison.to_string();
        assert!(
            text.contains("4 us") && text.contains("0.25") && text.contains("core 1 was measured before"),
            "{text}"
        );
    }
}
