//! A queue's half of a ring, and how it follows a back end that comes and goes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::remote::Remote;
use super::ring::Seat;
use crate::virtio::queue::{DriverRx, DriverTx};

/// A driver's half of a ring whose device can go.
pub(super) trait Half {
    /// Takes all buffers back, and brings the ring to its beginning. Returns how many frames the device had.
    fn take_back(&mut self) -> u64;
}

impl Half for dyn DriverRx {
    fn take_back(&mut self) -> u64 {
        self.reset();
        // What the device had was empty.
        0
    }
}

impl Half for dyn DriverTx {
    fn take_back(&mut self) -> u64 {
        self.reset() as u64
    }
}

/// The half `Q` of a ring, as the worker that owns the queue has it. One load of the generation on each use tells whether
/// the back end is the one of before.
#[derive(Debug)]
pub(super) struct Follower<Q: ?Sized + Half> {
    remote: Arc<Remote>,
    seat: Arc<Seat<Q>>,
    seen: u32,
    half: Option<Box<Q>>,
}

impl<Q: ?Sized + Half> Follower<Q> {
    /// Follows from before the first back end.
    pub(super) fn new(remote: Arc<Remote>, seat: Arc<Seat<Q>>, generation: u32) -> Self {
        Self { remote, seat, seen: generation, half: None }
    }

    pub(super) fn seat(&self) -> &Seat<Q> {
        &self.seat
    }

    /// The half, for a burst; `None` while there is no back end.
    #[inline(always)]
    pub(super) fn live(&mut self) -> Option<&mut Q> {
        if self.has_news() {
            self.follow();
        }
        if self.seen.is_multiple_of(2) { self.half.as_deref_mut() } else { None }
    }

    /// The half, for a look that changes nothing of whom it belongs to; `None` while there is no back end.
    #[inline(always)]
    pub(super) fn half(&self) -> Option<&Q> {
        if self.seen.is_multiple_of(2) { self.half.as_deref() } else { None }
    }

    /// As [`half`](Self::half), to arm or disarm.
    #[inline(always)]
    pub(super) fn half_mut(&mut self) -> Option<&mut Q> {
        if self.seen.is_multiple_of(2) { self.half.as_deref_mut() } else { None }
    }

    /// Whether the back end has come or gone since the last burst: work for the next one.
    #[inline(always)]
    pub(super) fn has_news(&self) -> bool {
        self.remote.generation() != self.seen
    }

    #[cold]
    fn follow(&mut self) {
        let now = self.remote.generation();
        // There is one to be had once, with the first back end; which may be gone already, but had the ring.
        if let Some(half) = self.seat.take() {
            self.half = Some(half);
        }
        if now.is_multiple_of(2) {
            self.seen = now;
            return;
        }
        let lost = self.half.as_deref_mut().map_or(0, Half::take_back);
        self.remote.counts.lost.fetch_add(lost, Ordering::Relaxed);
        self.seen = now;
        self.seat.ring.acknowledge(now);
        self.remote.alarm.signal(1);
    }
}

impl<Q: ?Sized + Half> Drop for Follower<Q> {
    fn drop(&mut self) {
        // The half, with the buffers that the back end had, goes only after this.
        self.remote.leave(&self.seat.ring);
    }
}
