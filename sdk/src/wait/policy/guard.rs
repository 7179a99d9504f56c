//! The promise that holds against every sequence of gaps.

/// What may be spent at most, as a multiple of what knowing the future would have cost. Two is what the best rule
/// without chance or history reaches; the rest is what history may be followed with.
const RATIO: f64 = 2.05;
/// Sleeps that may go wrong before anything was earned.
const CREDIT_SLEEPS: f64 = 1.0;
/// Sleeps worth of savings that are remembered at most, so that a good day does not pay for a bad minute.
const CAP_SLEEPS: f64 = 64.0;

/// Cost of a gap of length `gap` that was looked for during `spin`, when a sleep costs `sleep`.
#[inline]
pub(super) fn cost(gap: f64, spin: f64, sleep: f64) -> f64 {
    if gap <= spin { gap } else { spin + sleep }
}

/// An account of what the rule has spent and what the offline optimum would have.
///
/// Each gap pays in 2.05 times its optimum `min(gap, sleep)` and takes out its cost. A spin time is permitted only if
/// the account could pay for the worst gap that it may meet; the deterministic rule (spin for as long as a sleep costs)
/// always is.
///
/// # Invariant
///
/// `balance >= 0`. Hence at any time: all costs so far are at most 2.05 times the optimum so far, plus one sleep of
/// credit.
///
/// Proof: let a gap `g` meet the spin time `s`, and let a sleep cost `w`. The account changes by `2.05 * min(g, w)`
/// less the cost. For `g <= s` that costs `g`, and what is lacking, `g - 2.05 * min(g, w)`, is negative up to `w` and
/// at most `s - 2.05 w` beyond. For
/// `g > s` what is lacking is `s + w - 2.05 * min(g, w)`, most for `g` just beyond `s`: that is `shortfall`, which
/// `permits` compared with the balance. For `s = w` nothing is ever lacking. The cap only forgets savings.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    balance: f64,
}

impl Guard {
    /// The account of a rule whose sleep costs this much.
    pub(super) fn new(sleep: f64) -> Self {
        Self { balance: CREDIT_SLEEPS * sleep }
    }

    /// What `spin` may cost at worst beyond what its gap pays in.
    pub(super) fn shortfall(spin: f64, sleep: f64) -> f64 {
        spin + sleep - RATIO * spin.min(sleep)
    }

    /// Whether a shortfall of this much can be paid for.
    #[inline]
    pub(super) fn permits(&self, shortfall: f64) -> bool {
        shortfall <= self.balance
    }

    /// Accounts for a gap.
    #[inline]
    pub(super) fn settle(&mut self, gap: f64, spin: f64, sleep: f64) {
        let change = RATIO * gap.min(sleep) - cost(gap, spin, sleep);
        self.balance = (self.balance + change).min(CAP_SLEEPS * sleep);
    }
}
