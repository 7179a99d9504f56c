//! One sleep: the steps of a park, and the account of it.

use std::time::Duration;

use super::{Engine, Gap, Parked, Rule, Slept, visit};
use crate::sys::epoll::Woken;
use crate::wait::counters::State;
use crate::wait::set::Part;
use crate::wait::{EachSource, Steps, Wake, after_arming};

/// Wake-ups are watched as long as the last sounding is no longer ago than this: their thread may be kept from running.
const SOUNDED_NS: u64 = 1_000_000_000;

/// What a look after a sleep found.
#[derive(Debug, Clone, Copy, Default)]
struct Look {
    /// Something is due by its deadline.
    due: bool,
    /// There is work that should have woken the worker.
    announced: bool,
}

/// Whether any source has work. Once one has, the others are not asked: that may cost a read across the bus.
pub(super) fn look(each: EachSource<'_>) -> bool {
    let mut work = false;
    each(&mut |source| work = work || source.pending());
    work
}

/// One park of an engine over its sources.
pub(super) struct Sleep<'a, 'b> {
    engine: &'a mut Engine,
    each: EachSource<'b>,
    /// The time, as last read.
    pub(super) now: u64,
}

impl<'a, 'b> Sleep<'a, 'b> {
    pub(super) fn new(engine: &'a mut Engine, now: u64, each: EachSource<'b>) -> Self {
        Self { engine, each, now }
    }

    /// Reads the clock; returns how long it was since the last time.
    fn lap(&mut self) -> u64 {
        let before = self.now;
        self.now = self.engine.clock.now();
        self.now.saturating_sub(before)
    }

    /// After a sleep: finds out what ended it. The sources are still armed. `disturbed`: it was ended without a reason, so work
    /// that there is has not woken anybody yet.
    pub(super) fn woken(&mut self, mut woken: Woken, disturbed: bool) {
        let Some(parked) = self.engine.parked.take() else { return };
        let back = self.now;
        self.engine.counters.set_state(State::Arm);
        self.note_latency(parked, woken);
        let mut found = self.look_back();
        if (woken == Woken::TimedOut || disturbed) && found.announced {
            // Work may have come just as the time ran out, with its wake-up still under way. Only one that does not
            // come either way is lost.
            self.engine.counters.set_state(State::Sleep);
            let grace = Parked { from: back, limit: self.engine.ticks(self.engine.config.grace) };
            woken = self.engine.block(grace, self.each);
            let waited = self.lap();
            self.engine.counters.sleep_ticks.add(waited);
            self.engine.note_away(waited);
            self.engine.counters.set_state(State::Arm);
            found = self.look_back();
        }
        self.count(woken, found);
        if let (true, Some(gap)) = (found.due || found.announced, &mut self.engine.gap) {
            gap.slept = Some(Slept { from: parked.from, until: back });
        }
        self.engine.woken_at = back;
    }

    /// Looks at every source, and at what kind of work there is.
    fn look_back(&mut self) -> Look {
        let (set, mut found) = (&self.engine.set, Look::default());
        visit(self.each, &mut |index, source| {
            if source.pending() {
                let by_time = set.part(index) == Part::Deadline;
                found.due |= by_time;
                found.announced |= !by_time;
            }
        });
        found
    }

    /// Takes note of how long the wake-up took, where that is known.
    fn note_latency(&mut self, parked: Parked, woken: Woken) {
        let signalled = match woken {
            Woken::TimedOut => Some(self.engine.expiry(parked)),
            Woken::Ready(_) => self.engine.set.signalled_at(),
            Woken::Interrupted => None,
        };
        if let Some(at) = signalled.filter(|at| (parked.from..=self.now).contains(at)) {
            let ns = self.engine.clock.ticks_to_ns(self.now - at);
            self.engine.counters.wake_ns.record(ns);
            // While wake-ups are sounded, a time limit's end would water down what that shows: the machine knew of it.
            let sounded = self.now.saturating_sub(self.engine.sounded_at) < self.engine.clock.ns_to_ticks(SOUNDED_NS);
            let counts = woken != Woken::TimedOut || !sounded;
            if counts && let Rule::Adaptive(adaptive) = &mut self.engine.rule {
                adaptive.on_wake_latency(ns);
            }
        }
    }

    /// Counts one sleep.
    fn count(&mut self, woken: Woken, found: Look) {
        let counters = &self.engine.counters;
        counters.parks.add(1);
        match woken {
            Woken::Ready(_) if found.due || found.announced => {
                counters.wakes.add(1);
                self.credit();
            }
            Woken::Ready(_) => counters.spurious.add(1),
            Woken::TimedOut => {
                counters.rescues.add(found.announced.into());
                counters.timeouts.add((!found.due && !found.announced).into());
                if found.due {
                    counters.wakes.add(1);
                    self.credit();
                }
            }
            Woken::Interrupted => {}
        }
    }

    /// Counts a wake for each source that fired, or is due, and has work.
    fn credit(&mut self) {
        let set = &self.engine.set;
        visit(self.each, &mut |index, source| {
            let woke = set.part(index) == Part::Deadline || set.has_fired(index);
            if woke
                && source.pending()
                && let Some(noted) = set.wakes().get(index)
            {
                noted.wakes.add(1);
            }
        });
    }
}

impl Steps for Sleep<'_, '_> {
    fn arm(&mut self) {
        self.engine.counters.set_state(State::Arm);
        (self.each)(&mut |source| source.arm());
    }

    fn fence(&mut self) {
        // Whoever has work to announce publishes it, then looks whether it is asked to. Arming comes before this fence
        // and the second look after it, so one of the two sees the other.
        after_arming(self.engine.set.needs_heavy_fence());
    }

    fn look(&mut self) -> bool {
        let found = look(self.each);
        let took = self.lap();
        self.engine.counters.arm_ticks.add(took);
        if found {
            self.engine.counters.turned_back.add(1);
        } else {
            let limit = self.engine.limit(self.now, self.each);
            self.engine.parked = Some(Parked { from: self.now, limit });
            self.engine.counters.set_state(State::Sleep);
        }
        found
    }

    fn block(&mut self) -> bool {
        let Some(parked) = self.engine.parked else { return false };
        let woken = self.engine.block(parked, self.each);
        let slept = self.lap();
        self.engine.counters.sleep_ticks.add(slept);
        self.engine.note_away(slept);
        self.woken(woken, false);
        matches!(woken, Woken::Ready(_))
    }

    fn disarm(&mut self) {
        (self.each)(&mut |source| source.disarm());
        let took = self.lap();
        self.engine.counters.arm_ticks.add(took);
        self.engine.counters.set_state(State::Poll);
    }
}

impl Parked {
    pub(super) fn until(self) -> u64 {
        self.from.saturating_add(self.limit)
    }
}

impl Engine {
    /// How long a sleep may last that begins at `now`.
    pub(super) fn limit(&self, now: u64, each: EachSource<'_>) -> u64 {
        let mut limit = self.ticks(self.config.sleep_limit);
        visit(each, &mut |index, source| {
            if self.set.part(index) == Part::Deadline
                && let Wake::At(Some(due)) = source.wake()
            {
                limit = limit.min(due.saturating_sub(now));
            }
        });
        limit
    }

    /// When a sleep whose limit has passed should have ended.
    pub(super) fn expiry(&self, parked: Parked) -> u64 {
        let slack = (parked.limit / 1000 * self.timer_slack_part).max(self.timer_slack);
        parked.until().saturating_add(slack)
    }

    /// Blocks, and goes on blocking when a signal handler ran meanwhile, or the sounder wanted to see how long waking up
    /// takes. Tells the sources that woke.
    pub(super) fn block(&mut self, parked: Parked, each: EachSource<'_>) -> Woken {
        let mut left = parked.limit;
        loop {
            let woken = self.set.wait(Duration::from_nanos(self.clock.ticks_to_ns(left)), each);
            if woken == Woken::TimedOut || (woken != Woken::Interrupted && !self.set.sounded()) {
                return woken;
            }
            let now = self.clock.now();
            let sounded = self.note_sounding(parked, now);
            if !matches!(woken, Woken::Interrupted | Woken::Ready(1)) {
                return woken;
            }
            if let Some(gap) = self.gap.as_mut().filter(|_| sounded) {
                gap.sleeps = gap.sleeps.saturating_add(1); // it takes as much of the processor as one
            }
            left = parked.until().saturating_sub(now);
        }
    }

    /// Takes note of how long the wake-up took that the sounder made, if it did so in this sleep. Returns whether its event came
    /// with the last wait.
    pub(super) fn note_sounding(&mut self, parked: Parked, now: u64) -> bool {
        if !self.set.sounded() {
            return false;
        }
        let (Some(sounder), Rule::Adaptive(adaptive)) = (&self.sounder, &mut self.rule) else { return true };
        let at = sounder.signalled_at();
        // The signal of a thread that had work tells as much, and is taken note of as after any sleep: one wake-up counts once.
        if (parked.from..=now).contains(&at) && self.set.signalled_at().is_none() {
            let ns = self.clock.ticks_to_ns(now - at);
            self.counters.wake_ns.record(ns);
            adaptive.on_wake_latency(ns);
            sounder.hurry(adaptive.in_doubt());
            self.sounded_at = now;
        }
        true
    }

    /// Takes note that the worker slept for so long in this gap.
    pub(super) fn note_away(&mut self, ticks: u64) {
        if let Some(Gap { away, sleeps, .. }) = &mut self.gap {
            *away += ticks;
            *sleeps = sleeps.saturating_add(1);
        }
    }
}
