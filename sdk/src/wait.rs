//! Sleeping until there is work: one park of a worker over all its queues.
//!
//! ```text
//! poll ── nothing ──▶ arm every queue ──▶ look again ──▶ block (bounded) ──▶ disarm ──▶ poll
//!                                             └── something came in between ──▶ disarm ──▶ poll
//! ```
//!
//! The second look closes the gap between the last empty poll and the arming: a frame that came in it fires nothing.
//! The bound is what makes a park correct on any device; the interrupt makes it fast. Work that only the bound found
//! is counted as a *rescue*: in a healthy system that count stays zero.

use std::sync::Arc;
use std::time::Duration;

use crate::irq::{Vector, VectorSet};
use crate::port::{Counter, RxQueue};

/// When a worker that finds no work goes to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaitPolicy {
    /// Never: it spins, for the least latency and a whole core.
    #[default]
    Poll,
    /// At once, on its queues' interrupts.
    Interrupt,
}

/// A wait policy's name was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no wait policy \"{0}\"; the policies are poll and interrupt")]
pub struct ParsePolicyError(String);

impl std::str::FromStr for WaitPolicy {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, ParsePolicyError> {
        match text {
            "poll" => Ok(Self::Poll),
            "interrupt" => Ok(Self::Interrupt),
            other => Err(ParsePolicyError(other.into())),
        }
    }
}

impl std::fmt::Display for WaitPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Poll => "poll",
            Self::Interrupt => "interrupt",
        })
    }
}

/// A worker's receive queues cannot all wake it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "receive queue {index} has no interrupt, so a worker that sleeps would miss its frames; wait by polling instead"
)]
pub struct CannotWake {
    /// Which of the worker's receive queues, in the order in which it serves them.
    pub index: usize,
}

/// What parking has done. In cache lines of its own, so that readers do not disturb the worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ParkCounters {
    /// Times the worker blocked.
    pub parks: Counter,
    /// Blocks that an interrupt or another thread ended, and work was there.
    pub wakes: Counter,
    /// Blocks that an interrupt ended, and no work was there.
    pub spurious: Counter,
    /// Blocks that only the time limit ended, and work was there: an interrupt was lost.
    pub rescues: Counter,
}

/// Calls a function with each receive queue of a worker.
pub type EachQueue<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&mut dyn RxQueue));

/// Parks one worker.
#[derive(Debug)]
pub struct Parker {
    vectors: VectorSet,
    control: Arc<Vector>,
    counters: Arc<ParkCounters>,
}

/// The longest a park lasts: what a lost interrupt can cost.
const BOUND: Duration = Duration::from_millis(10);

impl Parker {
    /// A parker over the queues that `each` visits, and over `control`, which another thread signals to end a park.
    ///
    /// # Errors
    ///
    /// When a queue has no vector.
    pub fn new(each: EachQueue<'_>, control: Arc<Vector>, counters: Arc<ParkCounters>) -> Result<Self, CannotWake> {
        let mut vectors = vec![control.clone()];
        let mut without = None;
        let mut index = 0;
        each(&mut |queue| {
            match queue.vector() {
                Some(vector) => vectors.push(vector.clone()),
                None => without = without.or(Some(index)),
            }
            index += 1;
        });
        match without {
            Some(index) => Err(CannotWake { index }),
            None => Ok(Self { vectors: VectorSet::new(vectors), control, counters }),
        }
    }

    /// Sleeps until one of the queues has a frame, `control` is signalled, or the bound has passed. Returns at once when
    /// a frame came while the queues were being armed.
    pub fn park(&mut self, each: EachQueue<'_>) {
        each(&mut |queue| queue.arm());
        if !any_pending(each) {
            let fired = self.vectors.wait(BOUND);
            let work = any_pending(each);
            let controlled = self.control.take() > 0;
            self.counters.parks.add(1);
            match (fired, work) {
                (true, true) => self.counters.wakes.add(1),
                (true, false) if !controlled => self.counters.spurious.add(1),
                (false, true) => self.counters.rescues.add(1),
                _ => {}
            }
        }
        each(&mut |queue| queue.disarm());
    }
}

fn any_pending(each: EachQueue<'_>) -> bool {
    let mut any = false;
    each(&mut |queue| any |= queue.pending());
    any
}
