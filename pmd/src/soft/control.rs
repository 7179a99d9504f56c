//! The handle by which a test drives a soft NIC from outside: faults on demand, frames, the cable, and counts.

use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use spinwake::port::MacAddr;

use super::closed_loop::{After, ClosedLoop, LoopCounts};
use super::fault::{Fault, FaultCounts};
use super::nic::{Nic, Order, pending};
use super::spec::{Gap, Rate};

/// How long to wait at most until the fabric has done what it was told.
const TURN_LIMIT: Duration = Duration::from_secs(5);

/// Controls one soft NIC. Clones control the same one; after it was closed they do nothing.
#[derive(Debug, Clone)]
pub struct Control {
    nic: Arc<Nic>,
}

/// What the model has counted besides faults and traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModelCounts {
    /// Accesses of the device to addresses that were not mapped.
    pub dma_faults: u64,
    /// Accesses to registers that the model does not know.
    pub unknown_registers: u64,
    /// Transmit descriptors and tails that make no sense, and frames that were not sent because of them.
    pub bad_descriptors: u64,
    /// Frames that the receive filters refused.
    pub filtered: u64,
    /// Frames lost because the link was down or the device did not answer.
    pub unlinked: u64,
}

impl Control {
    pub(super) fn new(nic: Arc<Nic>) -> Self {
        Self { nic }
    }

    /// Its own address.
    pub fn mac(&self) -> MacAddr {
        self.nic.mac
    }

    /// Makes `fault` happen at its next `n` chances. Spurious interrupts, link flaps and stalls happen at once.
    pub fn inject(&self, fault: Fault, n: u32) {
        self.nic.faults.ask(fault, n);
        self.nic.notify(pending::ORDERS);
    }

    /// Makes each coming [`Fault::Delay`], [`Fault::IrqLate`] or [`Fault::IrqDuplicate`] take a time drawn evenly from this
    /// range.
    ///
    /// # Panics
    ///
    /// When `fault` is another one, or the range is empty.
    pub fn set_delay(&self, fault: Fault, delay: RangeInclusive<Duration>) {
        assert!(fault.is_late(), "{} makes nothing late", fault.key());
        assert!(!delay.is_empty(), "{} needs a range of delays that is not empty, not {delay:?}", fault.key());
        let ns = |time: &Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2);
        self.nic.faults.set_delay_ns(fault, ns(delay.start())..=ns(delay.end()));
    }

    /// Pulls the cable, or puts it back.
    pub fn set_link(&self, up: bool) {
        self.nic.unlinked.store(!up, Ordering::Release);
        self.nic.notify(pending::ORDERS);
    }

    /// Stops the device, or lets it go on: while it stands still, registers read all ones, writes are lost, and there is
    /// no DMA and no interrupt. When this returns the device stands still.
    pub fn stall(&self, on: bool) {
        self.nic.halted.store(on, Ordering::Release);
        self.settle(TURN_LIMIT);
    }

    /// Puts `n` frames of the generator on the wire to the port, whatever its rate.
    pub fn send(&self, n: u32) {
        self.nic.order(Order::Send(n));
    }

    /// Puts a frame of the caller's (without check sequence) on the wire to the port.
    pub fn send_frame(&self, frame: &[u8]) {
        self.nic.order(Order::Frame(frame.to_vec()));
    }

    /// Changes the generator's rate; its gaps stay of their kind.
    pub fn set_rate(&self, rate: Rate) {
        self.nic.order(Order::Traffic(rate, None));
    }

    /// Changes the generator's rate and how it spaces its frames. At [`Rate::Max`] there are no gaps to speak of.
    ///
    /// # Panics
    ///
    /// When `gap` is a burst of no frames.
    pub fn set_traffic(&self, rate: Rate, gap: Gap) {
        assert_ne!(gap, Gap::Burst(0), "a burst has one frame at least");
        self.nic.order(Order::Traffic(rate, Some(gap)));
    }

    /// Starts a closed loop, in place of one that is under way. The generator does this beside what its rate says, so let
    /// that be zero. When this returns, [`loop_counts`](Self::loop_counts) counts the new loop.
    ///
    /// # Panics
    ///
    /// When the range of gaps is empty.
    pub fn start_loop(&self, plan: ClosedLoop) {
        assert!(
            !plan.gap_ns.is_empty(),
            "a closed loop needs a range of gaps that is not empty, not {:?}",
            plan.gap_ns
        );
        let ticket = self.nic.order(Order::Loop(plan));
        self.nic.await_order(ticket, TURN_LIMIT);
    }

    /// Ends the closed loop; a frame that is out still comes back.
    pub fn stop_loop(&self) {
        self.start_loop(ClosedLoop { frames: 0, after: After::Return, gap_ns: 0..=0 });
    }

    /// How far the closed loop is. It is over when as many frames have returned or were given up as it was to send.
    pub fn loop_counts(&self) -> LoopCounts {
        *self.nic.account.looped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a frame arrive exactly between a driver's empty poll and its arming, the next `n` times: each write that
    /// unmasks interrupts (EIMS, IMS) first waits until one generator frame has been received into the ring.
    pub fn race_arm(&self, n: u32) {
        self.nic.races.store(n, Ordering::Relaxed);
    }

    /// Makes each access to a register that arms or disarms (the causes and masks) take a random time up to `limit` before
    /// it has its effect; zero ends that. A driver arms sooner than the fabric can answer its doorbell, so without this few
    /// frames of a closed loop come between the steps of arming.
    ///
    /// # Panics
    ///
    /// When `limit` is more than a second.
    pub fn slow_arming(&self, limit: Duration) {
        assert!(
            limit <= Duration::from_secs(1),
            "an access that takes {limit:?} would look like a device that is gone"
        );
        self.nic.slow_ns.store(limit.as_nanos() as u64, Ordering::Relaxed);
    }

    /// From now on keeps what the port sends to the built-in sink.
    pub fn capture(&self) {
        *self.nic.account.captured.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// What was kept since [`capture`](Self::capture) or the last call.
    pub fn captured(&self) -> Vec<Vec<u8>> {
        let mut captured = self.nic.account.captured.lock().unwrap_or_else(PoisonError::into_inner);
        captured.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Waits until the device has done everything that it was told before this call; false when `limit` passed first.
    pub fn settle(&self, limit: Duration) -> bool {
        let ticket = self.nic.order(Order::Barrier);
        self.nic.await_order(ticket, limit)
    }

    /// The faults made so far.
    pub fn faults(&self) -> FaultCounts {
        self.nic.fault_counts()
    }

    /// What else was counted.
    pub fn counts(&self) -> ModelCounts {
        let account = &self.nic.account;
        ModelCounts {
            dma_faults: self.nic.memory.faults(),
            unknown_registers: account.unknown_registers.load(Ordering::Relaxed),
            bad_descriptors: account.bad_descriptors.load(Ordering::Relaxed),
            filtered: account.filtered.load(Ordering::Relaxed),
            unlinked: account.unlinked.load(Ordering::Relaxed),
        }
    }

    /// Permits only these addresses for DMA mappings made from now on (inclusive, ascending, without overlap).
    pub fn restrict_iova(&self, ranges: Vec<RangeInclusive<u64>>) {
        self.nic.memory.set_ranges(ranges);
    }

    /// Lets the IOMMU take at most `limit` mappings; `None` for any number.
    pub fn limit_mappings(&self, limit: Option<usize>) {
        self.nic.memory.set_limit(limit);
    }
}
