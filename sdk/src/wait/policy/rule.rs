//! How long to look before sleeping, so that the expected cost is least.
//!
//! A gap that ends while the worker looks costs its length; a longer one costs the time spent looking and one sleep.
//! Over a histogram of gaps, the best spin time is found by trying all that matter. Two histograms watch the same gaps:
//! one remembers thousands, and is precise while traffic stays as it is; one remembers dozens, and has forgotten the
//! old traffic soon after it changed. The rule follows whichever would have done better lately.

use super::gaps::GapHistogram;
use super::guard::{Guard, cost};

/// Gaps that the precise histogram remembers.
const LONG_MEMORY: u32 = 8192;
/// Gaps that the quick one remembers.
const SHORT_MEMORY: u32 = 48;
/// Gaps over which the two are compared.
const RACE_MEMORY: f64 = 128.0;
/// The quick one is followed while its losses are below this share of the precise one's: below one, since chance
/// favours the one that follows chance.
const QUICK_WINS: f64 = 0.93;
/// No spin time is longer than this many sleeps: what it would still catch costs more than it saves.
const LONGEST_SLEEPS: f64 = 8.0;
/// How much dearer than the best a longer spin time may look and still be taken. The cost of a sleep counts one frame's
/// delay, and frames that come close together are all delayed; so where the costs are about equal, looking on is
/// better.
const NEAR_TIE: f64 = 0.01;
/// The best spin time is found anew after this many gaps,
const REVIEW_GAPS: u32 = 192;
/// of which one that was slept in counts as many as this.
const SLEPT_COUNTS: u32 = 24;
/// What many gaps say changes slowly: their histogram is looked at in every fourth review only, once it holds more than
/// a few.
const PRECISE_REVIEWS: u32 = 4;
const FEW_GAPS: f64 = 1024.0;

/// Learns gaps and says how long to look.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// What a sleep costs, in nanoseconds.
    sleep: f64,
    /// What it is to cost from the next review on. Not sooner: the guard pays for a gap by the cost that it permitted
    /// it with.
    next_sleep: f64,
    precise: Learner,
    quick: Learner,
    /// Which of the two is followed.
    follow_quick: bool,
    guard: Guard,
    /// What the followed learner's choice may cost at worst beyond what the guard earns with it.
    shortfall: f64,
    until_review: u32,
    /// Reviews so far.
    reviews: u32,
    spin_ns: u64,
}

/// A histogram, the choice that follows from it, and what that choice has cost lately.
#[derive(Debug, Clone)]
struct Learner {
    gaps: GapHistogram,
    spin: f64,
    lost: f64,
}

impl Rule {
    /// A rule that knows no gaps yet, when a sleep costs `sleep_ns`.
    pub(super) fn new(sleep_ns: u64) -> Self {
        let sleep = sleep_ns.max(1) as f64;
        let learner = |memory| Learner { gaps: GapHistogram::new(memory), spin: sleep, lost: 0.0 };
        Self {
            sleep,
            next_sleep: sleep,
            precise: learner(LONG_MEMORY),
            quick: learner(SHORT_MEMORY),
            follow_quick: false,
            guard: Guard::new(sleep),
            shortfall: Guard::shortfall(sleep, sleep),
            until_review: 1,
            reviews: 0,
            spin_ns: sleep as u64,
        }
    }

    /// How long to look in the gap that begins now.
    #[inline]
    pub(super) fn spin_ns(&self) -> u64 {
        self.spin_ns
    }

    /// What a sleep counts as, in nanoseconds.
    #[cfg(test)]
    pub(super) fn sleep(&self) -> f64 {
        self.sleep
    }

    /// What is known of gaps.
    pub(super) fn gaps(&self) -> &GapHistogram {
        &self.precise.gaps
    }

    /// Sleeps cost this much, from the next review on.
    pub(super) fn set_sleep_ns(&mut self, sleep_ns: u64) {
        self.next_sleep = sleep_ns.max(1) as f64;
    }

    /// A gap ended; `slept` if it outlasted the looking.
    #[inline]
    pub(super) fn learn(&mut self, gap_ns: u64, slept: bool) {
        let gap = gap_ns as f64;
        self.guard.settle(gap, self.spin_ns as f64, self.sleep);
        self.precise.learn(gap_ns, self.sleep);
        self.quick.learn(gap_ns, self.sleep);
        self.until_review = self.until_review.saturating_sub(if slept { SLEPT_COUNTS } else { 1 });
        if self.until_review == 0 {
            self.review();
        }
        let spin = if self.guard.permits(self.shortfall) { self.followed().spin } else { self.sleep };
        self.spin_ns = spin as u64;
    }

    /// Finds the best spin times anew.
    fn review(&mut self) {
        self.sleep = self.next_sleep;
        self.reviews = self.reviews.wrapping_add(1);
        if self.precise.gaps.weight() < FEW_GAPS || self.reviews.is_multiple_of(PRECISE_REVIEWS) {
            self.precise.spin = cheapest(&self.precise.gaps, self.sleep);
        }
        self.quick.spin = cheapest(&self.quick.gaps, self.sleep);
        self.follow_quick = self.quick.lost < QUICK_WINS * self.precise.lost;
        self.shortfall = Guard::shortfall(self.followed().spin.floor(), self.sleep);
        // While there is little to go by, each gap may change the picture.
        self.until_review = (self.precise.gaps.weight() as u32 / 4).clamp(1, REVIEW_GAPS);
    }

    fn followed(&self) -> &Learner {
        if self.follow_quick { &self.quick } else { &self.precise }
    }
}

impl Learner {
    #[inline]
    fn learn(&mut self, gap_ns: u64, sleep: f64) {
        self.lost += cost(gap_ns as f64, self.spin, sleep) - self.lost / RACE_MEMORY;
        self.gaps.add(gap_ns);
    }
}

/// The spin time with the least expected cost over `gaps`, when a sleep costs `sleep`; of those that cost about as
/// little, the longest, since it delays the fewest frames.
fn cheapest(gaps: &GapHistogram, sleep: f64) -> f64 {
    let expected = |spin: f64, share: f64, mean_ns: f64| mean_ns + (1.0 - share) * (spin + sleep);
    let longest = LONGEST_SLEEPS * sleep;
    let (mut least, mut chosen) = (sleep, 0.0);
    // Whatever is longer than the least so far and costs about as little is chosen; a new least is longer than all
    // before.
    let mut consider = |spin: f64, share: f64, mean_ns: f64| {
        let cost = expected(spin, share, mean_ns);
        if cost <= least * (1.0 + NEAR_TIE) {
            chosen = spin;
        }
        least = least.min(cost);
    };
    let (mut share, mut mean_ns) = (0.0, 0.0);
    // The deterministic rule's is one of them, caught gaps or not.
    let mut others = [sleep, longest].into_iter().peekable();
    for caught in gaps.spins() {
        let spin = caught.spin_ns as f64;
        while let Some(other) = others.next_if(|other| *other < spin) {
            consider(other, share, mean_ns);
        }
        if spin > longest {
            break;
        }
        (share, mean_ns) = (caught.share, caught.mean_ns);
        consider(spin, share, mean_ns);
    }
    others.for_each(|other| consider(other, share, mean_ns));
    chosen
}

/// The longest spin time whose processor time is expected to stay within `share` of the gaps, when a sleep takes `cpu`
/// of it;
/// `None` when even sleeping at once takes more.
pub(super) fn longest_within(gaps: &GapHistogram, share: f64, cpu: f64) -> Option<u64> {
    let allowed = share * gaps.mean_ns();
    let mut longest = (cpu <= allowed).then_some(0);
    for caught in gaps.spins() {
        let spent = caught.mean_ns + (1.0 - caught.share) * (caught.spin_ns as f64 + cpu);
        if spent <= allowed {
            longest = Some(caught.spin_ns);
        }
    }
    longest
}
