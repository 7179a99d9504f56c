//! Waking a worker from another thread, at the price of a load when it is awake.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use super::sync::{AtomicU64, Vector, barrier, fence};
use crate::clock::Clock;

/// Wakes those who say that they sleep, and costs others next to nothing.
///
/// Whoever publishes work calls [`wake`](Self::wake) after it. That signals only while someone is armed, and once for
/// all who are: a producer that goes on while its consumers wake up makes no more system calls, and one whose consumers
/// are awake reads one word that seldom changes.
///
/// Any number of threads may wait for one waker, each with an [`Arming`] of its own. Its [`vector`](Self::vector) is
/// then watched by all of them, edge-triggered, and drained by none: its count says nothing, and a drained count would
/// take the event away from those who have not seen it yet.
#[derive(Debug)]
#[repr(align(128))] // its own cache lines: what a producer reads shall change only when somebody sleeps
pub struct Waker {
    /// How many are armed, in the low [`ARMED_BITS`]; above, how often it was signalled, which tells one who disarms
    /// whether its arming still counts.
    state: AtomicU64,
    /// Whether a producer's fence is light.
    asymmetric: bool,
    /// In ticks. Not part of the protocol: a figure for whoever was woken.
    signalled_at: std::sync::atomic::AtomicU64,
    /// Made by who waits for it, before its first arming.
    vector: OnceLock<Vector>,
}

/// Enough for more threads than Linux allows (`PID_MAX_LIMIT`, 2^22). The rest counts signals, and would have to wrap
/// while somebody sleeps to be mistaken: a trillion system calls.
const ARMED_BITS: u32 = 24;
const ARMED: u64 = (1 << ARMED_BITS) - 1;

/// One waiter's arming of a [`Waker`].
#[derive(Debug, Default)]
pub struct Arming {
    /// The number of signals at which it was counted.
    counted_at: Option<u64>,
}

impl Arming {
    /// Whether its waiter has armed and not disarmed since. A signal in between changes nothing.
    pub fn is_armed(&self) -> bool {
        self.counted_at.is_some()
    }
}

impl Waker {
    /// A waker that nobody waits for, with a full fence in [`wake`](Self::wake): for what happens now and then.
    pub fn new() -> Self {
        Self::with_fence(false)
    }

    /// A waker that nobody waits for, for producers on a data path: they pay for no fence, and whoever waits for it
    /// pays for both with a system call. Where the kernel has none for that, it is as a [`new`](Self::new) one.
    pub fn asymmetric() -> Self {
        Self::with_fence(barrier::register())
    }

    fn with_fence(asymmetric: bool) -> Self {
        Self {
            state: AtomicU64::new(0),
            asymmetric,
            signalled_at: std::sync::atomic::AtomicU64::new(0),
            vector: OnceLock::new(),
        }
    }

    /// Asks for a signal; takes effect with the fence that follows, for which see
    /// [`after_arming`](super::after_arming). An arming that still counts stays as it is.
    pub fn arm(&self, arming: &mut Arming) {
        // Too old a number of signals is no harm: the signal that it misses is then still on its way to who arms.
        if arming.counted_at.is_some_and(|then| then == self.state.load(Ordering::Relaxed) >> ARMED_BITS) {
            return;
        }
        // Release pairs with the Acquire in `signal`: who sees the arming sees the vector.
        arming.counted_at = Some(self.state.fetch_add(1, Ordering::Release) >> ARMED_BITS);
    }

    /// Takes an arming back, and leaves those of others alone. A signal may be under way already.
    pub fn disarm(&self, arming: &mut Arming) {
        let Some(counted_at) = arming.counted_at.take() else { return };
        // Nothing is published by it, nor read on the strength of it.
        let mut state = self.state.load(Ordering::Relaxed);
        while state >> ARMED_BITS == counted_at {
            match self.state.compare_exchange_weak(state, state - 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => state = now,
            }
        }
    }

    /// Wakes all who are armed. What they shall find must have been stored before.
    #[inline]
    pub fn wake(&self) {
        if self.asymmetric {
            barrier::light();
        } else {
            fence(Ordering::SeqCst);
        }
        let state = self.state.load(Ordering::Relaxed);
        if state & ARMED != 0 {
            self.signal(state);
        }
    }

    /// Of several producers that see an arming, one signals.
    #[cold]
    fn signal(&self, mut state: u64) {
        while state & ARMED != 0 {
            let signalled = (state | ARMED).wrapping_add(1);
            match self.state.compare_exchange_weak(state, signalled, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    self.signalled_at.store(Clock::get().now(), Ordering::Relaxed);
                    // Who waits made it before arming. Who only arms, without it, is not waiting.
                    if let Some(vector) = self.vector.get() {
                        vector.signal(1);
                    }
                    return;
                }
                Err(now) => state = now,
            }
        }
    }

    /// What fires; made at the first call, so that a waker that nobody waits for costs no file descriptor. To be called
    /// before the first arming.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors.
    pub fn vector(&self) -> io::Result<&Vector> {
        if self.vector.get().is_none() {
            let made = Vector::new()?;
            // Another waiter may have been faster; then that one is it.
            self.vector.get_or_init(|| made);
        }
        Ok(self.vector.get().expect("it was just set"))
    }

    /// Whether who waits for it needs the heavy fence between arming and looking.
    pub fn needs_heavy_fence(&self) -> bool {
        self.asymmetric
    }

    /// When it was last signalled, in ticks of the [`Clock`]; zero for never. Written before the signal, so it is right
    /// for whoever was woken by it.
    pub fn signalled_at(&self) -> u64 {
        self.signalled_at.load(Ordering::Relaxed)
    }
}

impl Default for Waker {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_signals_once_for_each_arming_and_only_then() {
        for waker in [Waker::new(), Waker::asymmetric()] {
            let mut arming = Arming::default();
            waker.wake();
            assert_eq!((waker.vector().unwrap().take(), waker.signalled_at()), (0, 0));
            waker.arm(&mut arming);
            waker.arm(&mut arming);
            waker.wake();
            waker.wake();
            assert_eq!(waker.vector().unwrap().take(), 1);
            assert!(waker.signalled_at() > 0 && arming.is_armed());
            waker.arm(&mut arming);
            waker.disarm(&mut arming);
            waker.disarm(&mut arming);
            waker.wake();
            assert_eq!(waker.vector().unwrap().take(), 0);
        }
    }

    #[test]
    fn one_that_disarms_leaves_others_armed() {
        let waker = Waker::asymmetric();
        let fired = || waker.vector().unwrap().take();
        let (mut first, mut second) = (Arming::default(), Arming::default());
        fired();
        waker.arm(&mut first);
        waker.arm(&mut second);
        waker.disarm(&mut first);
        waker.wake();
        assert_eq!(fired(), 1);
        // The signal has used up the second's arming: taking it back must not use up the first's new one.
        waker.arm(&mut first);
        waker.disarm(&mut second);
        waker.wake();
        assert_eq!(fired(), 1);
        waker.disarm(&mut first);
        waker.wake();
        assert_eq!(fired(), 0);
    }

    #[test]
    fn one_that_nobody_waits_for_has_no_descriptor() {
        let waker = Waker::new();
        waker.arm(&mut Arming::default());
        waker.wake();
        assert!(waker.vector.get().is_none());
    }
}
