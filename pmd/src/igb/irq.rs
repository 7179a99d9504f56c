//! How causes get to their vectors: one a queue and one for the link where the device has as many
//! ([`vectors`](crate::vectors)), one for all where it has not.
//!
//! What a vector is armed by, and held back by, is in [`line`](super::line).

use std::sync::Arc;

use spinwake::irq::{IrqKind, Vector};
use spinwake::port::PortError;

use super::line::{Line, QueueIrq};
use super::nic::Nic;
use super::regs::{self, IVAR_VALID, gpie, icr};
use crate::vectors::{self, Plan, Side, Vectors};

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

impl Interrupts {
    /// The kind that [`turn_on`](Self::turn_on) will try first.
    pub(super) fn preferred(nic: &Nic, forced: Option<IrqKind>) -> Option<IrqKind> {
        vectors::preferred(&*nic.device, &KINDS, forced)
    }

    /// Turns interrupts on for `rx` receive and `tx` transmit queues, all of them masked: of kind `forced` or none, or else
    /// of the best kind that works. Queues of a device without any can only be polled, which the log then says.
    pub(super) fn turn_on(nic: &Nic, forced: Option<IrqKind>, rx: usize, tx: usize) -> Result<Self, PortError> {
        // One register of EITR a vector: what has none cannot be used.
        let vectors = vectors::turn_on(&*nic.device, &KINDS, forced, nic.model.vectors, (rx, tx))?;
        let Some(Vectors { kind, queues, own, plan }) = vectors else { return Ok(Self::default()) };
        let lines = queues.into_iter().enumerate().map(|(i, vector)| Arc::new(Line::new(kind, i, vector))).collect();
        let interrupts = Self { kind: Some(kind), link: own, lines, plan };
        interrupts.program(nic, rx, tx);
        Ok(interrupts)
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
                ivar[register] |= (IVAR_VALID | self.plan.number(side, queue) as u32) << shift;
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
        let line = self.lines.get(self.plan.number(side, queue))?;
        Some(QueueIrq::new(line.clone(), side, queue))
    }

    /// Clears what fired the link's vector, so that the next change fires it again. To be called before looking.
    pub(super) fn acknowledge_link(&self, nic: &Nic) {
        if self.link.is_some() {
            nic.bar.read(regs::ICR);
        }
    }
}
