//! Which vector is whose, and how a queue asks for its interrupt.
//!
//! ```text
//! MSI-X, vectors for all       rx 0 | rx 1 | .. | tx 0 | tx 1 | .. | configuration
//! MSI-X, too few for that      rx 0 and tx 0 | rx 1 and tx 1 | .. | configuration
//! INTx                         everything; changes of the configuration must be polled
//! ```
//!
//! Whether the device interrupts for a queue stands in the queue's own memory, so with MSI-X nothing else is to be done
//! for arming. INTx has a line that the kernel masks each time it fires, and an ISR status that holds it up until read.
//!
//! **No line stays masked.** The kernel masks the line and then signals the eventfd, so each masking leaves an edge that
//! somebody has yet to consume, and whoever does calls [`Line::fired`]; the next arming then reads ISR status, which
//! lowers the line, and unmasks it. An arming that was not told of anything leaves a line that is unmasked, or whose edge
//! ends the sleep at once. What the read of ISR status may take from another queue that is armed, because the kernel had
//! not seen the line yet, is passed on by firing the vector that both share.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spinwake::device::DeviceError;
use spinwake::irq::{IrqKind, Vector};
use spinwake::port::PortError;

use super::nic::Nic;
use super::transport::{NO_VECTOR, isr};

/// Which kind of queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Rx,
    Tx,
}

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

/// Who gets which vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Plan {
    /// The first vectors are the receive queues'; queue n has number n modulo this.
    rx: usize,
    /// As many follow for the transmit queues, one each. None: they share those of the receive queues of their number.
    tx: usize,
    /// The last is for changes of the configuration.
    config: bool,
}

impl Plan {
    /// The plans to try for `pairs` queues each way on a device with `vectors` of kind `kind`, the best first.
    fn candidates(kind: IrqKind, vectors: usize, pairs: usize) -> Vec<Self> {
        if kind != IrqKind::Msix {
            return vec![Self { rx: 1, tx: 0, config: false }];
        }
        let mut plans = Vec::new();
        if 2 * pairs < vectors {
            plans.push(Self { rx: pairs, tx: pairs, config: true });
        }
        // The configuration gets one if there is one to spare.
        let rx = pairs.min(vectors.saturating_sub(1)).max(1);
        plans.push(Self { rx, tx: 0, config: rx < vectors });
        plans
    }

    fn lines(self) -> usize {
        self.rx + self.tx
    }

    /// The vector of queue `queue`.
    fn line_of(self, side: Side, queue: usize) -> usize {
        match side {
            Side::Tx if self.tx > 0 => self.rx + queue % self.tx,
            _ => queue % self.rx.max(1),
        }
    }
}

impl Interrupts {
    /// The kind that [`turn_on`](Self::turn_on) will try first.
    pub(super) fn preferred(nic: &Nic, forced: Option<IrqKind>) -> Option<IrqKind> {
        KINDS.into_iter().find(|&kind| forced.is_none_or(|f| f == kind) && nic.device.irq_count(kind) > 0)
    }

    /// Turns interrupts on for `pairs` receive and as many transmit queues: of kind `forced` or none, or else of the best
    /// kind that works. Queues of a device without any can only be polled, which the log then says.
    pub(super) fn turn_on(nic: &Nic, forced: Option<IrqKind>, pairs: usize) -> Result<Self, PortError> {
        for kind in KINDS.into_iter().filter(|kind| forced.is_none_or(|f| f == *kind)) {
            let count = nic.device.irq_count(kind);
            if count == 0 {
                continue;
            }
            match Self::turn_on_kind(nic, kind, count, pairs) {
                Ok(interrupts) => return Ok(interrupts),
                Err(error) if forced.is_some() => return Err(error.into()),
                Err(error) => log::warn!("{}: {kind} does not work: {error}", nic.name()),
            }
        }
        if let Some(kind) = forced {
            let what = format!("{kind} interrupts");
            return Err(DeviceError::Missing { device: nic.name().into(), what }.into());
        }
        log::warn!("{}: it has no interrupts, so its queues can only be polled", nic.name());
        Ok(Self::default())
    }

    fn turn_on_kind(nic: &Nic, kind: IrqKind, count: usize, pairs: usize) -> Result<Self, DeviceError> {
        let mut plans = Plan::candidates(kind, count, pairs).into_iter().peekable();
        loop {
            let Some(plan) = plans.next() else {
                return Err(DeviceError::Missing { device: nic.name().into(), what: format!("{kind} vectors") });
            };
            match Self::allocate(nic, kind, plan) {
                Ok(interrupts) => return Ok(interrupts),
                // The kernel may have fewer to give than the device has.
                Err(error) if plans.peek().is_some() => log::debug!("{}: {error}; sharing vectors", nic.name()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the vectors and connects them.
    fn allocate(nic: &Nic, kind: IrqKind, plan: Plan) -> Result<Self, DeviceError> {
        let vectors = (0..plan.lines() + usize::from(plan.config))
            .map(|_| Vector::new().map(Arc::new))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| DeviceError::Call {
                device: nic.name().into(),
                call: "eventfd",
                source,
                hint: "; raise the limit on open files (ulimit -n)".into(),
            })?;
        let fds: Vec<BorrowedFd<'_>> = vectors.iter().map(|v| v.as_fd()).collect();
        nic.device.irq_enable(kind, &fds)?;
        let config = plan.config.then(|| vectors[plan.lines()].clone());
        let lines = vectors.into_iter().take(plan.lines()).map(|vector| Arc::new(Line::new(kind, vector))).collect();
        Ok(Self { kind: Some(kind), config, lines, plan })
    }

    /// Gives changes of the configuration their vector. The device must have been reset since interrupts were last on.
    pub(super) fn route_config(&mut self, nic: &Nic) {
        let Some(number) = self.config.as_ref().map(|_| self.plan.lines() as u16) else { return };
        if !nic.transport.set_config_vector(number) {
            log::warn!("{}: it has no vector for changes of its link, which must be polled", nic.name());
            self.config = None;
        }
    }

    /// The number of the vector of queue `queue`, for the device.
    pub(super) fn number(&self, side: Side, queue: usize) -> u16 {
        if self.kind == Some(IrqKind::Msix) { self.plan.line_of(side, queue) as u16 } else { NO_VECTOR }
    }

    /// The line of queue `queue`; `None` when there is none.
    pub(super) fn line(&self, side: Side, queue: usize) -> Option<&Arc<Line>> {
        self.lines.get(self.plan.line_of(side, queue))
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

    #[test]
    fn transmit_queues_have_vectors_of_their_own_where_there_are_enough() {
        let plan = |vectors, pairs| Plan::candidates(IrqKind::Msix, vectors, pairs)[0];
        assert_eq!(plan(3, 1), Plan { rx: 1, tx: 1, config: true });
        assert_eq!(plan(9, 4), Plan { rx: 4, tx: 4, config: true });
        assert_eq!(plan(8, 4), Plan { rx: 4, tx: 0, config: true });
        assert_eq!(plan(3, 4), Plan { rx: 2, tx: 0, config: true });
        assert_eq!(plan(1, 1), Plan { rx: 1, tx: 0, config: false });
        assert_eq!(Plan::candidates(IrqKind::Msix, 9, 2).len(), 2, "sharing is the way out");
        assert_eq!(Plan::candidates(IrqKind::Intx, 1, 4), [Plan { rx: 1, tx: 0, config: false }]);
    }

    #[test]
    fn every_queue_has_a_vector_and_no_two_share_one_without_need() {
        let own = Plan { rx: 2, tx: 2, config: true };
        assert_eq!([0, 1].map(|queue| own.line_of(Side::Rx, queue)), [0, 1]);
        assert_eq!([0, 1].map(|queue| own.line_of(Side::Tx, queue)), [2, 3]);
        let shared = Plan { rx: 2, tx: 0, config: true };
        assert_eq!([0, 1, 2].map(|queue| shared.line_of(Side::Tx, queue)), [0, 1, 0]);
    }

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
