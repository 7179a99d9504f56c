//! What stands in for the kernel and for fences while loom's model checker explores the wake protocol (`cfg(loom)` only).
//!
//! Everything else that runs there is the real code.

use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::Notify;

/// Who watches vectors edge-triggered and blocks until one fires. There is no bound: a lost wake-up is a deadlock, which
/// loom reports.
#[derive(Debug)]
pub struct Epoll(Notify);

impl Default for Epoll {
    fn default() -> Self {
        Self(Notify::new())
    }
}

impl Epoll {
    /// Blocks until a vector that is watched has fired since the last call; however often, that counts once. Loom explores
    /// a wait that ends for nothing, too.
    pub fn wait(&self) {
        self.0.wait();
    }
}

/// A vector that loom follows. As an edge-triggered eventfd that nobody drains: firing it makes each who watches it ready.
#[derive(Debug)]
pub struct Vector {
    /// What the rest of the crate, which loom does not run, sees of it.
    real: crate::irq::Vector,
    /// Loom need not know of it: it is complete before anybody arms.
    watchers: std::sync::Mutex<Vec<Arc<Epoll>>>,
}

impl Vector {
    /// A vector that nobody watches.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { real: crate::irq::Vector::new()?, watchers: std::sync::Mutex::default() })
    }

    /// Lets `epoll` watch it.
    ///
    /// # Panics
    ///
    /// If a thread of the model panicked.
    pub fn watch(&self, epoll: &Arc<Epoll>) {
        self.watchers.lock().expect("no thread panics").push(Arc::clone(epoll));
    }

    /// Fires it.
    ///
    /// # Panics
    ///
    /// If a thread of the model panicked.
    pub fn signal(&self, _n: u64) {
        // Copied: loom may run another thread while one is told.
        let watchers = self.watchers.lock().expect("no thread panics").clone();
        watchers.iter().for_each(|epoll| epoll.0.notify());
    }
}

impl Deref for Vector {
    type Target = crate::irq::Vector;

    fn deref(&self) -> &Self::Target {
        &self.real
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
/// barrier before it returns, somewhere between two of that thread's instructions (membarrier(2)); a light one keeps the
/// compiler from moving accesses across it. So for each pair of a light and a heavy fence the other thread's barrier lies
/// either after its light one, and then whatever comes before the light fence is visible after the heavy one; or before,
/// and then whatever comes before the heavy fence is visible after the light one. That is what two full fences promise one
/// another. Two full fences of producers order those too, which light ones do not: the protocol never pairs them, as a
/// producer reads nothing of another's here but the flag itself.
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
