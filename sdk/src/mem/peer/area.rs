//! A ring's memory, seen as atomics.
#![expect(unsafe_code, reason = "atomic access to memory that another process writes too")]

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use super::{PeerMemory, PeerSlice};

/// A part of a peer's memory that both sides write: a ring. It keeps the memory mapped.
///
/// References to atomics say of memory only that it is there and aligned, never that it does not change.
///
/// # Invariant
///
/// `len` bytes from `base` on lie in a region of `memory`.
pub struct PeerArea {
    base: NonNull<u8>,
    len: usize,
    guest: u64,
    memory: Arc<PeerMemory>,
}

// SAFETY: the memory stays mapped while `memory` lives, on whichever thread.
unsafe impl Send for PeerArea {}
// SAFETY: it gives out atomics only.
unsafe impl Sync for PeerArea {}

impl PeerArea {
    /// # Safety
    ///
    /// `slice` lies in a region of `memory`.
    pub(super) unsafe fn new(slice: PeerSlice<'_>, guest: u64, memory: Arc<PeerMemory>) -> Self {
        Self { base: slice.as_ptr(), len: slice.len(), guest, memory }
    }

    /// Where the peer has it, as its rings would say it.
    pub fn guest(&self) -> u64 {
        self.guest
    }

    /// Bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What it is a part of.
    pub fn memory(&self) -> &Arc<PeerMemory> {
        &self.memory
    }

    /// Whether it starts at a multiple of `bytes`, a power of two up to 4,096: what the mapping changes of an address is whole
    /// pages, so then it does in the peer too.
    pub fn is_aligned(&self, bytes: usize) -> bool {
        self.base.as_ptr().addr().is_multiple_of(bytes)
    }

    /// `n` bytes from byte `offset` on.
    ///
    /// # Panics
    ///
    /// If they are not all inside.
    #[inline(always)]
    pub fn u8s(&self, offset: usize, n: usize) -> &[AtomicU8] {
        let first = self.cells::<AtomicU8>(offset, n);
        // SAFETY: `n` bytes are there (`cells`), as long as `self`.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), n) }
    }

    /// `n` words of 16 bits from byte `offset` on.
    ///
    /// # Panics
    ///
    /// If they are not all inside, or not aligned.
    #[inline(always)]
    pub fn u16s(&self, offset: usize, n: usize) -> &[AtomicU16] {
        let first = self.cells::<AtomicU16>(offset, n);
        // SAFETY: `n` aligned words are there (`cells`), as long as `self`.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), n) }
    }

    /// `n` words of 32 bits from byte `offset` on.
    ///
    /// # Panics
    ///
    /// As [`u16s`](Self::u16s).
    #[inline(always)]
    pub fn u32s(&self, offset: usize, n: usize) -> &[AtomicU32] {
        let first = self.cells::<AtomicU32>(offset, n);
        // SAFETY: `n` aligned words are there (`cells`), as long as `self`.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), n) }
    }

    /// `n` words of 64 bits from byte `offset` on.
    ///
    /// # Panics
    ///
    /// As [`u16s`](Self::u16s).
    #[inline(always)]
    pub fn u64s(&self, offset: usize, n: usize) -> &[AtomicU64] {
        let first = self.cells::<AtomicU64>(offset, n);
        // SAFETY: `n` aligned words are there (`cells`), as long as `self`.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), n) }
    }

    #[inline(always)]
    fn cells<T>(&self, offset: usize, n: usize) -> NonNull<T> {
        let room = self.len.checked_sub(offset).map_or(0, |bytes| bytes / size_of::<T>());
        assert!(n <= room && offset <= self.len, "words beyond the end of a ring's memory");
        // SAFETY: `offset` is at most the length.
        let first = unsafe { self.base.add(offset) };
        assert!(first.as_ptr().addr().is_multiple_of(align_of::<T>()), "words that are not aligned");
        first.cast()
    }
}

impl fmt::Debug for PeerArea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerArea").field("len", &self.len).finish_non_exhaustive()
    }
}
