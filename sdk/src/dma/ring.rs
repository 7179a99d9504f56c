//! Descriptor rings: memory that a driver and its device write in turns.
#![expect(unsafe_code, reason = "atomic access to descriptors that a device owns too")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Attachment, DmaError, DmaRegion, Iova};
use crate::mem::{MemRequest, PageSize};
use crate::sys::relax::Watch;

/// A descriptor: two 64-bit words that a device reads and writes too.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Descriptor([AtomicU64; 2]);

impl Descriptor {
    /// Reads word 0 or 1. Acquire when it tells who owns the descriptor: what the device wrote before it is then visible.
    ///
    /// # Panics
    ///
    /// If `order` is one that loads cannot have: Release or AcqRel.
    #[inline(always)]
    pub fn load(&self, word: usize, order: Ordering) -> u64 {
        self.0[word & 1].load(order)
    }

    /// Writes word 0 or 1. Release when it hands the descriptor over: what was written before it is then visible.
    ///
    /// # Panics
    ///
    /// If `order` is one that stores cannot have: Acquire or AcqRel.
    #[inline(always)]
    pub fn set(&self, word: usize, value: u64, order: Ordering) {
        self.0[word & 1].store(value, order);
    }

    /// Writes both words. The device sees them at the latest at the next
    /// [`Bar::doorbell`](crate::mmio::Bar::doorbell).
    #[inline(always)]
    pub fn store(&self, words: [u64; 2]) {
        self.0[0].store(words[0], Ordering::Relaxed);
        self.0[1].store(words[1], Ordering::Relaxed);
    }
}

/// A ring of 16-byte descriptors shared with a device: two 64-bit words each, read and written as atomics.
///
/// It knows nothing of any device: who owns which descriptor, and what the words mean, is the driver's business. An
/// index is taken modulo the length, so none can be out of bounds.
///
/// No reference ever points at memory that a device owns, with this one exception: descriptors are reached as atomics,
/// because Rust has no other way to make an atomic access. A reference to an atomic says of the memory only that it is there
/// and aligned, never that it does not change.
///
/// # Invariant
///
/// `base` points at `mask + 1` descriptors inside `region`, 16-byte aligned; `mask + 1` is a power of two.
#[derive(Debug)]
pub struct DescRing {
    base: NonNull<u64>,
    mask: usize,
    region: DmaRegion,
}

// SAFETY: the region belongs to `self`, not to a thread.
unsafe impl Send for DescRing {}

impl DescRing {
    /// A zeroed ring of `len` descriptors in memory near `node`, which only the device of `attachment` sees.
    ///
    /// # Errors
    ///
    /// As [`Attachment::alloc`].
    ///
    /// # Panics
    ///
    /// If `len` is not a power of two.
    pub fn new(attachment: &Attachment, len: usize, node: Option<usize>) -> Result<Self, DmaError> {
        assert!(len.is_power_of_two(), "a ring of {len} descriptors: the length must be a power of two");
        // A ring is a few KiB: a hugepage each would waste most of it. What does not fit a usize does not fit memory.
        let len_bytes = len.saturating_mul(16);
        let region = attachment.alloc(&MemRequest::new(len_bytes).page(PageSize::Ordinary).node(node))?;
        Ok(Self { base: region.as_ptr().cast(), mask: len - 1, region })
    }

    /// Descriptors.
    #[inline(always)]
    #[expect(clippy::len_without_is_empty, reason = "a ring has a fixed, non-zero length")]
    pub fn len(&self) -> usize {
        self.mask + 1
    }

    /// Where the device finds descriptor 0.
    pub fn iova(&self) -> Iova {
        self.region.iova(0)
    }

    /// The descriptors from `index` on, at most `most` of them, as far as the ring's end.
    #[inline(always)]
    pub fn run(&self, index: usize, most: usize) -> &[Descriptor] {
        let at = index & self.mask;
        let n = most.min(self.mask + 1 - at);
        // SAFETY: `at` is below `mask + 1`, so the descriptor lies in the region (type invariant).
        let first = unsafe { self.base.cast::<Descriptor>().add(at) };
        // SAFETY: `n` descriptors from there lie in the region, which lives as long as `self`; each is a pair of atomics,
        // so the reference says nothing of what they hold.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), n) }
    }

    /// Reads word `word` (0 or 1) of descriptor `index`. Acquire when it tells who owns the descriptor: what the device
    /// wrote before it is then visible.
    ///
    /// # Panics
    ///
    /// If `order` is one that loads cannot have: Release or AcqRel.
    #[inline(always)]
    pub fn load(&self, index: usize, word: usize, order: Ordering) -> u64 {
        self.word(index, word).load(order)
    }

    /// Writes word `word` (0 or 1) of descriptor `index`. The device sees it at the latest at the next
    /// [`Bar::doorbell`](crate::mmio::Bar::doorbell).
    #[inline(always)]
    pub fn store(&self, index: usize, word: usize, value: u64) {
        self.word(index, word).store(value, Ordering::Relaxed);
    }

    /// The cache line of descriptor `index`, to wait for the device's next write to it. Its neighbours share the line.
    #[inline(always)]
    pub fn watch(&self, index: usize) -> Watch<'_> {
        Watch::on(self.word(index, 0))
    }

    /// Gives the memory up for good: for a device that would not stop.
    pub fn leak(self) {
        self.region.leak();
    }

    #[inline(always)]
    fn word(&self, index: usize, word: usize) -> &AtomicU64 {
        let at = (index & self.mask) * 2 + (word & 1);
        // SAFETY: `at` is below `2 * (mask + 1)`, so the word lies in the region (type invariant).
        let ptr = unsafe { self.base.add(at) };
        // SAFETY: aligned, valid while `self` lives (type invariant), and accessed as an atomic by everyone.
        unsafe { AtomicU64::from_ptr(ptr.as_ptr()) }
    }
}
