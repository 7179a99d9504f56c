//! Keeping to a target: late wake-ups, and processor time spent while idle.

/// Of this many sleeps, one may be late. A little more than the hundred that the target says, so that what is granted
/// in advance is made good.
const SLEEPS_PER_LATE: f64 = 128.0;
/// Late sleeps that may happen before as many punctual ones have paid for them, at most.
const LATE_IN_ADVANCE: f64 = 8.0;
/// Idle time without a sleep after too many late ones, at first and at most, in nanoseconds.
const PAUSE_NS: std::ops::RangeInclusive<u64> = 100_000_000..=60_000_000_000;

/// Whether sleeping keeps the promise that at most one sleep in a hundred adds more than a limit.
///
/// An account: each measured sleep pays in 1/128, each late one takes out 1, and the worker may sleep while it could
/// pay for a late one. Eight are granted in advance, and no more is ever saved up. When it cannot pay, the worker polls
/// for a pause, and is lent one more late sleep to see whether things have improved. Each loan doubles the next pause,
/// from 0.1 s of idle time to a minute, and a full account pays one back.
///
/// So of any `n` sleeps in a row at most `8 + n/128` are late, and one for each loan not paid back: in a minute that is
/// spent idle those are nine at most, afterwards one a minute. Without loans that is one in a hundred from 3,700 sleeps
/// on; with loans, [`on_trial`](Self::on_trial) says so.
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

    /// Whether more sleeps were late than promised, and not enough have been punctual since.
    pub(super) fn on_trial(&self) -> bool {
        self.loans > 0 || !self.may_sleep()
    }

    /// Sleeps that were measured, and how many of them were late.
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
            }
        }
    }

    /// A sleep added this much.
    pub(super) fn measured(&mut self, latency_ns: u64) {
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
            self.account -= 1.0;
            if self.account < 1.0 && self.pause_ns == 0 {
                self.pause_ns = (PAUSE_NS.start() << self.loans.min(16)).min(*PAUSE_NS.end());
            }
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
        for late_in in [1, 2, 3, 50, 90, 110, 128, 1_000, u64::MAX] {
            let mut promise = Promise::new(20_000);
            let mut trials = 0;
            for i in 0..50_000u64 {
                // A gap of a millisecond each: 50 s of idle time.
                let slept = promise.may_sleep();
                promise.idle(1_000_000);
                trials += u64::from(!slept && promise.may_sleep());
                if slept {
                    promise.measured(if i % late_in == late_in - 1 { 90_000 } else { 9_000 });
                }
            }
            let (sleeps, late) = promise.counts();
            assert!(late as f64 <= 8.0 + trials as f64 + sleeps as f64 / 128.0, "{late} of {sleeps}, {trials} trials");
            assert!(trials <= 9 || !promise.on_trial(), "{trials} trials");
            if late_in >= 128 {
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
