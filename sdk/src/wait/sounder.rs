//! A thread that ends sleeps of a worker now and then, only to see how long waking up takes.
//!
//! ```text
//! sleep ─────────────┬─ signal, its time noted ──┬─ awake: late by this ──▶ the sleep goes on
//!                    └──────── in between, what a device's interrupt would take as well
//! ```
//!
//! A device does not tell when it interrupted. The end of a sleep's time limit is known, but says too little: a kernel and
//! a hypervisor that know when the next timer is due let the processor sleep no more deeply than it can wake up from in
//! time, which they cannot do for an interrupt. A signal of another thread comes as unforeseen as one.
//!
//! It comes at moments that have nothing to do with the worker, so a long sleep is met more often than a short one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use super::counters::{State, WaitCounters};
use super::sleeps::elsewhere;
use crate::clock::Clock;
use crate::cpu::{CpuSet, KeepOff};
use crate::irq::Vector;
use crate::sys::sched;

/// From one sounding to the next, on average,
const PACE: Duration = Duration::from_millis(30);
/// and while the worker sleeps, and its wake-ups have been late of late or few are known.
const HURRIED_PACE: Duration = Duration::from_millis(8);

/// The thread. It ends soon after this is dropped. Nobody waits for that: it may be kept from running, by a real-time thread
/// that has the only core it may use.
#[derive(Debug)]
pub(super) struct Sounder {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug)]
struct Shared {
    worker: Arc<WaitCounters>,
    vector: Vector,
    /// In ticks.
    signalled_at: AtomicU64,
    hurry: AtomicBool,
    end: AtomicBool,
}

impl Sounder {
    /// Begins to sound the sleeps of the calling thread, which keeps these counters. `None` where the process may use no
    /// other core, or only one that shares execution units with this one: a thread there keeps the core awake, and would
    /// find every wake-up fast.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors or threads.
    pub(super) fn start(worker: Arc<WaitCounters>) -> io::Result<Option<Self>> {
        let cores = elsewhere(sched::current_core()?);
        if cores.is_empty() {
            return Ok(None);
        }
        let shared = Arc::new(Shared {
            worker,
            vector: Vector::new()?,
            signalled_at: AtomicU64::new(0),
            hurry: AtomicBool::new(true),
            end: AtomicBool::new(false),
        });
        let its = shared.clone();
        let thread = thread::Builder::new().name("sounder".into()).spawn(move || its.run(&cores))?;
        Ok(Some(Self { shared, thread: thread.thread().clone() }))
    }

    /// What it ends sleeps by: never drained, so to be watched edge-triggered.
    pub(super) fn vector(&self) -> &Vector {
        &self.shared.vector
    }

    /// When it last signalled, in ticks of the [`Clock`]; zero for never.
    pub(super) fn signalled_at(&self) -> u64 {
        self.shared.signalled_at.load(Ordering::Acquire)
    }

    /// Whether it is to sound more often.
    pub(super) fn hurry(&self, hurry: bool) {
        self.shared.hurry.store(hurry, Ordering::Relaxed);
    }
}

impl Drop for Sounder {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Shared {
    fn run(&self, cores: &CpuSet) {
        // Its priority is the worker's, which is right: what comes between noting the time and the signal would count as
        // a slow wake-up.
        if let Err(error) = sched::set_affinity(0, &cores.iter().collect::<Vec<_>>()) {
            log::warn!("wake-ups are not watched: cannot run on another core than the worker: {error}");
            return;
        }
        let clock = Clock::get();
        let mut keep_off = KeepOff::new();
        while !self.end.load(Ordering::Acquire) {
            keep_off.look();
            let sleeps = self.worker.state() == State::Sleep;
            if sleeps {
                self.signalled_at.store(clock.now(), Ordering::Release);
                self.vector.signal(1);
            }
            let pace = if sleeps && self.hurry.load(Ordering::Relaxed) { HURRIED_PACE } else { PACE };
            // Out of step with whatever has a period: the clock's low digits are as good as dice.
            thread::park_timeout(pace / 2 + pace * (clock.now() % 1024) as u32 / 1024);
        }
    }
}
