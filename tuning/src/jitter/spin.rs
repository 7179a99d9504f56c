//! The thread that spins, and the one that watches it.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use spinwake::clock::Clock;
use spinwake::cpu::{KeepOff, PinError, pin_current_thread};
use spinwake::sys::sched;
use spinwake::telemetry::LiveHistogram;

use super::gaps::{Gaps, Recorder};
use crate::units::{Ns, grouped, nanoseconds, share};

/// What is to be measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// The core to spin on.
    pub(super) core: usize,
    /// For how long.
    pub(super) length: Duration,
    /// Which gaps count.
    pub(super) threshold: Duration,
    /// Whether to say each second on standard error how it goes.
    pub(super) live: bool,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Spun<B, A> {
    /// The gaps.
    pub(super) gaps: Gaps,
    /// When each of [`Gaps::worst`] began and ended, in ticks of the clock.
    pub(super) worst_ticks: Vec<(u64, u64)>,
    /// What `before` found.
    pub(super) before: B,
    /// What `after` found.
    pub(super) after: A,
}

/// The measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SpinError {
    /// The core cannot be had.
    #[error("{0}")]
    Pin(#[from] PinError),
    /// There is no thread to be had.
    #[error("a thread to spin cannot be started: {0}")]
    Thread(io::Error),
}

/// How often the watching thread looks whether it shall end early.
const LOOK: Duration = Duration::from_millis(100);

/// A gap is longer than this many looks at the clock, however short a gap is asked for.
const LOOKS_PER_GAP: u64 = 4;

/// What a look at the clock takes, in ticks: the median of many.
fn look(clock: Clock) -> u64 {
    let mut took = [0; 255];
    let mut last = clock.now();
    for took in &mut took {
        let now = clock.now();
        *took = now.saturating_sub(last);
        last = now;
    }
    took.sort_unstable();
    took[took.len() / 2]
}

/// Spins on the plan's core until its time is over or `stop` is set. `before` and `after` are called on the calling thread with
/// the spinning thread's id, while that thread is there: just before it begins, and just after it has ended.
///
/// # Errors
///
/// When the thread cannot be started or kept on the core.
pub(super) fn spin<B, A>(
    plan: &Plan,
    stop: &AtomicBool,
    before: impl FnOnce(i32) -> B,
    after: impl FnOnce(i32) -> A,
) -> Result<Spun<B, A>, SpinError> {
    let clock = Clock::get();
    let live = LiveHistogram::new();
    let shared = Shared { live: &live, stop, elapsed: AtomicU64::new(0) };
    let (ready, is_ready) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let (done, is_done) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let shared = &shared;
        let spinning = move || -> Result<(Gaps, Vec<(u64, u64)>), PinError> {
            pin_current_thread(plan.core)?;
            // Nobody listens any longer if this fails, and then nothing is waited for.
            let _ = ready.send(sched::thread_id());
            drop(ready);
            let _ = may_go.recv();
            let found = shared.measure(clock, plan);
            drop(done);
            let _ = may_leave.recv();
            Ok(found)
        };
        let spinner =
            thread::Builder::new().name("jitter".into()).spawn_scoped(scope, spinning).map_err(SpinError::Thread)?;
        let joined = |spinner: thread::ScopedJoinHandle<'_, _>| match spinner.join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let Ok(tid) = is_ready.recv() else {
            return match joined(spinner) {
                Err(error) => Err(error.into()),
                Ok(_) => Err(SpinError::Thread(io::ErrorKind::BrokenPipe.into())),
            };
        };
        // From here on this thread is elsewhere, where there is another core.
        let mut keep_off = KeepOff::new();
        keep_off.look();
        let before = before(tid);
        drop(go);
        shared.watch(clock, plan, &is_done);
        let after = after(tid);
        drop(leave);
        let (gaps, worst_ticks) = joined(spinner)?;
        Ok(Spun { gaps, worst_ticks, before, after })
    })
}

struct Shared<'a> {
    live: &'a LiveHistogram,
    stop: &'a AtomicBool,
    /// In ticks, told at each gap.
    elapsed: AtomicU64,
}

impl Shared<'_> {
    fn measure(&self, clock: Clock, plan: &Plan) -> (Gaps, Vec<(u64, u64)>) {
        let ticks = |time| clock.ns_to_ticks(nanoseconds(time));
        let length = ticks(plan.length);
        // Where time costs a system call, a look alone may take microseconds: that is no gap.
        let threshold = ticks(plan.threshold).max(LOOKS_PER_GAP * look(clock));
        let mut recorder = Recorder::new(self.live, length);
        let start = clock.now();
        let (mut last, mut looks) = (start, 0u64);
        while last - start < length && !self.stop.load(Ordering::Relaxed) {
            let now = clock.now();
            looks += 1;
            let gap = now.saturating_sub(last);
            if gap > threshold {
                recorder.record(clock, last - start, gap);
                self.elapsed.store(now - start, Ordering::Relaxed);
                // Taking it down is no gap of the machine's.
                last = clock.now().max(now);
            } else {
                last = last.max(now);
            }
        }
        let (mut gaps, worst) = recorder.finish(clock, threshold, last - start, looks);
        // Ticks may be a little less than what was asked for.
        gaps.threshold_ns = gaps.threshold_ns.max(nanoseconds(plan.threshold));
        (gaps, worst.into_iter().map(|(from, to)| (start.saturating_add(from), start.saturating_add(to))).collect())
    }

    /// Waits until the spinning thread is done, and says how it goes.
    fn watch(&self, clock: Clock, plan: &Plan, is_done: &Receiver<()>) {
        let began = Instant::now();
        let mut told = 0;
        while is_done.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            let seconds = began.elapsed().as_secs();
            if plan.live && seconds > told {
                told = seconds;
                self.tell(clock, seconds);
            }
        }
    }

    fn tell(&self, clock: Clock, seconds: u64) {
        let seen = self.live.snapshot();
        let elapsed = clock.ticks_to_ns(self.elapsed.load(Ordering::Relaxed)).max(1);
        let lost = share(seen.sum() as f64 / elapsed as f64);
        let (count, max) = (grouped(seen.count()), Ns(seen.max()));
        // Standard error may be closed; there is nobody to tell then.
        let _ = writeln!(io::stderr(), "{seconds:>4} s: {count} gaps, {lost} of the time lost, the longest {max}");
    }
}
