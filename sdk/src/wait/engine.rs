//! The engine: one worker's waiting, over all its sources.
//!
//! ```text
//! turn with work ──▶ Poll ──▶ Relax ──▶ Arm ──▶ look again ──▶ Sleep ──▶ disarm ──▶ Poll
//!                   turns    looks with           └── work ─────────────▶┘
//!                   at once   pauses
//! ```

mod audit;
mod learning;
mod notes;
mod sleep;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;

use super::care::{self, Care};
use super::counters::{State, WaitCounters};
use super::policy::{Adaptive, Target, WaitPolicy, WakeCost};
use super::set::{Origin, SourceSet, visit};
use super::sounder::Sounder;
use super::{EachSource, Source, Steps, after_arming, calibrate, park, prepare};
use crate::clock::{Clock, ClockSource};
use crate::sys::epoll::Woken;
use crate::sys::relax::{Relax, RelaxKind};
use crate::sys::sched;
use audit::Audit;
use learning::{STUDY_NS, UNLEARNED};
use sleep::{Sleep, look};

/// How an engine shall wait.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// When to sleep.
    pub policy: WaitPolicy,
    /// The longest that one sleep lasts. It bounds how late work is found whose wake-up was lost, and costs a wake-up
    /// each time it passes.
    pub sleep_limit: Duration,
    /// How much longer a sleep lasts when its limit has passed, work is there, and its wake-up is not: it may be under
    /// way. One that does not come within this time either is lost, and counted as a rescue.
    pub grace: Duration,
}

impl EngineConfig {
    /// Sleeps of 10 ms at most, and as much again before a wake-up counts as lost: emulated machines need milliseconds
    /// from a device to an eventfd when they are busy.
    pub fn new(policy: WaitPolicy) -> Self {
        Self { policy, sleep_limit: Duration::from_millis(10), grace: Duration::from_millis(10) }
    }
}

/// An engine could not be made, or not with these sources.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No epoll set, or nothing to calibrate with.
    #[error("{what}: {source}; raise the limit on open files (ulimit -n)")]
    Os {
        /// What was wanted.
        what: &'static str,
        /// The meaning of errno.
        source: io::Error,
    },
    /// The kernel cannot wait for a source.
    #[error(
        "{label} cannot be waited for: {source}; regular files always read at once, so the kernel has no event for them"
    )]
    Register {
        /// Which source.
        label: String,
        /// The meaning of errno.
        source: io::Error,
    },
    /// A source cannot wake, and the policy would sleep all the same.
    #[error(
        "{label} cannot wake its worker ({why}), so one that sleeps would miss its work; wait by `poll` or `adaptive` instead"
    )]
    CannotWake {
        /// Which source.
        label: String,
        /// Why not.
        why: String,
    },
}

/// How long it looks for work turn by turn before it looks with pauses, at least: as long as a wake-up takes, so that
/// gaps which are shorter end as they do for one that polls.
const POLL_NS: u64 = 2_000;
/// How long it looks with pauses before the next turn.
const RELAX_NS: u64 = 20_000;
/// Timers of an ordinary thread may fire this much of their length late, in thousandths (select_estimate_accuracy in
/// the kernel's fs/select.c).
const TIMER_SLACK_PART: u64 = 1;
/// Wake-ups are kept apart by another time only once it differs by more than an 8th: changing it costs register writes.
const MODERATION_STEP: u64 = 8;
/// How long it naps at a time while work may come from several places.
const NAP_NS: u64 = 500;
/// How often a polling worker asks the kernel about a program's own descriptors.
const GLANCE_NS: u64 = 20_000;

/// The waiting of one worker.
///
/// [`Worker`](crate::worker::Worker) has one inside. A program that runs its own loop uses it so: after each round
/// without work it calls [`idle`](Self::idle), after each with work [`worked`](Self::worked). One whose thread must
/// block in an event loop of its own (epoll, mio, tokio) calls [`prepare`](Self::prepare), waits until the engine's
/// descriptor is readable or the time that it was given has passed, and calls [`resume`](Self::resume).
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    rule: Rule,
    set: SourceSet,
    clock: Clock,
    relax: Relax,
    counters: Arc<WaitCounters>,
    /// The idle gap that has not ended yet.
    gap: Option<Gap>,
    /// A sleep that was prepared.
    parked: Option<Parked>,
    woken_at: u64,
    glanced_at: u64,
    /// A source cannot wake it, so it must not sleep.
    sleepless: bool,
    /// How late the kernel may end a sleep of ours without being late: this part of its length,
    timer_slack_part: u64,
    /// and no less than this, the thread's own slack.
    timer_slack: u64,
    judged_at: u64,
    /// What its devices were asked to leave between two wake-ups.
    moderation_ns: u64,
    /// Whether every source's device does so.
    moderated: bool,
    /// The longest that a device does so; `None` where none can.
    held_back: Option<Duration>,
    /// How long it looks turn by turn.
    poll: u64,
    /// How long a gap lasts before those before it are learned from,
    study_after: u64,
    /// and these: the lengths of those that ended while it looked, oldest first.
    unlearned: ArrayVec<u64, UNLEARNED>,
    /// Time in gaps that have ended.
    idle: u64,
    audit: Audit,
    /// What it holds so that wake-ups are fast.
    care: Care,
    /// Sees how long wake-ups take, for a latency to keep to,
    sounder: Option<Sounder>,
    /// which it last did then.
    sounded_at: u64,
}

/// When to sleep.
#[derive(Debug)]
enum Rule {
    Poll,
    Interrupt(WakeCost),
    Adaptive(Box<Adaptive>),
}

#[derive(Debug, Clone, Copy)]
struct Gap {
    since: u64,
    /// How long it is spun through.
    spin: u64,
    /// How long it was not: asleep, with all that belongs to it.
    away: u64,
    sleeps: u32,
    /// Where the last sleep ended it, if that did.
    slept: Option<Slept>,
}

#[derive(Debug, Clone, Copy)]
struct Slept {
    from: u64,
    until: u64,
}

#[derive(Debug, Clone, Copy)]
struct Parked {
    from: u64,
    limit: u64,
}

impl Engine {
    /// An engine over the sources that `each` visits. It measures first what a wake-up costs on this core (some tens of
    /// milliseconds), unless it never sleeps: so make it on the thread that will use it, once that is pinned.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors, or a source does not fit the policy.
    pub fn new(config: EngineConfig, counters: Arc<WaitCounters>, each: EachSource<'_>) -> Result<Self, EngineError> {
        let os = |what| move |source| EngineError::Os { what, source };
        let set = SourceSet::new().map_err(os("an epoll set"))?;
        let clock = Clock::get();
        let limit_ns = match config.policy {
            WaitPolicy::Adaptive(Target::Wake { latency }) => u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX),
            _ => u64::MAX,
        };
        let calibrated = || care::take_care(limit_ns, calibrate::wake_cost).map_err(os("measuring a wake-up"));
        let (rule, care) = match config.policy {
            WaitPolicy::Poll => (Rule::Poll, Care::default()),
            WaitPolicy::Interrupt => calibrated().map(|(cost, care)| (Rule::Interrupt(cost), care))?,
            WaitPolicy::Adaptive(target) => {
                let (cost, care) = calibrated()?;
                (Rule::Adaptive(Box::new(Adaptive::new(cost, target))), care)
            }
        };
        let realtime = sched::is_realtime();
        let mut engine = Self {
            config,
            rule,
            set,
            clock,
            relax: if matches!(clock.source(), ClockSource::Tsc { .. }) { Relax::detect() } else { Relax::pause() },
            counters,
            gap: None,
            parked: None,
            woken_at: 0,
            glanced_at: 0,
            sleepless: false,
            timer_slack_part: if realtime { 0 } else { TIMER_SLACK_PART },
            timer_slack: if realtime { 0 } else { clock.ns_to_ticks(sched::timer_slack_ns().unwrap_or(0)) },
            judged_at: 0,
            moderation_ns: 0,
            moderated: false,
            held_back: None,
            poll: 0,
            study_after: clock.ns_to_ticks(STUDY_NS),
            unlearned: ArrayVec::new(),
            idle: 0,
            audit: Audit::default(),
            care,
            sounder: None,
            sounded_at: 0,
        };
        if let Rule::Adaptive(adaptive) = &engine.rule
            && adaptive.wants_soundings()
        {
            engine.sounder = Sounder::start(engine.counters.clone()).map_err(os("a thread that watches wake-ups"))?;
            if let Some(sounder) = &engine.sounder {
                engine.set.add_sounder(sounder.vector()).map_err(os("an eventfd in an epoll set"))?;
            }
        }
        engine.refresh(each)?;
        engine.poll = clock.ns_to_ticks(engine.latency_ns().max(POLL_NS));
        engine.begin_audit(clock.now());
        Ok(engine)
    }
}

impl Engine {
    /// Takes in the sources that `each` visits now: to be called after they have changed. What
    /// [`prepare`](Self::prepare) began is called off.
    ///
    /// # Errors
    ///
    /// When a source does not fit the policy; the engine then polls, until it is refreshed with sources that do.
    pub fn refresh(&mut self, each: EachSource<'_>) -> Result<(), EngineError> {
        self.gap = None;
        self.call_off(each);
        let refreshed = self.set.refresh(each);
        self.counters.set_sources(self.set.wakes().to_vec());
        self.sleepless = refreshed.is_err() || !self.set.deaf().is_empty();
        refreshed.map_err(|(label, source)| EngineError::Register { label, source })?;
        if !matches!(self.rule, Rule::Poll) {
            self.moderate(self.hold_ns(), each);
        }
        self.tell_verdict();
        match (&self.rule, self.set.deaf().first()) {
            (Rule::Interrupt(_), Some(deaf)) => {
                Err(EngineError::CannotWake { label: deaf.label.clone(), why: deaf.why.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Waits, after a round without work that ended at `now`: returns at once, after a few looks, or after a sleep, as
    /// the policy says. Returns the time.
    ///
    /// `each` must visit the same sources in the same order as at the last [`refresh`](Self::refresh).
    #[inline]
    pub fn idle(&mut self, now: u64, each: EachSource<'_>) -> u64 {
        if self.set.has_fds() && now.saturating_sub(self.glanced_at) >= self.clock.ns_to_ticks(GLANCE_NS) {
            self.glance(now, each);
        }
        if matches!(self.rule, Rule::Poll) {
            return now;
        }
        let gap = match &mut self.gap {
            Some(gap) => {
                // The last sleep ended for what was no work after all.
                gap.slept = None;
                *gap
            }
            None => self.begin_gap(now),
        };
        let idle = now.saturating_sub(gap.since);
        if idle >= gap.spin.min(self.study_after) && !self.unlearned.is_empty() {
            self.study();
            return now; // how long to look may be different now
        }
        if idle >= gap.spin {
            return self.park(now, each);
        }
        if idle < self.poll {
            return now;
        }
        self.judge(now);
        self.relax(now, gap.since.saturating_add(gap.spin), each)
    }

    /// Takes note that a round found work. `now` is when it was not yet known to be there: the time that the last
    /// [`idle`](Self::idle) returned.
    #[inline]
    pub fn worked(&mut self, now: u64) {
        if let Some(gap) = self.gap.take() {
            self.end_gap(gap, now);
        }
    }

    /// Asks every source to wake the engine's descriptor, and looks at them again. `None`: there is work, go on. Else
    /// how long the caller may block until it calls [`resume`](Self::resume): not at all where a source cannot wake it,
    /// or the policy is never to sleep.
    ///
    /// `each` as with [`idle`](Self::idle).
    pub fn prepare(&mut self, each: EachSource<'_>) -> Option<Duration> {
        let now = self.clock.now();
        self.call_off(each);
        if !self.unlearned.is_empty() {
            self.study();
        }
        if self.set.has_fds() || self.set.has_lines() {
            // One that was left unread fires no more, which a loop that watches for edges would wait for; nor does a line
            // that fired into a sleep which was called off: the loop may have seen that edge, the line's source has not.
            // Before arming: what a device fires is taken, too.
            self.glance(now, each);
        }
        if self.sleepless || matches!(self.rule, Rule::Poll) {
            return (!look(each)).then_some(Duration::ZERO);
        }
        if prepare(&mut Sleep::new(self, now, each)) {
            return None;
        }
        self.parked.map(|parked| Duration::from_nanos(self.clock.ticks_to_ns(parked.limit)))
    }

    /// Ends what [`prepare`](Self::prepare) began. Without that it does nothing.
    pub fn resume(&mut self, each: EachSource<'_>) {
        let Some(parked) = self.parked else { return };
        let woken = self.set.wait(Duration::ZERO, each);
        let now = self.clock.now();
        let sounded = self.note_sounding(parked, now);
        let slept = now.saturating_sub(parked.from);
        self.counters.sleep_ticks.add(slept);
        self.note_away(slept);
        let mut sleep = Sleep::new(self, now, each);
        // The sounder alone woke the loop: what else there may be has not.
        let disturbed = sounded && woken == Woken::Ready(1);
        let woken = match woken {
            Woken::Ready(_) if !disturbed => woken,
            _ if now < parked.until() => Woken::Interrupted,
            _ => Woken::TimedOut,
        };
        sleep.woken(woken, disturbed);
        sleep.disarm();
    }

    /// What it has done, for any thread to read.
    pub fn counters(&self) -> &Arc<WaitCounters> {
        &self.counters
    }

    /// Calls off the sleep that was prepared and not resumed, if there is one.
    fn call_off(&mut self, each: EachSource<'_>) {
        if self.parked.take().is_some() {
            each(&mut |source| source.disarm());
            self.counters.set_state(State::Poll);
        }
    }

    /// How long a wake-up takes here; nothing is known of it while polling.
    fn latency_ns(&self) -> u64 {
        match &self.rule {
            Rule::Poll => 0,
            Rule::Interrupt(cost) => cost.latency_ns,
            Rule::Adaptive(adaptive) => adaptive.cost().latency_ns,
        }
    }

    /// Looks with pauses, until there is work or the time has come for another turn.
    fn relax(&mut self, from: u64, until: u64, each: EachSource<'_>) -> u64 {
        self.counters.set_state(State::Relax);
        let until = until.min(from.saturating_add(self.clock.ns_to_ticks(RELAX_NS)));
        let mut now = from;
        while now < until && !look(each) {
            self.rest(now, until, each);
            now = self.clock.now();
        }
        self.counters.relax_ticks.add(now.saturating_sub(from));
        self.counters.set_state(State::Poll);
        now
    }

    /// Rests for a moment between two looks: where the processor can wait for a write, until the only source that shows
    /// its work in memory is written to.
    fn rest(&self, now: u64, until: u64, each: EachSource<'_>) {
        if self.relax.kind() == RelaxKind::Pause {
            return self.relax.brief();
        }
        let Some(watched) = self.set.only_source() else {
            return self.relax.until(until.min(now.saturating_add(self.clock.ns_to_ticks(NAP_NS))));
        };
        let mut watch = |index, source: &mut dyn Source| {
            if index == watched {
                match source.watch() {
                    Some(line) => self.relax.until_write(line, until, || !source.pending()),
                    None => self.relax.brief(),
                }
            }
        };
        visit(each, &mut watch);
    }

    /// One sleep, unless there is work after all. Returns the time.
    fn park(&mut self, now: u64, each: EachSource<'_>) -> u64 {
        self.judge(now);
        let now = self.hold(now, each);
        let mut sleep = Sleep::new(self, now, each);
        // What became of it is counted, and the next turn sees.
        let _ = park(&mut sleep);
        sleep.now
    }

    /// Keeps wake-ups as far apart as the policy wants where the devices do not: sleeps with nothing armed but the
    /// control plane's sources, and no longer than any sleep. Returns the time.
    fn hold(&mut self, now: u64, each: EachSource<'_>) -> u64 {
        let hold_ns = self.hold_ns();
        if hold_ns.abs_diff(self.moderation_ns) > self.moderation_ns / MODERATION_STEP {
            self.moderate(hold_ns, each);
        }
        let until = self.woken_at.saturating_add(self.clock.ns_to_ticks(hold_ns));
        if self.moderated || until <= now {
            return now;
        }
        let limit = self.limit(now, each).min(until - now);
        self.counters.set_state(State::Sleep);
        self.visit_control(each, &mut |source| source.arm());
        after_arming(false);
        let mut asked = false;
        self.visit_control(each, &mut |source| asked |= source.pending());
        if !asked {
            self.block(Parked { from: now, limit }, each);
        }
        self.visit_control(each, &mut |source| source.disarm());
        let back = self.clock.now();
        self.counters.sleep_ticks.add(back.saturating_sub(now));
        self.counters.set_state(State::Poll);
        self.note_away(back.saturating_sub(now));
        back
    }

    fn visit_control(&self, each: EachSource<'_>, to: &mut dyn FnMut(&mut dyn Source)) {
        visit(each, &mut |index, source| {
            if self.set.waker_of(index) == Origin::Control {
                to(source);
            }
        });
    }

    /// How far apart wake-ups shall be.
    fn hold_ns(&self) -> u64 {
        match &self.rule {
            Rule::Adaptive(adaptive) => adaptive.hold_ns(),
            Rule::Poll | Rule::Interrupt(_) => 0,
        }
    }

    /// Asks every device that can wake to leave `ns` between two wake-ups.
    fn moderate(&mut self, ns: u64, each: EachSource<'_>) {
        let (set, mut all, mut longest) = (&self.set, true, None);
        let interval = Duration::from_nanos(ns);
        visit(each, &mut |index, source| match set.waker_of(index) {
            Origin::Device => {
                let held_back = source.moderate(interval);
                // It may reach less far, or share its vector with a queue that another worker wants to be woken by
                // sooner.
                all &= held_back.is_some_and(|held_back| held_back >= interval);
                longest = longest.max(held_back);
            }
            Origin::Other => all = false,
            Origin::Control | Origin::Clock => {}
        });
        (self.moderation_ns, self.moderated, self.held_back) = (ns, all, longest);
        self.counters.hold_ns.set(ns);
    }

    /// Asks the kernel about the program's own descriptors, while the worker polls.
    fn glance(&mut self, now: u64, each: EachSource<'_>) {
        self.glanced_at = now;
        self.set.wait(Duration::ZERO, each);
    }

    fn ticks(&self, duration: Duration) -> u64 {
        self.clock.ns_to_ticks(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.learn_all(); // its counters are read after it has gone
    }
}

impl AsFd for Engine {
    /// Readable once a source has woken since [`prepare`](Engine::prepare): for an event loop of the program's own.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }
}
