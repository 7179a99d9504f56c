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
use crate::telemetry::Counter;
use crate::wait::{Source, Wake};

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
    /// Blocks that only the time limit ended, and work was there without an interrupt: one was lost.
    pub rescues: Counter,
}

/// Calls a function with each receive queue of a worker.
pub(super) type EachQueue<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&mut dyn Source));

/// Parks one worker.
#[derive(Debug)]
pub struct Parker {
    vectors: VectorSet,
    control: Arc<Vector>,
    counters: Arc<ParkCounters>,
}

/// The longest a park lasts without work.
const BOUND: Duration = Duration::from_millis(10);
/// How much longer it lasts when work was found without an interrupt, until that counts as lost. Emulated machines need
/// milliseconds from a device to an eventfd when they are busy.
const GRACE: Duration = Duration::from_millis(10);

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
            match queue.wake() {
                Wake::Vector(vector, _) => vectors.push(vector),
                _ => without = without.or(Some(index)),
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
            let mut fired = self.vectors.wait(BOUND);
            let work = any_pending(each);
            if work && !fired {
                // The frame may have come just as the time ran out, with its interrupt still under way. Only one that
                // does not come either way is lost.
                fired = self.vectors.wait(GRACE);
            }
            let controlled = self.control.take() > 0;
            self.counters.parks.add(1);
            match (fired, work) {
                (true, true) => self.counters.wakes.add(1),
                (true, false) if !controlled => self.counters.spurious.add(1),
                (false, true) => self.counters.rescues.add(1),
                _ => {}
            }
        }
        each(&mut |queue| {
            queue.disarm();
            // What fired until here belongs to this park.
            if let Wake::Vector(vector, _) = queue.wake() {
                vector.take();
            }
        });
    }
}

fn any_pending(each: EachQueue<'_>) -> bool {
    let mut any = false;
    each(&mut |queue| any |= queue.pending());
    any
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::irq::IrqKind;

    /// A queue that gets a frame just as a park's time runs out: the first look finds nothing, the second finds it.
    #[derive(Debug)]
    struct Late {
        looks: Cell<usize>,
        /// Whether its interrupt comes once the frame has been seen, or never.
        interrupts: bool,
        vector: Arc<Vector>,
    }

    impl Source for Late {
        fn label(&self) -> String {
            "late".into()
        }
        fn pending(&self) -> bool {
            self.looks.set(self.looks.get() + 1);
            if self.looks.get() == 2 && self.interrupts {
                self.vector.signal(1);
            }
            self.looks.get() >= 2
        }
        fn disarm(&mut self) {
            self.vector.take();
        }
        fn wake(&self) -> Wake {
            Wake::Vector(self.vector.clone(), IrqKind::Msix)
        }
    }

    /// Wakes and rescues after one park.
    fn park(interrupts: bool) -> (u64, u64) {
        let vector = Arc::new(Vector::new().expect("an eventfd"));
        let mut queue = Late { looks: Cell::new(0), interrupts, vector };
        let counters: Arc<ParkCounters> = Arc::default();
        let control = Arc::new(Vector::new().expect("an eventfd"));
        let mut parker =
            Parker::new(&mut |each| each(&mut queue), control, counters.clone()).expect("its queue has a vector");
        parker.park(&mut |each| each(&mut queue));
        assert_eq!(counters.parks.get(), 1);
        (counters.wakes.get(), counters.rescues.get())
    }

    #[test]
    fn an_interrupt_under_way_when_the_time_runs_out_is_not_lost() {
        assert_eq!(park(true), (1, 0));
    }

    #[test]
    fn an_interrupt_that_does_not_come_is() {
        assert_eq!(park(false), (0, 1));
    }
}
