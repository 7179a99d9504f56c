//! The order of the steps of one park, which is what makes it lose no wake-up.
//!
//! ```text
//! arm all ──▶ fence ──▶ look again at all ── nothing ──▶ block, bounded ──▶ disarm all
//!                              └────────────── work ──────────────────────────▶┘
//! ```
//!
//! With the fence between its arming and its look, and one between a producer's publishing and the producer's look at
//! who is armed, at least one of the two sees what the other did: the consumer its work, or the producer the arming.
//! Without either fence a processor may let both look before their stores are out, and the consumer sleeps on work.

use std::sync::atomic::Ordering;

use super::sync::{barrier, fence};

/// The steps of a park, over all sources of one worker.
pub trait Steps {
    /// Arms every source.
    fn arm(&mut self);

    /// Makes the arming visible to those who signal before anything is looked at: see [`after_arming`].
    fn fence(&mut self);

    /// Whether any source has work.
    fn look(&mut self) -> bool;

    /// Sleeps until a source fires, for a bounded time. Returns whether one did.
    fn block(&mut self) -> bool;

    /// Disarms every source.
    fn disarm(&mut self);
}

/// What became of a park.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Parked {
    /// There was work at the second look: it did not sleep.
    FoundWork,
    /// It slept until something fired.
    Woken,
    /// It slept until its time was over.
    TimedOut,
}

/// The first half of a park: everything but sleeping. Returns whether there was work; nothing is armed then.
#[inline]
pub fn prepare(steps: &mut (impl Steps + ?Sized)) -> bool {
    steps.arm();
    steps.fence();
    let found = steps.look();
    if found {
        steps.disarm();
    }
    found
}

/// Carries out one park.
#[inline]
pub fn park(steps: &mut (impl Steps + ?Sized)) -> Parked {
    if prepare(steps) {
        return Parked::FoundWork;
    }
    let woken = steps.block();
    steps.disarm();
    if woken { Parked::Woken } else { Parked::TimedOut }
}

/// The fence of a park, once all sources are armed. `asymmetric` says whether any of them is woken by a
/// [`Waker`](super::Waker) that [needs the heavy fence](super::Waker::needs_heavy_fence), which costs a system call.
#[inline]
pub fn after_arming(asymmetric: bool) {
    if asymmetric {
        barrier::heavy();
    } else {
        fence(Ordering::SeqCst);
    }
}
