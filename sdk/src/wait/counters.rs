//! What waiting has done, for any thread to read while it goes on.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_utils::CachePadded;

use crate::telemetry::{Counter, Gauge, LiveHistogram};

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Turning over its queues: with work, or looking for it as fast as it can.
    Poll,
    /// Looking for work, with pauses that leave the core to its sibling.
    Relax,
    /// Asking its sources to wake it, looking again, or calling that off.
    Arm,
    /// Asleep.
    Sleep,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poll => "poll",
            Self::Relax => "relax",
            Self::Arm => "arm",
            Self::Sleep => "sleep",
        })
    }
}

/// What a worker's waiting has done. In cache lines of its own, so that readers do not disturb the worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WaitCounters {
    /// Clock ticks spent in [`State::Relax`].
    pub relax_ticks: Counter,
    /// Clock ticks spent in [`State::Arm`].
    pub arm_ticks: Counter,
    /// Clock ticks spent in [`State::Sleep`].
    pub sleep_ticks: Counter,
    /// Times it slept.
    pub parks: Counter,
    /// Times that the look after arming found work, so that it did not sleep.
    pub turned_back: Counter,
    /// Sleeps that a source ended, and there was work (or a request of another thread).
    pub wakes: Counter,
    /// Sleeps that a source ended, and there was no work.
    pub spurious: Counter,
    /// Sleeps that ended at their time limit with nothing to do.
    pub timeouts: Counter,
    /// Work that nothing but the time limit of a sleep found: a wake-up was lost. In a healthy system zero.
    pub rescues: Counter,
    /// Sleeps that turned out wrong: work came sooner than a wake-up takes.
    pub regrets: Counter,
    /// How long it looks for work now before it sleeps, in nanoseconds; `u64::MAX` for never sleeping.
    pub spin_ns: Gauge,
    /// How far apart wake-ups are kept now, in nanoseconds.
    pub hold_ns: Gauge,
    /// What a sleep adds to the latency of the work that ends it, in nanoseconds: the median, as known now. Zero while
    /// polling.
    pub cost_ns: Gauge,
    /// The same, at the 99th percentile.
    pub cost_p99_ns: Gauge,
    /// Processor time of one sleep, in nanoseconds, as known now. Zero while polling.
    pub cost_cpu_ns: Gauge,
    /// From the moment of a wake-up to the worker's return from the kernel, in nanoseconds. Known for signals of other
    /// threads and for time limits; a device does not tell when it fired. A worker that keeps to a wake-up latency has
    /// itself woken now and then to see it.
    pub wake_ns: LiveHistogram,
    /// How long idle gaps lasted, in nanoseconds.
    pub gap_ns: LiveHistogram,
    state: CachePadded<AtomicU8>,
    sources: CachePadded<Mutex<Vec<Arc<SourceWakes>>>>,
    verdict: CachePadded<Mutex<Option<String>>>,
}

/// The wakes of one source.
#[derive(Debug)]
pub struct SourceWakes {
    /// Its name; of several that share a vector, all names.
    pub label: String,
    /// How it ends a sleep, in words; why it cannot, where it cannot.
    pub how: String,
    /// Sleeps that it ended.
    pub wakes: Counter,
}

impl WaitCounters {
    /// What the worker is doing at this moment.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            1 => State::Relax,
            2 => State::Arm,
            3 => State::Sleep,
            _ => State::Poll,
        }
    }

    /// Its sources, in its order. They change when the worker is given others.
    pub fn sources(&self) -> Vec<Arc<SourceWakes>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the policy's target cannot be kept by choosing when to sleep, and what happens instead; `None` while it can.
    /// As of a second of the worker's idle time ago at most.
    pub fn verdict(&self) -> Option<String> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(super) fn set_sources(&self, sources: Vec<Arc<SourceWakes>>) {
        *self.sources.lock().unwrap_or_else(PoisonError::into_inner) = sources;
    }

    pub(super) fn set_verdict(&self, verdict: Option<String>) {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = verdict;
    }
}
