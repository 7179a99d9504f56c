//! One soft NIC as both sides see it: registers, memory, interrupts, faults, and what the driver's thread asks of the
//! fabric's.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use spinwake::port::{GeneratorReport, MacAddr};

use super::clock::now_ns;
use super::closed_loop::{ClosedLoop, LoopCounts};
use super::fabric::Bell;
use super::fault::{FaultCounts, Faults};
use super::irq::Interrupts;
use super::layout as at;
use super::memory::SoftIommu;
use super::registers::Registers;
use super::spec::{Gap, Rate, SoftSpec};

/// Shared by the driver's threads, tests and the fabric.
#[derive(Debug)]
pub(super) struct Nic {
    /// Among all that the process ever had: its generator's number, and part of its address.
    pub(super) id: u16,
    pub(super) name: String,
    pub(super) mac: MacAddr,
    pub(super) spec: SoftSpec,
    pub(super) registers: Registers,
    pub(super) memory: Arc<SoftIommu>,
    pub(super) irq: Interrupts,
    pub(super) faults: Faults,
    pub(super) account: Account,
    /// What the fabric should look at: `pending` bits.
    work: AtomicU64,
    /// When each transmit queue's doorbell last rang, in nanoseconds.
    rung_ns: [AtomicU64; at::QUEUES],
    /// A closed loop is under way, and when the driver last unmasked interrupts in it, in nanoseconds.
    pub(super) looping: AtomicBool,
    pub(super) armed_ns: AtomicU64,
    pub(super) bell: Arc<Bell>,
    pub(super) orders: Mutex<Orders>,
    /// How many orders the fabric has carried out, and its announcement.
    done: Mutex<u64>,
    done_changed: Condvar,
    /// The cable has a partner, and nobody pulled it.
    pub(super) link: AtomicBool,
    /// A test pulled the cable.
    pub(super) unlinked: AtomicBool,
    /// A test stopped the device.
    pub(super) halted: AtomicBool,
    /// A fault stopped the device.
    pub(super) stalled: AtomicBool,
    /// The device was closed: the fabric lets go of it.
    pub(super) unplugged: AtomicBool,
    /// How long an access to an interrupt register takes at most, in nanoseconds: see [`super::Control::slow_arming`].
    pub(super) slow_ns: AtomicU64,
    /// Writes that unmask interrupts and are to be preceded by a frame: see [`super::Control::race_arm`].
    pub(super) races: AtomicU32,
}

/// Bits of [`Nic::notify`]. Transmit queue `q` has bit `q`, receive queue `q` bit `16 + q`.
pub(super) mod pending {
    /// Queues were enabled or disabled, or a register was written that may let frames flow.
    pub(crate) const CONFIG: u64 = 1 << 32;
    /// Software reset.
    pub(crate) const RESET: u64 = 1 << 33;
    /// Orders are waiting, or a flag of the NIC changed.
    pub(crate) const ORDERS: u64 = 1 << 34;
    /// The RSS key was written.
    pub(crate) const KEY: u64 = 1 << 35;
    /// An interrupt is to be sent later.
    pub(crate) const TIMER: u64 = 1 << 36;
    /// The driver unmasked interrupts, and a closed loop may wait for that.
    pub(crate) const ARMED: u64 = 1 << 37;
}

/// What a test (or the device's reset) wants of the fabric.
#[derive(Debug, Default)]
pub(super) struct Orders {
    pub(super) list: Vec<Order>,
    issued: u64,
}

#[derive(Debug)]
pub(super) enum Order {
    /// Send this many generator frames now.
    Send(u32),
    /// Put this frame on the wire to the port.
    Frame(Vec<u8>),
    /// Change the generator's rate, and its gaps if given.
    Traffic(Rate, Option<Gap>),
    /// Start a closed loop, in place of any other.
    Loop(ClosedLoop),
    /// Reset the device, as a function-level reset.
    Reset,
    /// Nothing: shows that a round has passed.
    Barrier,
}

/// What one NIC's generator and sink, and the model itself, have counted.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) corrupt: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) times: Mutex<Times>,
    pub(super) looped: Mutex<LoopCounts>,
    pub(super) unknown_registers: AtomicU64,
    pub(super) bad_descriptors: AtomicU64,
    pub(super) filtered: AtomicU64,
    pub(super) unlinked: AtomicU64,
    /// Frames that the port sent, kept for a test.
    pub(super) captured: Mutex<Option<Vec<Vec<u8>>>>,
}

/// How long frames took: see [`GeneratorReport`].
#[derive(Debug, Clone)]
pub(super) struct Times {
    pub(super) latency_ns: Histogram<u64>,
    pub(super) response_ns: Histogram<u64>,
    pub(super) first_response_ns: Histogram<u64>,
    /// The doorbell of the latest frame.
    pub(super) rung_ns: u64,
}

impl Account {
    fn new() -> Self {
        // 1 ns to 100 s in three digits: about 200 KiB. The bounds are constants that it accepts.
        let histogram = Histogram::new_with_bounds(1, 100_000_000_000, 3)
            .unwrap_or_else(|_| unreachable!("constant histogram bounds"));
        let times = Times {
            latency_ns: histogram.clone(),
            response_ns: histogram.clone(),
            first_response_ns: histogram,
            rung_ns: 0,
        };
        Self {
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            times: Mutex::new(times),
            looped: Mutex::new(LoopCounts::default()),
            unknown_registers: AtomicU64::new(0),
            bad_descriptors: AtomicU64::new(0),
            filtered: AtomicU64::new(0),
            unlinked: AtomicU64::new(0),
            captured: Mutex::new(None),
        }
    }

    pub(super) fn exchange_response_times(&self, other: &mut Histogram<u64>) {
        std::mem::swap(&mut self.times.lock().unwrap_or_else(PoisonError::into_inner).response_ns, other);
    }

    pub(super) fn report(&self) -> GeneratorReport {
        let Times { latency_ns, response_ns, first_response_ns, .. } =
            self.times.lock().unwrap_or_else(PoisonError::into_inner).clone();
        GeneratorReport {
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            corrupt: self.corrupt.load(Ordering::Relaxed),
            duplicates: self.duplicates.load(Ordering::Relaxed),
            latency_ns,
            response_ns,
            first_response_ns,
        }
    }
}

impl Nic {
    pub(super) fn new(id: u16, spec: SoftSpec, bell: Arc<Bell>) -> Self {
        let [high, low] = id.to_be_bytes();
        // Locally administered (bit 1 of the first byte), unicast.
        let mac = MacAddr([0x02, 0x53, 0x57, 0x00, high, low]);
        let name = if spec.name.is_empty() { format!("soft{id}") } else { spec.name.clone() };
        Self {
            id,
            mac,
            registers: Registers::new(mac),
            memory: Arc::new(SoftIommu::new(&name)),
            irq: Interrupts::new(spec.seed ^ 0x1_0000),
            faults: Faults::new(spec.faults.clone()),
            account: Account::new(),
            name,
            spec,
            work: AtomicU64::new(pending::CONFIG),
            rung_ns: std::array::from_fn(|_| AtomicU64::new(0)),
            looping: AtomicBool::new(false),
            armed_ns: AtomicU64::new(0),
            bell,
            orders: Mutex::new(Orders::default()),
            done: Mutex::new(0),
            done_changed: Condvar::new(),
            link: AtomicBool::new(false),
            unlinked: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            unplugged: AtomicBool::new(false),
            slow_ns: AtomicU64::new(0),
            races: AtomicU32::new(0),
        }
    }

    /// Tells the fabric to look: what was stored before is visible to it when it sees `bits`.
    #[inline]
    pub(super) fn notify(&self, bits: u64) {
        // Both this and what the bell reads are sequentially consistent: either the fabric, about to sleep, sees the bit,
        // or we see that it sleeps.
        self.work.fetch_or(bits, Ordering::SeqCst);
        self.bell.ring();
    }

    /// Notes that the doorbell of transmit queue `q` rings now; to be called before the tail is stored.
    #[inline]
    pub(super) fn note_rung(&self, q: usize) {
        self.rung_ns[q].store(now_ns(), Ordering::Relaxed);
    }

    /// When the doorbell of transmit queue `q` last rang, in nanoseconds. Read after the tail it is no earlier than that
    /// tail's doorbell.
    #[inline]
    pub(super) fn rung_ns(&self, q: usize) -> u64 {
        self.rung_ns[q].load(Ordering::Relaxed)
    }

    /// Whether the fabric has something to look at.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        self.work.load(Ordering::SeqCst) != 0
    }

    /// What the fabric should look at; cleared.
    #[inline]
    pub(super) fn take_work(&self) -> u64 {
        if self.work.load(Ordering::Relaxed) == 0 { 0 } else { self.work.swap(0, Ordering::AcqRel) }
    }

    /// Whether the device answers.
    #[inline]
    pub(super) fn answers(&self) -> bool {
        !self.stalled.load(Ordering::Relaxed) && !self.halted.load(Ordering::Relaxed)
    }

    /// The link as the MAC sees it: the PHY's, once the driver has set CTRL.SLU (8.2.1).
    pub(super) fn link_up(&self) -> bool {
        self.link.load(Ordering::Acquire) && self.registers.get(at::CTRL) & at::ctrl::SLU != 0
    }

    /// Gives the fabric an order; returns its ticket.
    pub(super) fn order(&self, order: Order) -> u64 {
        let ticket = {
            let mut orders = self.orders();
            orders.list.push(order);
            orders.issued += 1;
            orders.issued
        };
        self.notify(pending::ORDERS);
        ticket
    }

    pub(super) fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces that all orders up to now have been carried out; the fabric calls it at the end of the round that did.
    pub(super) fn finish(&self, count: u64) {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner) += count;
        self.done_changed.notify_all();
    }

    /// Waits until the order with this ticket has been carried out; false when `limit` passed before.
    pub(super) fn await_order(&self, ticket: u64, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        while *done < ticket {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            done = self.done_changed.wait_timeout(done, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    pub(super) fn fault_counts(&self) -> FaultCounts {
        self.faults.counts()
    }
}
