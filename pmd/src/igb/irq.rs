//! Interrupts: one vector a receive queue and one for the link where the device has them, one for all queues where not.
//!
//! With MSI-X each vector has a bit in EICR (cause), EIMS (mask), EIAC (the message clears the cause) and EIAM (the
//! message masks it), so a vector fires once for each [`QueueIrq::arm`]. With MSI and INTx every queue shares the cause
//! ICR.RXDW, and the link must be polled.
//!
//! **No lost wake-up.** While a queue is polled its cause bit stays set. Arming clears it, unmasks it, and then reads a
//! register: when the read returns, both writes have reached the device, and every descriptor that was written before
//! the clearing is visible (PCIe does not let a completion pass earlier writes). So a frame either is seen by the look at
//! `pending` that follows, or sets its cause after the clearing and fires. Without the read, the clearing could reach the
//! device after that look and wipe out the cause of a frame that nobody has seen.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spinwake::device::DeviceError;
use spinwake::irq::{IrqKind, Vector};
use spinwake::mmio::Bar;
use spinwake::port::PortError;

use super::nic::Nic;
use super::regs::{self, IVAR_VALID, gpie, icr};

/// What fires the link's vector: the link changed, or the device had to reset itself or its transmit DMA.
const OTHER_CAUSES: u32 = icr::LSC | icr::DRSTA | icr::DOUTSYNC;
/// What stands for every receive queue outside MSI-X mode.
const RX_CAUSE: u32 = icr::RXDW;
/// In the order of preference.
const KINDS: [IrqKind; 3] = [IrqKind::Msix, IrqKind::Msi, IrqKind::Intx];

/// How the queues of a started port interrupt.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    pub(super) kind: Option<IrqKind>,
    /// Fires for [`OTHER_CAUSES`].
    pub(super) link: Option<Arc<Vector>>,
    lines: Vec<Arc<Line>>,
}

/// One vector, and the receive queues that share it.
#[derive(Debug)]
struct Line {
    vector: Arc<Vector>,
    mode: Mode,
    /// Queues that are armed. Held while the device is told: queues that share a vector may belong to different workers,
    /// and the mask that the last one sets must not come after the first one's arming.
    armed: Mutex<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    /// MSI-X: this bit of EICR.
    Extended(u32),
    /// MSI, or INTx, which must be unmasked after it fired.
    Legacy { intx: bool },
}

impl Interrupts {
    /// The kind that [`turn_on`](Self::turn_on) will try first.
    pub(super) fn preferred(nic: &Nic, forced: Option<IrqKind>) -> Option<IrqKind> {
        KINDS.into_iter().find(|&kind| forced.is_none_or(|f| f == kind) && nic.device.irq_count(kind) > 0)
    }

    /// Turns interrupts on for `queues` receive queues, all of them masked: of kind `forced` or none, or else of the best
    /// kind that works. Queues of a device without any can only be polled, which the log then says.
    pub(super) fn turn_on(nic: &Nic, forced: Option<IrqKind>, queues: usize) -> Result<Self, PortError> {
        for kind in KINDS.into_iter().filter(|kind| forced.is_none_or(|f| f == *kind)) {
            let count = nic.device.irq_count(kind);
            if count == 0 {
                continue;
            }
            match Self::turn_on_kind(nic, kind, count, queues) {
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

    fn turn_on_kind(nic: &Nic, kind: IrqKind, count: usize, queues: usize) -> Result<Self, DeviceError> {
        // The last vector is the link's, if there is one to spare.
        let lines = if kind == IrqKind::Msix { queues.min(count.saturating_sub(1)).max(1) } else { 1 };
        let with_link = kind == IrqKind::Msix && lines < count.min(nic.model.vectors);
        let vectors = (0..lines + usize::from(with_link))
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
        let link = with_link.then(|| vectors[lines].clone());
        let lines: Vec<_> = vectors
            .into_iter()
            .take(lines)
            .enumerate()
            .map(|(i, vector)| {
                let mode = match kind {
                    IrqKind::Msix => Mode::Extended(1 << i),
                    IrqKind::Msi => Mode::Legacy { intx: false },
                    IrqKind::Intx => Mode::Legacy { intx: true },
                };
                Arc::new(Line { vector, mode, armed: Mutex::new(0) })
            })
            .collect();
        let interrupts = Self { kind: Some(kind), link, lines };
        interrupts.program(nic, queues);
        Ok(interrupts)
    }

    /// Routes every cause to its vector and unmasks the link's.
    fn program(&self, nic: &Nic, queues: usize) {
        let bar = &nic.bar;
        bar.write(regs::EIMC, u32::MAX);
        bar.write(regs::IMC, u32::MAX);
        bar.write(regs::IAM, 0);
        for vector in 0..nic.model.vectors {
            // No moderation in the device: hidden coalescing is hidden latency.
            bar.write(regs::eitr(vector), 0);
        }
        let mut ivar = [0; 8];
        for queue in 0..queues {
            let (register, shift) = nic.model.ivar.rx_entry(queue);
            ivar[register] |= (IVAR_VALID | (queue % self.lines.len()) as u32) << shift;
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

    /// The interrupt of receive queue `queue`.
    pub(super) fn of_queue(&self, queue: usize) -> Option<QueueIrq> {
        let line = self.lines.get(queue % self.lines.len().max(1))?.clone();
        Some(QueueIrq { line, armed: false })
    }

    /// Clears what fired the link's vector, so that the next change fires it again. To be called before looking.
    pub(super) fn acknowledge_link(&self, nic: &Nic) {
        if self.link.is_some() {
            nic.bar.read(regs::ICR);
        }
    }
}

/// The interrupt of one receive queue.
#[derive(Debug)]
pub(super) struct QueueIrq {
    line: Arc<Line>,
    armed: bool,
}

impl QueueIrq {
    pub(super) fn vector(&self) -> &Arc<Vector> {
        &self.line.vector
    }

    pub(super) fn kind(&self) -> IrqKind {
        match self.line.mode {
            Mode::Extended(_) => IrqKind::Msix,
            Mode::Legacy { intx: false } => IrqKind::Msi,
            Mode::Legacy { intx: true } => IrqKind::Intx,
        }
    }

    /// Makes the next frame fire the vector.
    pub(super) fn arm(&mut self, nic: &Nic) {
        if self.armed {
            return;
        }
        self.armed = true;
        self.line.arm(&nic.bar);
        if matches!(self.line.mode, Mode::Legacy { intx: true })
            // Harmless when the kernel had not masked it.
            && let Err(error) = nic.device.irq_unmask()
        {
            log::debug!("{}: INTx stays masked: {error}", nic.name());
        }
    }

    /// Makes it fire no more, and forgets that it fired.
    pub(super) fn disarm(&mut self, nic: &Nic) {
        if !self.armed {
            return;
        }
        self.armed = false;
        self.line.disarm(&nic.bar);
    }
}

impl Line {
    /// For one queue more.
    fn arm(&self, bar: &Bar) {
        let mut armed = self.armed();
        let alone = *armed == 0;
        *armed += 1;
        match self.mode {
            Mode::Extended(bit) => {
                // Another armed queue's cause must not be cleared; at worst this queue then wakes once for nothing.
                if alone {
                    bar.write(regs::EICR, bit);
                }
                bar.write(regs::EIMS, bit);
                bar.read(regs::EIMS);
            }
            Mode::Legacy { .. } => {
                // Reading clears every cause, and lowers the line of INTx: before the kernel has seen it, maybe.
                let causes = bar.read(regs::ICR);
                if !alone && causes & RX_CAUSE != 0 {
                    self.vector.signal(1);
                }
                bar.write(regs::IMS, RX_CAUSE);
                bar.read(regs::IMS);
            }
        }
    }

    /// For one queue less.
    fn disarm(&self, bar: &Bar) {
        let mut armed = self.armed();
        *armed -= 1;
        // While others wait for the same vector it stays on, and its count stays theirs.
        if *armed == 0 {
            match self.mode {
                Mode::Extended(bit) => bar.write(regs::EIMC, bit),
                Mode::Legacy { .. } => bar.write(regs::IMC, RX_CAUSE),
            }
            self.vector.take();
        }
    }

    fn armed(&self) -> MutexGuard<'_, usize> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::time::Duration;

    use spinwake::mmio::{RegisterIo, Width};

    use super::*;

    /// A mask, and a pause before it is set: long enough for another thread to arm meanwhile, if nothing stops it.
    #[derive(Debug)]
    struct SlowMask {
        ims: AtomicU32,
        masking: SyncSender<()>,
        armed: Mutex<Receiver<()>>,
    }

    impl RegisterIo for SlowMask {
        fn read(&self, _: usize, _: Width) -> u64 {
            0
        }
        fn write(&self, offset: usize, _: Width, value: u64) {
            if offset == regs::IMS.offset() {
                self.ims.fetch_or(value as u32, Ordering::SeqCst);
            } else if offset == regs::IMC.offset() {
                self.masking.send(()).unwrap();
                // Running into the limit is the good end: the other thread has to wait.
                let _ = self.armed.lock().unwrap().recv_timeout(Duration::from_millis(100));
                self.ims.fetch_and(!value as u32, Ordering::SeqCst);
            }
        }
    }

    #[test]
    fn a_queue_that_disarms_does_not_mask_one_that_arms_meanwhile() {
        let ((masking, in_mask), (tell, armed)) = (sync_channel(1), sync_channel(1));
        let io = Arc::new(SlowMask { ims: AtomicU32::new(0), masking, armed: Mutex::new(armed) });
        let bar = Bar::trapped(0x10000, io.clone());
        let vector = Arc::new(Vector::new().unwrap());
        let line = Line { vector, mode: Mode::Legacy { intx: false }, armed: Mutex::new(0) };
        let (line, bar) = (&line, &bar);
        line.arm(bar);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                in_mask.recv().unwrap();
                line.arm(bar);
                tell.send(()).unwrap();
            });
            line.disarm(bar);
        });
        assert_eq!(io.ims.load(Ordering::SeqCst), RX_CAUSE);
    }
}
