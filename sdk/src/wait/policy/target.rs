//! Keeping to a target: late wake-ups, and processor time spent while idle.

/// Of this many measured sleeps, one may be late. Twice the hundred that the target says: most sleeps are not measured,
/// and what is measured may fall short of what is.
const SLEEPS_PER_LATE: f64 = 200.0;
/// Late sleeps that may happen before as many punctual ones have paid for them, at most.
const LATE_IN_ADVANCE: f64 = 6.0;
/// The account never goes lower: one loan is what sleeps may use up before the worker can be made to pause.
const DEEPEST_DEBT: f64 = -1.0;
/// Measured sleeps after which what was counted is halved, so that the figures are of late.
const COUNTED_SLEEPS: u64 = 4_096;
/// Idle time without a sleep after too many late ones, at first and at most, in nanoseconds.
const PAUSE_NS: std::ops::RangeInclusive<u64> = 100_000_000..=60_000_000_000;

/// Whether sleeping keeps the promise that at most one sleep in a hundred adds more than a limit.
///
/// An account: each measured sleep pays in 1/200, each late one takes out 1, and the worker may sleep while it could
/// pay for a late one. Six are granted in advance, and no more is ever saved up. When it cannot pay, the worker polls
/// for a pause, and is lent one more late sleep to see whether things have improved. Each loan doubles the next pause,
/// from 0.1 s of idle time to a minute, and a full account pays one back.
///
/// A pause that passes within one gap ends there, since the next work may be hours away; the sleeps after it are on the
/// loan. Most sleeps of a long gap end at their time limit and delay nobody, however late: all of them together
/// take out no more than that loan.
///
/// So of any `n` measured sleeps in a row at most `6 + n/200` are late, and one for each loan not paid back: in a minute
/// that is spent idle those are nine at most, afterwards one a minute. Without loans that is one in a hundred from 1,200
/// on, and half of that in the long run; with loans, [`on_trial`](Self::on_trial) says so. Of wake-ups of which 2% are
/// late some 330 must be measured before it notices, of those of which 0.1% are late it needs six within a few hundred.
#[derive(Debug, Clone)]
pub(super) struct Promise {
    limit_ns: u64,
    account: f64,
    /// Late sleeps lent and not paid back.
    loans: u32,
    /// What is left of the present pause.
    pause_ns: u64,
    sleeps: u64,
    late: u64,
}

impl Promise {
    /// Nothing has been broken yet.
    pub(super) fn new(limit_ns: u64) -> Self {
        Self { limit_ns, account: LATE_IN_ADVANCE, loans: 0, pause_ns: 0, sleeps: 0, late: 0 }
    }

    /// What a sleep may add.
    pub(super) fn limit_ns(&self) -> u64 {
        self.limit_ns
    }

    /// Whether the worker may sleep.
    #[inline]
    pub(super) fn may_sleep(&self) -> bool {
        self.pause_ns == 0
    }

    /// What is left of the pause; zero while the worker may sleep.
    #[inline]
    pub(super) fn pause_ns(&self) -> u64 {
        self.pause_ns
    }

    /// Whether more sleeps were late than promised, and not enough have been punctual since.
    pub(super) fn on_trial(&self) -> bool {
        self.loans > 0 || !self.may_sleep()
    }

    /// Sleeps that were measured of late, and how many of them were late: of the last two to four thousand.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.sleeps, self.late)
    }

    /// Time passed in which the worker was idle.
    #[inline]
    pub(super) fn idle(&mut self, ns: u64) {
        if self.pause_ns > 0 {
            self.pause_ns = self.pause_ns.saturating_sub(ns);
            if self.pause_ns == 0 {
                self.account += 1.0;
                self.loans += 1;
                // Sleeps of the gap that outlasted it may have used up the loan already.
                self.pause_if_broke();
            }
        }
    }

    /// A sleep added this much.
    pub(super) fn measured(&mut self, latency_ns: u64) {
        if self.sleeps >= COUNTED_SLEEPS {
            (self.sleeps, self.late) = (self.sleeps / 2, self.late / 2);
        }
        self.sleeps += 1;
        self.account += 1.0 / SLEEPS_PER_LATE;
        if self.account >= LATE_IN_ADVANCE {
            self.account = LATE_IN_ADVANCE;
            if self.loans > 0 {
                self.loans -= 1;
                self.account -= 1.0;
            }
        }
        if latency_ns > self.limit_ns {
            self.late += 1;
            self.account = (self.account - 1.0).max(DEEPEST_DEBT);
            self.pause_if_broke();
        }
    }

    /// Begins a pause, if there is none and another late sleep could not be paid for.
    fn pause_if_broke(&mut self) {
        if self.account < 1.0 && self.pause_ns == 0 {
            self.pause_ns = (PAUSE_NS.start() << self.loans.min(16)).min(*PAUSE_NS.end());
        }
    }
}

/// Unspent processor time that is remembered at most, in nanoseconds: what a burst after a long silence may use up.
const SAVED_NS: f64 = 20e6;
/// What is aimed at, of the share that was asked for: less, so that what was saved up carries no minute over it.
const AIM: f64 = 0.99;
/// How much of it is kept for looking that pays: the rest may go into looking that only shortens latency.
const RESERVE_NS: f64 = 10e6;

/// Processor time that may be spent while idle: a share of idle time.
///
/// An account: idle time pays in its share, looking and sleeping take out what they take. Looking is permitted only if
/// the account could pay for it in the worst case, so nothing but sleeps can bring it below zero; then wake-ups are
/// held back until the debt is paid. So in any stretch of time what was spent exceeds the share by at most 20 ms, and
/// from the start by a few sleeps.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    asked: f64,
    /// What is aimed at.
    share: f64,
    /// In nanoseconds of processor time.
    balance: f64,
}

impl Allowance {
    pub(super) fn new(asked: f64) -> Self {
        Self { asked, share: asked * AIM, balance: 0.0 }
    }

    /// The share that was asked for.
    pub(super) fn asked(&self) -> f64 {
        self.asked
    }

    /// The share that is aimed at.
    pub(super) fn share(&self) -> f64 {
        self.share
    }

    /// Accounts for idle time and what was spent in it.
    #[inline]
    pub(super) fn settle(&mut self, idle_ns: u64, spent_ns: u64) {
        self.balance = (self.balance + self.share * idle_ns as f64 - spent_ns as f64).min(SAVED_NS);
    }

    /// Less was spent than was settled by this much; more, where it is negative.
    pub(super) fn correct(&mut self, ns: f64) {
        self.balance = (self.balance + ns).min(SAVED_NS);
    }

    /// Whether looking this long and then sleeping could be paid for, should the work come just after it.
    #[inline]
    pub(super) fn permits(&self, spin_ns: u64, cpu_ns: u64) -> bool {
        spin_ns as f64 * (1.0 - self.share) + cpu_ns as f64 <= self.balance
    }

    /// The same, with the reserve left alone.
    #[inline]
    pub(super) fn spares(&self, spin_ns: u64, cpu_ns: u64) -> bool {
        spin_ns as f64 * (1.0 - self.share) + cpu_ns as f64 <= self.balance - RESERVE_NS
    }

    /// How long a worker must be idle to pay its debt.
    pub(super) fn debt_ns(&self) -> u64 {
        (-self.balance / self.share).max(0.0) as u64
    }

    /// How far apart wake-ups must be at least if each takes `cpu_ns`.
    pub(super) fn spacing_ns(&self, cpu_ns: u64) -> u64 {
        (cpu_ns as f64 / self.share).ceil() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_sleeps_stay_within_what_is_promised() {
        // Whatever share of sleeps is late, and in whatever rhythm.
        for late_in in [1, 2, 3, 50, 90, 110, 200, 1_000, u64::MAX] {
            let mut promise = Promise::new(20_000);
            let (mut trials, mut sleeps, mut late) = (0, 0u64, 0u64);
            for i in 0..50_000u64 {
                // A gap of a millisecond each: 50 s of idle time.
                let slept = promise.may_sleep();
                promise.idle(1_000_000);
                trials += u64::from(!slept && promise.may_sleep());
                if slept {
                    let is_late = i % late_in == late_in - 1;
                    (sleeps, late) = (sleeps + 1, late + u64::from(is_late));
                    promise.measured(if is_late { 90_000 } else { 9_000 });
                }
            }
            let granted = LATE_IN_ADVANCE + trials as f64 + sleeps as f64 / SLEEPS_PER_LATE;
            assert!(late as f64 <= granted, "{late} of {sleeps}, {trials} trials");
            assert!(trials <= 9 || !promise.on_trial(), "{trials} trials");
            if late_in >= 200 {
                assert_eq!((sleeps, trials), (50_000, 0));
            }
            assert!(promise.on_trial() || late * 100 <= sleeps, "{late} of {sleeps}, one in {late_in}");
        }
    }

    #[test]
    fn a_worker_that_was_late_tries_again_ever_more_rarely() {
        let mut promise = Promise::new(20_000);
        let mut tried_at_ms = Vec::new();
        for ms in 0..600_000u64 {
            if promise.may_sleep() {
                promise.measured(100_000);
                tried_at_ms.push(ms);
            }
            promise.idle(1_000_000);
        }
        assert!(tried_at_ms.len() < 30, "{tried_at_ms:?}");
        assert!(tried_at_ms.last().is_some_and(|ms| *ms > 500_000), "{tried_at_ms:?}");
    }
}
