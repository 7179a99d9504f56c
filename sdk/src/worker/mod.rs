//! Workers: threads pinned to a core that run queues to completion.
//!
//! A [`Task`] says what one turn over its queues is; a [`Worker`] runs turns on its core until it is stopped, waits
//! between them as its policy says, and hands the task back. Other threads reach a task through [`Worker::call`],
//! between two turns. What a worker cannot have (the core, real-time priority, sources that wake it) it says before the
//! first turn.

mod control;

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::cpu::{self, FifoError, PinError};
use crate::sys::sched;
use crate::telemetry::Counter;
use crate::wait::{Engine, EngineConfig, EngineError, Source, WaitCounters};

pub use control::CallError;
use control::Control;

/// What a worker runs.
pub trait Task: Send {
    /// Called once on the worker's own thread, pinned, before the first turn.
    fn on_start(&mut self) {}

    /// One round over everything it serves. Returns how many frames it moved; zero says that there was nothing to do.
    /// Must not block.
    fn turn(&mut self) -> usize;

    /// Calls `each` with every source that it serves, always in the same order: what the worker sleeps on. Which ones
    /// these are may change only in [`Worker::call`].
    fn sources(&mut self, each: &mut dyn FnMut(&mut dyn Source));

    /// Called once on the worker's own thread after the last turn.
    fn on_stop(&mut self) {}
}

/// How a worker shall run.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The thread's name, as `top -H` shows it; the kernel keeps 15 bytes.
    pub name: String,
    /// The core to pin it to.
    pub core: usize,
    /// Real-time priority (`SCHED_FIFO`, 1 to 99), if any. On a core that is not isolated a spinning worker then
    /// starves everything else there.
    pub fifo: Option<u8>,
    /// What it does when there is nothing to do.
    pub wait: EngineConfig,
}

/// A worker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No thread.
    #[error("worker {name}: no thread could be started: {source}")]
    Thread {
        /// The worker's name.
        name: String,
        /// The meaning of errno.
        source: io::Error,
    },
    /// The core could not be had.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Real-time priority could not be had.
    #[error(transparent)]
    Fifo(#[from] FifoError),
    /// It cannot wait as it shall.
    #[error("worker {name}: {source}")]
    Wait {
        /// The worker's name.
        name: String,
        /// Why not.
        source: EngineError,
    },
    /// It panicked.
    #[error("worker {name} panicked: {message}")]
    Panicked {
        /// The worker's name.
        name: String,
        /// What it said.
        message: String,
    },
}

/// What a worker has done. In cache lines of its own, so that readers do not disturb the worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Frames moved.
    pub frames: Counter,
    /// Clock ticks spent in turns that moved frames.
    pub busy_ticks: Counter,
    /// Clock ticks since the first turn, as of the last change between busy, idle and asleep.
    pub total_ticks: Counter,
}

/// A running worker. Dropping it without [`stop`](Self::stop) stops it too, and drops the task.
#[derive(Debug)]
pub struct Worker<T> {
    name: String,
    thread: Option<JoinHandle<T>>,
    shared: Arc<Shared<T>>,
    /// The kernel's id of its thread.
    tid: i32,
    notes: Vec<String>,
}

/// Reads the processor time of one worker's thread, from any thread of the process.
#[derive(Debug, Clone, Copy)]
pub struct CpuMeter {
    tid: i32,
}

impl CpuMeter {
    /// Processor time that the worker has used, by the kernel's account; `None` once it has ended. One system call.
    pub fn read(&self) -> Option<Duration> {
        sched::thread_cpu_time_of(self.tid).ok()
    }
}

#[derive(Debug)]
struct Shared<T> {
    control: Control<T>,
    counters: Arc<WorkerCounters>,
    waits: Arc<WaitCounters>,
}

/// What a worker that is about to take its first turn tells of itself.
struct Ready {
    tid: i32,
    notes: Vec<String>,
}

impl<T: Task + 'static> Worker<T> {
    /// Starts a worker and returns once it is pinned, knows what a wake-up costs there, and is about to take its first
    /// turn.
    ///
    /// # Errors
    ///
    /// When the thread, its core, its priority or its way of waiting cannot be had; the task is dropped then.
    pub fn spawn(config: WorkerConfig, task: T) -> Result<Self, WorkerError> {
        let name = config.name.clone();
        let thread_error = |source| WorkerError::Thread { name: name.clone(), source };
        let control = Control::new().map_err(thread_error)?;
        let shared = Arc::new(Shared { control, counters: Arc::default(), waits: Arc::default() });
        let (ready, started) = mpsc::channel();
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || run(config, task, &theirs, &ready))
            .map_err(thread_error)?;
        match started.recv() {
            Ok(Ok(Ready { tid, notes })) => Ok(Self { name, thread: Some(thread), shared, tid, notes }),
            Ok(Err(error)) => {
                // The thread has nothing left to do but to return its task.
                drop(thread.join());
                Err(error)
            }
            Err(_) => Err(join(&name, thread).err().unwrap_or_else(|| WorkerError::Panicked {
                name: name.clone(),
                message: "it ended before its first turn".into(),
            })),
        }
    }
}

impl<T> Worker<T> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has done so far, for any thread to read.
    pub fn counters(&self) -> &Arc<WorkerCounters> {
        &self.shared.counters
    }

    /// How it has waited so far, for any thread to read.
    pub fn waits(&self) -> &Arc<WaitCounters> {
        &self.shared.waits
    }

    /// What an operator should know of its waiting: how each source wakes it, what its policy can and cannot keep.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Processor time that it has used, by the kernel's account; `None` once it has ended.
    pub fn cpu_time(&self) -> Option<Duration> {
        self.cpu_meter().read()
    }

    /// What reads [`cpu_time`](Self::cpu_time) from other threads.
    pub fn cpu_meter(&self) -> CpuMeter {
        CpuMeter { tid: self.tid }
    }

    /// Whether it is still running; false only after its task panicked.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Runs `request` on the worker's thread between two turns, waking it if it sleeps, and returns what it returned.
    /// The sources of the task may change in it.
    ///
    /// # Errors
    ///
    /// When the worker has ended, or did not get to it within `limit`; it is withdrawn then, unless it is running at
    /// that moment.
    pub fn call<R: Send + 'static>(
        &self,
        limit: Duration,
        request: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> Result<R, CallError> {
        self.shared.control.call(&self.name, limit, || self.is_running(), request)
    }

    /// Ends it after its current turn and returns its task.
    ///
    /// # Errors
    ///
    /// When the task panicked.
    pub fn stop(mut self) -> Result<T, WorkerError> {
        self.shared.control.stop();
        match self.thread.take() {
            Some(thread) => join(&self.name, thread),
            None => Err(WorkerError::Panicked { name: self.name.clone(), message: "it was joined before".into() }),
        }
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.control.stop();
            drop(thread.join());
        }
    }
}

fn join<T>(name: &str, thread: JoinHandle<T>) -> Result<T, WorkerError> {
    thread.join().map_err(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".into());
        WorkerError::Panicked { name: name.into(), message }
    })
}

/// The worker's thread.
fn run<T: Task>(
    config: WorkerConfig,
    mut task: T,
    shared: &Shared<T>,
    ready: &mpsc::Sender<Result<Ready, WorkerError>>,
) -> T {
    let mut engine = match prepare(config, &mut task, shared) {
        Ok(engine) => engine,
        Err(error) => {
            // The receiver waits for this message, and for nothing else.
            let _ = ready.send(Err(error));
            return task;
        }
    };
    task.on_start();
    let _ = ready.send(Ok(Ready { tid: sched::thread_id(), notes: engine.notes() }));
    turns(&mut task, shared, &mut engine);
    task.on_stop();
    task
}

fn prepare<T: Task>(config: WorkerConfig, task: &mut T, shared: &Shared<T>) -> Result<Engine, WorkerError> {
    cpu::pin_current_thread(config.core)?;
    if let Some(priority) = config.fifo {
        cpu::set_fifo(priority)?;
    }
    if let Err(error) = cpu::set_timer_slack_ns(1) {
        log::warn!("{error}");
    }
    let mut requests = shared.control.source();
    let engine = Engine::new(config.wait, shared.waits.clone(), &mut |each| {
        each(&mut requests);
        task.sources(each);
    });
    engine.map_err(|source| WorkerError::Wait { name: config.name, source })
}

/// Turn after turn. The clock is read after each turn without work, where time is of no account; a worker with its
/// hands full reads it now and then.
fn turns<T: Task>(task: &mut T, shared: &Shared<T>, engine: &mut Engine) {
    /// Turns with work between looks at the clock and at requests.
    const LOOK_EVERY: u32 = 256;
    let clock = Clock::get();
    let Shared { control, counters, .. } = shared;
    let mut requests = control.source();
    let mut now = clock.now();
    // Turns with work since the clock was last read.
    let mut busy = 0;
    loop {
        let moved = task.turn();
        if moved > 0 {
            counters.frames.add(moved as u64);
            if busy == 0 {
                engine.worked(now);
            }
            busy += 1;
            if busy < LOOK_EVERY {
                continue;
            }
        }
        let before = now;
        now = clock.now();
        let passed = now.saturating_sub(before);
        counters.total_ticks.add(passed);
        if busy > 0 {
            counters.busy_ticks.add(passed);
        }
        busy = 0;
        if control.is_due() {
            // A request ends an idle gap as work does: what was spent in it counts, and what it takes itself does not.
            engine.worked(now);
            if control.serve(task) {
                return;
            }
            let refreshed = engine.refresh(&mut |each| {
                each(&mut requests);
                task.sources(each);
            });
            if let Err(error) = refreshed {
                log::warn!("{error}; it polls until its sources change again");
            }
        }
        if moved == 0 {
            let before = now;
            now = engine.idle(now, &mut |each| {
                each(&mut requests);
                task.sources(each);
            });
            counters.total_ticks.add(now.saturating_sub(before));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;
    use crate::cpu::{CoreChoice, CpuSet, Topology, choose};
    use crate::irq::IrqKind;
    use crate::irq::Vector;
    use crate::wait::{WaitPolicy, Wake};

    /// A source whose work is a number that the test raises.
    #[derive(Debug)]
    struct Numbers {
        waiting: Arc<AtomicUsize>,
        vector: Option<Arc<Vector>>,
    }

    impl Source for Numbers {
        fn label(&self) -> String {
            "numbers".into()
        }
        fn pending(&self) -> bool {
            self.waiting.load(Ordering::Acquire) > 0
        }
        fn wake(&self) -> Wake {
            match &self.vector {
                Some(vector) => Wake::Vector(vector.clone(), IrqKind::Msix),
                None => Wake::Never("the test gave it none".into()),
            }
        }
    }

    #[derive(Debug)]
    struct Taker {
        queue: Numbers,
        taken: Arc<AtomicUsize>,
        panics: bool,
    }

    impl Task for Taker {
        fn turn(&mut self) -> usize {
            assert!(!self.panics, "on purpose");
            let taken = self.queue.waiting.swap(0, Ordering::AcqRel);
            self.taken.fetch_add(taken, Ordering::AcqRel);
            taken
        }
        fn sources(&mut self, each: &mut dyn FnMut(&mut dyn Source)) {
            each(&mut self.queue);
        }
    }

    struct Bench {
        waiting: Arc<AtomicUsize>,
        taken: Arc<AtomicUsize>,
        vector: Arc<Vector>,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                waiting: Arc::default(),
                taken: Arc::default(),
                vector: Arc::new(Vector::new().expect("an eventfd")),
            }
        }

        fn taker(&self, vector: bool) -> Taker {
            let vector = vector.then(|| self.vector.clone());
            let queue = Numbers { waiting: self.waiting.clone(), vector };
            Taker { queue, taken: self.taken.clone(), panics: false }
        }

        fn put(&self, interrupt: bool) {
            let goal = self.taken.load(Ordering::Acquire) + 1;
            self.waiting.store(1, Ordering::Release);
            if interrupt {
                self.vector.signal(1);
            }
            until("the worker took it", || self.taken.load(Ordering::Acquire) >= goal);
        }
    }

    fn until(what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < deadline, "{what} did not happen");
            std::thread::yield_now();
        }
    }

    fn config(wait: WaitPolicy) -> WorkerConfig {
        let core = choose(&Topology::read(), CoreChoice::Auto, None, &CpuSet::new()).expect("some core").core;
        WorkerConfig { name: "test".into(), core, fifo: None, wait: EngineConfig::new(wait) }
    }

    #[test]
    fn a_polling_worker_takes_what_comes_and_never_sleeps() {
        let bench = Bench::new();
        let worker = Worker::spawn(config(WaitPolicy::Poll), bench.taker(false)).unwrap();
        bench.put(false);
        until("the clock moved", || worker.counters().total_ticks.get() > 0);
        assert_eq!((worker.counters().frames.get(), worker.waits().parks.get()), (1, 0));
        worker.stop().unwrap();
    }

    #[test]
    fn a_sleeping_worker_is_woken_by_its_vector() {
        let bench = Bench::new();
        let worker = Worker::spawn(config(WaitPolicy::Interrupt), bench.taker(true)).unwrap();
        for _ in 0..100 {
            bench.put(true);
        }
        until("it slept", || worker.waits().parks.get() > 0);
        assert_eq!(worker.stop().unwrap().taken.load(Ordering::Acquire), 100);
    }

    #[test]
    fn an_interrupt_that_never_comes_is_a_rescue() {
        let bench = Bench::new();
        let worker = Worker::spawn(config(WaitPolicy::Interrupt), bench.taker(true)).unwrap();
        // A frame that comes between two parks needs no rescue, so some tries may pass unnoticed.
        until("a rescue", || {
            bench.put(false);
            worker.waits().rescues.get() > 0
        });
        worker.stop().unwrap();
    }

    #[test]
    fn a_queue_that_cannot_wake_is_refused() {
        let error = Worker::spawn(config(WaitPolicy::Interrupt), Bench::new().taker(false)).unwrap_err();
        assert!(
            matches!(&error, WorkerError::Wait { source: EngineError::CannotWake { label, .. }, .. } if label == "numbers"),
            "{error}"
        );
    }

    #[test]
    fn a_core_that_cannot_be_had_is_refused() {
        let config = WorkerConfig { core: 1_000_000, ..config(WaitPolicy::Poll) };
        assert!(matches!(Worker::spawn(config, Bench::new().taker(false)), Err(WorkerError::Pin(_))));
    }

    #[test]
    fn a_panic_of_the_task_is_told() {
        let worker =
            Worker::spawn(config(WaitPolicy::Poll), Taker { panics: true, ..Bench::new().taker(false) }).unwrap();
        until("it ended", || !worker.is_running());
        let error = worker.stop().unwrap_err();
        assert_eq!(error.to_string(), "worker test panicked: on purpose");
    }
}
