//! One vector, and the queues that share it: arming, disarming, and how close together its interrupts may come.
//!
//! With MSI-X each vector has a bit in EICR (cause), EIMS (mask), EIAC (the message clears the cause) and EIAM (the
//! message masks it), so a vector fires once for each arming. With MSI and INTx all receive queues share the cause
//! ICR.RXDW and all transmit queues ICR.TXDW.
//!
//! **No lost wake-up.** While a queue is polled its cause bit stays set. Arming clears it, unmasks it, and then reads a
//! register: when the read returns, both writes have reached the device, and every descriptor that was written before
//! the clearing is visible (PCIe does not let a completion pass earlier writes). So a frame either is seen by the look at
//! `pending` that follows, or sets its cause after the clearing and fires. Without the read, the clearing could reach the
//! device after that look and wipe out the cause of a frame that nobody has seen.
//!
//! **No count is taken.** Whoever waits watches the eventfd for edges: each signal is one, whatever the count. So arming
//! and disarming cost no system call, but for one of INTx after it fired.
//!
//! **No line stays masked.** The kernel masks the line of INTx each time it fires, and then signals the eventfd
//! (`vfio_intx_handler`, drivers/vfio/pci/vfio_pci_intrs.c); unmasking one that is still up masks it again and signals, too.
//! Its handler runs when it likes: after a park was called off, with nobody looking, or after the cause was cleared. But
//! each masking is followed by an edge that somebody has yet to consume, and whoever does so calls [`QueueIrq::fired`]:
//!
//! ```text
//! masked ──▶ signalled ──▶ edge consumed ──▶ fired ──▶ the next arming unmasks
//! ```
//!
//! Signals that come before their edge is consumed make one, which is consumed after the last masking. One that comes later
//! makes an edge of its own. So an arming that was not told of anything leaves a line that is unmasked, or whose edge
//! ends the sleep at once: a wake for nothing, and then it is unmasked. Each worker that shares the line has edges of its
//! own. The first to arm unmasks for all of them; told by the edges of the others, the line is unmasked once too often.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spinwake::irq::{IrqKind, Vector};
use spinwake::mmio::Bar;

use super::nic::Nic;
use super::regs::{self, eitr, icr};
use crate::vectors::Side;

/// What stands for every queue of a side outside MSI-X mode.
const fn cause_of(side: Side) -> u32 {
    match side {
        Side::Rx => icr::RXDW,
        Side::Tx => icr::TXDW,
    }
}

/// The interrupt of one queue.
#[derive(Debug)]
pub(super) struct QueueIrq {
    line: Arc<Line>,
    side: Side,
    queue: usize,
    armed: bool,
}

impl QueueIrq {
    pub(super) fn new(line: Arc<Line>, side: Side, queue: usize) -> Self {
        Self { line, side, queue, armed: false }
    }

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

    /// Makes the next frame or completion fire the vector.
    pub(super) fn arm(&mut self, nic: &Nic) {
        if self.armed {
            return;
        }
        self.armed = true;
        self.line.arm(&nic.bar, self.side, || {
            let unmasked = nic.device.irq_unmask();
            if let Err(error) = &unmasked {
                log::debug!("{}: INTx stays masked: {error}", nic.name());
            }
            unmasked.is_ok()
        });
    }

    /// Takes note that an edge of the vector was consumed.
    pub(super) fn fired(&self) {
        self.line.fired();
    }

    /// Makes it fire no more. An interrupt that is under way may still come.
    pub(super) fn disarm(&mut self, nic: &Nic) {
        if self.armed {
            self.armed = false;
            self.line.disarm(&nic.bar, self.side);
        }
    }

    /// Asks for at least `interval` between two interrupts; returns what the device will do.
    ///
    /// Queues that share a vector share its interval: the shortest that one of them asked for, because latency that
    /// nobody wanted is worse than an interrupt too many. A queue that never asked has no say.
    pub(super) fn moderate(&mut self, nic: &Nic, interval: Duration) -> Duration {
        let us = self.line.moderate(&nic.bar, (self.side, self.queue), Some(interval_us(interval)));
        Duration::from_micros(us.into())
    }

    /// Disarms it and takes back what its queue asked for, which is about to end.
    pub(super) fn leave(&mut self, nic: &Nic) {
        self.disarm(nic);
        self.line.moderate(&nic.bar, (self.side, self.queue), None);
    }
}

/// One vector, and the queues that share it.
#[derive(Debug)]
pub(super) struct Line {
    vector: Arc<Vector>,
    mode: Mode,
    /// Its number, and that of its EITR: outside MSI-X mode the first serves the only vector.
    number: usize,
    /// Held while device and kernel are told: queues that share a vector may belong to different workers, and the mask that
    /// the last one sets must not come after the first one's arming, nor may one sleep while another is about to unmask.
    members: Mutex<Members>,
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    /// MSI-X: this bit of EICR.
    Extended(u32),
    /// MSI, or INTx, which must be unmasked after it fired.
    Legacy { intx: bool },
}

#[derive(Debug)]
struct Members {
    /// The kernel may have masked the line: unknown at first, and whenever it fired since.
    may_be_masked: bool,
    /// Receive and transmit queues that are armed.
    armed: [usize; 2],
    /// The intervals that queues asked for, in microseconds.
    wishes: Vec<((Side, usize), u16)>,
}

impl Members {
    /// The causes that somebody is armed for.
    fn causes(&self) -> u32 {
        let cause = |side: Side| if self.armed[side as usize] > 0 { cause_of(side) } else { 0 };
        cause(Side::Rx) | cause(Side::Tx)
    }
}

impl Line {
    /// Vector number `number`, of kind `kind`.
    pub(super) fn new(kind: IrqKind, number: usize, vector: Arc<Vector>) -> Self {
        let mode = match kind {
            IrqKind::Msix => Mode::Extended(1 << number),
            IrqKind::Msi => Mode::Legacy { intx: false },
            IrqKind::Intx => Mode::Legacy { intx: true },
        };
        let members = Members { may_be_masked: true, armed: [0; 2], wishes: Vec::new() };
        Self { vector, mode, number, members: Mutex::new(members) }
    }

    /// For one queue more. `unmask` unmasks INTx, and says whether it did.
    fn arm(&self, bar: &Bar, side: Side, unmask: impl FnOnce() -> bool) {
        let mut members = self.members();
        let others = members.causes();
        members.armed[side as usize] += 1;
        match self.mode {
            Mode::Extended(bit) if others == 0 => {
                bar.write(regs::EICR, bit);
                bar.write(regs::EIMS, bit);
                bar.read(regs::EIMS);
            }
            // Another armed queue's cause must not be cleared; at worst this queue then wakes once for nothing. Nothing has
            // to be read back: a cause that finds the vector masked stays, and fires when the write arrives.
            Mode::Extended(bit) => bar.write(regs::EIMS, bit),
            Mode::Legacy { intx } => {
                // Reading clears every cause, and lowers the line of INTx: before the kernel has seen it, maybe.
                let causes = bar.read(regs::ICR);
                if causes & others != 0 {
                    self.vector.signal(1);
                }
                bar.write(regs::IMS, cause_of(side));
                bar.read(regs::IMS);
                if intx && members.may_be_masked {
                    members.may_be_masked = !unmask();
                }
            }
        }
    }

    fn fired(&self) {
        if let Mode::Legacy { intx: true } = self.mode {
            self.members().may_be_masked = true;
        }
    }

    /// For one queue less. While others wait for the same vector it stays on.
    fn disarm(&self, bar: &Bar, side: Side) {
        let mut members = self.members();
        members.armed[side as usize] -= 1;
        match self.mode {
            Mode::Extended(bit) if members.causes() == 0 => bar.write(regs::EIMC, bit),
            Mode::Legacy { .. } if members.causes() & cause_of(side) == 0 => bar.write(regs::IMC, cause_of(side)),
            _ => {}
        }
    }

    /// Notes what `queue` asks for, `None` for nothing any more, and tells the device. Returns the interval in force.
    ///
    /// The write ends the interval that runs: an interrupt held back until now may come at once (8.8, EITR: without
    /// CNT_INGR the counter is written too). QEMU's igb (10.0) lets the old interval run out, takes four times the
    /// interval, and then fires whether there is a cause or not; it holds back nothing but MSI-X.
    fn moderate(&self, bar: &Bar, queue: (Side, usize), us: Option<u16>) -> u16 {
        let mut members = self.members();
        let least = |members: &Members| members.wishes.iter().map(|wish| wish.1).min().unwrap_or(0);
        let before = least(&members);
        members.wishes.retain(|wish| wish.0 != queue);
        members.wishes.extend(us.map(|us| (queue, us)));
        let now = least(&members);
        if now != before {
            bar.write(regs::eitr(self.number), u32::from(now) << eitr::INTERVAL_SHIFT);
        }
        now
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In units of EITR: rounded up, and no more than it can hold.
fn interval_us(interval: Duration) -> u16 {
    interval.as_nanos().div_ceil(1000).min(eitr::INTERVAL_MAX.into()) as u16
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

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

    fn unneeded() -> bool {
        true
    }

    fn line(kind: IrqKind, number: usize) -> Line {
        Line::new(kind, number, Arc::new(Vector::new().unwrap()))
    }

    #[test]
    fn a_queue_that_disarms_does_not_mask_one_that_arms_meanwhile() {
        let ((masking, in_mask), (tell, armed)) = (sync_channel(1), sync_channel(1));
        let io = Arc::new(SlowMask { ims: AtomicU32::new(0), masking, armed: Mutex::new(armed) });
        let bar = Bar::trapped(0x10000, io.clone());
        let line = line(IrqKind::Msi, 0);
        let (line, bar) = (&line, &bar);
        line.arm(bar, Side::Rx, unneeded);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                in_mask.recv().unwrap();
                line.arm(bar, Side::Rx, unneeded);
                tell.send(()).unwrap();
            });
            line.disarm(bar, Side::Rx);
        });
        assert_eq!(io.ims.load(Ordering::SeqCst), icr::RXDW);
    }

    /// Registers that log what is written to them, and a cause register.
    #[derive(Debug, Default)]
    struct Log {
        writes: Mutex<Vec<(usize, u32)>>,
        icr: AtomicU32,
    }

    impl Log {
        fn take(&self) -> Vec<(usize, u32)> {
            std::mem::take(&mut self.writes.lock().unwrap())
        }
    }

    impl RegisterIo for Log {
        fn read(&self, offset: usize, _: Width) -> u64 {
            if offset == regs::ICR.offset() { self.icr.swap(0, Ordering::SeqCst).into() } else { 0 }
        }
        fn write(&self, offset: usize, _: Width, value: u64) {
            self.writes.lock().unwrap().push((offset, value as u32));
        }
    }

    fn logged() -> (Arc<Log>, Bar) {
        let log = Arc::new(Log::default());
        (log.clone(), Bar::trapped(0x10000, log))
    }

    #[test]
    fn only_the_first_to_arm_an_msix_vector_clears_its_cause_and_only_the_last_masks_it() {
        let (log, bar) = logged();
        let line = line(IrqKind::Msix, 3);
        line.arm(&bar, Side::Rx, unneeded);
        assert_eq!(log.take(), [(regs::EICR.offset(), 8), (regs::EIMS.offset(), 8)]);
        line.arm(&bar, Side::Tx, unneeded);
        assert_eq!(log.take(), [(regs::EIMS.offset(), 8)]);
        line.disarm(&bar, Side::Rx);
        assert_eq!(log.take(), []);
        line.disarm(&bar, Side::Tx);
        assert_eq!(log.take(), [(regs::EIMC.offset(), 8)]);
    }

    #[test]
    fn a_cause_that_another_queue_waits_for_is_passed_on_when_arming_clears_it() {
        let (log, bar) = logged();
        let line = line(IrqKind::Intx, 0);
        log.icr.store(icr::RXDW | icr::TXDW, Ordering::SeqCst);
        line.arm(&bar, Side::Rx, unneeded);
        assert_eq!(line.vector.take(), 0, "nobody waited");
        log.icr.store(icr::TXDW, Ordering::SeqCst);
        line.arm(&bar, Side::Tx, unneeded);
        assert_eq!(line.vector.take(), 0, "nobody waited for completions");
        log.icr.store(icr::TXDW, Ordering::SeqCst);
        line.arm(&bar, Side::Rx, unneeded);
        assert_eq!(line.vector.take(), 1, "somebody does now");
        log.take();
        line.disarm(&bar, Side::Rx);
        assert_eq!(log.take(), [], "the other receive queue stays armed");
        line.disarm(&bar, Side::Tx);
        line.disarm(&bar, Side::Rx);
        assert_eq!(log.take(), [(regs::IMC.offset(), icr::TXDW), (regs::IMC.offset(), icr::RXDW)]);
    }

    /// Arms a receive queue, or a transmit queue, and disarms it; returns whether that unmasked the line.
    fn unmasks(line: &Line, bar: &Bar, side: Side, works: bool) -> bool {
        let mut asked = false;
        line.arm(bar, side, || {
            asked = true;
            works
        });
        line.disarm(bar, side);
        asked
    }

    #[test]
    fn intx_is_unmasked_at_first_and_once_each_time_that_it_fired() {
        let (_, bar) = logged();
        let line = line(IrqKind::Intx, 0);
        let unmasks = |side, works| unmasks(&line, &bar, side, works);
        assert!(unmasks(Side::Rx, true), "who knows what was before");
        assert!(!unmasks(Side::Rx, true) && !unmasks(Side::Tx, true), "it did not fire");
        // One edge for each worker that shares it.
        line.fired();
        line.fired();
        assert!(unmasks(Side::Tx, true), "whoever arms first unmasks");
        assert!(!unmasks(Side::Rx, true), "for all");
        line.fired();
        assert!(unmasks(Side::Rx, false) && unmasks(Side::Rx, true), "what failed is tried again");
        assert!(!unmasks(Side::Rx, true));
    }

    #[test]
    fn messages_are_never_unmasked() {
        for kind in [IrqKind::Msi, IrqKind::Msix] {
            let (_, bar) = logged();
            let line = line(kind, 0);
            line.fired();
            assert!(!unmasks(&line, &bar, Side::Rx, true), "{kind}");
        }
    }

    #[test]
    fn an_interval_is_rounded_up_and_clamped() {
        let us = |interval| interval_us(interval);
        assert_eq!([0, 1, 1000, 1001].map(|ns| us(Duration::from_nanos(ns))), [0, 1, 1, 2]);
        assert_eq!([8191, 8192].map(|n| us(Duration::from_micros(n))), [8191, 8191]);
        assert_eq!(us(Duration::MAX), 8191);
    }

    #[test]
    fn the_shortest_interval_that_a_queue_asked_for_is_in_force() {
        let (log, bar) = logged();
        let line = line(IrqKind::Msix, 2);
        let eitr = regs::eitr(2).offset();
        let (rx, tx) = ((Side::Rx, 2), (Side::Tx, 2));
        assert_eq!(line.moderate(&bar, rx, Some(100)), 100);
        assert_eq!(line.moderate(&bar, tx, Some(200)), 100);
        assert_eq!(line.moderate(&bar, rx, None), 200, "who has gone has no say");
        assert_eq!(line.moderate(&bar, tx, Some(0)), 0);
        assert_eq!(log.take(), [(eitr, 100 << 2), (eitr, 200 << 2), (eitr, 0)]);
    }
}
