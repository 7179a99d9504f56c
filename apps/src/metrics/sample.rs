//! What there is to tell: workers that can be asked, ports as last told.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spinwake::port::PortStats;
use spinwake::telemetry::Snapshot;

use super::text;

/// What a worker has done so far. All of it only ever grows.
#[derive(Debug, Clone, Default)]
pub struct WorkerSample {
    /// Frames moved.
    pub frames: u64,
    /// Frames that it took and could not send on.
    pub drops: u64,
    /// Processor time of its thread as the kernel accounts for it; `None` where that is not known.
    pub cpu: Option<Duration>,
    /// Time in each of its states, by the state's name.
    pub states: Vec<(&'static str, Duration)>,
    /// Times that it slept.
    pub parks: u64,
    /// Sleeps ended, by the label of the source that did it.
    pub wakes: Vec<(String, u64)>,
    /// Sleeps that something ended without there being work.
    pub spurious: u64,
    /// Work that only the time limit of a sleep found.
    pub rescues: u64,
    /// Sleeps that turned out to have been the wrong choice.
    pub regrets: u64,
    /// From the moment of a wake-up to the worker's return from the kernel, in nanoseconds, where that moment is known: see
    /// [`WaitCounters::wake_ns`](spinwake::wait::WaitCounters::wake_ns).
    pub wake_ns: Snapshot,
    /// Time without work between two times with work, in nanoseconds.
    pub gap_ns: Snapshot,
}

/// What is told about a program's workers and ports. Clones are the same one.
///
/// A name that is taken gets a number: the second `soft:` is `soft: #2`.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    workers: Vec<(String, Sampler)>,
    ports: Vec<(String, Arc<Mutex<PortStats>>)>,
}

type Sampler = Box<dyn Fn() -> WorkerSample + Send>;

/// One port in [`Metrics`]. Its program tells what it has done: reading a device's registers is for the thread that owns the
/// port, at a pace that no client sets.
#[derive(Debug)]
pub struct PortMetrics(Arc<Mutex<PortStats>>);

impl Metrics {
    /// Nothing to tell yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a worker. `sample` is called on the server's thread, 50 times a second at most: it reads counters, and does not
    /// block. Calling back into these metrics would deadlock.
    pub fn add_worker(&self, name: &str, sample: impl Fn() -> WorkerSample + Send + 'static) {
        let mut entries = lock(&self.0);
        let name = free_name(name, &entries.workers);
        entries.workers.push((name, Box::new(sample)));
    }

    /// Adds a port, by its spec or another name for people. All it has counted is zero until it is told otherwise.
    pub fn add_port(&self, name: &str) -> PortMetrics {
        let mut entries = lock(&self.0);
        let name = free_name(name, &entries.ports);
        let stats = Arc::default();
        entries.ports.push((name, Arc::clone(&stats)));
        PortMetrics(stats)
    }

    /// All of it as OpenMetrics text, as of now.
    pub fn text(&self) -> String {
        let entries = lock(&self.0);
        let workers = entries.workers.iter().map(|(name, sample)| (name.clone(), sample())).collect();
        let ports = entries.ports.iter().map(|(name, stats)| (name.clone(), lock(stats).clone())).collect();
        drop(entries);
        text::encode(workers, ports)
    }
}

impl PortMetrics {
    /// Tells what the port has done since it was opened.
    pub fn update(&self, stats: PortStats) {
        *lock(&self.0) = stats;
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers: Vec<_> = self.workers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Entries").field("workers", &workers).field("ports", &self.ports).finish()
    }
}

/// Two series with the same labels would be one series that jumps to and fro.
fn free_name<T>(name: &str, taken: &[(String, T)]) -> String {
    let taken: BTreeSet<_> = taken.iter().map(|(name, _)| name.as_str()).collect();
    let mut candidates = std::iter::once(name.to_owned()).chain((2..).map(|number: u64| format!("{name} #{number}")));
    // There are more candidates than names taken.
    candidates.find(|candidate| !taken.contains(candidate.as_str())).unwrap_or_default()
}

/// What a panic interrupted is still a list, or a set of counts.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        let metrics = Metrics::new();
        let names = ["soft:", "soft:", "soft: #2", "soft:"];
        for name in names {
            metrics.add_port(name);
        }
        let entries = lock(&metrics.0);
        let names: Vec<_> = entries.ports.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["soft:", "soft: #2", "soft: #2 #2", "soft: #3"]);
    }
}
