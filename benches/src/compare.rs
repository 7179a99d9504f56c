//! Figures of several rounds: their spread, and the ratio of two that were measured in turn.

use std::borrow::Borrow;
use std::fmt;

/// Least, median and greatest of some figures.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// Half of them are not above it.
    pub median: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// The spread of `figures`; of none, not-a-number.
    pub fn of(figures: impl IntoIterator<Item: Borrow<f64>>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().map(|figure| *figure.borrow()).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        Self { min: at(0), median: at(sorted.len() / 2), max: at(sorted.len().saturating_sub(1)) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} (from {:.2} to {:.2})", self.median, self.min, self.max)
    }
}

/// The ratios of two figures, round by round: what stays true when the machine's speed drifts.
#[derive(Debug, Clone, Copy)]
pub struct Comparison(Spread);

impl Comparison {
    /// The ratios `ours / theirs`, in the order in which both were measured.
    pub fn of(ours: &[f64], theirs: &[f64]) -> Self {
        Self(Spread::of(ours.iter().zip(theirs).map(|(a, b)| a / b)))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
