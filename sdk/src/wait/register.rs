//! A device's status register as a source: the way to wait for a device that does not write its state to memory.
//!
//! A look costs a read across the bus, a microsecond or so of hardware and of the bus that others use too: a device
//! that reports in memory (descriptors, completion queues) wants a source of its own that looks there.
//!
//! ```text
//! pending ── read, mask, compare ──▶ remembered, where reading clears it, until `take`
//! arm ────── program: acknowledge what is old, ask for an interrupt ──▶ read back ──▶ INTx: unmask if it fired
//! disarm ─── program: acknowledge, ask for no interrupt
//! ```

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use super::{Source, Wake};
use crate::device::Device;
use crate::irq::{AckProgram, IrqKind, Vector};
use crate::mmio::{Bar, Width};

/// Where a status stands, and what it must read to mean work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Byte offset of its register in the BAR.
    pub offset: usize,
    /// Width of the register.
    pub width: Width,
    /// The bits that count.
    pub mask: u64,
    /// What they must be for work to be there.
    pub value: u64,
    /// Whether a read clears the register.
    pub clears_on_read: bool,
}

/// How a device interrupts when its status changes.
///
/// The programs must not clear the status itself: what they clear before anybody looked at it is lost.
#[derive(Debug, Clone)]
pub struct StatusInterrupt {
    /// What fires.
    pub vector: Arc<Vector>,
    /// In which of the three ways.
    pub kind: IrqKind,
    /// Acknowledges what an earlier interrupt left behind, and asks for one at the next change.
    pub arm: AckProgram,
    /// Acknowledges, and asks for none.
    pub disarm: AckProgram,
    /// Whose line is to be unmasked when it has fired; for INTx only, which cannot do without.
    pub device: Option<Arc<dyn Device>>,
}

/// A status register that a worker can wait for.
///
/// Work is there while the register reads as its [`Status`] says. A device that is gone reads as all ones: if that is
/// what work looks like, the driver finds out by the value that [`take`](Self::take) returns.
#[derive(Debug)]
pub struct RegisterSource {
    label: String,
    bar: Arc<Bar>,
    status: Status,
    wake: Way,
    armed: bool,
    /// The kernel may have masked its line: it does so before it says that the line fired, and nobody else does.
    may_be_masked: bool,
    /// A read that saw work and cleared it.
    seen: Cell<bool>,
    /// What was read: last, or since the last `take` where reading clears.
    read: Cell<u64>,
}

#[derive(Debug)]
enum Way {
    Interrupt(StatusInterrupt),
    None(Cow<'static, str>),
}

impl RegisterSource {
    /// A source that can only be polled, until [`wakes_by`](Self::wakes_by) says otherwise. `label` is its name in
    /// reports,
    /// `bar` holds the register.
    ///
    /// # Panics
    ///
    /// If the register is not aligned to its width or lies outside the BAR, or if the value has bits outside of the
    /// mask or of the register, so that work could never be there.
    pub fn new(label: impl Into<String>, bar: Arc<Bar>, status: Status) -> Self {
        let (label, bytes) = (label.into(), status.width.bytes());
        assert!(
            status.offset.is_multiple_of(bytes) && status.offset.checked_add(bytes).is_some_and(|end| end <= bar.len()),
            "{label}: there is no register of {bytes} bytes at {:#x} in a BAR of {:#x} bytes",
            status.offset,
            bar.len()
        );
        assert!(
            status.value & !status.mask == 0 && status.value.checked_shr(8 * bytes as u32).unwrap_or(0) == 0,
            "{label}: a register of {bytes} bytes never reads {:#x} under the mask {:#x}",
            status.value,
            status.mask
        );
        let wake = Way::None("no interrupt was given for this status register".into());
        Self { label, bar, status, wake, armed: false, may_be_masked: true, seen: Cell::new(false), read: Cell::new(0) }
    }

    /// The same source, which can end a sleep.
    ///
    /// # Panics
    ///
    /// If it is INTx without a device to unmask. A step of its programs that lies outside the BAR panics when it is
    /// run.
    #[must_use]
    pub fn wakes_by(mut self, interrupt: StatusInterrupt) -> Self {
        assert!(
            interrupt.kind != IrqKind::Intx || interrupt.device.is_some(),
            "{}: INTx stays masked after it fired unless its device is given",
            self.label
        );
        self.wake = Way::Interrupt(interrupt);
        self
    }

    /// The same source, which cannot end a sleep for this reason.
    #[must_use]
    pub fn never_wakes(mut self, why: impl Into<Cow<'static, str>>) -> Self {
        self.wake = Way::None(why.into());
        self
    }

    /// Takes the work that is there: returns what the register read, `None` when there is none. Where reading clears
    /// it, that is every bit that was read as one since the last `take`, so that those beside the mask are not lost.
    pub fn take(&mut self) -> Option<u64> {
        self.pending().then(|| {
            self.seen.set(false);
            self.read.replace(0)
        })
    }
}

impl Source for RegisterSource {
    fn label(&self) -> String {
        self.label.clone()
    }

    /// A read of the register, unless an earlier one saw work and cleared it.
    fn pending(&self) -> bool {
        if self.seen.get() {
            return true;
        }
        let read = self.bar.read_at(self.status.offset, self.status.width);
        let work = read & self.status.mask == self.status.value;
        if self.status.clears_on_read {
            self.read.set(self.read.get() | read);
            self.seen.set(work);
        } else {
            self.read.set(read);
        }
        work
    }

    fn arm(&mut self) {
        let Way::Interrupt(interrupt) = &self.wake else { return };
        if self.armed {
            return;
        }
        self.armed = true;
        interrupt.arm.run(&self.bar);
        // A write is under way when it returns; a read of the same device that comes back has pushed it there.
        self.pending();
        // One that fires from here on, or has fired with nobody looking, is masked: its event is still to come, and the
        // arming after that unmasks it.
        if interrupt.kind == IrqKind::Intx
            && self.may_be_masked
            && let Some(device) = &interrupt.device
        {
            match device.irq_unmask() {
                Ok(()) => self.may_be_masked = false,
                Err(error) => log::debug!("{}: INTx stays masked: {error}", self.label),
            }
        }
    }

    fn disarm(&mut self) {
        if let Way::Interrupt(interrupt) = &self.wake
            && self.armed
        {
            self.armed = false;
            interrupt.disarm.run(&self.bar);
        }
    }

    fn fired(&mut self) {
        self.may_be_masked = true;
    }

    fn wake(&self) -> Wake {
        match &self.wake {
            Way::Interrupt(interrupt) => Wake::Vector(interrupt.vector.clone(), interrupt.kind),
            Way::None(why) => Wake::Never(why.clone()),
        }
    }
}

impl Drop for RegisterSource {
    fn drop(&mut self) {
        self.disarm();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;
    use crate::device::{DeviceError, DeviceId, Iommu, Notices};
    use crate::irq::AckStep;
    use crate::mmio::{Reg, RegisterIo};

    const STATUS: usize = 0x20;
    const ACKNOWLEDGE: usize = 0x64;
    const BUSY: u64 = 1;
    const ASK: u64 = 0x80;

    /// A device that finishes its work just before the access of this number, and interrupts if it was asked to.
    #[derive(Debug, Default)]
    struct Worker {
        state: Mutex<State>,
        vector: Option<Arc<Vector>>,
        clears_on_read: bool,
    }

    #[derive(Debug, Default)]
    struct State {
        status: u64,
        finish_at: Option<usize>,
        accesses: Vec<(char, usize, u64)>,
    }

    impl Worker {
        fn state(&self) -> MutexGuard<'_, State> {
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn step(&self, state: &mut State) {
            if state.finish_at.is_some_and(|at| at == state.accesses.len()) {
                state.status &= !BUSY;
                if let Some(vector) = self.vector.as_ref().filter(|_| state.status & ASK != 0) {
                    vector.signal(1);
                }
            }
        }
    }

    impl RegisterIo for Worker {
        fn read(&self, offset: usize, width: Width) -> u64 {
            let mut state = self.state();
            self.step(&mut state);
            let value = state.status & u64::MAX >> (64 - 8 * width.bytes());
            state.accesses.push(('r', offset, value));
            if self.clears_on_read {
                state.status = 0;
            }
            value
        }
        fn write(&self, offset: usize, _: Width, value: u64) {
            let mut state = self.state();
            self.step(&mut state);
            state.accesses.push(('w', offset, value));
            if offset == STATUS {
                state.status = state.status & !ASK | value & ASK;
            }
        }
    }

    fn status(mask: u64, value: u64) -> Status {
        Status { offset: STATUS, width: Width::Dword, mask, value, clears_on_read: false }
    }

    fn source(worker: &Arc<Worker>, status: Status) -> RegisterSource {
        RegisterSource::new("edu", Arc::new(Bar::trapped(0x100, worker.clone())), status)
    }

    fn set(worker: &Worker, status: u64) {
        worker.state().status = status;
    }

    fn interrupt(vector: &Arc<Vector>, kind: IrqKind) -> StatusInterrupt {
        let acknowledge = AckStep::Write(Reg::at(ACKNOWLEDGE), 1);
        StatusInterrupt {
            vector: vector.clone(),
            kind,
            arm: AckProgram::new([acknowledge, AckStep::Write(Reg::at(STATUS), ASK as u32)]),
            disarm: AckProgram::new([AckStep::Write(Reg::at(STATUS), 0), acknowledge]),
            device: None,
        }
    }

    #[test]
    fn work_is_there_while_the_masked_bits_have_their_value() {
        let worker = Arc::new(Worker::default());
        let mut source = source(&worker, status(0x0f, 0x05));
        for (value, work) in [(0x00, false), (0x05, true), (0xf5, true), (0x07, false), (0x0f, false)] {
            set(&worker, value);
            assert_eq!((source.pending(), source.take()), (work, work.then_some(value)), "{value:#x}");
        }
        set(&worker, 0x05);
        assert!(source.take().is_some() && source.pending(), "it stays as long as the register says so");
    }

    #[test]
    fn each_width_reads_its_own() {
        let worker = Arc::new(Worker::default());
        set(&worker, 0x8877_6655_4433_2211);
        let widths = [(Width::Byte, 0x11), (Width::Word, 0x2211), (Width::Dword, 0x4433_2211)];
        for (width, value) in widths.into_iter().chain([(Width::Qword, 0x8877_6655_4433_2211)]) {
            let mut source = source(&worker, Status { width, ..status(value, value) });
            assert_eq!(source.take(), Some(value));
        }
    }

    #[test]
    fn what_a_read_cleared_is_remembered_until_it_is_taken() {
        let worker = Arc::new(Worker { clears_on_read: true, ..Worker::default() });
        let mut source = source(&worker, Status { clears_on_read: true, ..status(1, 1) });
        set(&worker, 0x10);
        assert!(!source.pending());
        set(&worker, 0x21);
        assert!(source.pending());
        set(&worker, 0x40);
        assert!(source.pending(), "the register is not read again");
        assert_eq!(source.take(), Some(0x31), "with the bits that were cleared on the way");
        assert_eq!(source.take(), None);
        set(&worker, 0x01);
        assert_eq!(source.take(), Some(0x41));
    }

    #[test]
    fn arming_runs_its_program_and_reads_back_once() {
        let worker = Arc::new(Worker::default());
        set(&worker, BUSY);
        let vector = Arc::new(Vector::new().unwrap());
        let mut source = source(&worker, status(BUSY, 0)).wakes_by(interrupt(&vector, IrqKind::Msi));
        assert!(matches!(source.wake(), Wake::Vector(v, IrqKind::Msi) if Arc::ptr_eq(&v, &vector)));
        let accesses = || std::mem::take(&mut worker.state().accesses);
        source.disarm();
        assert_eq!(accesses(), []);
        source.arm();
        let armed = [('w', ACKNOWLEDGE, 1), ('w', STATUS, ASK), ('r', STATUS, ASK | BUSY)];
        assert_eq!(accesses(), armed);
        source.arm();
        assert_eq!(accesses(), [], "armed already");
        source.disarm();
        let disarmed = [('w', STATUS, 0), ('w', ACKNOWLEDGE, 1)];
        assert_eq!(accesses(), disarmed);
        source.arm();
        drop(source);
        assert_eq!(accesses()[armed.len()..], disarmed, "no interrupt is left behind");
    }

    #[test]
    fn work_that_comes_at_any_moment_is_seen_by_the_second_look_or_fires() {
        for clears_on_read in [false, true] {
            // One access for the first look, three for arming, one for the second look.
            for moment in 0..6 {
                let vector = Arc::new(Vector::new().unwrap());
                let state = Mutex::new(State { status: BUSY, finish_at: Some(moment), accesses: Vec::new() });
                let worker = Arc::new(Worker { state, vector: Some(vector.clone()), clears_on_read: false });
                let status = Status { clears_on_read, ..status(BUSY, 0) };
                let mut source = source(&worker, status).wakes_by(interrupt(&vector, IrqKind::Msix));
                let awake = source.pending() || {
                    source.arm();
                    source.pending() || {
                        // Whoever blocks lets the device go on.
                        worker.step(&mut worker.state());
                        vector.take() > 0
                    }
                };
                assert!(awake, "lost at access {moment}");
                assert!(source.take().is_some());
            }
        }
    }

    /// A device with a line, of which it counts how often it is unmasked.
    #[derive(Debug, Default)]
    struct Line {
        unmasked: AtomicUsize,
        refuses: AtomicBool,
    }

    fn refused<T>() -> Result<T, DeviceError> {
        Err(DeviceError::Missing { device: "edu".into(), what: "that".into() })
    }

    impl Device for Line {
        fn name(&self) -> &str {
            "edu"
        }
        fn id(&self) -> DeviceId {
            DeviceId { vendor: 0, device: 0 }
        }
        fn numa_node(&self) -> Option<usize> {
            None
        }
        fn bar(&self, _: usize) -> Result<Bar, DeviceError> {
            refused()
        }
        fn config_read(&self, _: u16, _: &mut [u8]) -> Result<(), DeviceError> {
            refused()
        }
        fn config_write(&self, _: u16, _: &[u8]) -> Result<(), DeviceError> {
            refused()
        }
        fn reset(&self) -> Result<(), DeviceError> {
            refused()
        }
        fn set_bus_master(&self, _: bool) -> Result<(), DeviceError> {
            refused()
        }
        fn iommu(&self) -> Arc<dyn Iommu> {
            panic!("it makes no DMA")
        }
        fn irq_count(&self, kind: IrqKind) -> usize {
            usize::from(kind == IrqKind::Intx)
        }
        fn irq_enable(&self, _: IrqKind, _: &[BorrowedFd<'_>]) -> Result<(), DeviceError> {
            Ok(())
        }
        fn irq_disable(&self) -> Result<(), DeviceError> {
            Ok(())
        }
        fn irq_unmask(&self) -> Result<(), DeviceError> {
            self.unmasked.fetch_add(1, Ordering::Relaxed);
            if self.refuses.load(Ordering::Relaxed) { refused() } else { Ok(()) }
        }
        fn notices(&self) -> Option<&Notices> {
            None
        }
    }

    #[test]
    fn intx_is_unmasked_at_first_and_once_each_time_that_it_fired() {
        let worker = Arc::new(Worker::default());
        let vector = Arc::new(Vector::new().unwrap());
        let line = Arc::new(Line::default());
        let interrupt = StatusInterrupt { device: Some(line.clone()), ..interrupt(&vector, IrqKind::Intx) };
        let mut source = source(&worker, status(BUSY, 0)).wakes_by(interrupt);
        let unmasked = |source: &mut RegisterSource| {
            source.arm();
            source.disarm();
            line.unmasked.swap(0, Ordering::Relaxed)
        };
        assert_eq!(unmasked(&mut source), 1, "who knows what was before");
        assert_eq!(unmasked(&mut source), 0, "it did not fire");
        source.fired();
        source.fired();
        assert_eq!([(); 2].map(|()| unmasked(&mut source)), [1, 0]);
        source.fired();
        line.refuses.store(true, Ordering::Relaxed);
        assert_eq!(unmasked(&mut source), 1);
        line.refuses.store(false, Ordering::Relaxed);
        assert_eq!([(); 2].map(|()| unmasked(&mut source)), [1, 0], "what failed is tried again");
    }

    #[test]
    fn without_an_interrupt_it_says_why_and_arms_nothing() {
        let worker = Arc::new(Worker::default());
        let mut source = source(&worker, status(BUSY, 0));
        assert!(matches!(source.wake(), Wake::Never(why) if why.contains("no interrupt")));
        source.arm();
        source.disarm();
        assert!(worker.state().accesses.is_empty());
        let source = source.never_wakes("its line is shared");
        assert!(matches!(source.wake(), Wake::Never(why) if why == "its line is shared"));
    }

    #[test]
    #[should_panic(expected = "INTx stays masked")]
    fn intx_without_a_device_is_refused() {
        let vector = Arc::new(Vector::new().unwrap());
        let _ = source(&Arc::default(), status(1, 0)).wakes_by(interrupt(&vector, IrqKind::Intx));
    }

    #[test]
    #[should_panic(expected = "no register of 4 bytes at 0xfe")]
    fn a_register_that_the_bar_does_not_have_is_refused() {
        source(&Arc::default(), Status { offset: 0xfe, ..status(1, 1) });
    }

    #[test]
    #[should_panic(expected = "never reads 0x2 under the mask 0x1")]
    fn a_value_outside_of_its_mask_is_refused() {
        source(&Arc::default(), status(1, 2));
    }
}
