//! Memory that a driver and its device share, seen as atomics: for rings whose parts have layouts of their own.
#![expect(unsafe_code, reason = "atomic access to memory that a device owns too")]

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use super::{Descriptor, DmaRegion, Iova};

mod sealed {
    pub trait Sealed {}
}

/// What shared memory can be seen as: atomics, and structures of nothing else, for which any bytes will do.
pub trait Cell: sealed::Sealed + Send + Sync + fmt::Debug + 'static {}

macro_rules! cells {
    ($($cell:ty),*) => {$(
        impl sealed::Sealed for $cell {}
        impl Cell for $cell {}
    )*};
}

cells!(AtomicU16, AtomicU32, AtomicU64, Descriptor);

/// A region of memory that a device may reach, seen as atomics.
///
/// Whose turn it is to write which of them, and what they mean, is the driver's business. All access is atomic, and a
/// reference to an atomic says of the memory only that it is there and aligned, never that it does not change.
///
/// # Invariant
///
/// `region` is mapped in this process and zeroed when it is made, and is accessed through this type only, as atomics. It
/// lives as long as `self`.
#[derive(Debug)]
pub struct DmaCells {
    region: DmaRegion,
}

// SAFETY: the region belongs to `self`, not to a thread.
unsafe impl Send for DmaCells {}
// SAFETY: what is shared is atomics (type invariant) and constants.
unsafe impl Sync for DmaCells {}

impl DmaCells {
    /// The whole of `region`.
    pub fn new(region: DmaRegion) -> Self {
        Self { region }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty()
    }

    /// The region.
    pub fn region(&self) -> &DmaRegion {
        &self.region
    }

    /// Where the device finds the byte at `offset`.
    ///
    /// # Panics
    ///
    /// If `offset` is not inside.
    pub fn iova(&self, offset: usize) -> Iova {
        self.region.iova(offset)
    }

    /// Where this process finds the byte at `offset`: what a vhost-user back end is told.
    ///
    /// # Panics
    ///
    /// If `offset` is not inside.
    pub fn address(&self, offset: usize) -> u64 {
        assert!(offset < self.len(), "byte {offset} of a region of {} bytes", self.len());
        self.region.as_ptr().as_ptr() as u64 + offset as u64
    }

    /// The `n` 16-bit cells from byte `offset` on.
    ///
    /// # Panics
    ///
    /// If they are not all inside, or not aligned to their size.
    #[inline]
    pub fn u16s(&self, offset: usize, n: usize) -> &[AtomicU16] {
        self.slice(offset, n)
    }

    /// The `n` 32-bit cells from byte `offset` on.
    ///
    /// # Panics
    ///
    /// As [`u16s`](Self::u16s).
    #[inline]
    pub fn u32s(&self, offset: usize, n: usize) -> &[AtomicU32] {
        self.slice(offset, n)
    }

    /// The `n` 64-bit cells from byte `offset` on.
    ///
    /// # Panics
    ///
    /// As [`u16s`](Self::u16s).
    #[inline]
    pub fn u64s(&self, offset: usize, n: usize) -> &[AtomicU64] {
        self.slice(offset, n)
    }

    /// The `n` cells from byte `offset` on, for keeps: with a share in the memory.
    ///
    /// # Panics
    ///
    /// As [`u16s`](Self::u16s).
    pub fn view<T: Cell>(self: &Arc<Self>, offset: usize, n: usize) -> View<T> {
        View { at: self.place(offset, n), len: n, cells: Arc::clone(self) }
    }

    #[inline]
    fn slice<T: Cell>(&self, offset: usize, n: usize) -> &[T] {
        // SAFETY: `place` says that `n` cells lie there, which live as long as `self`; they are atomics, so the reference
        // says nothing of what they hold.
        unsafe { std::slice::from_raw_parts(self.place::<T>(offset, n).as_ptr(), n) }
    }

    /// Where `n` cells at `offset` are: inside the region, and aligned.
    #[inline]
    fn place<T: Cell>(&self, offset: usize, n: usize) -> NonNull<T> {
        let inside = n
            .checked_mul(size_of::<T>())
            .is_some_and(|bytes| offset <= self.region.len() && bytes <= self.region.len() - offset);
        assert!(inside, "{n} cells of {} bytes at {offset} of a region of {}", size_of::<T>(), self.region.len());
        // Regions start at a page.
        assert!(offset.is_multiple_of(align_of::<T>()), "cells of {} bytes at {offset}", size_of::<T>());
        // SAFETY: inside the region (above).
        unsafe { self.region.as_ptr().add(offset) }.cast()
    }
}

/// Cells that keep the memory that they are in.
///
/// # Invariant
///
/// `len` cells lie at `at`, in the region of `cells`.
pub struct View<T: Cell> {
    at: NonNull<T>,
    len: usize,
    cells: Arc<DmaCells>,
}

// SAFETY: the cells are atomics, and the memory belongs to no thread.
unsafe impl<T: Cell> Send for View<T> {}
// SAFETY: as for `Send`; only shared references are given out.
unsafe impl<T: Cell> Sync for View<T> {}

impl<T: Cell> View<T> {
    /// The memory.
    pub fn cells(&self) -> &Arc<DmaCells> {
        &self.cells
    }
}

impl<T: Cell> Deref for View<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the cells are there while `self.cells` is (type invariant); they are atomics, so the reference says
        // nothing of what they hold.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl<T: Cell> fmt::Debug for View<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("at", &self.at).field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::dma::Domain;
    use crate::mem::{MemRequest, PageSize};

    fn cells() -> Arc<DmaCells> {
        let region = Domain::new().alloc(&MemRequest::new(4096).page(PageSize::Ordinary)).expect("a page");
        Arc::new(DmaCells::new(region))
    }

    #[test]
    fn every_width_sees_the_same_bytes() {
        let cells = cells();
        cells.u64s(8, 1)[0].store(0x1122_3344_5566_7788, Ordering::Relaxed);
        assert_eq!(cells.u32s(8, 2)[1].load(Ordering::Relaxed), 0x1122_3344);
        assert_eq!(cells.u16s(10, 1)[0].load(Ordering::Relaxed), 0x5566);
        let descriptors = cells.view::<Descriptor>(0, 4096 / 16);
        assert_eq!(descriptors[0].load(1, Ordering::Relaxed), 0x1122_3344_5566_7788);
        assert_eq!(cells.address(8) - cells.address(0), 8);
        assert_eq!(cells.iova(8).get() - cells.iova(0).get(), 8);
    }

    #[test]
    fn a_view_outlives_who_made_it() {
        let cells = cells();
        let view = cells.view::<AtomicU16>(4094, 1);
        drop(cells);
        view[0].store(7, Ordering::Relaxed);
        assert_eq!(view.cells().u16s(4094, 1)[0].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn nothing_outside_or_askew() {
        for (offset, n) in [(4095, 1), (4096, 1), (4088, 2), (0, usize::MAX), (usize::MAX, 1), (4, 1)] {
            let cells = cells();
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cells.u64s(offset, n).len())).unwrap_err();
        }
        assert_eq!(cells().u64s(4096, 0).len(), 0);
    }
}
