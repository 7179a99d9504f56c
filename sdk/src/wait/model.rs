//! What stands in for the kernel and for fences while loom's model checker explores the wake protocol (`cfg(loom)`
//! only).
//!
//! Everything else that runs there is the real code.

use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use loom::thread::{self, Thread};

/// Who watches vectors edge-triggered and blocks until one fires: a thread of the model. There is no bound, so a lost
/// wake-up is a deadlock, which loom reports.
///
/// A thread's park token is all that it needs: it counts once however often it was given. That is no step of its own,
/// which loom would have to put between all steps of other threads, nor need it be: to be told before blocking is the
/// same as to be told after. What the teller did is visible from the telling on, earlier than in a kernel; that hides
/// nothing, as a thread that was told does not sleep before it has looked once more.
#[derive(Debug, Clone)]
pub struct Epoll(Arc<State>);

#[derive(Debug)]
struct State {
    thread: Thread,
    closed: AtomicBool,
}

impl Epoll {
    /// For the thread that calls it, which must block on nothing else that loom knows until it closes it.
    pub fn of_this_thread() -> Self {
        Self(Arc::new(State { thread: thread::current(), closed: AtomicBool::new(false) }))
    }

    /// Blocks until a vector that is watched has fired since the last call.
    pub fn wait(&self) {
        thread::park();
    }

    /// Watches no longer.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Relaxed);
    }

    fn fire(&self) {
        if !self.0.closed.load(Ordering::Relaxed) {
            self.0.thread.unpark();
        }
    }
}

/// A vector that loom follows. As an edge-triggered eventfd that nobody drains: firing it makes each who watches it
/// ready.
#[derive(Debug)]
pub struct Vector {
    /// What the rest of the crate, which loom does not run, would see of it.
    real: OnceLock<crate::irq::Vector>,
    /// Loom need not know of it: it is complete before anybody arms.
    watchers: Mutex<Vec<Epoll>>,
}

impl Vector {
    /// A vector that nobody watches.
    ///
    /// # Errors
    ///
    /// None: it has no file descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self { real: OnceLock::new(), watchers: Mutex::default() })
    }

    /// Lets `epoll` watch it.
    ///
    /// # Panics
    ///
    /// If a thread of the model panicked.
    pub fn watch(&self, epoll: &Epoll) {
        self.watchers.lock().expect("no thread panics").push(epoll.clone());
    }

    /// Fires it.
    ///
    /// # Panics
    ///
    /// If a thread of the model panicked.
    pub fn signal(&self, _n: u64) {
        self.watchers.lock().expect("no thread panics").iter().for_each(|epoll| epoll.fire());
    }
}

impl Deref for Vector {
    type Target = crate::irq::Vector;

    fn deref(&self) -> &Self::Target {
        self.real.get_or_init(|| crate::irq::Vector::new().expect("a file descriptor"))
    }
}

/// The fences of the protocol, each of which it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// Between a producer's publishing and its look at the flag, when it is light.
    Light,
    /// Between a consumer's arming and its second look, when it is heavy.
    Heavy,
    /// The full one that stands in either place where no fence is asymmetric.
    Full,
}

thread_local! {
    /// Loom runs all threads of a model on the thread that started it.
    static MISSING: Cell<Option<Fence>> = const { Cell::new(None) };
}

/// Runs `explore` with one kind of fence missing.
pub fn without(missing: Fence, explore: impl FnOnce()) {
    MISSING.set(Some(missing));
    explore();
    MISSING.set(None);
}

fn unless_missing(kind: Fence, order: Ordering) {
    if MISSING.get() != Some(kind) {
        loom::sync::atomic::fence(order);
    }
}

/// A full fence of the protocol.
pub(super) fn fence(order: Ordering) {
    unless_missing(Fence::Full, order);
}

/// Asymmetric fences, both of them modelled as full ones.
///
/// That is faithful to what the protocol may rely on. A heavy fence makes every other thread of the process pass a full
/// barrier before it returns, somewhere between two of that thread's instructions (membarrier(2)); a light one keeps
/// the compiler from moving accesses across it. So for each pair of a light and a heavy fence the other thread's
/// barrier lies either after its light one, and then whatever comes before the light fence is visible after the heavy
/// one; or before, and then whatever comes before the heavy fence is visible after the light one. That is what two full
/// fences promise one another. Two full fences of producers order those too, which light ones do not: the protocol
/// never pairs them, as a producer reads nothing of another's here but the flag itself.
pub(super) mod barrier {
    use super::{Fence, Ordering, unless_missing};

    pub(in super::super) fn register() -> bool {
        true
    }

    pub(in super::super) fn light() {
        unless_missing(Fence::Light, Ordering::SeqCst);
    }

    pub(in super::super) fn heavy() {
        unless_missing(Fence::Heavy, Ordering::SeqCst);
    }
}
