//! When to stop looking and sleep: a rule that learns, as a pure function in virtual time.
//!
//! An idle gap ends after a time that nobody knows. Looking for its end costs processor time as long as the gap lasts;
//! sleeping costs what a wake-up adds, however long it lasts. With `g` the gap, `s` the time spent looking and `w` the
//! cost of a sleep:
//!
//! ```text
//! cost = g        if g <= s        looked until the work came
//!        s + w    otherwise        looked for s, then slept
//! best = min(g, w)                 for whoever knows g beforehand
//! ```
//!
//! [`Adaptive`] learns how long gaps last ([`GapHistogram`]) and picks the `s` whose expected cost is least; a guard
//! sees to it that no sequence of gaps, not even one made by somebody who reads the rule's mind, costs more than 2.05
//! times the best, plus one sleep. With a [`Target`] it keeps to that instead.
//!
//! Nothing here reads a clock, makes a system call, or allocates once made. All times are nanoseconds. `cargo bench -p
//! spinwake-bench
//! --bench policy` shows the rule beside others.

mod cost;
mod gaps;
mod guard;
mod rule;
mod spec;
mod target;
#[cfg(all(test, not(loom)))]
mod tests;

pub use cost::WakeCost;
pub use gaps::{GapBucket, GapHistogram};
pub use spec::{ParsePolicyError, Target, WaitPolicy};

use std::time::Duration;

use cost::LiveCost;
use rule::{Rule, longest_within};
use target::{Allowance, Promise};

/// Decides how long a worker looks before it sleeps, and learns from each gap.
///
/// ```
/// use spinwake::wait::{Adaptive, Idle, Target, WakeCost};
///
/// let cost = WakeCost { latency_ns: 25_000, latency_p99_ns: 40_000, cpu_ns: 6_000 };
/// let mut policy = Adaptive::new(cost, Target::None);
/// // Work comes every 10 us: looking for it is cheaper than sleeping.
/// for _ in 0..100 {
///     policy.learn(Idle::looked(10_000));
/// }
/// assert!(policy.spin_ns() > 10_000);
/// // It comes every millisecond: sleeping at once is.
/// for _ in 0..100 {
///     let looked_ns = policy.spin_ns();
///     policy.learn(Idle::slept(1_000_000, looked_ns, 25_000));
/// }
/// assert_eq!(policy.spin_ns(), 0);
/// ```
#[derive(Debug, Clone)]
pub struct Adaptive {
    cost: LiveCost,
    rule: Rule,
    mode: Mode,
    unaudited: Unaudited,
    spin_ns: u64,
    hold_ns: u64,
}

/// What was reckoned with since the kernel's account was last looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Unaudited {
    looked_ns: u64,
    sleeps: u64,
    /// Looking and sleeps together, as they were put down.
    spent_ns: u64,
}

/// What the policy keeps to.
#[derive(Debug, Clone)]
enum Mode {
    Least,
    Wake(Promise, Feasible),
    Cpu(Allowance, Looking),
}

/// Whether wake-ups were fast enough for the target when they were calibrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Feasible {
    Yes,
    No,
}

/// What can be afforded with a share of the processor.
#[derive(Debug, Clone, Copy)]
struct Looking {
    /// The longest spin time that is expected to stay within the share; `None` when each gap's sleep alone takes more.
    spin_ns: Option<u64>,
    until_review: u32,
}

/// One idle gap, after it ended. In nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idle {
    /// From the last work to when the next came; where that is not known, as well as it can be told.
    pub gap_ns: u64,
    /// From the last work to when the next was found: the gap and what sleeping or holding back added.
    pub idle_ns: u64,
    /// How much of it was spent looking.
    pub looked_ns: u64,
    /// How often the worker blocked, also where only a time limit ended it.
    pub sleeps: u32,
}

impl Idle {
    /// A gap that ended while the worker looked.
    pub fn looked(gap_ns: u64) -> Self {
        Self { gap_ns, idle_ns: gap_ns, looked_ns: gap_ns, sleeps: 0 }
    }

    /// A gap of which `looked_ns` were spent looking, and the rest in one sleep that added `latency_ns`.
    pub fn slept(gap_ns: u64, looked_ns: u64, latency_ns: u64) -> Self {
        Self { gap_ns, idle_ns: gap_ns.saturating_add(latency_ns), looked_ns, sleeps: 1 }
    }
}

/// Gaps between two looks at what a share of the processor allows.
const REVIEW_GAPS: u32 = 64;
/// Of those, one that was slept in counts as many as this.
const SLEPT_COUNTS: u32 = 16;
/// Wake-ups of which so many were measured are known well.
const WELL_KNOWN: u64 = 256;
/// By how many times their distance wake-ups are kept further apart for the sake of a debt, at most.
const DEBT_SPACINGS: u64 = 3;
/// How much more than the share sleeps may be expected to take before wake-ups are no longer held back: once they are,
/// gaps look longer than they are.
const HOLD_MARGIN: f64 = 1.02;

impl Adaptive {
    /// A policy that knows no gaps yet: it looks for as long as a sleep costs.
    ///
    /// # Panics
    ///
    /// If a target's share is not between 0 (excluded) and 1.
    pub fn new(cost: WakeCost, target: Target) -> Self {
        let mode = match target {
            Target::None => Mode::Least,
            Target::Wake { latency } => {
                let limit_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
                let feasible = if cost.latency_p99_ns <= limit_ns { Feasible::Yes } else { Feasible::No };
                Mode::Wake(Promise::new(limit_ns), feasible)
            }
            Target::Cpu { share } => {
                assert!(share > 0.0 && share <= 1.0, "a share of a core is more than 0 and at most 1, not {share}");
                Mode::Cpu(Allowance::new(share), Looking { spin_ns: Some(0), until_review: 1 })
            }
        };
        let mut policy = Self {
            rule: Rule::new(sleep_ns(&mode, cost)),
            cost: LiveCost::new(cost),
            mode,
            unaudited: Unaudited::default(),
            spin_ns: 0,
            hold_ns: 0,
        };
        policy.decide();
        policy
    }

    /// How long to look before sleeping, in the gap that begins now; `u64::MAX`: do not sleep.
    #[inline]
    pub fn spin_ns(&self) -> u64 {
        self.spin_ns
    }

    /// How long at least must pass from one interrupt that wakes this worker to the next (interrupt moderation), in
    /// nanoseconds; zero without a [`Target::Cpu`], and while wake-ups are rare enough by themselves.
    #[inline]
    pub fn hold_ns(&self) -> u64 {
        self.hold_ns
    }

    /// Learns from a gap that has ended. Takes tens of nanoseconds, on average over many.
    #[inline]
    pub fn learn(&mut self, idle: Idle) {
        self.rule.learn(idle.gap_ns, idle.sleeps > 0);
        let cpu_ns = self.cost.cpu_ns();
        let spent_ns = idle.looked_ns.saturating_add(cpu_ns.saturating_mul(idle.sleeps.into()));
        self.unaudited.add(idle, spent_ns);
        match &mut self.mode {
            Mode::Least => {}
            Mode::Wake(promise, _) => promise.idle(idle.idle_ns),
            Mode::Cpu(allowance, looking) => {
                allowance.settle(idle.idle_ns, spent_ns);
                looking.learn(self.rule.gaps(), allowance, cpu_ns, idle.sleeps > 0);
            }
        }
        self.decide();
    }

    /// A wake-up of this worker was measured: this is what it added. Keeps [`cost`](Self::cost) current; and for
    /// [`Target::Wake`] it is what shows whether the target is kept.
    pub fn on_wake_latency(&mut self, latency_ns: u64) {
        self.cost.measured(latency_ns);
        self.rule.set_sleep_ns(sleep_ns(&self.mode, self.cost.get()));
        if let Mode::Wake(promise, ..) = &mut self.mode {
            promise.measured(latency_ns);
            self.decide();
        }
    }

    /// Whether wake-ups are to be measured on purpose: there is a [`Target::Wake`], and it may be kept by sleeping. Those
    /// that come of themselves are not enough: a device does not tell when it interrupted.
    pub fn wants_soundings(&self) -> bool {
        matches!(self.mode, Mode::Wake(_, Feasible::Yes))
    }

    /// Whether more wake-ups than usual are to be measured: a [`Target::Wake`] was missed of late, or little is known of
    /// them yet.
    pub fn in_doubt(&self) -> bool {
        matches!(&self.mode, Mode::Wake(promise, Feasible::Yes) if promise.on_trial() || promise.counts().0 < WELL_KNOWN)
    }

    /// The kernel has accounted for this much processor time in the gaps that were learned since the last call. To be
    /// called now and then: it keeps [`cost`](Self::cost) current; and for [`Target::Cpu`], what is kept is then a
    /// share by that account.
    pub fn on_cpu_time(&mut self, spent_ns: u64) {
        let reckoned = std::mem::take(&mut self.unaudited);
        // Where looking is most of it, what is left for the sleeps says little.
        if let Some(per_sleep_ns) = spent_ns.saturating_sub(reckoned.looked_ns).checked_div(reckoned.sleeps)
            && reckoned.spent_ns >= reckoned.looked_ns.saturating_mul(2)
        {
            self.cost.cpu_measured(per_sleep_ns);
            self.rule.set_sleep_ns(sleep_ns(&self.mode, self.cost.get()));
        }
        if let Mode::Cpu(allowance, _) = &mut self.mode {
            allowance.correct(reckoned.spent_ns as f64 - spent_ns as f64);
        }
        self.decide();
    }

    /// What a wake-up costs, by the latest measurements.
    pub fn cost(&self) -> WakeCost {
        self.cost.get()
    }

    /// What was learned of gaps.
    pub fn gaps(&self) -> &GapHistogram {
        self.rule.gaps()
    }

    /// Why the target cannot be kept by choosing when to sleep, and what happens instead; `None` while it can.
    /// Allocates: not for the data path.
    pub fn verdict(&self) -> Option<String> {
        let cost = self.cost.get();
        match &self.mode {
            Mode::Least => None,
            Mode::Wake(_, Feasible::No) => Some(format!(
                "a wake-up takes {} at the median and {} at p99 on this core: {} cannot be kept by sleeping, so this worker polls",
                Ns(cost.latency_ns),
                Ns(cost.latency_p99_ns),
                self.target(),
            )),
            Mode::Wake(promise, Feasible::Yes) if promise.on_trial() => {
                let (sleeps, late) = promise.counts();
                Some(format!(
                    "{late} of the last {sleeps} wake-ups that were measured took longer than {} allows, where one in a hundred may \
                     and half of that is acted on; they take {} at the median and {} at p99: \
                     this worker polls, and sleeps now and then to see whether that has improved",
                    self.target(),
                    Ns(cost.latency_ns),
                    Ns(cost.latency_p99_ns),
                ))
            }
            Mode::Cpu(..) if self.hold_ns > 0 => Some(format!(
                "a wake-up takes {} of processor time, and work comes every {} on average: to stay within {}, wake-ups are kept {} apart, \
                 and work may wait that long",
                Ns(cost.cpu_ns),
                Ns(self.gaps().mean_ns() as u64),
                self.target(),
                Ns(self.hold_ns),
            )),
            Mode::Wake(..) | Mode::Cpu(..) => None,
        }
    }

    fn target(&self) -> Target {
        match &self.mode {
            Mode::Least => Target::None,
            Mode::Wake(promise, ..) => Target::Wake { latency: Duration::from_nanos(promise.limit_ns()) },
            Mode::Cpu(allowance, _) => Target::Cpu { share: allowance.asked() },
        }
    }

    /// Precomputes what the next gap is met with.
    #[inline]
    fn decide(&mut self) {
        (self.spin_ns, self.hold_ns) = match &self.mode {
            Mode::Least => (self.rule.spin_ns(), 0),
            // A gap that outlasts the pause ends in sleeps again: else a worker without traffic would poll for ever.
            Mode::Wake(promise, Feasible::Yes) => (self.rule.spin_ns().max(promise.pause_ns()), 0),
            Mode::Wake(..) => (u64::MAX, 0),
            Mode::Cpu(allowance, _) if allowance.asked() >= 1.0 => (u64::MAX, 0),
            Mode::Cpu(allowance, looking) => looking.decide(allowance, self.rule.spin_ns(), self.cost.get().cpu_ns),
        };
    }
}

impl Unaudited {
    #[inline]
    fn add(&mut self, idle: Idle, spent_ns: u64) {
        self.looked_ns = self.looked_ns.saturating_add(idle.looked_ns);
        self.sleeps += u64::from(idle.sleeps);
        self.spent_ns = self.spent_ns.saturating_add(spent_ns);
    }
}

impl Looking {
    #[inline]
    fn learn(&mut self, gaps: &GapHistogram, allowance: &Allowance, cpu_ns: u64, slept: bool) {
        self.until_review = self.until_review.saturating_sub(if slept { SLEPT_COUNTS } else { 1 });
        if self.until_review == 0 {
            let margin = if self.spin_ns.is_none() { HOLD_MARGIN } else { 1.0 };
            self.spin_ns = longest_within(gaps, allowance.share(), cpu_ns as f64 * margin);
            self.until_review = (gaps.weight() as u32 / 4).clamp(1, REVIEW_GAPS);
        }
    }

    /// How long to look, and how far apart wake-ups must be. `cheap_ns` is how long one would look to spend least.
    #[inline]
    fn decide(&self, allowance: &Allowance, cheap_ns: u64, cpu_ns: u64) -> (u64, u64) {
        let spin_ns = match self.spin_ns {
            Some(spin_ns) if allowance.spares(spin_ns, cpu_ns) => spin_ns,
            _ if allowance.permits(cheap_ns, cpu_ns) => cheap_ns,
            _ => 0,
        };
        let (debt_ns, spacing_ns) = (allowance.debt_ns(), allowance.spacing_ns(cpu_ns));
        let hold_ns = if self.spin_ns.is_none() || debt_ns > 0 {
            // A debt is paid bit by bit: whoever waits for a frame shall not pay for all of it at once.
            spacing_ns.saturating_add(debt_ns.min(spacing_ns.saturating_mul(DEBT_SPACINGS)))
        } else {
            0
        };
        (spin_ns, hold_ns)
    }
}

/// What a sleep costs in the sense of the rule: what it adds to the latency, and what it takes of the processor, which looking
/// takes, too. With a latency to keep to, latency within it is free.
fn sleep_ns(mode: &Mode, cost: WakeCost) -> u64 {
    match mode {
        Mode::Wake(..) => cost.cpu_ns,
        Mode::Least | Mode::Cpu(..) => cost.latency_ns.saturating_add(cost.cpu_ns),
    }
}

/// A time for people.
pub(super) struct Ns(pub(super) u64);

impl std::fmt::Display for Ns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (value, unit) = match self.0 {
            ns @ 0..1_000 => (ns as f64, "ns"),
            ns @ 1_000..1_000_000 => (ns as f64 / 1e3, "us"),
            ns => (ns as f64 / 1e6, "ms"),
        };
        // One digit after the point where it means something.
        let value = if value < 100.0 { (value * 10.0).round() / 10.0 } else { value.round() };
        write!(f, "{value} {unit}")
    }
}
