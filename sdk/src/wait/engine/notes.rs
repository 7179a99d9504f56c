//! What an engine tells an operator in words.

use super::{Engine, Rule};
use crate::wait::policy::Ns;
use crate::wait::set::Part;

/// How often an idle worker tells whether its policy keeps to its target.
const VERDICT_NS: u64 = 1_000_000_000;

impl Engine {
    /// What an operator should know before the first turn: how each source wakes, or why it cannot and what happens
    /// then; what a wake-up costs here and what the devices' interrupt moderation adds; what the policy cannot keep.
    pub fn notes(&self) -> Vec<String> {
        let wakes = self.set.wakes().iter().enumerate().map(|(index, source)| match self.set.part(index) {
            Part::Deaf => format!("{}: cannot wake ({})", source.label, source.how),
            _ => format!("{}: wakes {}", source.label, source.how),
        });
        let mut notes: Vec<String> = wakes.collect();
        let deaf: Vec<&str> = self.set.deaf().iter().map(|deaf| deaf.label.as_str()).collect();
        let cost = match &self.rule {
            Rule::Poll => {
                notes.push("it polls and never sleeps, so nothing needs to wake it".into());
                return notes;
            }
            _ if !deaf.is_empty() => {
                notes.push(format!("because of {} it polls and never sleeps", deaf.join(", ")));
                return notes;
            }
            Rule::Interrupt(cost) => *cost,
            Rule::Adaptive(adaptive) => adaptive.cost(),
        };
        notes.push(format!("a wake-up takes {cost} on this core, as measured now"));
        notes.extend(self.held_back.map(|held_back| match held_back.as_nanos() {
            0 => "interrupt moderation is off in its devices, so it adds no latency".into(),
            ns => format!(
                "interrupt moderation: its devices leave {0} between two interrupts, so work may wait {0} longer",
                Ns(u64::try_from(ns).unwrap_or(u64::MAX))
            ),
        }));
        notes.extend_from_slice(self.care.notes());
        if self.sounder.is_none()
            && let Rule::Adaptive(adaptive) = &self.rule
            && adaptive.wants_soundings()
        {
            notes.push(
                "the process may use no core beside this worker's own, from which its wake-ups could be watched: the figures are \
                 those of time limits, and a device's interrupts may take longer"
                    .into(),
            );
        }
        notes.extend(self.verdict());
        notes
    }

    /// Why the policy's target cannot be kept, and what happens instead.
    fn verdict(&self) -> Option<String> {
        match &self.rule {
            Rule::Adaptive(adaptive) if self.set.deaf().is_empty() => adaptive.verdict(),
            _ => None,
        }
    }

    /// Tells the verdict now and then, when there is time: the worker is idle.
    #[inline]
    pub(super) fn judge(&mut self, now: u64) {
        if now.saturating_sub(self.judged_at) >= self.clock.ns_to_ticks(VERDICT_NS) {
            self.judged_at = now;
            self.tell_verdict();
        }
    }

    #[cold]
    pub(super) fn tell_verdict(&self) {
        self.counters.set_verdict(self.verdict());
    }
}
