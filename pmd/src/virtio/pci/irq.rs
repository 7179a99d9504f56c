//! How a queue asks for its interrupt. Which vector is whose, [`vectors`](crate::vectors) says.
//!
//! Whether the device interrupts for a queue stands in the queue's own memory, so with MSI-X nothing else is to be done
//! for arming. INTx has a line that the kernel masks each time it fires, and an ISR status that holds it up until read.
//!
//! **No line stays masked.** The kernel masks the line and then signals the eventfd, so each masking leaves an edge that
//! somebody has yet to consume, and whoever does calls [`Line::fired`]; the next arming then reads ISR status, which
//! lowers the line, and unmasks it. An arming that was not told of anything leaves a line that is unmasked, or whose edge
//! ends the sleep at once. What the read of ISR status may take from another queue that is armed, because the kernel had
//! not seen the line yet, is passed on by firing the vector that both share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spinwake::irq::{IrqKind, Vector};
use spinwake::port::PortError;

use super::nic::Nic;
use super::transport::{NO_VECTOR, isr};
use crate::vectors::{self, Plan, Side, Vectors};

/// In the order of preference. There is no MSI in virtio (4.1.5.1.2).
const KINDS: [IrqKind; 2] = [IrqKind::Msix, IrqKind::Intx];

/// How the queues of a started port interrupt.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    pub(super) kind: Option<IrqKind>,
    /// Fires when the device configuration changes, or the device wants to be reset.
    pub(super) config: Option<Arc<Vector>>,
    lines: Vec<Arc<Line>>,
    plan: Plan,
}

impl Interrupts {
    /// The kind that [`turn_on`](Self::turn_on) will try first.
    pub(super) fn preferred(nic: &Nic, forced: Option<IrqKind>) -> Option<IrqKind> {
        vectors::preferred(&*nic.device, &KINDS, forced)
    }

    /// Turns interrupts on for `pairs` receive and as many transmit queues: of kind `forced` or none, or else of the best
    /// kind that works. Queues of a device without any can only be polled, which the log then says.
    pub(super) fn turn_on(nic: &Nic, forced: Option<IrqKind>, pairs: usize) -> Result<Self, PortError> {
        let vectors = vectors::turn_on(&*nic.device, &KINDS, forced, usize::MAX, (pairs, pairs))?;
        let Some(Vectors { kind, queues, own, plan }) = vectors else { return Ok(Self::default()) };
        let lines = queues.into_iter().map(|vector| Arc::new(Line::new(kind, vector))).collect();
        Ok(Self { kind: Some(kind), config: own, lines, plan })
    }

    /// Gives changes of the configuration their vector. The device must have been reset since interrupts were last on.
    pub(super) fn route_config(&mut self, nic: &Nic) {
        let Some(number) = self.config.as_ref().map(|_| self.lines.len() as u16) else { return };
        if !nic.transport.set_config_vector(number) {
            log::warn!("{}: it has no vector for changes of its link, which must be polled", nic.name());
            self.config = None;
        }
    }

    /// The number of the vector of queue `queue`, for the device.
    pub(super) fn number(&self, side: Side, queue: usize) -> u16 {
        if self.kind == Some(IrqKind::Msix) { self.plan.number(side, queue) as u16 } else { NO_VECTOR }
    }

    /// The line of queue `queue`; `None` when there is none.
    pub(super) fn line(&self, side: Side, queue: usize) -> Option<&Arc<Line>> {
        self.lines.get(self.plan.number(side, queue))
    }
}

/// One vector, and what must be known of the queues that share it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) vector: Arc<Vector>,
    pub(super) kind: IrqKind,
    members: Mutex<Members>,
}

#[derive(Debug)]
struct Members {
    /// The kernel may have masked the line: unknown at first, and whenever it fired since.
    may_be_masked: bool,
    /// Queues that are armed.
    armed: usize,
}

impl Line {
    fn new(kind: IrqKind, vector: Arc<Vector>) -> Self {
        Self { vector, kind, members: Mutex::new(Members { may_be_masked: true, armed: 0 }) }
    }

    /// For one queue more, which has asked for its interrupt in its own memory.
    pub(super) fn arm(&self, nic: &Nic) {
        if self.kind == IrqKind::Intx {
            let unmask =
                || nic.device.irq_unmask().inspect_err(|error| log::debug!("INTx stays masked: {error}")).is_ok();
            self.arm_intx(|| nic.transport.take_isr(), unmask);
        }
    }

    /// `take_isr` reads ISR status; `unmask` unmasks the line, and says whether it did.
    fn arm_intx(&self, take_isr: impl FnOnce() -> u8, unmask: impl FnOnce() -> bool) {
        let mut members = self.members();
        if members.may_be_masked {
            if take_isr() & isr::QUEUE != 0 && members.armed > 0 {
                self.vector.signal(1);
            }
            members.may_be_masked = !unmask();
        }
        members.armed += 1;
    }

    /// For one queue less.
    pub(super) fn disarm(&self) {
        if self.kind == IrqKind::Intx {
            self.members().armed -= 1;
        }
    }

    /// Takes note that an edge of the vector was consumed.
    pub(super) fn fired(&self) {
        if self.kind == IrqKind::Intx {
            self.members().may_be_masked = true;
        }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn line() -> Line {
        Line::new(IrqKind::Intx, Arc::new(Vector::new().unwrap()))
    }

    #[test]
    fn intx_is_unmasked_at_first_and_once_each_time_that_it_fired() {
        let line = line();
        let unmasks = |works| {
            let asked = Cell::new(0);
            let isr = || (asked.set(asked.get() + 1), 0).1;
            line.arm_intx(isr, || (asked.set(asked.get() + 1), works).1);
            line.disarm();
            asked.get()
        };
        assert_eq!(unmasks(true), 2, "who knows what was before");
        assert_eq!(unmasks(true), 0, "it did not fire");
        line.fired();
        line.fired();
        assert_eq!(unmasks(false), 2);
        assert_eq!(unmasks(true), 2, "what failed is tried again");
        assert_eq!(unmasks(true), 0);
    }

    #[test]
    fn a_cause_that_another_queue_waits_for_is_passed_on_when_arming_clears_it() {
        let line = line();
        line.arm_intx(|| isr::QUEUE, || true);
        assert_eq!(line.vector.take(), 0, "nobody waited");
        line.fired();
        line.arm_intx(|| 2, || true);
        assert_eq!(line.vector.take(), 0, "only the configuration changed");
        line.fired();
        line.arm_intx(|| isr::QUEUE, || true);
        assert_eq!(line.vector.take(), 1);
    }
}
