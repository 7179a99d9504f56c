//! Watching a worker from outside: its counts at any moment, and what they mean between two.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use spinwake::clock::Clock;
use spinwake::wait::{State, WaitCounters};
use spinwake::worker::{CpuMeter, Worker, WorkerCounters};

use crate::metrics::WorkerSample;
use crate::report::Share;

/// Reads what a worker counts, and disturbs it no more than any reader of its memory. Outlives the worker.
#[derive(Debug, Clone)]
pub struct WorkerWatch {
    counters: Arc<WorkerCounters>,
    waits: Arc<WaitCounters>,
    cpu: CpuMeter,
}

/// A worker's counts at one moment, or what was added between two.
///
/// A worker counts the time in a state when it leaves it: while it sleeps, times are as old as that sleep, 10 ms at most
/// unless `adaptive:cpu` keeps its wake-ups further apart.
#[derive(Debug, Clone, Copy, Default)]
pub struct WorkerCounts {
    /// Frames moved.
    pub frames: u64,
    /// Clock ticks in turns with work.
    pub busy_ticks: u64,
    /// Clock ticks looking for work, turn after turn.
    pub poll_ticks: u64,
    /// Clock ticks looking for work, with pauses.
    pub relax_ticks: u64,
    /// Clock ticks going to sleep and coming back.
    pub arm_ticks: u64,
    /// Clock ticks asleep.
    pub sleep_ticks: u64,
    /// Processor time by the kernel's account; `None` once the worker has ended.
    pub cpu: Option<Duration>,
    /// Sleeps.
    pub parks: u64,
    /// Sleeps that something ended without there being work.
    pub spurious: u64,
    /// Work that only the time limit of a sleep found.
    pub rescues: u64,
    /// Sleeps that turned out wrong: work came sooner than a wake-up takes.
    pub regrets: u64,
}

impl WorkerWatch {
    /// A watch on `worker`.
    pub fn new<T>(worker: &Worker<T>) -> Self
    where
        T: spinwake::worker::Task + 'static,
    {
        Self { counters: worker.counters().clone(), waits: worker.waits().clone(), cpu: worker.cpu_meter() }
    }

    /// How it has waited.
    pub fn waits(&self) -> &WaitCounters {
        &self.waits
    }

    /// Its counts now.
    pub fn counts(&self) -> WorkerCounts {
        let Self { counters, waits, cpu } = self;
        let (busy, relax) = (counters.busy_ticks.get(), waits.relax_ticks.get());
        let (arm, sleep) = (waits.arm_ticks.get(), waits.sleep_ticks.get());
        // The total comes last, as the worker counts it last: what is in no other state was polling.
        let total = counters.total_ticks.get();
        WorkerCounts {
            frames: counters.frames.get(),
            busy_ticks: busy,
            poll_ticks: total.saturating_sub(busy + relax + arm + sleep),
            relax_ticks: relax,
            arm_ticks: arm,
            sleep_ticks: sleep,
            cpu: cpu.read(),
            parks: waits.parks.get(),
            spurious: waits.spurious.get(),
            rescues: waits.rescues.get(),
            regrets: waits.regrets.get(),
        }
    }

    /// What [`Metrics::add_worker`](crate::metrics::Metrics::add_worker) wants, but for the frames that it dropped: only its task
    /// knows of these.
    pub fn sampler(&self) -> impl Fn() -> WorkerSample + Send + use<> {
        let (watch, clock) = (self.clone(), Clock::get());
        // Polling is what the other states leave over, so a change of state between two reads can make it seem to shrink:
        // a scraper would take that for a restart.
        let polled = AtomicU64::new(0);
        move || {
            let counts = watch.counts();
            let poll_ticks = polled.fetch_max(counts.poll_ticks, Ordering::Relaxed).max(counts.poll_ticks);
            let time = |ticks| Duration::from_nanos(clock.ticks_to_ns(ticks));
            WorkerSample {
                frames: counts.frames,
                drops: 0,
                cpu: counts.cpu,
                states: vec![
                    ("busy", time(counts.busy_ticks)),
                    ("poll", time(poll_ticks)),
                    ("relax", time(counts.relax_ticks)),
                    ("arm", time(counts.arm_ticks)),
                    ("sleep", time(counts.sleep_ticks)),
                ],
                parks: counts.parks,
                wakes: watch.waits.sources().iter().map(|source| (source.label.clone(), source.wakes.get())).collect(),
                spurious: counts.spurious,
                rescues: counts.rescues,
                regrets: counts.regrets,
                wake_ns: watch.waits.wake_ns.snapshot(),
                gap_ns: watch.waits.gap_ns.snapshot(),
            }
        }
    }
}

impl WorkerCounts {
    /// What was added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            frames: self.frames - earlier.frames,
            busy_ticks: self.busy_ticks - earlier.busy_ticks,
            // See `sampler`.
            poll_ticks: self.poll_ticks.saturating_sub(earlier.poll_ticks),
            relax_ticks: self.relax_ticks - earlier.relax_ticks,
            arm_ticks: self.arm_ticks - earlier.arm_ticks,
            sleep_ticks: self.sleep_ticks - earlier.sleep_ticks,
            cpu: self.cpu.zip(earlier.cpu).map(|(now, then)| now.saturating_sub(then)),
            parks: self.parks - earlier.parks,
            spurious: self.spurious - earlier.spurious,
            rescues: self.rescues - earlier.rescues,
            regrets: self.regrets - earlier.regrets,
        }
    }

    /// Which share of its time it spent with work, awake without work, and asleep; `None` where no time is counted.
    pub fn shares(&self) -> Option<[f64; 3]> {
        let awake = self.poll_ticks + self.relax_ticks + self.arm_ticks;
        let total = self.busy_ticks + awake + self.sleep_ticks;
        (total > 0).then(|| [self.busy_ticks, awake, self.sleep_ticks].map(|ticks| ticks as f64 / total as f64))
    }
}

/// What a worker did between two moments, as part of a line for people:
/// `busy 0.5%  poll  12%  sleep  87%  cpu  21%  1234 parks/s`.
#[derive(Debug, Clone, Copy)]
pub struct WorkerInterval {
    /// What was added to its counts.
    pub counts: WorkerCounts,
    /// How much time passed.
    pub time: Duration,
    /// What it was doing at the end.
    pub state: State,
}

impl fmt::Display for WorkerInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counts, time, state } = self;
        let seconds = time.as_secs_f64();
        match counts.shares() {
            Some([busy, poll, sleep]) => {
                write!(f, "busy {:>4} poll {:>4} sleep {:>4}", Share(busy), Share(poll), Share(sleep))?;
            }
            None => write!(f, "{state} all along")?,
        }
        if let Some(cpu) = counts.cpu {
            write!(f, "  cpu {:>4}", Share(cpu.as_secs_f64() / seconds))?;
        }
        write!(f, "  {:.0} parks/s", counts.parks as f64 / seconds)?;
        match counts.rescues {
            0 => Ok(()),
            1 => write!(f, "  1 RESCUE"),
            n => write!(f, "  {n} RESCUES"),
        }
    }
}

/// Makes the part of a program's line each second that tells of a worker.
#[derive(Debug)]
pub struct WorkerLine {
    watch: WorkerWatch,
    last: WorkerCounts,
    at: Duration,
    said: bool,
}

impl WorkerLine {
    /// Begins to look at `watch`, at the time `at`.
    pub fn new(watch: &WorkerWatch, at: Duration) -> Self {
        // What it says of the policy before the first turn stands among the worker's notes.
        let said = watch.waits().verdict().is_some();
        Self { watch: watch.clone(), last: watch.counts(), at, said }
    }

    /// What the worker did from the last look to `at`.
    pub fn next(&mut self, at: Duration) -> WorkerInterval {
        let now = self.watch.counts();
        let interval =
            WorkerInterval { counts: now.since(&self.last), time: at - self.at, state: self.watch.waits().state() };
        (self.last, self.at) = (now, at);
        interval
    }

    /// What the policy says of its target, once: its figures change from second to second, and the summary has the last
    /// ones.
    pub fn verdict(&mut self) -> Option<String> {
        let verdict = if self.said { None } else { self.watch.waits().verdict() };
        self.said |= verdict.is_some();
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_no_time_has_none() {
        let counts = WorkerCounts {
            busy_ticks: 10,
            poll_ticks: 20,
            relax_ticks: 15,
            arm_ticks: 5,
            sleep_ticks: 50,
            ..Default::default()
        };
        assert_eq!(counts.shares(), Some([0.1, 0.4, 0.5]));
        assert_eq!(WorkerCounts::default().shares(), None);
    }

    #[test]
    fn an_interval_names_what_was_lost_and_keeps_quiet_when_nothing_was() {
        let counts = WorkerCounts {
            busy_ticks: 5,
            sleep_ticks: 995,
            parks: 200,
            rescues: 3,
            cpu: Some(Duration::from_millis(20)),
            ..Default::default()
        };
        let mut interval = WorkerInterval { counts, time: Duration::from_secs(2), state: State::Sleep };
        assert_eq!(interval.to_string(), "busy 0.5% poll   0% sleep 100%  cpu 1.0%  100 parks/s  3 RESCUES");
        interval.counts = WorkerCounts::default();
        assert_eq!(interval.to_string(), "sleep all along  0 parks/s");
    }
}
