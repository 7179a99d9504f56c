//! How buffers come home from other threads, and who frees the memory when their pool is gone.
//!
//! A stack of buffer numbers that any thread pushes to and only the pool's owner empties, all at once; so no number can
//! come back under a pusher's feet (no ABA). When the owner goes first, it leaves a mark in the head: from then on
//! each return counts down, and whoever returns the last buffer frees the memory.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

/// The end of the list.
pub(super) const NONE: u32 = u32::MAX;
/// The pool is gone.
const ABANDONED: u32 = u32::MAX - 1;

/// What became of a return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Fate {
    /// Others still hold the memory.
    Kept,
    /// That was the last buffer of an abandoned pool: the caller frees the memory.
    Last,
}

/// The list's head. The links live with the buffers' headers and are passed in.
#[derive(Debug)]
pub(super) struct Returns {
    head: AtomicU32,
    /// Holders of the memory: buffers still out, and the owner until it has settled. Counts only once the pool is gone.
    missing: AtomicU32,
}

impl Returns {
    pub(super) fn new() -> Self {
        Self { head: AtomicU32::new(NONE), missing: AtomicU32::new(0) }
    }

    /// Returns buffer `index`, whose link is `link`.
    pub(super) fn push(&self, index: u32, link: &AtomicU32) -> Fate {
        // Acquire pairs with the AcqRel swap of `abandon`: who sees the mark sees `missing`.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            if head == ABANDONED {
                return self.settle(1);
            }
            link.store(head, Ordering::Relaxed);
            // Release pairs with the swaps below: who takes the list sees its links, and what was done to the buffers.
            match self.head.compare_exchange_weak(head, index, Ordering::Release, Ordering::Acquire) {
                Ok(_) => return Fate::Kept,
                Err(now) => head = now,
            }
        }
    }

    /// Takes the whole list and returns its first buffer, [`NONE`] when it is empty. Only the pool's owner may call it.
    pub(super) fn take_all(&self) -> u32 {
        if self.head.load(Ordering::Relaxed) == NONE {
            return NONE;
        }
        self.head.swap(NONE, Ordering::Acquire)
    }

    /// Marks the pool as gone, with `missing` of its buffers not home, and returns the list so far. Its buffers, and one
    /// for the owner itself, must then be [settled](Self::settle). Only the pool's owner may call it, once.
    pub(super) fn abandon(&self, missing: u32) -> u32 {
        // The owner counts as one: otherwise the last return could come before the owner has settled, and both would
        // be the last.
        self.missing.store(missing + 1, Ordering::Relaxed);
        // Release publishes `missing`; Acquire makes the links of the list visible.
        self.head.swap(ABANDONED, Ordering::AcqRel)
    }

    /// Counts `returned` holders of an abandoned pool's memory as done with it.
    pub(super) fn settle(&self, returned: u32) -> Fate {
        // AcqRel: the last one sees everything that the others did to the memory that it is about to free.
        let before = self.missing.fetch_sub(returned, Ordering::AcqRel);
        if before == returned { Fate::Last } else { Fate::Kept }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    const BUFFERS: usize = 3;

    /// Stands for a pool's memory. `extra` is what a frame's owner writes without synchronisation: loom fails a test in
    /// which two accesses to one are not ordered.
    struct Home {
        returns: Returns,
        links: [AtomicU32; BUFFERS],
        extra: [UnsafeCell<()>; BUFFERS],
        freed: AtomicUsize,
    }

    impl Home {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                returns: Returns::new(),
                links: std::array::from_fn(|_| AtomicU32::new(NONE)),
                extra: std::array::from_fn(|_| UnsafeCell::new(())),
                freed: AtomicUsize::new(0),
            })
        }

        fn use_frame(&self, index: u32) {
            self.extra[index as usize].with_mut(|_| ());
        }

        fn give_back(&self, index: u32) {
            self.use_frame(index);
            let fate = self.returns.push(index, &self.links[index as usize]);
            self.end(fate);
        }

        fn abandon(&self, missing: u32) {
            let returned = self.walk(self.returns.abandon(missing)).len();
            let fate = self.returns.settle(returned as u32 + 1);
            self.end(fate);
        }

        fn end(&self, fate: Fate) {
            if fate == Fate::Last {
                self.freed.fetch_add(1, Ordering::Relaxed);
                (0..BUFFERS as u32).for_each(|index| self.use_frame(index));
            }
        }

        fn walk(&self, mut at: u32) -> Vec<u32> {
            let mut buffers = Vec::new();
            while at != NONE {
                buffers.push(at);
                at = self.links[at as usize].load(Ordering::Relaxed);
            }
            buffers
        }

        fn collect(&self) -> Vec<u32> {
            let buffers = self.walk(self.returns.take_all());
            buffers.iter().for_each(|&index| self.use_frame(index));
            buffers
        }
    }

    fn give_back_elsewhere(home: &Arc<Home>, index: u32) -> thread::JoinHandle<()> {
        let home = home.clone();
        thread::spawn(move || home.give_back(index))
    }

    #[test]
    fn the_owner_gets_every_return_once() {
        loom::model(|| {
            let home = Home::new();
            // One return of its own first: loom does not explore a look at an empty list against later pushes.
            home.give_back(0);
            let others = [1, 2].map(|index| give_back_elsewhere(&home, index));
            let mut got = home.collect();
            others.into_iter().for_each(|other| other.join().unwrap());
            got.extend(home.collect());
            got.sort_unstable();
            assert_eq!(got, [0, 1, 2]);
        });
    }

    #[test]
    fn a_buffer_that_goes_round_again_confuses_nobody() {
        loom::model(|| {
            let home = Home::new();
            home.give_back(0);
            // Finds 0 at the head, then perhaps taken, then perhaps 0 again.
            let other = give_back_elsewhere(&home, 1);
            let mut got = Vec::new();
            for index in home.collect() {
                if index == 0 { home.give_back(0) } else { got.push(index) }
            }
            other.join().unwrap();
            got.extend(home.collect());
            got.sort_unstable();
            assert_eq!(got, [0, 1]);
        });
    }

    #[test]
    fn memory_is_freed_once_by_whoever_is_last() {
        loom::model(|| {
            let home = Home::new();
            let others = [0, 1].map(|index| give_back_elsewhere(&home, index));
            home.abandon(2);
            others.into_iter().for_each(|other| other.join().unwrap());
            assert_eq!(home.freed.load(Ordering::Relaxed), 1);
        });
    }

    #[test]
    fn memory_is_freed_once_when_the_owner_took_some_back() {
        loom::model(|| {
            let home = Home::new();
            home.give_back(0);
            let others = [1, 2].map(|index| give_back_elsewhere(&home, index));
            let here = home.collect().len();
            home.abandon((BUFFERS - here) as u32);
            others.into_iter().for_each(|other| other.join().unwrap());
            assert_eq!(home.freed.load(Ordering::Relaxed), 1);
        });
    }
}
