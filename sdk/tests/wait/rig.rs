//! A source that a test drives, and an engine over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use spinwake::clock::Clock;
use spinwake::irq::{IrqKind, Vector};
use spinwake::wait::{Engine, EngineConfig, Source, WaitCounters, WaitPolicy, Wake};

/// For anything that must happen at all, on a machine whose cores are all taken.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// What both sides of a [`Device`] see.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) work: AtomicUsize,
    armed: AtomicBool,
    pub(crate) vector: Arc<Vector>,
}

impl Shared {
    pub(crate) fn with(vector: Arc<Vector>) -> Self {
        Self { work: AtomicUsize::new(0), armed: AtomicBool::new(false), vector }
    }

    /// A piece of work comes, and fires the vector if that is armed, as a device does.
    pub(crate) fn put(&self) {
        self.work.fetch_add(1, Ordering::SeqCst);
        if self.armed.swap(false, Ordering::SeqCst) {
            self.vector.signal(1);
        }
    }

    /// A piece of work comes whose interrupt is lost.
    pub(crate) fn put_silently(&self) {
        self.work.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::SeqCst)
    }
}

/// Work is a number that the test raises.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) shared: Arc<Shared>,
    pub(crate) can_wake: bool,
}

impl Device {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::new(Shared::with(Arc::new(Vector::new().expect("an eventfd")))), can_wake: true }
    }

    pub(crate) fn take(&self) -> usize {
        self.shared.work.swap(0, Ordering::SeqCst)
    }
}

impl Source for Device {
    fn label(&self) -> String {
        "device".into()
    }
    fn pending(&self) -> bool {
        self.shared.work.load(Ordering::SeqCst) > 0
    }
    fn arm(&mut self) {
        self.shared.armed.store(true, Ordering::SeqCst);
    }
    fn disarm(&mut self) {
        self.shared.armed.store(false, Ordering::SeqCst);
    }
    fn wake(&self) -> Wake {
        if self.can_wake {
            Wake::Vector(self.shared.vector.clone(), IrqKind::Msix)
        } else {
            Wake::Never("the test gave it no vector".into())
        }
    }
}

pub(crate) fn engine(config: EngineConfig, sources: &mut [&mut dyn Source]) -> Engine {
    let counters = Arc::<WaitCounters>::default();
    Engine::new(config, counters, &mut |each| sources.iter_mut().for_each(|source| each(&mut **source)))
        .expect("an engine")
}

/// Sleeps as long as the test's longest wait, so that a lost wake-up shows as one.
pub(crate) fn patient(policy: WaitPolicy) -> EngineConfig {
    EngineConfig { sleep_limit: LONG, ..EngineConfig::new(policy) }
}

/// Waits until one of `sources` has work.
#[track_caller]
pub(crate) fn idle_until_work(engine: &mut Engine, sources: &mut [&mut dyn Source]) {
    let (clock, deadline) = (Clock::get(), Instant::now() + LONG);
    while !sources.iter().any(|source| source.pending()) {
        assert!(Instant::now() < deadline, "no work within {LONG:?}: {:?}", engine.counters());
        engine.idle(clock.now(), &mut |each| sources.iter_mut().for_each(|source| each(&mut **source)));
    }
    engine.worked(clock.now());
}

#[track_caller]
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen within {LONG:?}");
        std::thread::yield_now();
    }
}
