//! One bit a slot, which says whether a position has been dealt with in this lap of the ring.

use crossbeam_utils::CachePadded;

use super::sync::atomic::{AtomicU64, Ordering};

/// Slots whose bits share one word.
const WORD_BITS: usize = u64::BITS as usize;
/// Words that share a padded block, two cache lines. Loom counts every atomic, and its rings are tiny.
const BLOCK_WORDS: usize = if cfg!(loom) { 2 } else { 16 };

/// A bit for each slot of a ring, flipped once a lap, when the slot's position is done.
///
/// The bit of a slot is 1 after lap 0, 0 after lap 1, and so on. Whether a position is done is then one comparison, as
/// long as the reader knows that the slot is in this lap or at the end of the one before. A burst is marked by one or two
/// atomic operations, in any order among several threads, and none of them waits for another.
///
/// # Invariant
///
/// `mask + 1` is the ring's capacity, a power of two, and `blocks` has a bit for each of its slots.
pub(super) struct Laps {
    /// Flipped with Release by the thread that is done with the slots; pairs with the Acquire load in `run`. Each flip is
    /// a read-modify-write, so a flip by another thread in the same word does not break the pairing.
    blocks: Box<[CachePadded<[AtomicU64; BLOCK_WORDS]>]>,
    mask: usize,
}

impl Laps {
    /// No position is done; those of the lap before the first count as done.
    pub(super) fn new(capacity: usize) -> Self {
        let block = || CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0)));
        let blocks = (0..capacity.div_ceil(WORD_BITS * BLOCK_WORDS)).map(|_| block()).collect();
        Self { blocks, mask: capacity - 1 }
    }

    /// Marks `count` positions from `at` as done, and makes what this thread did to their slots visible to whoever sees it.
    #[inline(always)]
    pub(super) fn mark(&self, mut at: usize, mut count: usize) {
        while count > 0 {
            let (word, bit, here) = self.place(at);
            let here = here.min(count);
            let ones = u64::MAX >> (WORD_BITS - here);
            word.fetch_xor(ones << bit, Ordering::Release);
            at = at.wrapping_add(here);
            count -= here;
        }
    }

    /// How many positions from `at` on are done without a gap; stops looking once it has found `enough`.
    ///
    /// True of every position that is in its slot's present lap or the next one.
    #[inline(always)]
    pub(super) fn run(&self, at: usize, enough: usize) -> usize {
        let mut found = 0;
        while found < enough {
            let (word, bit, here) = self.place(at.wrapping_add(found));
            let lap = at.wrapping_add(found) >> self.mask.count_ones();
            let undone = if lap & 1 == 0 { 0 } else { u64::MAX };
            let done = (word.load(Ordering::Acquire) ^ undone) >> bit;
            let ones = (done.trailing_ones() as usize).min(here);
            found += ones;
            if ones < here {
                break;
            }
        }
        found
    }

    /// The word of a position, its bit there, and how many positions from this one on share the word.
    #[inline(always)]
    fn place(&self, at: usize) -> (&AtomicU64, usize, usize) {
        let slot = at & self.mask;
        let word = slot / WORD_BITS;
        let bit = slot % WORD_BITS;
        let here = (WORD_BITS - bit).min(self.mask + 1 - slot);
        (&self.blocks[word / BLOCK_WORDS][word % BLOCK_WORDS], bit, here)
    }
}
