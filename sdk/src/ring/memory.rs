//! The memory under the slots: plain, or watched by loom's model checker.
#![expect(unsafe_code, reason = "memory whose values are only known by their position")]

#[cfg(loom)]
pub(super) use checked::Memory;
#[cfg(not(loom))]
pub(super) use plain::Memory;

#[cfg(not(loom))]
mod plain {
    use std::alloc::{self, Layout};
    use std::ptr::NonNull;

    /// Bytes that travel between cores together.
    const LINE_BYTES: usize = 64;

    /// Slots in one piece of memory that starts on a cache line, so that an aligned burst touches no line in vain.
    ///
    /// # Invariant
    ///
    /// `base` is an allocation of `layout`, which has room for the slots; or dangling and aligned, if its size is zero.
    pub(in super::super) struct Memory<T> {
        base: NonNull<T>,
        layout: Layout,
    }

    impl<T> Memory<T> {
        /// Memory for `capacity` slots.
        ///
        /// # Panics
        ///
        /// If their size overflows `isize`.
        pub(in super::super) fn new(capacity: usize) -> Self {
            let layout = Layout::array::<T>(capacity)
                .and_then(|slots| slots.align_to(LINE_BYTES))
                .expect("the capacity was checked against the size of a slot");
            if layout.size() == 0 {
                return Self { base: NonNull::dangling(), layout };
            }
            // SAFETY: the size is not zero.
            let memory = unsafe { alloc::alloc(layout) };
            let Some(base) = NonNull::new(memory.cast()) else { alloc::handle_alloc_error(layout) };
            Self { base, layout }
        }

        /// Moves `count` values from `from` into the slots from `first` on.
        ///
        /// # Safety
        ///
        /// The slots exist and belong to the caller alone; `from` holds `count` values outside of this memory.
        #[inline(always)]
        pub(in super::super) unsafe fn write(&self, first: usize, from: *const T, count: usize) {
            // SAFETY: the slot exists, or is the one past the end (contract).
            let to = unsafe { self.base.as_ptr().add(first) };
            // SAFETY: `count` values at both ends, which do not overlap (contract).
            unsafe { copy_run(from, to, count) };
        }

        /// Moves `count` values from the slots from `first` on to `to`.
        ///
        /// # Safety
        ///
        /// The slots exist, are filled, and belong to the caller alone; `to` has room for `count` values outside of this
        /// memory.
        #[inline(always)]
        pub(in super::super) unsafe fn read(&self, first: usize, to: *mut T, count: usize) {
            // SAFETY: the slot exists, or is the one past the end (contract).
            let from = unsafe { self.base.as_ptr().add(first) };
            // SAFETY: `count` values at both ends, which do not overlap (contract).
            unsafe { copy_run(from, to, count) };
        }

        /// Asks for the cache lines of `count` slots from `first` on; past the end, the hint is wasted.
        #[inline(always)]
        pub(in super::super) fn prefetch<const WRITE: bool>(&self, first: usize, count: usize) {
            let start = self.base.as_ptr().wrapping_add(first).cast::<u8>();
            for offset in (0..count * size_of::<T>()).step_by(LINE_BYTES) {
                prefetch_line::<WRITE>(start.wrapping_add(offset));
            }
        }
    }

    impl<T> Drop for Memory<T> {
        fn drop(&mut self) {
            if self.layout.size() > 0 {
                // SAFETY: allocated with this layout (type invariant), and never used again.
                unsafe { alloc::dealloc(self.base.as_ptr().cast(), self.layout) };
            }
        }
    }

    /// Copies `count` values.
    ///
    /// Bursts are a few hundred bytes, where a call of memcpy costs as much as the copy; blocks of a fixed size are copied
    /// in line.
    ///
    /// # Safety
    ///
    /// As for [`ptr::copy_nonoverlapping`](std::ptr::copy_nonoverlapping).
    #[inline(always)]
    unsafe fn copy_run<T>(mut from: *const T, mut to: *mut T, mut count: usize) {
        let block = const { if size_of::<T>() == 0 { 1 } else { 128 / size_of::<T>() } };
        while block > 0 && count >= block {
            // SAFETY: `block <= count` values are at both ends (contract).
            unsafe { to.copy_from_nonoverlapping(from, block) };
            // SAFETY: still in bounds, or one past the end.
            from = unsafe { from.add(block) };
            // SAFETY: as above.
            to = unsafe { to.add(block) };
            count -= block;
        }
        if count > 0 {
            // SAFETY: what remains of the contract's `count` values.
            unsafe { to.copy_from_nonoverlapping(from, count) };
        }
    }

    /// Asks for one cache line. Any address may be given: a prefetch never faults.
    #[inline(always)]
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    fn prefetch_line<const WRITE: bool>(line: *const u8) {
        use std::arch::{asm, x86_64};
        if WRITE {
            // The intrinsic becomes a read prefetch unless the whole build requires PRFCHW; processors without it take the
            // instruction for a no-operation (Intel SDM volume 2, PREFETCHW).
            // SAFETY: a hint, without effect on memory or registers.
            unsafe { asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly)) };
        } else {
            // SAFETY: a hint, without effect on memory.
            unsafe { x86_64::_mm_prefetch::<{ x86_64::_MM_HINT_T0 }>(line.cast()) };
        }
    }

    /// Elsewhere, the processor's own prefetcher must do.
    #[inline(always)]
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    fn prefetch_line<const WRITE: bool>(_line: *const u8) {}
}

/// Slots that loom watches: a touch that no ordering separates from another thread's fails the model.
#[cfg(loom)]
mod checked {
    use std::mem::MaybeUninit;

    use loom::cell::UnsafeCell;

    pub(in super::super) struct Memory<T> {
        slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    }

    impl<T> Memory<T> {
        pub(in super::super) fn new(capacity: usize) -> Self {
            Self { slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect() }
        }

        /// # Safety
        ///
        /// As for the plain memory.
        pub(in super::super) unsafe fn write(&self, first: usize, from: *const T, count: usize) {
            for i in 0..count {
                // SAFETY: `from` holds `count` values (contract).
                let from = unsafe { from.add(i) };
                // SAFETY: as above.
                let value = unsafe { from.read() };
                // SAFETY: loom's pointer is valid for the closure, and loom itself checks that nobody else has it.
                self.slots[first + i].with_mut(|slot| unsafe { slot.write(MaybeUninit::new(value)) });
            }
        }

        /// # Safety
        ///
        /// As for the plain memory.
        pub(in super::super) unsafe fn read(&self, first: usize, to: *mut T, count: usize) {
            for i in 0..count {
                // Taking a value out counts as a write: two threads must not do it at once.
                // SAFETY: loom's pointer is valid for the closure.
                let value = self.slots[first + i].with_mut(|slot| unsafe { slot.read() });
                // SAFETY: the slot is filled (contract).
                let value = unsafe { value.assume_init() };
                // SAFETY: `to` has room for `count` values (contract).
                let to = unsafe { to.add(i) };
                // SAFETY: as above.
                unsafe { to.write(value) };
            }
        }

        pub(in super::super) fn prefetch<const WRITE: bool>(&self, _first: usize, _count: usize) {}
    }
}
