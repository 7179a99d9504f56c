//! One producer, one consumer.
//!
//! Nothing one side does can hold up the other: a stalled producer looks like an empty ring, a stalled consumer like a
//! full one.
#![expect(unsafe_code, reason = "which slots are filled is known from two counters, not from types")]

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc as StdArc;

use arrayvec::ArrayVec;
use crossbeam_utils::CachePadded;

use super::CreateError;
use super::parking::Parking;
use super::slots::{AHEAD, Slots};
use super::sync::Arc;
use super::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::wait::{Source, Wake, Waker};

/// Creates a ring of `capacity` slots, a power of two, and returns its two ends.
///
/// # Errors
///
/// When `capacity` is not a power of two, or too large for the address space.
pub fn ring<T: Send>(capacity: usize) -> Result<(Producer<T>, Consumer<T>), CreateError> {
    let shared = Arc::new(Shared {
        slots: Slots::new(capacity)?,
        waker: StdArc::new(Waker::asymmetric()),
        producer_gone: AtomicBool::new(false),
        consumer_gone: AtomicBool::new(false),
        pushed: CachePadded::new(AtomicUsize::new(0)),
        popped: CachePadded::new(AtomicUsize::new(0)),
    });
    let producer = Producer { shared: Arc::clone(&shared), pushed: 0, popped_seen: 0, not_sync: PhantomData };
    let consumer = Consumer { shared, popped: 0, pushed_seen: 0, parking: Parking::default(), not_sync: PhantomData };
    Ok((producer, consumer))
}

/// What the two ends share.
///
/// # Invariant
///
/// `popped <= pushed <= popped + capacity` (as counts that wrap). The slots of positions `popped .. pushed` are filled
/// and belong to the consumer, all others are empty and belong to the producer. Only the producer writes `pushed` and
/// `producer_gone`, only the consumer `popped` and `consumer_gone`.
struct Shared<T> {
    slots: Slots<T>,
    /// Wakes the consumer, when it sleeps.
    waker: StdArc<Waker>,
    /// Stored with Release when the producer goes, after its last `pushed`; the consumer's Acquire load in `is_closed`
    /// makes sure that it sees that too.
    producer_gone: AtomicBool,
    /// Stored with Release when the consumer goes; pairs with the producer's Acquire load in `is_closed`.
    consumer_gone: AtomicBool,
    /// How many items were ever pushed. The producer's Release store hands filled slots to the consumer's Acquire load.
    pushed: CachePadded<AtomicUsize>,
    /// How many items were ever popped. The consumer's Release store hands empty slots to the producer's Acquire load.
    popped: CachePadded<AtomicUsize>,
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Relaxed: the `Arc` that held this made both ends' last stores visible to whoever drops it.
        let popped = self.popped.load(Ordering::Relaxed);
        let count = self.pushed.load(Ordering::Relaxed).wrapping_sub(popped);
        // SAFETY: these slots are filled (type invariant), and both ends are gone.
        unsafe { self.slots.drop_all(popped, count) };
    }
}

/// The end that pushes.
///
/// # Invariant
///
/// `pushed` equals `shared.pushed`. `popped_seen` is a value that `shared.popped` had, loaded with Acquire, so the slots
/// of positions `pushed .. popped_seen + capacity` are empty and ours.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    pushed: usize,
    popped_seen: usize,
    not_sync: PhantomData<Cell<()>>,
}

impl<T> Producer<T> {
    /// Moves items from the front of `items` into the ring, as many as fit, and returns how many. The rest stays in
    /// `items`, in order.
    #[inline]
    pub fn push_burst<const N: usize>(&mut self, items: &mut ArrayVec<T, N>) -> usize {
        let count = self.room_for(items.len());
        if count == 0 {
            return 0;
        }
        // SAFETY: `room_for` returned at most `items.len()`, and that many slots from `pushed` are empty and ours.
        unsafe { self.shared.slots.fill(self.pushed, items, count) };
        self.publish(count);
        count
    }

    /// Moves one item into the ring, or hands it back when the ring is full.
    ///
    /// # Errors
    ///
    /// `value` itself, when the ring is full.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        if self.room_for(1) == 0 {
            return Err(value);
        }
        // SAFETY: `room_for` says that the slot of position `pushed` is empty and ours.
        unsafe { self.shared.slots.fill_one(self.pushed, value) };
        self.publish(1);
        Ok(())
    }

    /// How many items are inside; by the time it returns, fewer may be.
    pub fn len(&self) -> usize {
        self.pushed.wrapping_sub(self.shared.popped.load(Ordering::Relaxed))
    }

    /// Whether nothing is inside; once true, it stays so until the next push.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many items fit.
    pub fn capacity(&self) -> usize {
        self.shared.slots.capacity()
    }

    /// Whether the consumer is gone, so that nobody will pop what is pushed; `len` then says exactly what it left behind.
    pub fn is_closed(&self) -> bool {
        self.shared.consumer_gone.load(Ordering::Acquire)
    }

    /// How many of `wanted` items fit now. Looks at the consumer's counter only when what was seen of it is used up.
    #[inline(always)]
    fn room_for(&mut self, wanted: usize) -> usize {
        let capacity = self.shared.slots.capacity();
        let room = capacity - self.pushed.wrapping_sub(self.popped_seen);
        if room >= wanted {
            return wanted;
        }
        self.popped_seen = self.shared.popped.load(Ordering::Acquire);
        wanted.min(capacity - self.pushed.wrapping_sub(self.popped_seen))
    }

    /// Hands the next `count` slots, which were just filled, to the consumer.
    #[inline(always)]
    fn publish(&mut self, count: usize) {
        self.pushed = self.pushed.wrapping_add(count);
        self.shared.pushed.store(self.pushed, Ordering::Release);
        let room = self.shared.slots.capacity() - self.pushed.wrapping_sub(self.popped_seen);
        if room >= AHEAD + count {
            self.shared.slots.expect_write(self.pushed.wrapping_add(AHEAD), count);
        }
        self.shared.waker.wake();
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        self.shared.producer_gone.store(true, Ordering::Release);
        self.shared.waker.wake();
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("len", &self.len()).field("capacity", &self.capacity()).finish()
    }
}

/// The end that pops.
///
/// # Invariant
///
/// `popped` equals `shared.popped`. `pushed_seen` is a value that `shared.pushed` had, loaded with Acquire, so the slots
/// of positions `popped .. pushed_seen` are filled and ours.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    popped: usize,
    pushed_seen: usize,
    parking: Parking,
    not_sync: PhantomData<Cell<()>>,
}

impl<T> Consumer<T> {
    /// The same consumer under this name, by which reports of a worker that waits for it call it.
    pub fn named(mut self, name: impl Into<Box<str>>) -> Self {
        self.parking.set_name(name.into());
        self
    }

    /// Moves items, oldest first, onto the end of `into` until it is full or the ring is empty, and returns how many.
    #[inline]
    pub fn pop_burst<const N: usize>(&mut self, into: &mut ArrayVec<T, N>) -> usize {
        let count = self.available(into.remaining_capacity());
        if count == 0 {
            return 0;
        }
        // SAFETY: `available` returned at most the room in `into`, and that many slots from `popped` are filled and ours.
        unsafe { self.shared.slots.empty(self.popped, into, count) };
        self.release(count);
        count
    }

    /// Moves the oldest item out, if there is one.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.available(1) == 0 {
            return None;
        }
        // SAFETY: `available` says that the slot of position `popped` is filled and ours.
        let value = unsafe { self.shared.slots.empty_one(self.popped) };
        self.release(1);
        Some(value)
    }

    /// How many items are inside; by the time it returns, more may be.
    pub fn len(&self) -> usize {
        self.shared.pushed.load(Ordering::Relaxed).wrapping_sub(self.popped)
    }

    /// Whether nothing is inside; costs one load at most.
    #[inline]
    pub fn is_empty(&self) -> bool {
        // Relaxed: nothing is read on the strength of it; a pop looks again, and sees at least as much. That holds for the
        // second look of a parking consumer too: what it must not miss is ordered by the fence before it.
        self.popped == self.pushed_seen && self.popped == self.shared.pushed.load(Ordering::Relaxed)
    }

    /// How many items fit.
    pub fn capacity(&self) -> usize {
        self.shared.slots.capacity()
    }

    /// Whether the producer is gone. What it pushed before can still be popped: a ring is finished when it is closed and
    /// *then* found empty.
    pub fn is_closed(&self) -> bool {
        self.shared.producer_gone.load(Ordering::Acquire)
    }

    /// How many of `wanted` items are there now. Looks at the producer's counter only when what was seen of it is used up.
    #[inline(always)]
    fn available(&mut self, wanted: usize) -> usize {
        let seen = self.pushed_seen.wrapping_sub(self.popped);
        if seen >= wanted {
            return wanted;
        }
        self.pushed_seen = self.shared.pushed.load(Ordering::Acquire);
        wanted.min(self.pushed_seen.wrapping_sub(self.popped))
    }

    /// Hands the next `count` slots, which were just emptied, to the producer.
    #[inline(always)]
    fn release(&mut self, count: usize) {
        self.popped = self.popped.wrapping_add(count);
        self.shared.popped.store(self.popped, Ordering::Release);
        let seen = self.pushed_seen.wrapping_sub(self.popped);
        if seen >= AHEAD + count {
            self.shared.slots.expect_read(self.popped.wrapping_add(AHEAD), count);
        }
    }
}

/// A push wakes it, and so does the producer's going.
impl<T: Send> Source for Consumer<T> {
    fn label(&self) -> String {
        self.parking.label(self.capacity())
    }

    /// Whether there is something to pop; or, while armed, whether the producer has gone since the consumer was last polled.
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
        self.shared.consumer_gone.store(true, Ordering::Release);
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("len", &self.len()).field("capacity", &self.capacity()).finish()
    }
}
