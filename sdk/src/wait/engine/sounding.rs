//! How long a wake-up takes, seen from a sleep that is ended early on purpose.

use std::ops::ControlFlow;
use std::time::Duration;

use super::super::EachSource;
use super::{Engine, Parked, Rule};
use crate::sys::epoll::Woken;

impl Engine {
    /// The first part of a sleep, where the policy wants to know how long wake-ups take: blocks for a short while whose
    /// end is known exactly. Returns what is left of the sleep, all of it if nothing is to be seen; or what ended it.
    ///
    /// All stays armed, and what fires meanwhile ends the rest at once: it is one sleep, in two system calls.
    pub(super) fn sound(&mut self, parked: Parked, each: EachSource<'_>) -> ControlFlow<Woken, Parked> {
        let Rule::Adaptive(adaptive) = &mut self.rule else { return ControlFlow::Continue(parked) };
        let Some(limit_ns) = adaptive.sound_ns() else { return ControlFlow::Continue(parked) };
        let first = Parked { from: parked.from, limit: self.clock.ns_to_ticks(limit_ns) };
        if first.limit >= parked.limit {
            return ControlFlow::Continue(parked); // its own limit comes sooner, and tells as much
        }
        let woken = self.set.wait(Duration::from_nanos(limit_ns), each);
        let now = self.clock.now();
        let late_ns = self.clock.ticks_to_ns(now.saturating_sub(self.expiry(first)));
        let is_known = match woken {
            Woken::TimedOut => true,
            // Signals of threads say when they were sent, which is taken note of as after any sleep.
            Woken::Ready(_) => late_ns > 0 && self.set.signalled_at().is_none(),
            Woken::Interrupted => false,
        };
        if is_known {
            if late_ns > 0 {
                self.counters.wake_ns.record(late_ns);
            }
            if let Rule::Adaptive(adaptive) = &mut self.rule {
                adaptive.on_sounding(late_ns);
            }
        }
        match woken {
            Woken::Ready(_) => ControlFlow::Break(woken),
            _ => ControlFlow::Continue(Parked { from: now, limit: parked.until().saturating_sub(now) }),
        }
    }
}
