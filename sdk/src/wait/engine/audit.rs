//! What the kernel says that a worker's waiting took of its core.

use std::time::Duration;

use super::{Engine, Rule};
use crate::sys::sched;

/// How often the kernel is asked, when there is time.
const AUDIT_NS: u64 = 100_000_000;

/// What was known when the kernel was last asked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Audit {
    at: u64,
    /// Time in gaps until then.
    idle: u64,
    /// Processor time of the thread until then.
    cpu: Duration,
    /// Sleeps until then.
    parks: u64,
}

impl Engine {
    /// Now and then, between two gaps: tells the policy what the gaps that it has learned of took by the kernel's
    /// account. That is all processor time but the time between gaps. A worker that did not sleep since has nothing to
    /// ask: what it took is the time that passed.
    #[inline]
    pub(super) fn audit(&mut self, now: u64) {
        if now.saturating_sub(self.audit.at) >= self.clock.ns_to_ticks(AUDIT_NS)
            && self.counters.parks.get() != self.audit.parks
        {
            self.close_audit(now);
        }
    }

    #[cold]
    fn close_audit(&mut self, now: u64) {
        self.learn_all(); // what the kernel accounts for is set against what was learned
        let before = self.audit;
        let cpu = sched::thread_cpu_time().saturating_sub(before.cpu);
        let (passed, idle) = (now.saturating_sub(before.at), self.idle.saturating_sub(before.idle));
        let busy_ns = self.clock.ticks_to_ns(passed.saturating_sub(idle));
        if let Rule::Adaptive(adaptive) = &mut self.rule {
            let cpu_ns = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX);
            adaptive.on_cpu_time(cpu_ns.saturating_sub(busy_ns));
        }
        self.audit = Audit { at: now, idle: self.idle, cpu: before.cpu + cpu, parks: self.counters.parks.get() };
        self.tell_cost();
    }

    /// Audits from now on.
    pub(super) fn begin_audit(&mut self, now: u64) {
        self.audit =
            Audit { at: now, idle: self.idle, cpu: sched::thread_cpu_time(), parks: self.counters.parks.get() };
        self.tell_cost();
    }

    fn tell_cost(&self) {
        let cost = match &self.rule {
            Rule::Poll => return,
            Rule::Interrupt(cost) => *cost,
            Rule::Adaptive(adaptive) => adaptive.cost(),
        };
        self.counters.cost_ns.set(cost.latency_ns);
        self.counters.cost_p99_ns.set(cost.latency_p99_ns);
        self.counters.cost_cpu_ns.set(cost.cpu_ns);
    }
}
