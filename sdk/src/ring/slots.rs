//! The memory of a ring: slots that a position names, filled and emptied in runs.
#![expect(unsafe_code, reason = "slots are uninitialised memory that two threads take turns with")]

use std::mem;

use arrayvec::ArrayVec;

use super::CreateError;

#[cfg(loom)]
use checked::Memory;
#[cfg(not(loom))]
use plain::Memory;

/// How many slots past a burst the lines for a later one are asked for: two bursts, about as long as a line takes to come.
pub(super) const AHEAD: usize = 64;

/// `capacity` slots, each holding a `T` or nothing; which of the two is its owner's knowledge.
///
/// Position `p`, a count that never goes back (it wraps with `usize`), lives in slot `p % capacity`.
///
/// # Invariant
///
/// `memory` has `mask + 1` slots, and `mask + 1` is a power of two.
pub(super) struct Slots<T> {
    memory: Memory<T>,
    mask: usize,
}

// SAFETY: a `Slots<T>` is memory for values of `T` and bound to no thread.
unsafe impl<T: Send> Send for Slots<T> {}
// SAFETY: every `&self` method that touches a slot is unsafe and demands that no other thread touches it meanwhile; so a
// value is only ever moved between threads, for which `T: Send` suffices.
unsafe impl<T: Send> Sync for Slots<T> {}

impl<T> Slots<T> {
    /// Empty slots.
    pub(super) fn new(capacity: usize) -> Result<Self, CreateError> {
        // Positions are compared by their difference, which must fit half the range; `isize::MAX` bytes is Rust's own
        // limit for one allocation.
        let most = (isize::MAX as usize / mem::size_of::<T>().max(1)).min(isize::MAX as usize);
        let max = 1 << most.ilog2();
        if !capacity.is_power_of_two() {
            let next = capacity.checked_next_power_of_two().unwrap_or(max).min(max);
            return Err(CreateError::NotPowerOfTwo { capacity, next });
        }
        if capacity > max / 2 {
            return Err(CreateError::TooLarge { capacity, slot_bytes: mem::size_of::<T>(), max: max / 2 });
        }
        Ok(Self { memory: Memory::new(capacity), mask: capacity - 1 })
    }

    pub(super) fn capacity(&self) -> usize {
        self.mask + 1
    }

    /// The slot of position `at`, and how many of the `count` slots from there lie before the ring's end.
    #[inline(always)]
    fn split(&self, at: usize, count: usize) -> (usize, usize) {
        let first = at & self.mask;
        (first, count.min(self.mask + 1 - first))
    }

    /// Fills the slots of positions `at ..` with the first `count` of `items` and moves up those behind.
    ///
    /// # Safety
    ///
    /// `count <= items.len()` and `count <= capacity()`; the slots are empty, and no other thread touches them until the
    /// caller hands them on.
    #[inline(always)]
    pub(super) unsafe fn fill<const N: usize>(&self, at: usize, items: &mut ArrayVec<T, N>, count: usize) {
        let (first, before_end) = self.split(at, count);
        let rest = items.len() - count;
        let from = items.as_mut_ptr();
        // SAFETY: `before_end <= count <= items.len()`; the slots are ours by the caller's contract.
        unsafe { self.memory.write(first, from, before_end) };
        if before_end < count {
            // SAFETY: `before_end <= items.len()`, so this stays in (or one past) the array.
            let from = unsafe { from.add(before_end) };
            // SAFETY: as above, for the part that continues at slot 0.
            unsafe { self.memory.write(0, from, count - before_end) };
        }
        // SAFETY: shrinking; the first `count` values now live in the slots, the rest is restored below.
        unsafe { items.set_len(0) };
        if rest > 0 {
            let to = items.as_mut_ptr();
            // SAFETY: `count + rest` was the length, so this is in bounds.
            let from = unsafe { to.add(count) };
            // SAFETY: both ranges lie in the array, the `rest` values at `from` are initialised and owned by nobody now.
            unsafe { to.copy_from(from, rest) };
            // SAFETY: exactly the first `rest` values are initialised.
            unsafe { items.set_len(rest) };
        }
    }

    /// Empties the slots of `count` positions from `at` onto the end of `into`.
    ///
    /// # Safety
    ///
    /// `count <= into.remaining_capacity()` and `count <= capacity()`; the slots are filled, the caller owns them, and no
    /// other thread touches them until the caller hands them on.
    #[inline(always)]
    pub(super) unsafe fn empty<const N: usize>(&self, at: usize, into: &mut ArrayVec<T, N>, count: usize) {
        let (first, before_end) = self.split(at, count);
        let len = into.len();
        // SAFETY: `len <= N`, so this stays in (or one past) the array.
        let to = unsafe { into.as_mut_ptr().add(len) };
        // SAFETY: there is room for `before_end <= count` values; the slots are ours by the caller's contract.
        unsafe { self.memory.read(first, to, before_end) };
        if before_end < count {
            // SAFETY: `len + before_end <= N`.
            let to = unsafe { to.add(before_end) };
            // SAFETY: as above, for the part that continues at slot 0.
            unsafe { self.memory.read(0, to, count - before_end) };
        }
        // SAFETY: `count` more values were just written there, and `len + count <= N` (contract).
        unsafe { into.set_len(len + count) };
    }

    /// Fills the slot of position `at`.
    ///
    /// # Safety
    ///
    /// The slot is empty, and no other thread touches it until the caller hands it on.
    #[inline(always)]
    pub(super) unsafe fn fill_one(&self, at: usize, value: T) {
        let value = mem::ManuallyDrop::new(value);
        // SAFETY: one value, moved out of `value`, which is not dropped; the slot is ours by the caller's contract.
        unsafe { self.memory.write(at & self.mask, &raw const *value, 1) };
    }

    /// Empties the slot of position `at`.
    ///
    /// # Safety
    ///
    /// The slot is filled, the caller owns it, and no other thread touches it until the caller hands it on.
    #[inline(always)]
    pub(super) unsafe fn empty_one(&self, at: usize) -> T {
        let mut value = mem::MaybeUninit::uninit();
        // SAFETY: room for one value; the slot is ours by the caller's contract.
        unsafe { self.memory.read(at & self.mask, value.as_mut_ptr(), 1) };
        // SAFETY: just filled.
        unsafe { value.assume_init() }
    }

    /// Drops the values at `count` positions from `at`.
    ///
    /// # Safety
    ///
    /// They are there, and `self` is about to go away.
    pub(super) unsafe fn drop_all(&mut self, at: usize, count: usize) {
        if !mem::needs_drop::<T>() {
            return;
        }
        for position in 0..count {
            // SAFETY: filled (contract), owned through `&mut self`, and emptied once.
            drop(unsafe { self.empty_one(at.wrapping_add(position)) });
        }
    }

    /// Asks for the cache lines of `count` slots from position `at`, to write them soon. Only a hint.
    #[inline(always)]
    pub(super) fn expect_write(&self, at: usize, count: usize) {
        self.memory.prefetch::<true>(at & self.mask, count.min(self.mask + 1));
    }

    /// Asks for the cache lines of `count` slots from position `at`, to read them soon. Only a hint.
    #[inline(always)]
    pub(super) fn expect_read(&self, at: usize, count: usize) {
        self.memory.prefetch::<false>(at & self.mask, count.min(self.mask + 1));
    }
}

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
    pub(super) struct Memory<T> {
        base: NonNull<T>,
        layout: Layout,
    }

    impl<T> Memory<T> {
        /// Memory for `capacity` slots.
        ///
        /// # Panics
        ///
        /// If their size overflows `isize`.
        pub(super) fn new(capacity: usize) -> Self {
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
        pub(super) unsafe fn write(&self, first: usize, from: *const T, count: usize) {
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
        pub(super) unsafe fn read(&self, first: usize, to: *mut T, count: usize) {
            // SAFETY: the slot exists, or is the one past the end (contract).
            let from = unsafe { self.base.as_ptr().add(first) };
            // SAFETY: `count` values at both ends, which do not overlap (contract).
            unsafe { copy_run(from, to, count) };
        }

        /// Asks for the cache lines of `count` slots from `first` on; past the end, the hint is wasted.
        #[inline(always)]
        pub(super) fn prefetch<const WRITE: bool>(&self, first: usize, count: usize) {
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

    pub(super) struct Memory<T> {
        slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    }

    impl<T> Memory<T> {
        pub(super) fn new(capacity: usize) -> Self {
            Self { slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect() }
        }

        /// # Safety
        ///
        /// As for the plain memory.
        pub(super) unsafe fn write(&self, first: usize, from: *const T, count: usize) {
            for i in 0..count {
                // SAFETY: `from` holds `count` values (contract).
                let value = unsafe { from.add(i).read() };
                // SAFETY: loom's pointer is valid for the closure, and loom itself checks that nobody else has it.
                self.slots[first + i].with_mut(|slot| unsafe { slot.write(MaybeUninit::new(value)) });
            }
        }

        /// # Safety
        ///
        /// As for the plain memory.
        pub(super) unsafe fn read(&self, first: usize, to: *mut T, count: usize) {
            for i in 0..count {
                // Taking a value out counts as a write: two threads must not do it at once.
                // SAFETY: loom's pointer is valid for the closure.
                let value = self.slots[first + i].with_mut(|slot| unsafe { slot.read() });
                // SAFETY: the slot is filled (contract).
                let value = unsafe { value.assume_init() };
                // SAFETY: `to` has room for `count` values (contract).
                unsafe { to.add(i).write(value) };
            }
        }

        pub(super) fn prefetch<const WRITE: bool>(&self, _first: usize, _count: usize) {}
    }
}
