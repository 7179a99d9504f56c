//! Waking a worker from another thread, at the price of a load when it is awake.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam_utils::CachePadded;

use crate::clock::Clock;
use crate::irq::Vector;

/// Wakes a worker that says it sleeps, and costs one that does not nothing.
///
/// Whoever publishes work calls [`wake`](Self::wake) after it. That writes the eventfd only while someone is armed, and once for each
/// arming: a producer that goes on while its consumer wakes up pays no more system calls.
#[derive(Debug)]
pub struct Waker {
    /// Armed, and not signalled since.
    armed: CachePadded<AtomicBool>,
    /// When it was last signalled, in ticks.
    signalled_at: AtomicU64,
    vector: Vector,
}

impl Waker {
    /// A waker that nobody waits for.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            armed: CachePadded::new(AtomicBool::new(false)),
            signalled_at: AtomicU64::new(0),
            vector: Vector::new()?,
        })
    }

    /// Asks for a signal. Takes effect with the full fence that follows.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
    }

    /// Asks for none.
    pub fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }

    /// Wakes whoever is armed. What it shall find must have been published before, with Release.
    #[inline]
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::Relaxed) {
            self.signalled_at.store(Clock::get().now(), Ordering::Relaxed);
            self.vector.signal(1);
        }
    }

    /// When it was last signalled, in ticks of the [`Clock`]; zero for never.
    pub fn signalled_at(&self) -> u64 {
        self.signalled_at.load(Ordering::Relaxed)
    }

    pub(crate) fn needs_heavy_fence(&self) -> bool {
        false
    }

    /// What fires.
    pub fn vector(&self) -> &Vector {
        &self.vector
    }
}
