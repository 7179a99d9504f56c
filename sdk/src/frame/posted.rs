//! Empty frames that a receive ring has given to its device.
#![expect(unsafe_code, reason = "frames move by value between pool, ring and burst, several at a time")]

use std::mem::MaybeUninit;

use super::{Burst, DATA_ROOM, Frame, Pool};
use crate::dma::Iova;

/// The empty frames that a receive ring has given to its device, oldest first: a queue with as many places as the ring
/// has descriptors, so that position `p` belongs to descriptor `p`, both modulo the length.
///
/// Frames come in by [`post`](Self::post), straight from a pool, and leave by [`harvest`](Self::harvest), with the
/// lengths that the device reported. Positions count up for ever.
///
/// # Invariant
///
/// Places `head .. tail` (modulo the length, a power of two) hold frames; `tail - head` is at most the length. Each of
/// them is as its pool gave it: no data, no flags, its headroom free.
#[derive(Debug)]
pub struct Posted {
    places: Box<[MaybeUninit<Frame>]>,
    head: usize,
    tail: usize,
}

impl Posted {
    /// A queue of `len` places, all free.
    ///
    /// # Panics
    ///
    /// If `len` is not a power of two.
    pub fn new(len: usize) -> Self {
        assert!(len.is_power_of_two(), "a ring of {len} places: the length must be a power of two");
        Self { places: (0..len).map(|_| MaybeUninit::uninit()).collect(), head: 0, tail: 0 }
    }

    /// The position of the oldest frame.
    #[inline(always)]
    pub fn head(&self) -> usize {
        self.head
    }

    /// The position that the next frame will get.
    #[inline(always)]
    pub fn tail(&self) -> usize {
        self.tail
    }

    /// Frames in it.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.tail - self.head
    }

    /// Whether it has no frames.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Moves up to `most` empty frames from `pool` to the tail, as far as the array's end, and calls `each` with the
    /// address of each in order. Returns how many; fewer when the pool is dry or the places run out.
    #[inline(always)]
    pub fn post(&mut self, pool: &mut Pool, most: usize, mut each: impl FnMut(Iova)) -> usize {
        let at = self.tail & (self.places.len() - 1);
        let room = (self.places.len() - self.len()).min(self.places.len() - at);
        let buffers = pool.last_free(most.min(room));
        let mut posted = 0;
        for (place, &buffer) in self.places[at..].iter_mut().zip(buffers.list) {
            // SAFETY: a free buffer of that pool, which leaves its list below (`forget_last`).
            place.write(unsafe { Frame::empty(buffer, buffers.pool) });
            each(buffers.iova(buffer));
            posted += 1;
        }
        // A panic of `each` leaves the buffers with the pool: until here they have not moved.
        // SAFETY: as many of the last free buffers now belong to frames in `places`.
        unsafe { pool.forget_last(posted) };
        self.tail += posted;
        posted
    }

    /// Moves frames from the head to `burst` as long as `filled` tells how many bytes the device put into the next one, the
    /// first being number 0: at most `most`, as far as the array's end and the burst's room. Stops at a length beyond a
    /// buffer's room. Returns how many.
    #[inline(always)]
    pub fn harvest(&mut self, burst: &mut Burst, most: usize, mut filled: impl FnMut(usize) -> Option<usize>) -> usize {
        let at = self.head & (self.places.len() - 1);
        let n = most.min(self.len()).min(self.places.len() - at).min(burst.remaining_capacity());
        // SAFETY: the burst's first `len` frames are initialised, so this stays inside its array.
        let to = unsafe { burst.as_mut_ptr().add(burst.len()) };
        let mut moved = 0;
        for (i, place) in self.places[at..at + n].iter().enumerate() {
            let Some(len) = filled(i).filter(|&len| len <= DATA_ROOM) else { break };
            // SAFETY: a place between head and tail holds a frame (type invariant), which leaves the queue below.
            let frame = unsafe { place.assume_init_read() };
            // SAFETY: the burst has room for `n` more frames.
            let to = unsafe { to.add(i) };
            // SAFETY: inside the burst's array, on a place that holds no frame.
            unsafe { to.write(frame.filled_from_empty(len)) };
            moved = i + 1;
        }
        // A panic of `filled` leaves the frames in the queue: until here neither end has moved.
        self.head += moved;
        // SAFETY: `moved` more frames were written behind the burst's last.
        unsafe { burst.set_len(burst.len() + moved) };
        moved
    }

    /// Takes the oldest frame, still empty.
    #[inline]
    pub fn pop(&mut self) -> Option<Frame> {
        if self.is_empty() {
            return None;
        }
        let place = &self.places[self.head & (self.places.len() - 1)];
        // SAFETY: the place at the head holds a frame (type invariant), which leaves the queue with the next line.
        let frame = unsafe { place.assume_init_read() };
        self.head += 1;
        Some(frame)
    }

    /// Leaves all frames to the device for good: for one that would not stop.
    pub fn leak(&mut self) {
        self.head = self.tail;
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        while let Some(frame) = self.pop() {
            drop(frame);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::PoolConfig;
    use super::*;
    use crate::dma::Domain;

    fn pool(frames: usize) -> Pool {
        Pool::new_in(&Domain::new(), &PoolConfig { frames, ..PoolConfig::default() }).expect("memory for a small pool")
    }

    #[test]
    fn frames_pass_in_order_with_the_lengths_given_lap_after_lap() {
        let mut pool = pool(8);
        let mut posted = Posted::new(4);
        let mut burst = Burst::new();
        let mut given = std::collections::VecDeque::new();
        let mut next_len = 1;
        for _ in 0..50 {
            posted.post(&mut pool, 3, |iova| given.push_back(iova));
            let first = next_len;
            posted.harvest(&mut burst, 2, |i| Some(first + i));
            for frame in burst.drain(..) {
                assert_eq!(frame.len(), next_len);
                assert_eq!(Some(pool.iova(&frame)), given.pop_front());
                next_len += 1;
                pool.give(frame);
            }
        }
        drop(posted);
        assert_eq!(pool.available(), 8);
    }

    #[test]
    fn a_dry_pool_and_a_full_ring_end_a_post() {
        let (mut scarce, mut plenty) = (pool(2), pool(16));
        let mut posted = Posted::new(4);
        assert_eq!(posted.post(&mut scarce, 4, |_| ()), 2);
        assert_eq!(posted.post(&mut plenty, 4, |_| ()), 2);
        assert_eq!(posted.post(&mut plenty, 4, |_| ()), 0);
        assert_eq!((posted.len(), posted.head(), posted.tail()), (4, 0, 4));
        drop(posted);
        assert_eq!((scarce.available(), plenty.available()), (2, 16));
    }

    #[test]
    fn a_harvest_ends_where_the_device_does_or_lies() {
        let mut pool = pool(8);
        let mut posted = Posted::new(8);
        posted.post(&mut pool, 8, |_| ());
        let mut burst = Burst::new();
        assert_eq!(posted.harvest(&mut burst, 8, |i| (i < 2).then_some(60)), 2);
        assert_eq!(posted.harvest(&mut burst, 8, |_| Some(DATA_ROOM + 1)), 0);
        assert_eq!(posted.harvest(&mut burst, 8, |_| Some(DATA_ROOM)), 6);
        assert_eq!(burst.iter().map(Frame::len).collect::<Vec<_>>(), [60, 60, 2048, 2048, 2048, 2048, 2048, 2048]);
    }

    #[test]
    fn a_full_burst_takes_no_more() {
        let mut pool = pool(64);
        let mut posted = Posted::new(32);
        let mut burst = Burst::new();
        pool.take_burst(&mut burst);
        burst.truncate(30);
        posted.post(&mut pool, 32, |_| ());
        assert_eq!(posted.harvest(&mut burst, 32, |_| Some(1)), 2);
        assert!(burst.is_full());
    }

    #[test]
    fn what_is_leaked_does_not_come_home() {
        let mut pool = pool(4);
        let mut posted = Posted::new(4);
        posted.post(&mut pool, 3, |_| ());
        posted.leak();
        drop(posted);
        assert_eq!(pool.available(), 1);
    }
}
