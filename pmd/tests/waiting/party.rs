//! Several workers with everything that one can sleep on, and how a test deals with them: each wait has a deadline, and what
//! misses it is named, with what every worker and every other part of the test was doing.

use std::fmt::Write;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use spinwake::frame::{Burst, Pool};
use spinwake::port::{RxQueue, TxQueue};
use spinwake::wait::{EngineConfig, FdSource, Source, State, Timer, WaitPolicy};
use spinwake::worker::{Task, Worker, WorkerConfig};

use crate::mailbox::{Mailbox, Slot};
use crate::rig::{cores, describe};
use crate::watchdog::Watchdog;

/// What each step has.
pub(crate) const STEP: Duration = Duration::from_secs(30);
/// Longer than a step has: only a wake-up ends a sleep in time.
const SLEEP_LIMIT: Duration = Duration::from_secs(300);

/// A queue pair of a port.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) port: usize,
    pub(crate) rx: Box<dyn RxQueue>,
    pub(crate) tx: Box<dyn TxQueue>,
    /// Its worker sleeps on completed transmits too.
    pub(crate) completions: bool,
}

/// Goes from worker to worker, and counts where it ends.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) hops: u64,
    pub(crate) arrived: Arc<AtomicU64>,
}

/// A socket whose bytes the worker sends back.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) source: FdSource,
    pub(crate) stream: UnixStream,
}

/// What one worker serves.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) lanes: Vec<Lane>,
    pub(crate) mailbox: Mailbox<Letter>,
    /// The next worker's.
    pub(crate) next: Slot<Letter>,
    pub(crate) timer: Option<Timer>,
    /// How often the timer was due.
    pub(crate) ticks: Arc<AtomicU64>,
    pub(crate) line: Option<Line>,
    pub(crate) pool: Pool,
    /// Requests served.
    pub(crate) requests: u64,
}

impl Task for Member {
    fn turn(&mut self) -> usize {
        let mut moved = 0;
        let mut burst = Burst::new();
        for Lane { rx, tx, .. } in &mut self.lanes {
            moved += rx.rx_burst(&mut self.pool, &mut burst);
            tx.tx_burst(&mut self.pool, &mut burst);
            self.pool.give_burst(&mut burst);
            moved += tx.reclaim(&mut self.pool);
        }
        if let Some(letter) = self.mailbox.pop() {
            moved += 1;
            if letter.hops == 0 {
                letter.arrived.fetch_add(1, Ordering::SeqCst);
            } else {
                self.next.push(Letter { hops: letter.hops - 1, ..letter }).expect("room for every letter");
            }
        }
        if self.timer.as_mut().is_some_and(Timer::take_due) {
            moved += 1;
            self.ticks.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(line) = &mut self.line
            && line.source.take_readable()
        {
            let mut bytes = [0; 64];
            if let Ok(n) = line.stream.read(&mut bytes) {
                moved += n;
                line.stream.write_all(&bytes[..n]).expect("room for an answer");
            }
        }
        moved
    }

    fn sources(&mut self, each: &mut dyn FnMut(&mut dyn Source)) {
        for lane in &mut self.lanes {
            each(&mut *lane.rx);
            if lane.completions {
                each(&mut *lane.tx);
            }
        }
        each(&mut self.mailbox);
        if let Some(timer) = &mut self.timer {
            each(timer);
        }
        if let Some(line) = &mut self.line {
            each(&mut line.source);
        }
    }
}

/// All workers, as the parts of a test see them.
#[derive(Debug)]
pub(crate) struct Party {
    pub(crate) workers: Vec<Worker<Member>>,
    pub(crate) watchdog: Watchdog,
    /// Requests that found their worker asleep.
    pub(crate) asleep: AtomicU64,
}

impl Party {
    /// A worker for each of `members`, two or more on a core, by all of `policies` in turn.
    pub(crate) fn new(members: Vec<Member>, policies: &[WaitPolicy], watchdog: Watchdog) -> Self {
        let cores = cores();
        let workers = members.into_iter().enumerate().map(|(n, member)| {
            let wait = EngineConfig { sleep_limit: SLEEP_LIMIT, ..EngineConfig::new(policies[n % policies.len()]) };
            // Two cores are enough: that workers are in each other's way is part of it.
            let core = cores[n % cores.len().min(2)];
            Worker::spawn(WorkerConfig { name: format!("worker-{n}"), core, fifo: None, wait }, member).unwrap()
        });
        Self { workers: workers.collect(), watchdog, asleep: AtomicU64::new(0) }
    }

    /// Notes what `part` is doing, and waits until `done` holds.
    #[track_caller]
    pub(crate) fn await_that(&self, part: &str, what: &str, mut done: impl FnMut() -> bool) {
        self.watchdog.step(part, what);
        let deadline = Instant::now() + STEP;
        while !done() {
            assert!(Instant::now() < deadline, "{}", self.hung(part, what));
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Has worker `n` run `request` between two turns.
    #[track_caller]
    pub(crate) fn call<R: Send + 'static>(
        &self,
        part: &str,
        n: usize,
        what: &str,
        request: impl FnOnce(&mut Member) -> R + Send + 'static,
    ) -> R {
        let what = format!("request to worker-{n}: {what}");
        self.watchdog.step(part, &*what);
        if self.workers[n].waits().state() == State::Sleep {
            self.asleep.fetch_add(1, Ordering::Relaxed);
        }
        self.workers[n].call(STEP, request).unwrap_or_else(|error| panic!("{error}: {}", self.hung(part, &what)))
    }

    /// Waits until every worker sleeps.
    #[track_caller]
    pub(crate) fn await_sleep(&self, part: &str) {
        for worker in &self.workers {
            let what = format!("{} going to sleep", worker.name());
            self.await_that(part, &what, || worker.waits().state() == State::Sleep);
        }
    }

    pub(crate) fn hung(&self, part: &str, what: &str) -> String {
        let mut text = format!("{part} hangs: \"{what}\" did not come about within {STEP:?}\n");
        for worker in &self.workers {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {}: {}", worker.name(), describe(worker.waits()));
        }
        text + &self.watchdog.describe()
    }

    /// Ends all workers and returns what they served.
    pub(crate) fn stop(self) -> Vec<Member> {
        let Self { workers, watchdog, .. } = self;
        let stop = |worker: Worker<Member>| {
            watchdog.step("end", format!("{} stopping", worker.name()));
            worker.stop().unwrap()
        };
        workers.into_iter().map(stop).collect()
    }
}
