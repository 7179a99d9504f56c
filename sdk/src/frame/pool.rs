//! A pool: the buffers that frames are made of.
#![expect(unsafe_code, reason = "makes frames out of free buffers")]

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use super::handle::flag;
use super::header::{Home, MAX_POOLS};
use super::layout::Layout;
use super::{Burst, Frame, HEADROOM};
use crate::dma::{DmaError, Domain, Iova};
use crate::mem::{MemRequest, PageSize};

/// How a pool shall be.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// Frames in it. Enough for every ring that it fills, and for those in the program's hands: four times the rings'
    /// descriptors is comfortable.
    pub frames: usize,
    /// NUMA node whose memory is wanted: that of the worker and its devices.
    pub node: Option<usize>,
    /// Refuse to run on ordinary pages when hugepages are short.
    pub require_hugepages: bool,
}

impl Default for PoolConfig {
    /// 8,192 frames (18 MiB) on any node, on ordinary pages if need be.
    fn default() -> Self {
        Self { frames: 8192, node: None, require_hugepages: false }
    }
}

/// A pool could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Memory or its mapping was refused.
    #[error("a pool of {frames} frames: {source}")]
    Dma {
        /// Frames wanted.
        frames: usize,
        /// Why.
        source: DmaError,
    },
    /// A size out of range.
    #[error("a pool of {frames} frames is out of range: 1 to 16,777,216 are possible")]
    Size {
        /// Frames wanted.
        frames: usize,
    },
    /// Too many pools.
    #[error("this process has {MAX_POOLS} pools already; give each worker one")]
    TooMany,
}

/// The buffers that one worker's frames are made of.
///
/// Owned by one worker at a time (`Send`, not `Sync`): taking and giving are plain memory accesses, last in, first out,
/// so that the buffer taken next is the one most likely still in the cache.
///
/// # Invariant
///
/// `free` holds buffers of `home` that belong to nobody else; it has room for all of them, so it never grows.
#[derive(Debug)]
pub struct Pool {
    free: Vec<NonNull<u8>>,
    id: u16,
    distance: u64,
    frames: usize,
    domain: Domain,
}

// SAFETY: the free buffers belong to the pool, not to a thread.
unsafe impl Send for Pool {}

impl Pool {
    /// A pool in the program's [global](Domain::global) domain.
    ///
    /// # Errors
    ///
    /// When there is no memory for it, or a device's IOMMU refuses it.
    pub fn new(config: &PoolConfig) -> Result<Self, PoolError> {
        Self::new_in(Domain::global(), config)
    }

    /// A pool in `domain`.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn new_in(domain: &Domain, config: &PoolConfig) -> Result<Self, PoolError> {
        let frames = config.frames;
        if frames == 0 || frames > 1 << 24 {
            return Err(PoolError::Size { frames });
        }
        let alloc = |page: PageSize| {
            let request = MemRequest::new(Layout::of(page).bytes(frames)).page(page);
            let request = request.node(config.node).fallback(!config.require_hugepages);
            domain.alloc(&request).map_err(|source| PoolError::Dma { frames, source })
        };
        let mut region = alloc(PageSize::Huge2M)?;
        if region.len() < Layout::of(region.page_size()).bytes(frames) {
            // It came in ordinary pages, which hold fewer buffers.
            drop(region);
            region = alloc(PageSize::Ordinary)?;
        }
        let distance = region.distance();
        let home = Home::create(region, frames).ok_or(PoolError::TooMany)?;
        // SAFETY: just created, and alive at least as long as this pool.
        let home = unsafe { home.as_ref() };
        // The lowest address comes off the stack first.
        let free = (0..frames).rev().map(|index| home.buffer(index)).collect();
        Ok(Self { free, id: home.id(), distance, frames, domain: domain.clone() })
    }

    /// Frames it has in all.
    pub fn capacity(&self) -> usize {
        self.frames
    }

    /// Whose devices reach its frames. A driver compares it with its device's domain before it gives the device any address
    /// of this pool's: in another domain the same address is other memory.
    #[inline(always)]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Frames that are home now, after fetching those that were dropped elsewhere.
    pub fn available(&mut self) -> usize {
        self.collect();
        self.free.len()
    }

    /// Takes an empty frame; `None` when all are out.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        if self.free.is_empty() {
            self.collect();
        }
        let buffer = self.free.pop()?;
        // SAFETY: a free buffer of this pool, which now belongs to the frame (type invariant).
        Some(unsafe { Frame::empty(buffer, self.id) })
    }

    /// Fills `burst` with empty frames as far as there are any; returns how many it added.
    #[inline]
    pub fn take_burst<const N: usize>(&mut self, burst: &mut Burst<N>) -> usize {
        self.take_some(burst, N)
    }

    /// Adds `most` empty frames to `burst`, or as many as it has room for and there are; returns how many.
    #[inline]
    pub fn take_some<const N: usize>(&mut self, burst: &mut Burst<N>, most: usize) -> usize {
        let buffers = self.last_free(burst.remaining_capacity().min(most));
        let n = buffers.list.len();
        // SAFETY: the burst's first `len` frames are initialised, so this stays inside its array.
        let to = unsafe { burst.as_mut_ptr().add(burst.len()) };
        for (i, &buffer) in buffers.list.iter().enumerate() {
            // SAFETY: the burst has room for `n` more frames.
            let to = unsafe { to.add(i) };
            // SAFETY: a free buffer of this pool, which leaves its list below.
            let frame = unsafe { Frame::empty(buffer, buffers.pool) };
            // SAFETY: inside the burst's array, on a place that holds no frame.
            unsafe { to.write(frame) };
        }
        // SAFETY: `n` frames were written behind the burst's last.
        unsafe { burst.set_len(burst.len() + n) };
        // SAFETY: the last `n` free buffers now belong to those frames.
        unsafe { self.forget_last(n) };
        n
    }

    /// Gives a frame back. One of another pool goes home to that one.
    #[inline]
    pub fn give(&mut self, frame: Frame) {
        if frame.is_of(self.id, flag::CHAINED) {
            self.free.push(frame.into_buffer());
        } else {
            self.give_slowly(frame);
        }
    }

    /// Gives back all frames of `burst`, which is empty afterwards.
    #[inline]
    pub fn give_burst<const N: usize>(&mut self, burst: &mut Burst<N>) {
        let n = burst.len();
        // SAFETY: from here on the burst owns no frame.
        unsafe { burst.set_len(0) };
        // Only now: a pointer into the burst must not be older than an exclusive use of it.
        let frames = burst.as_ptr().cast();
        // SAFETY: `n` frames that nobody else owns now; the array lives as long as the burst.
        let frames = unsafe { std::slice::from_raw_parts(frames, n) };
        // SAFETY: as above.
        unsafe { self.give_run(frames) };
    }

    /// Where a device of this pool's domain finds the data of `frame`'s first segment. Any pool's frame will do, if that
    /// pool is in the same domain.
    ///
    /// # Panics
    ///
    /// If the frame's pool is in another domain: no device of this one reaches it.
    #[inline]
    pub fn iova(&self, frame: &Frame) -> Iova {
        let distance = if frame.pool() == self.id { self.distance } else { foreign_distance(frame, &self.domain) };
        Iova::of_buffer(frame.data_ptr().as_ptr() as usize, distance)
    }

    /// Where a device of this pool's domain finds the data of `frame`, if it needs nothing but sending: no chain, no VLAN
    /// tag, no checksum.
    ///
    /// # Panics
    ///
    /// As [`iova`](Self::iova).
    #[inline(always)]
    pub fn plain_iova(&self, frame: &Frame) -> Option<Iova> {
        if frame.is_of(self.id, flag::CARE) {
            return Some(Iova::of_buffer(frame.data_ptr().as_ptr() as usize, self.distance));
        }
        if frame.needs_care() { None } else { Some(self.iova(frame)) }
    }

    /// The free buffers that were given back last, `most` of them or all that are home.
    #[inline(always)]
    pub(super) fn last_free(&mut self, most: usize) -> LastFree<'_> {
        if self.free.len() < most {
            self.collect();
        }
        let from = self.free.len().saturating_sub(most);
        LastFree { list: &self.free[from..], pool: self.id, distance: self.distance }
    }

    /// Takes the last `n` buffers off the list of free ones.
    ///
    /// # Safety
    ///
    /// There are that many, and each now belongs to one frame.
    #[inline(always)]
    pub(super) unsafe fn forget_last(&mut self, n: usize) {
        debug_assert!(n <= self.free.len());
        // SAFETY: shorter than before (the caller's promise).
        unsafe { self.free.set_len(self.free.len() - n) };
    }

    /// Gives back the frames in `places`.
    ///
    /// # Safety
    ///
    /// Each place holds a frame that nobody else owns, and that is not used again.
    #[inline(always)]
    pub(super) unsafe fn give_run(&mut self, places: &[MaybeUninit<Frame>]) {
        let id = self.id;
        let mut len = self.free.len();
        // Never moves: the list has room for all buffers of this pool (type invariant).
        let free = self.free.as_mut_ptr();
        for place in places {
            // SAFETY: the place holds a frame (the caller's promise).
            let frame = unsafe { place.assume_init_read() };
            if frame.is_of(id, flag::CHAINED) {
                // SAFETY: this buffer is out, so fewer than all are on the list.
                let to = unsafe { free.add(len) };
                // SAFETY: inside the list's memory (above).
                unsafe { to.write(frame.into_buffer()) };
                len += 1;
            } else {
                // SAFETY: `len` buffers have been written.
                unsafe { self.free.set_len(len) };
                self.give_slowly(frame);
                len = self.free.len();
            }
        }
        // SAFETY: `len` buffers have been written.
        unsafe { self.free.set_len(len) };
    }

    #[cold]
    #[inline(never)]
    fn give_slowly(&mut self, mut frame: Frame) {
        while let Some(rest) = frame.unchain() {
            if frame.pool() == self.id {
                self.free.push(frame.into_buffer());
            }
            frame = rest;
        }
        if frame.pool() == self.id {
            self.free.push(frame.into_buffer());
        }
    }

    #[cold]
    #[inline(never)]
    fn collect(&mut self) {
        // SAFETY: the home lives while this pool does.
        let home = unsafe { Home::of(self.id).as_ref() };
        home.collect(&mut self.free);
    }
}

/// Free buffers of a pool, about to be taken.
pub(super) struct LastFree<'a> {
    pub(super) list: &'a [NonNull<u8>],
    pub(super) pool: u16,
    distance: u64,
}

impl LastFree<'_> {
    /// Where a device finds the data of an empty frame in `buffer`.
    #[inline(always)]
    pub(super) fn iova(&self, buffer: NonNull<u8>) -> Iova {
        Iova::of_buffer(buffer.as_ptr() as usize + HEADROOM, self.distance)
    }
}

#[cold]
#[inline(never)]
fn foreign_distance(frame: &Frame, domain: &Domain) -> u64 {
    let region = &frame.home().region;
    assert!(region.domain() == domain, "a frame whose pool is in another DMA domain than its device");
    region.distance()
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the owner, once, and the last use.
        unsafe { Home::abandon(Home::of(self.id), self.frames - self.free.len()) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{Cut, DATA_ROOM, L4Checksum, Segmentation};
    use super::*;

    fn pool(frames: usize) -> Pool {
        Pool::new_in(&Domain::new(), &PoolConfig { frames, ..PoolConfig::default() }).expect("memory for a small pool")
    }

    #[test]
    fn a_frame_is_sixteen_bytes_even_when_it_may_be_missing() {
        assert_eq!(size_of::<Option<Frame>>(), 16);
    }

    #[test]
    fn every_frame_has_a_buffer_of_its_own() {
        let mut pool = pool(8);
        let mut frames: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(frames.len(), 8);
        for (i, frame) in frames.iter_mut().enumerate() {
            frame.copy_from(&[i as u8; DATA_ROOM]);
        }
        assert!(frames.iter().enumerate().all(|(i, f)| f.data().iter().all(|b| *b == i as u8)));
        drop(frames);
        assert_eq!(pool.available(), 8);
    }

    #[test]
    fn frames_come_home_from_other_threads_and_from_chains() {
        let mut pool = pool(16);
        let mut head = pool.take().unwrap();
        for _ in 0..4 {
            head.chain(pool.take().unwrap());
        }
        assert_eq!(head.segments().count(), 5);
        let other = pool.take().unwrap();
        std::thread::spawn(move || drop((head, other))).join().unwrap();
        assert_eq!(pool.available(), 16);

        let mut head = pool.take().unwrap();
        head.chain(pool.take().unwrap());
        pool.give(head);
        assert_eq!(pool.free.len(), 16);
    }

    #[test]
    fn a_frame_outlives_its_pool() {
        let mut pool = pool(2);
        let (mut a, b) = (pool.take().unwrap(), pool.take().unwrap());
        drop(pool);
        a.copy_from(b"still here");
        drop(b);
        assert_eq!(a.data(), b"still here");
    }

    #[test]
    fn a_frame_of_another_pool_goes_home_to_that_one() {
        let config = PoolConfig { frames: 4, ..PoolConfig::default() };
        let domain = Domain::new();
        let [mut a, mut b] = [(); 2].map(|()| Pool::new_in(&domain, &config).unwrap());
        a.give(b.take().unwrap());
        assert_eq!((a.available(), b.available()), (4, 4));
        let frame = b.take().unwrap();
        assert_eq!(a.iova(&frame), b.iova(&frame));
    }

    #[test]
    #[should_panic(expected = "in another DMA domain")]
    fn a_frame_of_another_domain_has_no_address() {
        let (a, mut b) = (pool(4), pool(4));
        a.iova(&b.take().unwrap());
    }

    /// What one thread does to a frame before it drops it: everything that its next owner must not see.
    fn spoil(frame: &mut Frame, with: u16) {
        frame.copy_from(&with.to_ne_bytes().repeat(100));
        frame.set_vlan(Some(with));
        frame.set_rss_hash(with.into());
        assert_eq!((frame.vlan(), frame.rss_hash()), (Some(with), Some(with.into())));
        assert!(frame.segments().all(|segment| segment.data().chunks(2).all(|pair| *pair == with.to_ne_bytes())));
    }

    #[test]
    fn frames_keep_coming_home_while_others_are_taken() {
        const FRAMES: usize = 64;
        const ROUNDS: u16 = 2000;
        let domain = Domain::new();
        let config = PoolConfig { frames: FRAMES, ..PoolConfig::default() };
        let [mut pool, mut other] = [(); 2].map(|()| Pool::new_in(&domain, &config).unwrap());
        std::thread::scope(|scope| {
            let hands = [(); 3].map(|()| {
                let (give, take) = std::sync::mpsc::sync_channel::<Burst>(2);
                scope.spawn(move || {
                    for (round, mut burst) in take.iter().enumerate() {
                        for frame in &mut burst {
                            spoil(frame, round as u16);
                        }
                    }
                });
                give
            });
            for round in 0..ROUNDS {
                let mut burst = Burst::new();
                pool.take_burst(&mut burst);
                for frame in &mut burst {
                    assert_eq!((frame.len(), frame.vlan(), frame.rss_hash()), (0, None, None));
                    assert!(!frame.is_chained() && frame.unchain().is_none());
                    spoil(frame, round);
                    frame.set_len(0);
                }
                // Chains of both pools go and come home as single frames.
                if let (Some(head), Some(tail)) = (burst.first_mut(), other.take()) {
                    head.chain(tail);
                }
                if round % 7 == 0 {
                    other.give_burst(&mut burst);
                }
                hands[usize::from(round) % hands.len()].send(burst).unwrap();
            }
        });
        assert_eq!((pool.available(), other.available()), (FRAMES, FRAMES));
    }

    #[test]
    fn pools_may_go_before_after_and_while_their_frames_do() {
        const ROUNDS: usize = 300;
        let domain = Domain::new();
        for round in 0..ROUNDS {
            let config = PoolConfig { frames: 8, ..PoolConfig::default() };
            let mut pool = Pool::new_in(&domain, &config).unwrap();
            let mut frames: Vec<_> = std::iter::from_fn(|| pool.take()).take(round % 9).collect();
            let rest = frames.split_off(frames.len() / 2);
            std::thread::scope(|scope| {
                scope.spawn(move || drop(frames));
                scope.spawn(move || drop(pool));
                scope.spawn(move || drop(rest));
            });
        }
        assert_eq!(domain.mapped_regions(), 0);
    }

    #[test]
    fn a_panic_drops_the_frames_in_its_hands_like_any_other() {
        let mut pool = pool(4);
        let mut head = pool.take().unwrap();
        head.chain(pool.take().unwrap());
        let loose = pool.take().unwrap();
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let mut frames = [head, loose];
            frames[1].set_len(1 << 20);
        }));
        assert!(panic.is_err());
        assert_eq!(pool.available(), 4);
    }

    #[test]
    fn bursts_move_both_ways() {
        let mut pool = pool(40);
        let mut burst = Burst::<32>::new();
        assert_eq!(pool.take_burst(&mut burst), 32);
        let mut rest = Burst::<32>::new();
        assert_eq!((pool.take_some(&mut rest, 3), pool.take_burst(&mut rest)), (3, 5));
        pool.give_burst(&mut burst);
        pool.give_burst(&mut rest);
        assert_eq!(pool.available(), 40);
    }

    #[test]
    fn headroom_is_for_headers_and_is_bounded() {
        let mut pool = pool(1);
        let mut frame = pool.take().unwrap();
        frame.copy_from(b"payload");
        frame.prepend(4).unwrap().copy_from_slice(b"head");
        assert_eq!(frame.data(), b"headpayload");
        assert!(frame.prepend(HEADROOM).is_none());
        assert!(frame.trim_front(4) && !frame.trim_front(100));
        assert_eq!(frame.data(), b"payload");
    }

    #[test]
    fn extras_are_there_only_when_set() {
        let mut pool = pool(1);
        let mut frame = pool.take().unwrap();
        assert_eq!((frame.vlan(), frame.rss_hash(), frame.requested_checksums()), (None, None, None));
        frame.set_vlan(Some(0x2001));
        frame.set_rss_hash(7);
        frame.request_checksums(14, 20, true, L4Checksum::Tcp);
        assert_eq!((frame.vlan(), frame.rss_hash()), (Some(0x2001), Some(7)));
        assert_eq!(frame.requested_checksums(), Some((14, 20, true, L4Checksum::Tcp)));
        assert_eq!(frame.requested_segmentation(), None);
        let cut = Segmentation { cut: Cut::Tcp4, payload: 1448, ecn: false };
        frame.request_segmentation(Some(cut));
        assert_eq!(frame.requested_segmentation(), Some(cut));
        pool.give(frame);
        assert!(!pool.take().unwrap().needs_care());
    }

    #[test]
    fn a_pool_out_of_range_is_refused() {
        let config = PoolConfig { frames: 0, ..PoolConfig::default() };
        assert!(matches!(Pool::new_in(&Domain::new(), &config), Err(PoolError::Size { frames: 0 })));
    }
}
