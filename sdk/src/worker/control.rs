//! What other threads want of a worker: that it stops, or runs something between two turns.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::wait::{Arming, Source, Wake, Waker};

/// A request was not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The worker has ended.
    #[error("worker {name} has ended, so it serves no requests")]
    Ended {
        /// The worker's name.
        name: String,
    },
    /// It was not served in time, and was withdrawn.
    #[error("worker {name} did not get to a request within {limit:?}: a turn of its takes longer than that")]
    TimedOut {
        /// The worker's name.
        name: String,
        /// What the caller gave it.
        limit: Duration,
    },
}

type Request<T> = Box<dyn FnOnce(&mut T) + Send>;

/// Requests in order, each with a number of its own.
struct Queue<T> {
    next: u64,
    waiting: VecDeque<(u64, Request<T>)>,
}

/// The requests to one worker.
pub(super) struct Control<T> {
    /// Something is to be done. Stored after it was put there, so that the worker pays one load a round.
    due: AtomicBool,
    stop: AtomicBool,
    requests: Mutex<Queue<T>>,
    waker: Arc<Waker>,
}

impl<T> Control<T> {
    pub(super) fn new() -> io::Result<Self> {
        let waker = Arc::new(Waker::new());
        waker.vector()?;
        Ok(Self {
            due: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            requests: Mutex::new(Queue { next: 0, waiting: VecDeque::new() }),
            waker,
        })
    }

    /// Asks the worker to end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.notify();
    }

    /// Has `request` run by the worker, and waits for what it returns.
    pub(super) fn call<R: Send + 'static>(
        &self,
        name: &str,
        limit: Duration,
        is_running: impl Fn() -> bool,
        request: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> Result<R, CallError> {
        /// How often the worker's life is looked at meanwhile.
        const LOOK: Duration = Duration::from_millis(50);
        let (reply, answer) = mpsc::channel();
        let id = {
            let mut requests = self.requests();
            let id = requests.next;
            requests.next += 1;
            // A caller that gave up waits for no reply.
            requests.waiting.push_back((id, Box::new(move |task| drop(reply.send(request(task))))));
            id
        };
        self.notify();
        let mut deadline = Instant::now().checked_add(limit);
        loop {
            let left = deadline.map_or(LOOK, |deadline| deadline.saturating_duration_since(Instant::now()));
            match answer.recv_timeout(left.min(LOOK)) {
                Ok(value) => return Ok(value),
                Err(RecvTimeoutError::Disconnected) => return Err(CallError::Ended { name: name.into() }),
                Err(RecvTimeoutError::Timeout) if !is_running() => {
                    // What it still served came before its end.
                    return answer.try_recv().map_err(|_| CallError::Ended { name: name.into() });
                }
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    if self.withdraw(id) {
                        return Err(CallError::TimedOut { name: name.into(), limit });
                    }
                    // The worker has it already, so it ends when it ends.
                    deadline = None;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The requests as a source, for the worker to wait for.
    pub(super) fn source(&self) -> Requests<'_> {
        Requests { due: &self.due, waker: &self.waker, arming: Arming::default() }
    }

    /// Whether [`serve`](Self::serve) would find something to do.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        self.due.load(Ordering::Acquire)
    }

    /// Serves the requests that are there now, and leaves those that come meanwhile for after the next turn: callers
    /// that go on and on must not keep the worker from its work. Returns whether it shall end.
    pub(super) fn serve(&self, task: &mut T) -> bool {
        // A swap, not a store: if it takes back what `stop` has just set, it has seen what `stop` stored before that.
        self.due.swap(false, Ordering::Acquire);
        let now = self.requests().waiting.len();
        for _ in 0..now {
            // The lock is not held while a request runs: it may take its time.
            let next = self.requests().waiting.pop_front();
            let Some((_, request)) = next else { break };
            request(task);
        }
        self.stop.load(Ordering::Relaxed)
    }

    fn notify(&self) {
        self.due.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Takes a request back; false when the worker has it already.
    fn withdraw(&self, id: u64) -> bool {
        let waiting = &mut self.requests().waiting;
        let before = waiting.len();
        waiting.retain(|(other, _)| *other != id);
        waiting.len() < before
    }

    fn requests(&self) -> MutexGuard<'_, Queue<T>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Control<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("due", &self.due).field("stop", &self.stop).finish_non_exhaustive()
    }
}

/// Requests of other threads, as a source.
#[derive(Debug)]
pub(super) struct Requests<'a> {
    due: &'a AtomicBool,
    waker: &'a Arc<Waker>,
    arming: Arming,
}

impl Source for Requests<'_> {
    fn label(&self) -> String {
        "requests".into()
    }

    fn pending(&self) -> bool {
        self.due.load(Ordering::Relaxed)
    }

    fn arm(&mut self) {
        self.waker.arm(&mut self.arming);
    }

    fn disarm(&mut self) {
        self.waker.disarm(&mut self.arming);
    }

    fn wake(&self) -> Wake {
        Wake::Waker(self.waker.clone())
    }
}
