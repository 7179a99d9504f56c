//! Something that a control plane lends to a worker, and takes back before it touches it itself.
//!
//! ```text
//! lender:    lend ───────────────────────────▶ recall ── waits until it is let go ──▶ lend something else
//!              │                                  │            ▲
//! borrower:    └─▶ changed? ─▶ exchange, uses it ─┴▶ changed? ─┴ exchange: gives back how far it got
//! ```

use std::time::Instant;

use super::sync::{AtomicU32, Condvar, Mutex, MutexGuard};
use std::sync::atomic::Ordering;

/// A `T` that at most one borrower uses at a time, and its lender only while no borrower does. What a borrower gives
/// back is how far it got, `R`.
///
/// A borrower looks at each turn whether anything [changed](Self::changed), which is one load, and takes the lock only
/// then. One that sleeps must be woken: the lender says how.
#[derive(Debug)]
pub struct Loan<T, R> {
    /// Changes with each change of `state` that a borrower must see; written under its lock, never zero.
    generation: AtomicU32,
    state: Mutex<State<T, R>>,
    let_go: Condvar,
}

#[derive(Debug)]
struct State<T, R> {
    /// What the next exchange hands out.
    offered: Option<T>,
    /// A borrower uses what it was handed.
    held: bool,
    /// What the last borrower gave back.
    returned: Option<R>,
}

/// What became of a loan that was recalled.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Recalled<T, R> {
    /// Nothing was lent.
    Nothing,
    /// No borrower had it: it is as it was lent, or as the last borrower put it back.
    Unused(T),
    /// The borrower let it go, having got this far.
    Returned(R),
    /// The borrower still uses it: the deadline has passed.
    Late,
}

impl<T, R> Loan<T, R> {
    /// What a borrower has seen that has seen nothing yet.
    pub const UNSEEN: u32 = 0;

    /// Nothing lent.
    pub fn new() -> Self {
        Self {
            generation: AtomicU32::new(1),
            state: Mutex::new(State { offered: None, held: false, returned: None }),
            let_go: Condvar::new(),
        }
    }

    /// Lends `value` to whoever asks next, and wakes the borrower by `wake`. Lending twice without a
    /// [recall](Self::recall) is a mistake of the lender: what was lent first may be in use still.
    pub fn lend(&self, value: T, wake: impl FnOnce()) {
        let mut state = self.lock();
        state.offered = Some(value);
        self.bump();
        drop(state);
        wake();
    }

    /// Takes back what was lent. Wakes a borrower that has it by `wake`, and waits until it lets go, until `deadline` at
    /// most; a borrower that is late lets go at its next exchange. What was lent after that, and not taken yet, is there
    /// at once.
    pub fn recall(&self, deadline: Instant, wake: impl FnOnce()) -> Recalled<T, R> {
        let mut state = self.lock();
        self.bump();
        if let Some(unused) = state.offered.take() {
            // A borrower that has something still has what was recalled before: it was late then.
            return Recalled::Unused(unused);
        }
        state.returned = None;
        if state.held {
            drop(state);
            wake();
            state = self.lock();
            while state.held {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Recalled::Late;
                }
                // Poisoned only by a panic within this file's few lines, none of which can.
                state = match self.let_go.wait_timeout(state, left) {
                    Ok((state, _)) => state,
                    Err(poisoned) => poisoned.into_inner().0,
                };
            }
        }
        state.returned.take().map_or(Recalled::Nothing, Recalled::Returned)
    }

    /// Whether anything changed since `seen`, so that the borrower must [exchange](Self::exchange).
    #[inline]
    pub fn changed(&self, seen: u32) -> bool {
        // Nothing is read on the strength of it: the exchange takes the lock.
        self.generation.load(Ordering::Relaxed) != seen
    }

    /// The borrower lets go of what it has, if anything, having got as far as `back` says, and is handed what is lent now.
    /// It must use what it had no longer.
    pub fn exchange(&self, seen: &mut u32, back: Option<R>) -> Option<T> {
        let mut state = self.lock();
        *seen = self.generation.load(Ordering::Relaxed);
        if std::mem::take(&mut state.held) {
            state.returned = back;
            self.let_go.notify_all();
        }
        let lent = state.offered.take();
        state.held = lent.is_some();
        lent
    }

    /// A borrower that ends puts back what it has: for the next borrower, or, if it was recalled meanwhile, how far it
    /// got for the lender.
    pub fn put_back(&self, seen: u32, value: T, back: R) {
        let mut state = self.lock();
        if self.generation.load(Ordering::Relaxed) == seen {
            state.offered = Some(value);
            self.bump();
        } else {
            state.returned = Some(back);
        }
        state.held = false;
        self.let_go.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T, R>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// To be called with the lock held.
    fn bump(&self) {
        let next = self.generation.load(Ordering::Relaxed).wrapping_add(1).max(1);
        self.generation.store(next, Ordering::Relaxed);
    }
}

impl<T, R> Default for Loan<T, R> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    fn long() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn loan() -> Loan<&'static str, u32> {
        Loan::new()
    }

    #[test]
    fn what_nobody_took_comes_back_as_it_was() {
        let loan = loan();
        assert_eq!(loan.recall(long(), || panic!("nobody has it")), Recalled::Nothing);
        loan.lend("ring", || {});
        assert_eq!(loan.recall(long(), || panic!("nobody has it")), Recalled::Unused("ring"));
    }

    #[test]
    fn a_borrower_lets_go_at_its_next_exchange_and_says_how_far_it_got() {
        let loan = loan();
        let mut seen = Loan::<&str, u32>::UNSEEN;
        assert!(loan.changed(seen));
        assert_eq!(loan.exchange(&mut seen, None), None);
        loan.lend("ring", || {});
        assert!(loan.changed(seen));
        assert_eq!(loan.exchange(&mut seen, None), Some("ring"));
        assert!(!loan.changed(seen));
        std::thread::scope(|scope| {
            let recalling = scope.spawn(|| loan.recall(long(), || {}));
            while !loan.changed(seen) {
                std::thread::yield_now();
            }
            assert_eq!(loan.exchange(&mut seen, Some(7)), None);
            assert_eq!(recalling.join().unwrap(), Recalled::Returned(7));
        });
    }

    #[test]
    fn a_late_borrower_gives_back_nothing_that_counts() {
        let loan = loan();
        let mut seen = Loan::<&str, u32>::UNSEEN;
        loan.lend("old", || {});
        loan.exchange(&mut seen, None);
        let soon = Instant::now() + Duration::from_millis(1);
        assert_eq!(loan.recall(soon, || {}), Recalled::Late);
        loan.lend("new", || {});
        assert_eq!(loan.exchange(&mut seen, Some(1)), Some("new"));
        assert_eq!(loan.exchange(&mut seen, Some(2)), None);
        assert_eq!(loan.recall(long(), || {}), Recalled::Nothing, "it let go by itself");
    }

    #[test]
    fn what_is_lent_to_a_late_borrower_comes_back_as_it_was() {
        let loan = loan();
        let mut seen = Loan::<&str, u32>::UNSEEN;
        loan.lend("old", || {});
        loan.exchange(&mut seen, None);
        assert_eq!(loan.recall(Instant::now(), || {}), Recalled::Late);
        loan.lend("new", || {});
        assert_eq!(loan.recall(Instant::now(), || {}), Recalled::Unused("new"), "nobody else knows where it stands");
        assert_eq!(loan.exchange(&mut seen, Some(1)), None);
    }

    #[test]
    fn a_borrower_that_ends_leaves_it_to_the_next() {
        let loan = loan();
        let (mut first, mut second) = (Loan::<&str, u32>::UNSEEN, Loan::<&str, u32>::UNSEEN);
        loan.lend("at 0", || {});
        loan.exchange(&mut first, None);
        loan.put_back(first, "at 9", 9);
        assert!(loan.changed(second));
        assert_eq!(loan.exchange(&mut second, None), Some("at 9"));
        loan.put_back(second, "at 10", 10);
        assert_eq!(loan.recall(long(), || {}), Recalled::Unused("at 10"));
    }

    #[test]
    fn one_that_ends_while_it_is_recalled_tells_how_far_it_got() {
        let loan = loan();
        let mut seen = Loan::<&str, u32>::UNSEEN;
        loan.lend("ring", || {});
        loan.exchange(&mut seen, None);
        std::thread::scope(|scope| {
            let recalling = scope.spawn(|| loan.recall(long(), || {}));
            while !loan.changed(seen) {
                std::thread::yield_now();
            }
            loan.put_back(seen, "ring", 3);
            assert_eq!(recalling.join().unwrap(), Recalled::Returned(3));
        });
        assert_eq!(loan.exchange(&mut seen, None), None);
    }
}
