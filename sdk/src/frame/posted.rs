//! Empty frames that a receive ring has given to its device.
#![expect(unsafe_code, reason = "frames move by value between pool, ring and burst, several at a time")]

use std::mem::{ManuallyDrop, MaybeUninit};

use super::{Burst, DATA_ROOM, Frame, Pool, Verdicts};
use crate::dma::Iova;

/// The empty frames that a receive ring has given to its device, oldest first: a queue with as many places as the ring
/// has descriptors, so that position `p` belongs to descriptor `p`, both modulo the length.
///
/// Frames come in by [`post`](Self::post), straight from a pool, and leave by [`harvest`](Self::harvest), with the
/// lengths that the device reported. Positions count up for ever. What a descriptor is, the driver knows.
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

    /// Moves empty frames from `pool` to the tail, one for each of `descriptors`, and calls `give` with both the descriptor
    /// and the address of its frame's data. Goes no further than the array's end. Returns how many; fewer when the pool is
    /// dry or the places run out.
    #[inline(always)]
    pub fn post<D>(&mut self, pool: &mut Pool, descriptors: &[D], mut give: impl FnMut(&D, Iova)) -> usize {
        let at = self.tail & (self.places.len() - 1);
        let room = (self.places.len() - self.len()).min(self.places.len() - at);
        let buffers = pool.last_free(descriptors.len().min(room));
        let posted = buffers.list.len();
        for ((place, &buffer), descriptor) in self.places[at..].iter_mut().zip(buffers.list).zip(descriptors) {
            // SAFETY: a free buffer of that pool, which leaves its list below (`forget_last`).
            place.write(unsafe { Frame::empty(buffer, buffers.pool) });
            give(descriptor, buffers.iova(buffer));
        }
        // A panic of `give` leaves the buffers with the pool: until here they have not moved.
        // SAFETY: as many of the last free buffers now belong to frames in `places`: there was a place and a descriptor
        // for each.
        unsafe { pool.forget_last(posted) };
        self.tail += posted;
        posted
    }

    /// Moves frames from the head to `burst`, as long as `filled` tells of the next of `descriptors` how many bytes the
    /// device put into its frame. Goes no further than the array's end and the burst's room, and stops at a length beyond
    /// a buffer's room. Returns how many frames, and their bytes.
    #[inline(always)]
    pub fn harvest<D>(
        &mut self,
        burst: &mut Burst,
        descriptors: &[D],
        filled: impl FnMut(&D) -> Option<usize>,
    ) -> (usize, usize) {
        self.harvest_if(burst, descriptors, filled, |_| true)
    }

    /// As [`harvest`](Self::harvest), for a device that puts `N` bytes in front of each frame: moves those about which
    /// `verdicts` makes something of these bytes, and stops at the first other.
    #[inline(always)]
    pub fn harvest_headed<D, const N: usize>(
        &mut self,
        burst: &mut Burst,
        descriptors: &[D],
        filled: impl FnMut(&D) -> Option<usize>,
        mut verdicts: impl FnMut(&[u8; N]) -> Option<Verdicts>,
    ) -> (usize, usize) {
        // The bytes are looked at where the frame stands, so nothing has moved if they are odd.
        self.harvest_if(burst, descriptors, filled, |frame| match frame.headroom().and_then(&mut verdicts) {
            Some(verdicts) => {
                frame.set_verdicts(verdicts);
                true
            }
            None => false,
        })
    }

    /// Moves frames that are filled, as long as `accept` takes them.
    #[inline(always)]
    fn harvest_if<D>(
        &mut self,
        burst: &mut Burst,
        descriptors: &[D],
        mut filled: impl FnMut(&D) -> Option<usize>,
        mut accept: impl FnMut(&mut Frame) -> bool,
    ) -> (usize, usize) {
        let at = self.head & (self.places.len() - 1);
        let n = self.len().min(self.places.len() - at).min(burst.remaining_capacity());
        // SAFETY: the burst's first `len` frames are initialised, so this stays inside its array.
        let to = unsafe { burst.as_mut_ptr().add(burst.len()) };
        let (mut moved, mut bytes) = (0, 0);
        for (place, descriptor) in self.places[at..at + n].iter().zip(descriptors) {
            let Some(len) = filled(descriptor) else { break };
            if len > DATA_ROOM {
                break;
            }
            // SAFETY: a place between head and tail holds a frame (type invariant), which leaves the queue below; until then
            // this copy is not dropped, whatever `accept` does.
            let frame = unsafe { place.assume_init_read() };
            let mut frame = ManuallyDrop::new(frame.filled_from_empty(len));
            if !accept(&mut frame) {
                break;
            }
            // SAFETY: the burst has room for `n` more frames.
            let to = unsafe { to.add(moved) };
            // SAFETY: inside the burst's array, on a place that holds no frame.
            unsafe { to.write(ManuallyDrop::into_inner(frame)) };
            moved += 1;
            bytes += len;
        }
        // A panic of either closure leaves the frames in the queue: until here neither end has moved.
        self.head += moved;
        // SAFETY: `moved` more frames were written behind the burst's last.
        unsafe { burst.set_len(burst.len() + moved) };
        (moved, bytes)
    }

    /// Takes the frame at `position`, still empty, and puts another from `pool` in its place: for a device that is done with
    /// frames in another order than it got them. `None`, and no change, when there is no frame at that position or the pool
    /// is dry.
    pub fn replace(&mut self, position: usize, pool: &mut Pool) -> Option<Frame> {
        if position.wrapping_sub(self.head) >= self.len() {
            return None;
        }
        let fresh = pool.take()?;
        let place = &mut self.places[position & (self.places.len() - 1)];
        // SAFETY: a place between head and tail holds a frame (type invariant), which is overwritten by the next line.
        let frame = unsafe { place.assume_init_read() };
        place.write(fresh);
        Some(frame)
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
    use super::super::{Checksum, PoolConfig};
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
            posted.post(&mut pool, &[(); 3], |(), iova| given.push_back(iova));
            let first = next_len;
            posted.harvest(&mut burst, &[0, 1], |i| Some(first + i));
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
        assert_eq!(posted.post(&mut scarce, &[(); 4], |(), _| ()), 2);
        assert_eq!(posted.post(&mut plenty, &[(); 4], |(), _| ()), 2);
        assert_eq!(posted.post(&mut plenty, &[(); 4], |(), _| ()), 0);
        assert_eq!((posted.len(), posted.head(), posted.tail()), (4, 0, 4));
        drop(posted);
        assert_eq!((scarce.available(), plenty.available()), (2, 16));
    }

    #[test]
    fn a_harvest_ends_where_the_device_does_or_lies() {
        let mut pool = pool(8);
        let mut posted = Posted::new(8);
        posted.post(&mut pool, &[(); 8], |(), _| ());
        let mut burst = Burst::new();
        assert_eq!(posted.harvest(&mut burst, &[60, 60, 0], |&len| (len > 0).then_some(len)), (2, 120));
        assert_eq!(posted.harvest(&mut burst, &[(); 8], |()| Some(DATA_ROOM + 1)), (0, 0));
        assert_eq!(posted.harvest(&mut burst, &[(); 8], |()| Some(DATA_ROOM)), (6, 6 * DATA_ROOM));
        assert_eq!(burst.iter().map(Frame::len).collect::<Vec<_>>(), [60, 60, 2048, 2048, 2048, 2048, 2048, 2048]);
    }

    #[test]
    fn a_full_burst_takes_no_more() {
        let mut pool = pool(64);
        let mut posted = Posted::new(32);
        let mut burst = Burst::new();
        pool.take_burst(&mut burst);
        burst.truncate(30);
        posted.post(&mut pool, &[(); 32], |(), _| ());
        assert_eq!(posted.harvest(&mut burst, &[(); 32], |()| Some(1)), (2, 2));
        assert!(burst.is_full());
    }

    #[test]
    fn what_stands_in_front_of_a_frame_decides_and_is_noted() {
        let mut pool = pool(8);
        let mut frames = Burst::<4>::new();
        pool.take_burst(&mut frames);
        for (frame, number) in frames.iter_mut().zip(0..) {
            frame.prepend(2).unwrap().copy_from_slice(&[7, number]);
        }
        pool.give_burst(&mut frames);
        let mut posted = Posted::new(4);
        posted.post(&mut pool, &[(); 4], |(), _| ());
        let mut burst = Burst::new();
        let good = Verdicts::new(Checksum::Unknown, Checksum::Good);
        let mut seen = 0;
        let moved = posted.harvest_headed(
            &mut burst,
            &[(); 4],
            |()| Some(60),
            |bytes: &[u8; 2]| {
                seen += usize::from(bytes[0]);
                (bytes[1] < 4).then_some(good)
            },
        );
        assert_eq!((moved, seen), ((4, 240), 28));
        assert!(burst.iter().all(|frame| frame.len() == 60 && frame.l4_checksum() == Checksum::Good));
        posted.post(&mut pool, &[(); 2], |(), _| ());
        assert_eq!(posted.harvest_headed(&mut burst, &[(); 2], |()| Some(1), |_: &[u8; 12]| None), (0, 0));
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            posted.harvest_headed(&mut burst, &[(); 2], |()| Some(1), |_: &[u8; 12]| panic!("on purpose"))
        }));
        assert!(panic.is_err());
        assert_eq!((posted.len(), burst.len()), (2, 4));
        drop((posted, burst));
        assert_eq!(pool.available(), 8);
    }

    #[test]
    fn a_frame_in_the_middle_is_replaced() {
        let mut pool = pool(4);
        let mut posted = Posted::new(4);
        let mut given = Vec::new();
        posted.post(&mut pool, &[(); 3], |(), iova| given.push(iova));
        let frame = posted.replace(1, &mut pool).unwrap();
        assert_eq!(pool.iova(&frame), given[1]);
        assert!(posted.replace(1, &mut pool).is_none(), "the pool is dry");
        pool.give(frame);
        assert!(posted.replace(3, &mut pool).is_none() && posted.replace(usize::MAX, &mut pool).is_none());
        assert_eq!(posted.len(), 3);
        drop(posted);
        assert_eq!(pool.available(), 4);
    }

    #[test]
    fn what_is_leaked_does_not_come_home() {
        let mut pool = pool(4);
        let mut posted = Posted::new(4);
        posted.post(&mut pool, &[(); 3], |(), _| ());
        posted.leak();
        drop(posted);
        assert_eq!(pool.available(), 1);
    }
}
