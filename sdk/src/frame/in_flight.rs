//! Frames that a transmit ring has given to its device.
#![expect(unsafe_code, reason = "frames move by value between burst, ring and pool, several at a time")]

use std::mem::MaybeUninit;
use std::ptr;

use super::{Burst, Frame, Pool};

/// Frames that a transmit ring has given to its device, oldest first.
///
/// # Invariant
///
/// Places `head .. tail` (modulo the length, a power of two) hold frames; `tail - head` is at most the length.
#[derive(Debug)]
pub struct InFlight {
    places: Box<[MaybeUninit<Frame>]>,
    head: usize,
    tail: usize,
}

impl InFlight {
    /// A queue of `len` places, all free.
    ///
    /// # Panics
    ///
    /// If `len` is not a power of two.
    pub fn new(len: usize) -> Self {
        assert!(len.is_power_of_two(), "a ring of {len} places: the length must be a power of two");
        Self { places: (0..len).map(|_| MaybeUninit::uninit()).collect(), head: 0, tail: 0 }
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

    /// Adds a frame.
    ///
    /// # Panics
    ///
    /// If all places are taken.
    pub fn push(&mut self, frame: Frame) {
        assert!(self.len() < self.places.len(), "a place for each frame");
        let at = self.tail & (self.places.len() - 1);
        self.places[at].write(frame);
        self.tail += 1;
    }

    /// Moves the first `n` frames of `burst` in; the rest of the burst moves up.
    ///
    /// # Panics
    ///
    /// If the burst has fewer, or there are not enough places.
    #[inline(always)]
    pub fn push_from(&mut self, burst: &mut Burst, n: usize) {
        let len = self.places.len();
        assert!(n <= burst.len() && n <= len - self.len(), "a place for each frame");
        let at = self.tail & (len - 1);
        let first = n.min(len - at);
        let rest = burst.len() - n;
        // SAFETY: from here on the burst owns no frame; a panic could only lose some.
        unsafe { burst.set_len(0) };
        // Only now: a pointer into the burst must not be older than an exclusive use of it.
        let from = burst.as_mut_ptr();
        let places = self.places.as_mut_ptr().cast::<Frame>();
        // SAFETY: `at` is a place.
        let to = unsafe { places.add(at) };
        // SAFETY: `first` frames of the burst, to places up to the array's end that hold none (type invariant).
        unsafe { ptr::copy_nonoverlapping(from, to, first) };
        // SAFETY: the burst has `n` frames.
        let wrapped = unsafe { from.add(first) };
        // SAFETY: the others of the `n`, to places from the array's start that hold none (type invariant).
        unsafe { ptr::copy_nonoverlapping(wrapped, places, n - first) };
        self.tail += n;
        if rest > 0 {
            // SAFETY: the burst had `n + rest` frames.
            let behind = unsafe { from.add(n) };
            // SAFETY: `rest` frames, to the front of the same array; the ones there have moved out.
            unsafe { ptr::copy(behind, from, rest) };
            // SAFETY: those are all that it owns now.
            unsafe { burst.set_len(rest) };
        }
    }

    /// Gives the oldest `n` frames back to `pool`.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    #[inline(always)]
    pub fn give_back(&mut self, pool: &mut Pool, n: usize) {
        assert!(n <= self.len(), "no more frames than there are");
        let mut left = n;
        while left > 0 {
            let at = self.head & (self.places.len() - 1);
            let run = left.min(self.places.len() - at);
            self.head += run;
            left -= run;
            // SAFETY: these places held frames (type invariant), and have just left the queue.
            unsafe { pool.give_run(&self.places[at..at + run]) };
        }
    }

    /// Leaves all frames to the device for good: for one that would not stop.
    pub fn leak(&mut self) {
        self.head = self.tail;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        while self.head != self.tail {
            let place = &self.places[self.head & (self.places.len() - 1)];
            // SAFETY: the place at the head holds a frame (type invariant), which leaves the queue with the next line.
            let frame = unsafe { place.assume_init_read() };
            self.head += 1;
            drop(frame);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::PoolConfig;
    use super::*;
    use crate::dma::Domain;

    fn pool(domain: &Domain) -> Pool {
        let config = PoolConfig { frames: 16, ..PoolConfig::default() };
        Pool::new_in(domain, &config).expect("memory for a small pool")
    }

    /// A burst of frames whose lengths are `lens`.
    fn burst(pool: &mut Pool, lens: std::ops::Range<usize>) -> Burst {
        lens.map_while(|len| {
            let mut frame = pool.take()?;
            frame.set_len(len);
            Some(frame)
        })
        .collect()
    }

    #[test]
    fn frames_go_home_in_order_across_the_end_of_the_ring() {
        let mut pool = pool(&Domain::new());
        let mut in_flight = InFlight::new(8);
        for _ in 0..20 {
            let mut frames = burst(&mut pool, 1..6);
            in_flight.push_from(&mut frames, 3);
            assert_eq!(frames.iter().map(Frame::len).collect::<Vec<_>>(), [4, 5]);
            in_flight.push_from(&mut frames, 2);
            assert!(frames.is_empty() && in_flight.len() == 5);
            in_flight.give_back(&mut pool, 5);
        }
        assert_eq!(pool.available(), 16);
    }

    #[test]
    fn chains_and_frames_of_other_pools_go_home_too() {
        let domain = Domain::new();
        let (mut pool, mut other) = (pool(&domain), pool(&domain));
        let mut in_flight = InFlight::new(8);
        let mut chain = pool.take().unwrap();
        chain.chain(other.take().unwrap());
        chain.chain(pool.take().unwrap());
        in_flight.push(chain);
        in_flight.push(other.take().unwrap());
        in_flight.push(pool.take().unwrap());
        in_flight.give_back(&mut pool, 3);
        assert_eq!((pool.available(), other.available()), (16, 16));
    }

    #[test]
    fn what_is_in_flight_goes_home_when_the_ring_goes() {
        let mut pool = pool(&Domain::new());
        let mut in_flight = InFlight::new(4);
        let mut frames = burst(&mut pool, 1..5);
        in_flight.push_from(&mut frames, 4);
        drop(in_flight);
        assert_eq!(pool.available(), 16);
    }

    #[test]
    #[should_panic(expected = "a place for each frame")]
    fn a_full_ring_takes_no_more() {
        let mut pool = pool(&Domain::new());
        let mut in_flight = InFlight::new(2);
        in_flight.push_from(&mut burst(&mut pool, 1..4), 3);
    }
}
