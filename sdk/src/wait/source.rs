//! What a worker can wait for.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::{Relay, Waker};
use crate::irq::{IrqKind, Vector};
use crate::sys::relax::Watch;

/// Anything that a worker can wait for: a receive queue, transmit completions, a ring between cores, a status register,
/// a timer, requests of other threads, a file descriptor.
///
/// A source supplies mechanism only; when to poll, arm and sleep is decided elsewhere. The contract:
///
/// ```text
/// pending()? ── no ──▶ arm() ──▶ full fence ──▶ pending()? ── no ──▶ block, bounded ──▶ disarm()
/// ```
///
/// Work that comes before the arming is seen by the second look, or wakes; work that comes after it wakes. For that to
/// hold,
/// `arm` must have reached whoever signals once the full fence that follows it is done (a device's register write is
/// read back, a flag in memory is stored), and whoever signals must publish its work before it looks whether it is
/// asked to.
pub trait Source: Send {
    /// Its name in reports: `0000:01:00.0 rx 0`.
    fn label(&self) -> String;

    /// Whether there is work now. Called on every look: a load or two where the work is visible in memory, never a
    /// system call, never blocking.
    fn pending(&self) -> bool;

    /// Asks for a wake-up when work comes. Armed already, it changes nothing.
    ///
    /// The kernel masks a line of INTx each time it fires, so arming must unmask it: after each [`fired`](Self::fired), and
    /// the first time. Other armings may spare the system call.
    fn arm(&mut self) {}

    /// Asks for no wake-ups. One that is under way may still come.
    fn disarm(&mut self) {}

    /// How it ends a sleep, or why it cannot. Asked for when a worker starts and after each change of its sources; only
    /// a deadline is asked for before each sleep.
    fn wake(&self) -> Wake;

    /// Called for each event of its [`Wake`] that its worker consumes, before it is armed again; also for those that came
    /// while it was not armed. Sources that share a vector are all told.
    ///
    /// An [`Engine`](super::Engine) does so by itself. Whoever waits for the vector without one must call this after each wait
    /// that found it fired, and each time its count is taken, before arming: a line of INTx may stay masked otherwise.
    fn fired(&mut self) {}

    /// The memory that is written when its work comes: where the processor can wait for a write, a worker that looks
    /// for work waits there.
    /// `None` when there is no single such place.
    fn watch(&self) -> Option<Watch<'_>> {
        None
    }

    /// Asks its device to leave at least this long between two wake-ups; zero for no delay at all. Returns what the
    /// device will do, `None` when it cannot hold wake-ups back.
    fn moderate(&mut self, interval: Duration) -> Option<Duration> {
        let _ = interval;
        None
    }
}

/// How a source ends a sleep.
#[derive(Debug, Clone)]
pub enum Wake {
    /// This vector of a device fires.
    Vector(Arc<Vector>, IrqKind),
    /// A peer in another process writes to this eventfd.
    Peer(Arc<Vector>),
    /// A peer in another process writes to the eventfd that this relay follows.
    Relay(Arc<Relay>),
    /// Another thread calls this waker.
    Waker(Arc<Waker>),
    /// This file descriptor becomes readable, and stays so until it is read.
    Fd(Arc<OwnedFd>),
    /// The time comes, in ticks of the [`Clock`](crate::clock::Clock); `None` while there is no deadline.
    At(Option<u64>),
    /// Not at all, for this reason.
    Never(Cow<'static, str>),
}

/// Calls a function with each source of a worker, always in the same order.
pub type EachSource<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&mut dyn Source));
