//! The memory of a ring: slots that a position names, filled and emptied in runs.
#![expect(unsafe_code, reason = "slots are uninitialised memory that two threads take turns with")]

use std::mem;

use arrayvec::ArrayVec;

use super::CreateError;
use super::memory::Memory;

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
