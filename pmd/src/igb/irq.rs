//! Which vector is whose: one a queue and one for the link where the device has as many, one for all where it has not.
//!
//! ```text
//! MSI-X, vectors for all       rx 0 | rx 1 | .. | tx 0 | tx 1 | .. | link
//! MSI-X, too few for that      rx 0 and tx 0 | rx 1 and tx 1 | .. | link
//! MSI, INTx                    everything but the link, which must be polled
//! ```
//!
//! What a vector is armed by, and held back by, is in [`line`](super::line).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use spinwake::device::DeviceError;
use spinwake::irq::{IrqKind, Vector};
use spinwake::port::PortError;

use super::line::{Line, QueueIrq, Side};
use super::nic::Nic;
use super::regs::{self, IVAR_VALID, gpie, icr};

/// What fires the link's vector: the link changed, or the device had to reset itself or its transmit DMA.
const OTHER_CAUSES: u32 = icr::LSC | icr::DRSTA | icr::DOUTSYNC;
/// In the order of preference.
const KINDS: [IrqKind; 3] = [IrqKind::Msix, IrqKind::Msi, IrqKind::Intx];

/// How the queues of a started port interrupt.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    pub(super) kind: Option<IrqKind>,
    /// Fires for [`OTHER_CAUSES`].
    pub(super) link: Option<Arc<Vector>>,
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
    /// The last is the link's.
    link: bool,
}

impl Plan {
    /// The plans to try for `rx` and `tx` queues on a device with `vectors` of kind `kind`, the best first.
    ///
    /// A transmit queue has a vector of its own where that is possible, so that nobody who waits for frames alone is woken
    /// by completions.
    fn candidates(kind: IrqKind, vectors: usize, rx: usize, tx: usize) -> Vec<Self> {
        if kind != IrqKind::Msix {
            return vec![Self { rx: 1, tx: 0, link: false }];
        }
        let mut plans = Vec::new();
        if rx + tx < vectors {
            plans.push(Self { rx, tx, link: true });
        }
        // The link gets one if there is one to spare.
        let rx = rx.min(vectors.saturating_sub(1)).max(1);
        plans.push(Self { rx, tx: 0, link: rx < vectors });
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

    /// Turns interrupts on for `rx` receive and `tx` transmit queues, all of them masked: of kind `forced` or none, or else
    /// of the best kind that works. Queues of a device without any can only be polled, which the log then says.
    pub(super) fn turn_on(nic: &Nic, forced: Option<IrqKind>, rx: usize, tx: usize) -> Result<Self, PortError> {
        for kind in KINDS.into_iter().filter(|kind| forced.is_none_or(|f| f == *kind)) {
            let count = nic.device.irq_count(kind);
            if count == 0 {
                continue;
            }
            match Self::turn_on_kind(nic, kind, count, rx, tx) {
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

    fn turn_on_kind(nic: &Nic, kind: IrqKind, count: usize, rx: usize, tx: usize) -> Result<Self, DeviceError> {
        // One register of EITR a vector: what has none cannot be used.
        let mut plans = Plan::candidates(kind, count.min(nic.model.vectors), rx, tx).into_iter().peekable();
        loop {
            let Some(plan) = plans.next() else {
                return Err(DeviceError::Missing { device: nic.name().into(), what: format!("{kind} vectors") });
            };
            match Self::allocate(nic, kind, plan) {
                Ok(interrupts) => {
                    interrupts.program(nic, rx, tx);
                    return Ok(interrupts);
                }
                // The kernel may have fewer to give than the device has.
                Err(error) if plans.peek().is_some() => log::debug!("{}: {error}; sharing vectors", nic.name()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the vectors and connects them.
    fn allocate(nic: &Nic, kind: IrqKind, plan: Plan) -> Result<Self, DeviceError> {
        let vectors = (0..plan.lines() + usize::from(plan.link))
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
        let link = plan.link.then(|| vectors[plan.lines()].clone());
        let vectors = vectors.into_iter().take(plan.lines()).enumerate();
        let lines = vectors.map(|(i, vector)| Arc::new(Line::new(kind, i, vector))).collect();
        Ok(Self { kind: Some(kind), link, lines, plan })
    }

    /// Routes every cause to its vector and unmasks the link's.
    fn program(&self, nic: &Nic, rx: usize, tx: usize) {
        let bar = &nic.bar;
        bar.write(regs::EIMC, u32::MAX);
        bar.write(regs::IMC, u32::MAX);
        bar.write(regs::IAM, 0);
        for vector in 0..nic.model.vectors {
            // No moderation unless somebody asks for it: hidden coalescing is hidden latency.
            bar.write(regs::eitr(vector), 0);
        }
        let mut ivar = [0; 8];
        for (side, queues) in [(Side::Rx, rx), (Side::Tx, tx)] {
            for queue in 0..queues {
                let (register, shift) = nic.model.ivar.entry(side, queue);
                ivar[register] |= (IVAR_VALID | self.plan.line_of(side, queue) as u32) << shift;
            }
        }
        for (n, value) in ivar.into_iter().enumerate() {
            bar.write(regs::ivar(n), value);
        }
        if self.kind != Some(IrqKind::Msix) {
            bar.write(regs::GPIE, gpie::NSICR);
            bar.write(regs::IVAR_MISC, 0);
            bar.read(regs::ICR);
            return;
        }
        // QEMU's igb takes EIAC only in this mode, and adds to it rather than replacing it; it stores EIAM inverted and
        // never uses it, so there a vector fires for every frame until it is disarmed.
        bar.write(regs::GPIE, gpie::MULTIPLE_MSIX | gpie::EIAME | gpie::PBA_SUPPORT | gpie::NSICR);
        let queue_bits = (1u32 << self.lines.len()) - 1;
        let link_bit = if self.link.is_some() { 1 << self.lines.len() } else { 0 };
        bar.write(regs::EIAC, queue_bits | link_bit);
        // The link's vector masks nothing: `link` clears its cause in ICR, and the next one fires again.
        bar.write(regs::EIAM, queue_bits);
        bar.write(regs::EICR, u32::MAX);
        let other = if self.link.is_some() { (IVAR_VALID | self.lines.len() as u32) << 8 } else { 0 };
        bar.write(regs::IVAR_MISC, other);
        bar.read(regs::ICR);
        if self.link.is_some() {
            bar.write(regs::IMS, OTHER_CAUSES);
            bar.write(regs::EIMS, link_bit);
        }
    }

    /// The interrupt of queue `queue`; `None` when there is none.
    pub(super) fn of_queue(&self, side: Side, queue: usize) -> Option<QueueIrq> {
        let line = self.lines.get(self.plan.line_of(side, queue))?;
        Some(QueueIrq::new(line.clone(), side, queue))
    }

    /// Clears what fired the link's vector, so that the next change fires it again. To be called before looking.
    pub(super) fn acknowledge_link(&self, nic: &Nic) {
        if self.link.is_some() {
            nic.bar.read(regs::ICR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transmit_queues_have_vectors_of_their_own_where_there_are_enough() {
        let plan = |vectors, rx, tx| Plan::candidates(IrqKind::Msix, vectors, rx, tx)[0];
        assert_eq!(plan(25, 12, 12), Plan { rx: 12, tx: 12, link: true });
        assert_eq!(plan(25, 12, 13), Plan { rx: 12, tx: 0, link: true });
        assert_eq!(plan(5, 4, 4), Plan { rx: 4, tx: 0, link: true });
        assert_eq!(plan(3, 4, 4), Plan { rx: 2, tx: 0, link: true });
        assert_eq!(plan(1, 1, 1), Plan { rx: 1, tx: 0, link: false });
        assert_eq!(Plan::candidates(IrqKind::Msix, 25, 2, 2).len(), 2, "sharing is the way out");
        assert_eq!(Plan::candidates(IrqKind::Msi, 1, 4, 4), [Plan { rx: 1, tx: 0, link: false }]);
    }

    #[test]
    fn every_queue_has_a_vector_and_no_two_share_one_without_need() {
        let own = Plan { rx: 3, tx: 2, link: true };
        assert_eq!([0, 1, 2].map(|queue| own.line_of(Side::Rx, queue)), [0, 1, 2]);
        assert_eq!([0, 1].map(|queue| own.line_of(Side::Tx, queue)), [3, 4]);
        let shared = Plan { rx: 2, tx: 0, link: true };
        assert_eq!([0, 1, 2].map(|queue| shared.line_of(Side::Tx, queue)), [0, 1, 0]);
    }
}
