//! Many producers, many consumers.
//!
//! A producer claims positions by moving one counter, fills their slots, and marks them written; a consumer claims
//! written positions by moving another, empties them, and marks them taken.
//!
//! ```text
//!              to_pop                     to_push
//!                │                           │
//!   taken taken  │  written  ·  ·  written   │  free  free
//!                        claimed by a producer
//!                        that is still writing
//! ```
//!
//! **What a stalled thread costs.** No operation waits for another thread. A producer that the kernel preempts between
//! its claim and its mark holds back the items behind its own: consumers find the ring empty at that point, other
//! producers go on until the ring is full. A consumer preempted there holds back its slots: producers find the ring full
//! one lap later, other consumers go on. Both see "nothing now" and may do other work, where a ring with a head and a tail
//! for each side makes every thread of that side spin until the stalled one runs again.
#![expect(unsafe_code, reason = "which slots are filled is known from counters and marks, not from types")]

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc as StdArc;

use arrayvec::ArrayVec;
use crossbeam_utils::CachePadded;

use super::CreateError;
use super::laps::Laps;
use super::parking::Parking;
use super::slots::{AHEAD, Slots};
use super::sync::Arc;
use super::sync::atomic::{AtomicUsize, Ordering};
use crate::wait::{Source, Wake, Waker};

/// Creates a ring of `capacity` slots, a power of two, and returns the first producer and the first consumer. Clone
/// either for more of its kind.
///
/// # Errors
///
/// When `capacity` is not a power of two, or too large for the address space.
pub fn ring<T: Send>(capacity: usize) -> Result<(Producer<T>, Consumer<T>), CreateError> {
    let slots = Slots::new(capacity)?;
    // A slot is free for its next position once the one a lap before is taken, and ready for a consumer once it is written.
    let (push, pop) = (Side::new(capacity, capacity), Side::new(capacity, 0));
    let shared = Arc::new(Shared { slots, waker: StdArc::new(Waker::asymmetric()), push, pop });
    let producer = Producer { shared: Arc::clone(&shared), free_until: 0, not_sync: PhantomData };
    let consumer = Consumer { shared, written_until: 0, parking: Parking::default(), not_sync: PhantomData };
    Ok((producer, consumer))
}

/// What all handles share.
///
/// # Invariant
///
/// A slot belongs to the producer that claimed its position until it is marked in `pop`, then to the consumer that claims
/// it there until it is marked in `push`. It is filled from the first mark to the claim of the consumer.
struct Shared<T> {
    slots: Slots<T>,
    /// Wakes the consumers that sleep: all of them, as one push may be more than one of them takes.
    waker: StdArc<Waker>,
    push: Side,
    pop: Side,
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Relaxed: the `Arc` that held this made everything the handles did visible to whoever drops it.
        let at = self.pop.next.load(Ordering::Relaxed);
        let count = self.push.next.load(Ordering::Relaxed).wrapping_sub(at);
        // SAFETY: no handle is left, so every claim has been carried out: these slots are filled.
        unsafe { self.slots.drop_all(at, count) };
    }
}

/// All producers, or all consumers: which positions they have claimed, and which the other side has made ready for them.
///
/// # Invariant
///
/// Positions before `next` have been claimed, each by exactly one thread, and only after it (or the thread that told it)
/// saw the mark of the position `lag` before. The other side marks a position once, when it has done its part.
struct Side {
    /// Claims are Release and loads Acquire: whoever sees a claim has also seen the marks that the claimer saw, and so
    /// cannot take a mark of two laps ago for one of this lap.
    next: CachePadded<AtomicUsize>,
    ready: Laps,
    lag: usize,
    /// Handles of this side. The last one's Release decrement, which follows its last mark, pairs with the Acquire load in
    /// the other side's `is_closed`.
    handles: AtomicUsize,
}

impl Side {
    fn new(capacity: usize, lag: usize) -> Self {
        let next = CachePadded::new(AtomicUsize::new(0));
        Self { next, ready: Laps::new(capacity), lag, handles: AtomicUsize::new(1) }
    }

    /// Claims up to `wanted` positions: the first, and how many. `ready_until` is the caller's memory of what is ready.
    #[inline(always)]
    fn claim(&self, ready_until: &mut usize, wanted: usize) -> (usize, usize) {
        let mut at = self.next.load(Ordering::Acquire);
        loop {
            let count = self.ready_from(at, ready_until, wanted);
            if count == 0 {
                let now = self.next.load(Ordering::Acquire);
                if now == at || wanted == 0 {
                    return (at, 0);
                }
                at = now; // others claimed meanwhile, so the marks read may have been of another lap
                continue;
            }
            match self.next.compare_exchange_weak(at, at.wrapping_add(count), Ordering::Release, Ordering::Acquire) {
                Ok(_) => return (at, count),
                Err(now) => at = now,
            }
        }
    }

    /// How many positions from `at` on, up to `wanted`, may be claimed if `at` is still next. Looks at the marks only when
    /// what was seen of them is used up.
    #[inline(always)]
    fn ready_from(&self, at: usize, ready_until: &mut usize, wanted: usize) -> usize {
        // Negative when others have claimed past it.
        let known = ready_until.wrapping_sub(at).cast_signed();
        if known >= wanted.cast_signed() {
            return wanted;
        }
        let ready = self.ready.run(at.wrapping_sub(self.lag), LOOK_AHEAD.max(wanted));
        *ready_until = at.wrapping_add(ready);
        ready.min(wanted)
    }

    /// Whether a claim of one position would succeed now.
    fn is_ready(&self, ready_until: usize) -> bool {
        let mut at = self.next.load(Ordering::Acquire);
        loop {
            if self.ready_from(at, &mut { ready_until }, 1) > 0 {
                return true;
            }
            let now = self.next.load(Ordering::Acquire);
            if now == at {
                return false;
            }
            at = now;
        }
    }
}

/// Positions that a handle looks at when it looks: the marks in one cache line.
const LOOK_AHEAD: usize = 512;

/// A handle that pushes; clone it for more.
///
/// # Invariant
///
/// Every position from `shared.push.next` up to `free_until` has a free slot.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    free_until: usize,
    not_sync: PhantomData<Cell<()>>,
}

impl<T> Producer<T> {
    /// Moves items from the front of `items` into the ring, as many as fit, and returns how many. They stay together and
    /// in order, and so does the rest, in `items`.
    #[inline]
    pub fn push_burst<const N: usize>(&mut self, items: &mut ArrayVec<T, N>) -> usize {
        let (at, count) = self.shared.push.claim(&mut self.free_until, items.len());
        if count == 0 {
            return 0;
        }
        // SAFETY: the claim gave us at most `items.len()` positions, and their slots are free and ours until marked.
        unsafe { self.shared.slots.fill(at, items, count) };
        self.publish(at, count);
        count
    }

    /// Moves one item into the ring, or hands it back when the ring is full.
    ///
    /// # Errors
    ///
    /// `value` itself, when the ring is full.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        let (at, count) = self.shared.push.claim(&mut self.free_until, 1);
        if count == 0 {
            return Err(value);
        }
        // SAFETY: the claim gave us this position, and its slot is free and ours until marked.
        unsafe { self.shared.slots.fill_one(at, value) };
        self.publish(at, 1);
        Ok(())
    }

    /// How many items are inside or on the way in or out; only an estimate while other handles are at work.
    pub fn len(&self) -> usize {
        self.shared.len()
    }

    /// Whether nothing is inside, nor on the way in.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many items fit.
    pub fn capacity(&self) -> usize {
        self.shared.slots.capacity()
    }

    /// Whether all consumers are gone, so that nobody will pop what is pushed; what they left behind then counts in `len`.
    pub fn is_closed(&self) -> bool {
        self.shared.pop.handles.load(Ordering::Acquire) == 0
    }

    #[inline(always)]
    fn publish(&self, at: usize, count: usize) {
        self.shared.pop.ready.mark(at, count);
        let ahead = at.wrapping_add(AHEAD);
        if self.free_until.wrapping_sub(ahead).cast_signed() >= count.cast_signed() {
            self.shared.slots.expect_write(ahead, count);
        }
        self.shared.waker.wake();
    }
}

/// A handle that pops; clone it for more.
///
/// # Invariant
///
/// Every position from `shared.pop.next` up to `written_until` is written.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    written_until: usize,
    parking: Parking,
    not_sync: PhantomData<Cell<()>>,
}

impl<T> Consumer<T> {
    /// The same consumer under this name, by which reports of a worker that waits for it call it. Clones inherit it.
    pub fn named(mut self, name: impl Into<Box<str>>) -> Self {
        self.parking.set_name(name.into());
        self
    }

    /// Moves items, oldest first, onto the end of `into` until it is full or the ring has no more ready, and returns how
    /// many.
    #[inline]
    pub fn pop_burst<const N: usize>(&mut self, into: &mut ArrayVec<T, N>) -> usize {
        let (at, count) = self.shared.pop.claim(&mut self.written_until, into.remaining_capacity());
        if count == 0 {
            return 0;
        }
        // SAFETY: the claim gave us at most the room in `into`, of positions that are written and ours until marked.
        unsafe { self.shared.slots.empty(at, into, count) };
        self.release(at, count);
        count
    }

    /// Moves the oldest item out, if there is one ready.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let (at, count) = self.shared.pop.claim(&mut self.written_until, 1);
        if count == 0 {
            return None;
        }
        // SAFETY: the claim gave us this position, which is written and ours until marked.
        let value = unsafe { self.shared.slots.empty_one(at) };
        self.release(at, 1);
        Some(value)
    }

    /// How many items are inside or on the way in or out; only an estimate while other handles are at work.
    pub fn len(&self) -> usize {
        self.shared.len()
    }

    /// Whether nothing is ready to pop; costs two loads when nothing else is going on.
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.shared.pop.is_ready(self.written_until)
    }

    /// How many items fit.
    pub fn capacity(&self) -> usize {
        self.shared.slots.capacity()
    }

    /// Whether all producers are gone. What they pushed before can still be popped: a ring is finished when it is closed
    /// and *then* found empty.
    pub fn is_closed(&self) -> bool {
        self.shared.push.handles.load(Ordering::Acquire) == 0
    }

    #[inline(always)]
    fn release(&self, at: usize, count: usize) {
        self.shared.push.ready.mark(at, count);
        let ahead = at.wrapping_add(AHEAD);
        if self.written_until.wrapping_sub(ahead).cast_signed() >= count.cast_signed() {
            self.shared.slots.expect_read(ahead, count);
        }
    }
}

impl<T> Shared<T> {
    fn len(&self) -> usize {
        // In this order, the difference cannot be negative; it can exceed the capacity, if much happens in between.
        let popped = self.pop.next.load(Ordering::Acquire);
        self.push.next.load(Ordering::Relaxed).wrapping_sub(popped).min(self.slots.capacity())
    }
}

impl<T> Clone for Producer<T> {
    fn clone(&self) -> Self {
        // Relaxed: a clone only ever raises a count that its origin keeps above zero.
        self.shared.push.handles.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared), free_until: self.free_until, not_sync: PhantomData }
    }
}

impl<T> Clone for Consumer<T> {
    fn clone(&self) -> Self {
        // Relaxed: as for a producer.
        self.shared.pop.handles.fetch_add(1, Ordering::Relaxed);
        Self {
            shared: Arc::clone(&self.shared),
            written_until: self.written_until,
            parking: self.parking.of_clone(),
            not_sync: PhantomData,
        }
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        if self.shared.push.handles.fetch_sub(1, Ordering::Release) == 1 {
            self.shared.waker.wake();
        }
    }
}

/// A push wakes all consumers that are armed, as does the going of the last producer.
impl<T: Send> Source for Consumer<T> {
    fn label(&self) -> String {
        self.parking.label(self.capacity())
    }

    /// Whether there is something ready to pop; or, while armed, whether the last producer has gone since the consumer was
    /// last polled.
    ///
    /// An item behind one that another producer is still writing is not ready: that producer will wake.
    #[inline]
    fn pending(&self) -> bool {
        !self.is_empty() || self.parking.closing_is_work(|| self.is_closed())
    }

    fn arm(&mut self) {
        self.parking.arm(&self.shared.waker);
    }

    fn disarm(&mut self) {
        let is_closed = self.is_closed();
        self.parking.disarm(&self.shared.waker, is_closed);
    }

    fn wake(&self) -> Wake {
        super::parking::wake_by(&self.shared.waker)
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.shared.pop.handles.fetch_sub(1, Ordering::Release);
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("len", &self.len()).field("capacity", &self.capacity()).finish()
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("len", &self.len()).field("capacity", &self.capacity()).finish()
    }
}
