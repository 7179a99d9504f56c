//! The interrupts of a soft NIC: causes and masks, what turns them into signals, and the host's side of the three kinds.
//!
//! ```text
//! cause ─▶ EICR/ICR ─▶ & EIMS/IMS ─▶ an edge ─▶ throttle (EITR) ─▶ vector's eventfd
//!                                                                  (INTx: a level; masked by the host when it fires)
//! ```
//!
//! 82576 datasheet 7.3 and 8.8. Raised by the fabric and by the driver's own register writes, so all of it is behind one
//! lock, which the fabric takes once a round.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use spinwake::irq::IrqKind;

use super::clock::now_ns;
use super::fault::{Fault, Faults, Rng};
use super::layout::{self as at, gpie, icr};

/// Interrupts of one NIC.
#[derive(Debug)]
pub(super) struct Interrupts {
    state: Mutex<State>,
    /// When the first of the timers is due; `u64::MAX` for none. The fabric looks here before it sleeps.
    due_ns: AtomicU64,
}

#[derive(Debug)]
struct State {
    icr: u32,
    ims: u32,
    iam: u32,
    eicr: u32,
    eims: u32,
    eiac: u32,
    eiam: u32,
    gpie: u32,
    ivar: [u32; 8],
    ivar_misc: u32,
    eitr: [u32; at::MSIX_VECTORS],
    /// Until when each vector must hold still.
    quiet_until_ns: [u64; at::MSIX_VECTORS],
    timers: Vec<Timer>,
    rng: Rng,
    host: Host,
}

/// What the bus made of the device's messages: survives a reset of the device.
#[derive(Debug)]
struct Host {
    kind: Option<IrqKind>,
    vectors: Vec<File>,
    /// INTx fired and has not been unmasked since.
    masked: bool,
    /// A fault keeps INTx from the kernel for as long as the line stays up this time, or until it is late enough. Without
    /// this the level, which each look at the device would find, would make up for what was lost.
    kept: bool,
}

#[derive(Debug, Clone, Copy)]
struct Timer {
    due_ns: u64,
    vector: usize,
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// EITR held it back.
    Throttled,
    /// A fault made it late, or sends it once more.
    Fault,
}

impl Interrupts {
    pub(super) fn new(seed: u64) -> Self {
        let host = Host { kind: None, vectors: Vec::new(), masked: false, kept: false };
        Self { state: Mutex::new(State::new(Rng::new(seed), host)), due_ns: AtomicU64::new(u64::MAX) }
    }

    /// Raises `causes` in ICR, and in EICR what the queues in `rx` and `tx` (by bit) are allocated to.
    pub(super) fn raise(&self, faults: &Faults, causes: u32, rx: u32, tx: u32) {
        if causes | rx | tx == 0 {
            return;
        }
        self.change(faults, |s| {
            s.icr |= causes;
            for q in 0..at::QUEUES {
                if rx >> q & 1 != 0 {
                    s.eicr |= s.ivar_cause(q, 0);
                }
                if tx >> q & 1 != 0 {
                    s.eicr |= s.ivar_cause(q, 8);
                }
            }
        });
    }

    /// Reads an interrupt register; `None` when `offset` is none.
    pub(super) fn read(&self, offset: usize, faults: &Faults) -> Option<u32> {
        let mut value = None;
        self.change(faults, |s| value = s.read(offset));
        value
    }

    /// Writes an interrupt register; returns whether `offset` is one.
    pub(super) fn write(&self, offset: usize, value: u32, faults: &Faults) -> bool {
        let mut known = false;
        self.change(faults, |s| known = s.write(offset, value));
        known
    }

    /// Brings the device's registers to their values after a reset.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        let none = Host { kind: None, vectors: Vec::new(), masked: false, kept: false };
        let host = std::mem::replace(&mut state.host, none);
        *state = State::new(state.rng.clone(), host);
        self.due_ns.store(u64::MAX, Ordering::Relaxed);
    }

    /// Sets where interrupts of `kind` go; `None` turns them off.
    pub(super) fn set_host(&self, kind: Option<IrqKind>, vectors: Vec<File>, faults: &Faults) {
        self.change(faults, |s| {
            s.host = Host { kind, vectors, masked: false, kept: false };
            s.timers.clear();
        });
    }

    /// Lets INTx fire again; returns whether it is on.
    pub(super) fn unmask(&self, faults: &Faults) -> bool {
        let mut on = false;
        self.change(faults, |s| {
            on = s.host.kind == Some(IrqKind::Intx);
            s.host.masked = false;
        });
        on
    }

    /// Fires every vector that is on, with no cause.
    pub(super) fn spurious(&self) {
        let mut state = self.lock();
        for vector in &state.host.vectors {
            signal(vector);
        }
        if state.host.kind == Some(IrqKind::Intx) {
            state.host.masked = true;
        }
    }

    /// When the first timer is due, in nanoseconds; `u64::MAX` for none.
    pub(super) fn due_ns(&self) -> u64 {
        self.due_ns.load(Ordering::Relaxed)
    }

    /// Fires what is due.
    pub(super) fn run_timers(&self, now_ns: u64, faults: &Faults) {
        if self.due_ns() > now_ns {
            return;
        }
        self.change(faults, |s| {
            let (due, later) = s.timers.drain(..).partition::<Vec<_>, _>(|t| t.due_ns <= now_ns);
            s.timers = later;
            for timer in due {
                match timer.why {
                    Why::Fault => s.host.fire(timer.vector),
                    Why::Throttled if s.is_asserted(timer.vector) => s.deliver(timer.vector, now_ns, faults),
                    Why::Throttled => {}
                }
            }
        });
    }

    /// Runs `change`, then signals what it newly raised.
    fn change(&self, faults: &Faults, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        let before = (state.icr & state.ims, state.eicr & state.eims);
        change(&mut state);
        state.settle(before, faults);
        let due = state.timers.iter().map(|t| t.due_ns).min().unwrap_or(u64::MAX);
        self.due_ns.store(due, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(rng: Rng, host: Host) -> Self {
        Self {
            icr: 0,
            ims: 0,
            iam: 0,
            eicr: 0,
            eims: 0,
            eiac: 0,
            eiam: 0,
            gpie: 0,
            ivar: [0; 8],
            ivar_misc: 0,
            eitr: [0; at::MSIX_VECTORS],
            quiet_until_ns: [0; at::MSIX_VECTORS],
            timers: Vec::new(),
            rng,
            host,
        }
    }

    fn msix(&self) -> bool {
        self.gpie & gpie::MULTIPLE_MSIX != 0
    }

    /// The bits of EICR that exist: a bit a vector, or sixteen causes, the timer and "other".
    fn eicr_bits(&self) -> u32 {
        if self.msix() { (1 << at::MSIX_VECTORS) - 1 } else { 0xC000_FFFF }
    }

    fn read(&mut self, offset: usize) -> Option<u32> {
        Some(match offset {
            at::ICR => self.read_icr(),
            at::ICS => self.icr,
            at::IMS | at::IMC => self.ims,
            at::IAM => self.iam,
            at::GPIE => self.gpie,
            at::EICR => {
                let value = self.eicr;
                self.eicr = 0;
                self.mask_automatically(value);
                value
            }
            at::EICS => self.eicr,
            at::EIMS | at::EIMC => self.eims,
            at::EIAC => self.eiac,
            at::EIAM => self.eiam,
            at::IVAR_MISC => self.ivar_misc,
            _ => match (index(offset, at::IVAR, 8), index(offset, at::EITR, at::MSIX_VECTORS)) {
                (Some(i), _) => self.ivar[i],
                (_, Some(v)) => self.eitr[v],
                _ => return None,
            },
        })
    }

    fn write(&mut self, offset: usize, value: u32) -> bool {
        let bits = value & self.eicr_bits();
        match offset {
            at::ICR => self.icr &= !value,
            at::ICS => self.icr |= value & !icr::INTA,
            at::IMS => self.ims |= value & !icr::INTA,
            at::IMC => self.ims &= !value,
            at::IAM => self.iam = value,
            at::GPIE => self.gpie = value,
            at::EICR => {
                self.eicr &= !bits;
                self.mask_automatically(bits);
            }
            at::EICS => self.eicr |= bits,
            at::EIMS => self.eims |= bits,
            at::EIMC => self.eims &= !bits,
            at::EIAC => self.eiac = value & ((1 << at::MSIX_VECTORS) - 1),
            at::EIAM => self.eiam = bits,
            at::IVAR_MISC => self.ivar_misc = value,
            _ => match (index(offset, at::IVAR, 8), index(offset, at::EITR, at::MSIX_VECTORS)) {
                (Some(i), _) => self.ivar[i] = value,
                (_, Some(v)) => self.set_eitr(v, value),
                _ => return false,
            },
        }
        true
    }

    /// EITR: the counter is written too, unless CNT_INGR says otherwise, and its zero ends the interval that runs (8.8.12).
    fn set_eitr(&mut self, vector: usize, value: u32) {
        self.eitr[vector] = value & 0x7FFC;
        if value & EITR_CNT_INGR == 0 {
            self.quiet_until_ns[vector] = 0;
            for timer in self.timers.iter_mut().filter(|t| t.vector == vector && t.why == Why::Throttled) {
                timer.due_ns = 0;
            }
        }
    }

    /// EIAM on an access to EICR: in force unless GPIE says that it belongs to messages (8.8.8).
    fn mask_automatically(&mut self, touched: u32) {
        if self.gpie & gpie::EIAME == 0 {
            self.eims &= !(touched & self.eiam);
        }
    }

    /// A read of ICR clears it when an interrupt was asserted, when nothing is enabled, or when GPIE says always
    /// (8.8.9, 8.8.14); what IAM names is masked then.
    fn read_icr(&mut self) -> u32 {
        let value = self.icr;
        let asserted = value & icr::INTA != 0;
        if asserted || self.ims == 0 || self.gpie & gpie::NSICR != 0 {
            self.icr = 0;
        }
        if asserted || self.gpie & gpie::NSICR != 0 {
            self.ims &= !self.iam;
        }
        value
    }

    /// Signals what is raised now and was not `before` (ICR and EICR, as far as enabled).
    fn settle(&mut self, before: (u32, u32), faults: &Faults) {
        let causes = self.icr & self.ims & !icr::INTA;
        let new = causes & !before.0;
        if causes != 0 {
            self.icr |= icr::INTA;
        } else if self.icr & !icr::INTA == 0 {
            self.icr = 0;
        }
        if self.msix() {
            // What is in ICR reaches EICR through IVAR_MISC: the upper entry for all that is not the TCP timer.
            if new != 0 && self.ivar_misc & IVAR_MISC_OTHER_VALID != 0 {
                self.eicr |= 1 << (self.ivar_misc >> 8 & 0x1F);
            }
            let mut raised = self.eicr & self.eims & !before.1;
            while raised != 0 {
                let vector = raised.trailing_zeros() as usize;
                raised &= raised - 1;
                self.throttle(vector, faults);
            }
        } else if self.host.kind == Some(IrqKind::Intx) {
            self.host.kept &= causes != 0;
            if self.is_asserted(0) && !self.host.kept {
                self.throttle(0, faults);
            }
        } else if new != 0 {
            self.throttle(0, faults);
        }
    }

    /// Whether vector `vector` has something to say.
    fn is_asserted(&self, vector: usize) -> bool {
        if self.msix() {
            return self.eicr & self.eims & 1 << vector != 0;
        }
        self.icr & self.ims & !icr::INTA != 0 && !self.host.masked
    }

    /// Delivers vector `vector` now, or when its interval is over. Without MSI-X, EITR 0 serves the only one (7.3.4).
    fn throttle(&mut self, vector: usize, faults: &Faults) {
        if self.eitr.get(vector).is_none_or(|eitr| *eitr == 0) {
            return self.deliver(vector, 0, faults);
        }
        let now = now_ns();
        let until = self.quiet_until_ns[vector];
        if now >= until {
            self.deliver(vector, now, faults);
        } else if !self.timers.iter().any(|t| t.vector == vector && t.why == Why::Throttled) {
            self.timers.push(Timer { due_ns: until, vector, why: Why::Throttled });
        }
    }

    /// Delivers vector `vector` at time `now_ns`, which begins its interval.
    fn deliver(&mut self, vector: usize, now_ns: u64, faults: &Faults) {
        if let Some(eitr) = self.eitr.get(vector) {
            self.quiet_until_ns[vector] = now_ns + u64::from(*eitr >> 2) * 1000;
        }
        if self.msix() {
            self.send(vector, faults);
        } else {
            self.signal(vector, faults);
        }
    }

    /// Sends an MSI-X message: EIAC clears its cause, EIAM masks it (8.8.6, 8.8.8).
    fn send(&mut self, vector: usize, faults: &Faults) {
        let bit = 1 << vector;
        self.eicr &= !(bit & self.eiac);
        if self.gpie & gpie::EIAME != 0 {
            self.eims &= !(bit & self.eiam);
        }
        self.signal(vector, faults);
    }

    /// Signals vector `vector`, unless a fault decides otherwise.
    fn signal(&mut self, vector: usize, faults: &Faults) {
        if vector >= self.host.vectors.len() {
            // Nobody would get it, so no fault can keep it away.
            return;
        }
        if faults.hit(Fault::IrqLost, &mut self.rng) {
            self.host.kept = true;
            return;
        }
        if faults.hit(Fault::IrqLate, &mut self.rng) {
            self.host.kept = true;
            self.signal_later(vector, Fault::IrqLate, faults);
            return;
        }
        self.host.fire(vector);
        if faults.hit(Fault::IrqDuplicate, &mut self.rng) {
            self.signal_later(vector, Fault::IrqDuplicate, faults);
        }
    }

    fn signal_later(&mut self, vector: usize, fault: Fault, faults: &Faults) {
        let due_ns = now_ns() + faults.delay_ns(fault, &mut self.rng);
        self.timers.push(Timer { due_ns, vector, why: Why::Fault });
    }

    /// The bit of EICR in the IVAR entry of queue `q` at `shift` (receive 0, transmit 8; queues from 8 on use the upper
    /// half).
    fn ivar_cause(&self, q: usize, shift: u32) -> u32 {
        let entry = self.ivar[q % 8] >> (shift + if q >= 8 { 16 } else { 0 });
        if entry & at::IVAR_VALID != 0 { 1 << (entry & 0x1F) } else { 0 }
    }
}

/// A write of EITR with this bit leaves the counter alone.
const EITR_CNT_INGR: u32 = 1 << 31;
const IVAR_MISC_OTHER_VALID: u32 = at::IVAR_VALID << 8;

impl Host {
    fn fire(&mut self, vector: usize) {
        if let Some(file) = self.vectors.get(vector) {
            // The kernel masks the line before user space sees it.
            self.masked |= self.kind == Some(IrqKind::Intx);
            self.kept = false;
            signal(file);
        }
    }
}

fn signal(mut eventfd: &File) {
    // It fails only when the count is full, and then its waiter is due anyway.
    let _ = eventfd.write(&1u64.to_ne_bytes());
}

fn index(offset: usize, base: usize, count: usize) -> Option<usize> {
    let index = offset.checked_sub(base)? / 4;
    (index < count).then_some(index)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use spinwake::irq::Vector;

    use super::super::fault::FaultPlan;
    use super::*;

    fn with_host(kind: IrqKind, vectors: &[&Vector]) -> (Interrupts, Faults) {
        let (irq, faults) = (Interrupts::new(1), Faults::new(FaultPlan::default()));
        let files = vectors.iter().map(|v| v.as_fd().try_clone_to_owned().unwrap().into()).collect();
        irq.set_host(Some(kind), files, &faults);
        (irq, faults)
    }

    #[test]
    fn an_msix_vector_fires_once_an_edge_and_again_when_it_is_armed_with_a_cause_pending() {
        let (zero, one) = (Vector::new().unwrap(), Vector::new().unwrap());
        let (irq, faults) = with_host(IrqKind::Msix, &[&zero, &one]);
        irq.write(at::GPIE, gpie::MULTIPLE_MSIX | gpie::EIAME, &faults);
        irq.write(at::IVAR, 0x81, &faults);
        irq.write(at::EIAC, 2, &faults);
        irq.write(at::EIAM, 2, &faults);
        irq.raise(&faults, icr::RXDW, 1, 0);
        assert_eq!(irq.read(at::EICS, &faults), Some(2));
        assert_eq!(one.take(), 0, "masked");
        irq.write(at::EIMS, 2, &faults);
        assert_eq!((zero.take(), one.take()), (0, 1), "armed with a cause pending");
        assert_eq!(irq.read(at::EIMS, &faults), Some(0), "EIAM masked it");
        assert_eq!(irq.read(at::EICS, &faults), Some(0), "EIAC cleared it");
        irq.raise(&faults, 0, 1, 0);
        irq.raise(&faults, 0, 1, 0);
        assert_eq!(one.take(), 0);
        irq.write(at::EICR, 2, &faults);
        irq.write(at::EIMS, 2, &faults);
        assert_eq!(one.take(), 0, "cleared before it was armed");
    }

    #[test]
    fn intx_fires_again_on_unmask_while_its_cause_stands() {
        let line = Vector::new().unwrap();
        let (irq, faults) = with_host(IrqKind::Intx, &[&line]);
        irq.write(at::IMS, icr::RXDW, &faults);
        irq.raise(&faults, icr::RXDW, 0, 0);
        irq.raise(&faults, icr::RXDW, 0, 0);
        assert_eq!(line.take(), 1, "masked by the host after the first");
        assert!(irq.unmask(&faults));
        assert_eq!(line.take(), 1, "still asserted");
        assert_eq!(irq.read(at::ICR, &faults), Some(icr::RXDW | icr::INTA));
        irq.unmask(&faults);
        assert_eq!(line.take(), 0, "the read cleared it");
    }

    #[test]
    fn msi_fires_on_each_new_cause() {
        let one = Vector::new().unwrap();
        let (irq, faults) = with_host(IrqKind::Msi, &[&one]);
        irq.write(at::IMS, icr::RXDW | icr::LSC, &faults);
        irq.raise(&faults, icr::RXDW, 0, 0);
        irq.raise(&faults, icr::RXDW, 0, 0);
        irq.raise(&faults, icr::LSC, 0, 0);
        assert_eq!(one.take(), 2);
    }

    #[test]
    fn the_throttle_holds_a_vector_back_until_its_interval_is_over() {
        let zero = Vector::new().unwrap();
        let (irq, faults) = with_host(IrqKind::Msix, &[&zero]);
        irq.write(at::GPIE, gpie::MULTIPLE_MSIX, &faults);
        irq.write(at::IVAR, 0x80, &faults);
        irq.write(at::EITR, 1000 << 2, &faults);
        irq.write(at::EIAC, 1, &faults);
        irq.write(at::EIMS, 1, &faults);
        irq.raise(&faults, 0, 1, 0);
        irq.raise(&faults, 0, 1, 0);
        assert_eq!(zero.take(), 1);
        let due = irq.due_ns();
        irq.run_timers(due - 1, &faults);
        assert_eq!(zero.take(), 0);
        irq.run_timers(due, &faults);
        assert_eq!((zero.take(), irq.due_ns()), (1, u64::MAX));
        // What was held back begins an interval like any other.
        irq.raise(&faults, 0, 1, 0);
        assert_eq!((zero.take(), irq.due_ns()), (0, due + 1_000_000));
        irq.write(at::EITR, EITR_CNT_INGR, &faults);
        assert_eq!(irq.due_ns(), due + 1_000_000, "the interval that runs goes on");
        irq.write(at::EITR, 0, &faults);
        irq.run_timers(due, &faults);
        assert_eq!((zero.take(), irq.due_ns()), (1, u64::MAX), "the interval was ended");
    }

    #[test]
    fn the_first_throttle_serves_the_only_vector_of_msi_and_intx() {
        for kind in [IrqKind::Msi, IrqKind::Intx] {
            let line = Vector::new().unwrap();
            let (irq, faults) = with_host(kind, &[&line]);
            irq.write(at::EITR, 0x7FFC, &faults);
            let fire = || {
                irq.write(at::IMC, u32::MAX, &faults);
                irq.write(at::ICR, u32::MAX, &faults);
                irq.unmask(&faults);
                irq.write(at::IMS, icr::RXDW, &faults);
                irq.raise(&faults, icr::RXDW, 0, 0);
            };
            fire();
            assert_eq!(line.take(), 1, "{kind}");
            fire();
            assert_eq!(line.take(), 0, "{kind}");
            irq.run_timers(irq.due_ns(), &faults);
            assert_eq!((line.take(), irq.due_ns()), (1, u64::MAX), "{kind}");
            fire();
            irq.write(at::IMC, u32::MAX, &faults);
            irq.run_timers(irq.due_ns(), &faults);
            assert_eq!((line.take(), irq.due_ns()), (0, u64::MAX), "{kind}: masked meanwhile");
        }
    }

    #[test]
    fn what_is_lost_is_counted_once_and_stays_lost() {
        for kind in [IrqKind::Intx, IrqKind::Msi, IrqKind::Msix] {
            let vector = Vector::new().unwrap();
            let (irq, faults) = with_host(kind, &[&vector]);
            if kind == IrqKind::Msix {
                irq.write(at::GPIE, gpie::MULTIPLE_MSIX | gpie::EIAME, &faults);
                irq.write(at::IVAR, 0x80, &faults);
                irq.write(at::EIAC, 1, &faults);
                irq.write(at::EIAM, 1, &faults);
            }
            // As the driver arms: forget what there was, then unmask.
            let arm = || {
                irq.read(at::ICR, &faults);
                irq.write(at::EICR, 1, &faults);
                irq.write(if kind == IrqKind::Msix { at::EIMS } else { at::IMS }, icr::RXDW | 1, &faults);
                irq.unmask(&faults);
            };
            let receive = || irq.raise(&faults, icr::RXDW, 1, 0);
            faults.ask(Fault::IrqLost, 1);
            receive();
            assert_eq!(faults.counts().made(Fault::IrqLost), 0, "{kind}: masked, so there was nothing to lose");
            arm();
            receive();
            assert_eq!(faults.counts().made(Fault::IrqLost), 1, "{kind}");
            receive();
            irq.read(at::EIMS, &faults);
            irq.unmask(&faults);
            assert_eq!(
                (vector.take(), faults.counts().made(Fault::IrqLost)),
                (0, 1),
                "{kind}: looking brings nothing back"
            );
            arm();
            receive();
            assert_eq!(vector.take(), 1, "{kind}: the next one comes");

            faults.ask(Fault::IrqLate, 1);
            arm();
            receive();
            irq.unmask(&faults);
            assert_eq!((vector.take(), faults.counts().made(Fault::IrqLate)), (0, 1), "{kind}");
            irq.run_timers(irq.due_ns(), &faults);
            assert_eq!((vector.take(), irq.due_ns()), (1, u64::MAX), "{kind}: late, once");
        }
    }

    #[test]
    fn what_nobody_would_get_cannot_be_lost() {
        let zero = Vector::new().unwrap();
        let (irq, faults) = with_host(IrqKind::Msix, &[&zero]);
        irq.write(at::GPIE, gpie::MULTIPLE_MSIX, &faults);
        irq.write(at::IVAR, 0x83, &faults);
        irq.write(at::EIMS, 8, &faults);
        faults.ask(Fault::IrqLost, 1);
        irq.raise(&faults, 0, 1, 0);
        assert_eq!(faults.counts().made(Fault::IrqLost), 0);
    }

    #[test]
    fn interrupts_are_lost_late_and_doubled_on_demand() {
        let line = Vector::new().unwrap();
        let (irq, faults) = with_host(IrqKind::Msi, &[&line]);
        let fire = || {
            irq.write(at::IMC, u32::MAX, &faults);
            irq.raise(&faults, icr::RXDW, 0, 0);
            irq.write(at::IMS, icr::RXDW, &faults);
        };
        faults.ask(Fault::IrqLost, 1);
        fire();
        assert_eq!((line.take(), irq.due_ns()), (0, u64::MAX));
        faults.ask(Fault::IrqLate, 1);
        fire();
        assert_eq!(line.take(), 0);
        irq.run_timers(irq.due_ns(), &faults);
        assert_eq!(line.take(), 1);
        faults.ask(Fault::IrqDuplicate, 1);
        fire();
        assert_eq!(line.take(), 1);
        irq.run_timers(irq.due_ns(), &faults);
        assert_eq!(line.take(), 1);
        irq.spurious();
        assert_eq!(line.take(), 1);
    }
}
