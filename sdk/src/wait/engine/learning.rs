//! Gaps as the engine sees them, and when the policy learns from them: not between two frames that come close together.

use super::{Engine, Gap, Rule};
use crate::wait::policy::Idle;

/// What ended gaps teach is learned once a gap has lasted this long, or is to be slept in: the frame that comes right after
/// another one does not wait for that. Who ends gaps at the worst moment makes the worker look for as much longer, once for
/// each gap that it must have looked through before.
pub(super) const STUDY_NS: u64 = 1_000;
/// Gaps that may wait for it.
pub(super) const UNLEARNED: usize = 16;

impl Engine {
    pub(super) fn begin_gap(&mut self, now: u64) -> Gap {
        self.audit(now);
        let gap = Gap { since: now, spin: self.spin(), away: 0, sleeps: 0, slept: None };
        self.gap = Some(gap);
        gap
    }

    /// How long to look in this gap, by what has been learned so far.
    fn spin(&self) -> u64 {
        let spin_ns = match &self.rule {
            Rule::Poll => u64::MAX,
            _ if self.sleepless => u64::MAX,
            Rule::Interrupt(_) => 0,
            Rule::Adaptive(adaptive) => adaptive.spin_ns(),
        };
        self.counters.spin_ns.set(spin_ns);
        self.clock.ns_to_ticks(spin_ns)
    }

    pub(super) fn end_gap(&mut self, gap: Gap, now: u64) {
        let idle = now.saturating_sub(gap.since);
        self.idle = self.idle.saturating_add(idle);
        if gap.sleeps > 0 {
            self.learn_all();
            self.learn_slept(gap, now);
        } else if matches!(self.rule, Rule::Adaptive(_)) {
            if self.unlearned.is_full() {
                let oldest = self.unlearned.remove(0);
                self.learn_looked(oldest);
            }
            self.unlearned.push(idle);
        } else {
            self.learn_looked(idle);
        }
    }

    /// Learns from the gaps that ended before this one, and decides anew how long to look in it.
    #[cold]
    pub(super) fn study(&mut self) {
        self.learn_all();
        let spin = self.spin();
        if let Some(gap) = &mut self.gap {
            gap.spin = spin;
        }
    }

    pub(super) fn learn_all(&mut self) {
        for idle in std::mem::take(&mut self.unlearned) {
            self.learn_looked(idle);
        }
    }

    /// Learns from a gap that ended after `idle`, while it looked.
    fn learn_looked(&mut self, idle: u64) {
        let gap_ns = self.clock.ticks_to_ns(idle);
        self.counters.gap_ns.record(gap_ns);
        if let Rule::Adaptive(adaptive) = &mut self.rule {
            adaptive.learn(Idle::looked(gap_ns));
        }
    }

    /// Learns from a gap that it slept in.
    fn learn_slept(&mut self, gap: Gap, now: u64) {
        let wake = self.clock.ns_to_ticks(self.latency_ns());
        // A sleep lasts until the worker is awake; the work came a wake-up's time before.
        let came = gap.slept.map_or(now, |slept| slept.until.saturating_sub(wake).max(slept.from));
        if gap.slept.is_some_and(|slept| came.saturating_sub(slept.from) < wake) {
            self.counters.regrets.add(1);
        }
        let ns = |ticks| self.clock.ticks_to_ns(ticks);
        let idle = now.saturating_sub(gap.since);
        let gap_ns = ns(came.saturating_sub(gap.since));
        self.counters.gap_ns.record(gap_ns);
        if let Rule::Adaptive(adaptive) = &mut self.rule {
            let looked_ns = ns(idle.saturating_sub(gap.away));
            adaptive.learn(Idle { gap_ns, idle_ns: ns(idle), looked_ns, sleeps: gap.sleeps });
        }
    }
}
