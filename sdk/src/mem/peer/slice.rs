//! Bytes of a peer, to be copied in and out.
#![expect(unsafe_code, reason = "memory that another process writes too")]

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

const LINE_BYTES: usize = 64;

/// Some bytes of a peer's memory. The peer may change them at any time, so they are only ever copied.
///
/// # Invariant
///
/// `len` bytes from `ptr` on are mapped, readable and writable, throughout `'a`.
#[derive(Debug, Clone, Copy)]
pub struct PeerSlice<'a> {
    ptr: NonNull<u8>,
    len: usize,
    mapped: PhantomData<&'a ()>,
}

/// A value at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

impl PeerSlice<'_> {
    /// # Safety
    ///
    /// As the type's invariant says.
    #[inline(always)]
    pub(super) unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len, mapped: PhantomData }
    }

    /// Bytes.
    #[inline(always)]
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[inline(always)]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Where it starts.
    #[inline(always)]
    pub(super) fn as_ptr(self) -> NonNull<u8> {
        self.ptr
    }

    /// Without the first `n` bytes; empty when there are no more.
    #[inline(always)]
    #[must_use]
    pub fn skip(self, n: usize) -> Self {
        let n = n.min(self.len);
        // SAFETY: at most the end of the slice.
        let ptr = unsafe { self.ptr.add(n) };
        // SAFETY: a part of this slice.
        unsafe { Self::new(ptr, self.len - n) }
    }

    /// The first `n` bytes, or all.
    #[inline(always)]
    #[must_use]
    pub fn first(self, n: usize) -> Self {
        // SAFETY: a part of this slice.
        unsafe { Self::new(self.ptr, self.len.min(n)) }
    }

    /// Copies bytes out, as many as `to` has or the slice. Returns how many.
    ///
    /// Each byte is read once, and the compiler cannot read it again later in place of the copy.
    #[inline(always)]
    pub fn read_into(self, to: &mut [u8]) -> usize {
        let len = self.len.min(to.len());
        // SAFETY: as many bytes are mapped here (type invariant), and `to` has as many; a `&mut` of this process is no
        // part of what a peer sent.
        unsafe { copy(self.ptr.as_ptr(), to.as_mut_ptr(), len) };
        // No instruction: the compiler takes the peer's memory as changed from here on.
        compiler_fence(Ordering::SeqCst);
        len
    }

    /// Copies bytes in, as many as `from` has or the slice. Returns how many.
    #[inline(always)]
    pub fn write_from(self, from: &[u8]) -> usize {
        let len = self.len.min(from.len());
        // SAFETY: as for `read_into`, the other way round.
        unsafe { copy(from.as_ptr(), self.ptr.as_ptr(), len) };
        len
    }

    /// The 64-bit word at byte `offset`, in this machine's order; `None` beyond the end.
    #[inline(always)]
    pub fn u64_at(self, offset: usize) -> Option<u64> {
        self.load(offset)
    }

    /// The first twelve bytes, if there are so many: a header.
    #[inline(always)]
    pub fn read_12(self) -> Option<[u8; 12]> {
        let (low, high) = (self.load::<u64>(0)?, self.load::<u32>(8)?);
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&low.to_ne_bytes());
        bytes[8..].copy_from_slice(&high.to_ne_bytes());
        Some(bytes)
    }

    /// Makes the first bytes these twelve, if there are so many, and writes nothing when they are: a cache line that another
    /// core reads stays with both then. Returns whether they had to be written; `None` when the slice is shorter.
    #[inline(always)]
    pub fn settle_12(self, bytes: [u8; 12]) -> Option<bool> {
        // Two words that overlap.
        let low = u64::from_ne_bytes(*bytes.first_chunk()?);
        let high = u64::from_ne_bytes(*bytes.last_chunk()?);
        let differs = self.load::<u64>(4)? ^ high | self.load::<u64>(0)? ^ low;
        if differs != 0 {
            self.write_from(&bytes);
        }
        Some(differs != 0)
    }

    /// Asks for the first cache lines, two at most, to read.
    #[inline(always)]
    pub fn prefetch(self) {
        self.prefetch_two::<false>();
    }

    /// Asks for the first cache lines, two at most, to write.
    #[inline(always)]
    pub fn prefetch_for_write(self) {
        self.prefetch_two::<true>();
    }

    #[inline(always)]
    fn prefetch_two<const WRITE: bool>(self) {
        let start = self.ptr.as_ptr();
        prefetch::<WRITE>(start);
        if start.addr() % LINE_BYTES + self.len > LINE_BYTES {
            prefetch::<WRITE>(start.wrapping_add(LINE_BYTES));
        }
    }

    #[inline(always)]
    fn load<T: Copy>(self, offset: usize) -> Option<T> {
        if offset > self.len || self.len - offset < size_of::<T>() {
            return None;
        }
        // SAFETY: inside the slice (just checked).
        let at = unsafe { self.ptr.add(offset) };
        // SAFETY: as many bytes follow; volatile, so that it is one access. `T` is an integer in every use.
        Some(unsafe { at.cast::<Unaligned<T>>().read_volatile() }.0)
    }
}

/// Copies `len` bytes.
///
/// Small frames are most frames, and for them a call of memcpy costs as much as the copy: up to 256 bytes are two copies of a
/// fixed size, from the front and up to the end, which may overlap.
///
/// # Safety
///
/// As for [`ptr::copy_nonoverlapping`](std::ptr::copy_nonoverlapping), but that others may change the bytes at `from`
/// meanwhile: then the copy holds some mixture.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    macro_rules! ends {
        ($block:literal) => {{
            // SAFETY: at least a block, at both ends.
            unsafe { to.copy_from_nonoverlapping(from, $block) };
            let last = len - $block;
            // SAFETY: a block remains from there.
            let from = unsafe { from.add(last) };
            // SAFETY: as above.
            let to = unsafe { to.add(last) };
            // SAFETY: as above.
            unsafe { to.copy_from_nonoverlapping(from, $block) };
        }};
    }
    match len {
        33..=64 => ends!(32),
        65..=128 => ends!(64),
        129..=256 => ends!(128),
        16..=32 => ends!(16),
        8..=15 => ends!(8),
        _ => {
            // SAFETY: the caller's promise.
            unsafe { to.copy_from_nonoverlapping(from, len) };
        }
    }
}

/// Asks for one cache line. A prefetch never faults.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
fn prefetch<const WRITE: bool>(line: *const u8) {
    use std::arch::{asm, x86_64};
    if WRITE {
        // As in `ring::memory`: the intrinsic would become a read prefetch.
        // SAFETY: a hint, without effect on memory or registers.
        unsafe { asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly)) };
    } else {
        // SAFETY: a hint, without effect on memory.
        unsafe { x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(line.cast()) };
    }
}

/// Elsewhere, the processor's own prefetcher must do.
#[inline(always)]
#[cfg(not(target_arch = "x86_64"))]
fn prefetch<const WRITE: bool>(_line: *const u8) {}
