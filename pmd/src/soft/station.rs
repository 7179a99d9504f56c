//! One soft NIC in the fabric: what happens to it in each round.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::closed_loop::{Looper, Seen};
use super::fault::Fault;
use super::generator::{FrameId, Generator};
use super::layout::{self as at, icr, queue, stat};
use super::memory::Dma;
use super::nic::{Nic, Order, pending};
use super::registers::Tally;
use super::rx::{Around, Placed, Receiver};
use super::schedule::Schedule;
use super::spec::Wire;
use super::tx::{Sent, Transmitter};
use super::wire::{Ingress, Shared};

/// Generator frames made in a round, and frames moved from the packet buffer into rings.
const ROUND_MADE: u64 = 32;
const ROUND_PLACED: usize = 256;
/// Long frames that the packet buffer surely holds.
const ASKED_AT_ONCE: u64 = 4;
/// How long the link is down, or the device stands still, when a fault says so.
const OUTAGE_NS: u64 = 20_000_000;

/// A NIC, with what only the fabric's thread touches.
pub(super) struct Station {
    pub(super) nic: Arc<Nic>,
    pub(super) ingress: Ingress,
    pub(super) tally: Tally,
    /// What the port sent in this round.
    pub(super) outbox: Vec<Sent>,
    rx: Receiver,
    tx: Transmitter,
    generator: Generator,
    /// The closed loop under way, if any.
    looper: Option<Looper>,
    /// Its latest frame.
    looped: Option<FrameId>,
    /// The port could receive in this round, so what the generator has to do is a matter of time.
    sending: bool,
    /// Some ring has had descriptors since the receiver was switched on: the generator waits for that, so that a program
    /// that is still starting loses nothing.
    ready: bool,
    /// The frame at the front of the packet buffer waits for descriptors.
    blocked: bool,
    /// A doorbell rang since it was blocked.
    retry: bool,
    /// Frames that a test asked for and that have not been sent.
    asked: u64,
    /// Work that the device was told of before it stopped answering: it goes on with that.
    held: u64,
    flap: Outage,
    stall: Outage,
}

/// How a round went.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    /// Something moved: there may be more.
    pub(super) busy: bool,
    /// When the clock gives it something to do, in nanoseconds; `u64::MAX` for never.
    pub(super) due_ns: u64,
}

impl Station {
    pub(super) fn new(nic: Arc<Nic>) -> Self {
        let spec = &nic.spec;
        let schedule = Schedule::new(spec.rate, spec.gap, spec.seed ^ 0x5_0000);
        let generator = Generator::new(nic.id, nic.mac, schedule, spec.size.clone(), spec.seed ^ 0x3_0000);
        Self {
            ingress: Ingress::new(spec.seed ^ 0x4_0000),
            tally: Tally::new(),
            outbox: Vec::new(),
            rx: Receiver::new(&nic),
            tx: Transmitter::new(),
            generator,
            looper: None,
            looped: None,
            sending: false,
            ready: false,
            blocked: false,
            retry: false,
            asked: 0,
            held: 0,
            flap: Outage::new(Fault::LinkFlap),
            stall: Outage::new(Fault::Stall),
            nic,
        }
    }

    /// The name of the cable, if it has one.
    pub(super) fn cable(&self) -> Option<&str> {
        match &self.nic.spec.wire {
            Wire::Cable(name) => Some(name),
            Wire::Generator | Wire::Loop => None,
        }
    }

    /// Does what there is to do now. `partner` tells whether somebody is at the other end of the wire.
    pub(super) fn round(&mut self, shared: &mut Shared, partner: bool, now_ns: u64) -> Round {
        let work = self.nic.take_work();
        let mut orders = 0;
        if work & pending::ORDERS != 0 {
            orders = self.carry_out(shared, now_ns);
        }
        self.run_outages(partner, now_ns);
        let mut busy = work != 0;
        self.sending = false;
        if self.nic.answers() {
            let work = work | std::mem::take(&mut self.held);
            busy |= self.run(shared, work, now_ns);
        } else {
            self.held |= work;
        }
        // Nobody receives: they are lost on the way, or fill the packet buffer.
        self.send_asked(shared, u64::MAX, now_ns);
        if orders > 0 {
            self.nic.finish(orders);
        }
        Round { busy, due_ns: self.due_ns(now_ns) }
    }

    fn run(&mut self, shared: &mut Shared, work: u64, now_ns: u64) -> bool {
        let nic = self.nic.clone();
        if work & pending::RESET != 0 {
            self.reset(shared);
        }
        if work & pending::CONFIG != 0 {
            self.configure();
        }
        if work & pending::KEY != 0 {
            self.rx.rekey(&nic);
        }
        self.tx.active |= work as u32 & 0xFFFF;
        self.ingress.run(shared, &mut self.tally, now_ns);
        // The bit is looked at with the memory open: whoever sets it waits until it is closed.
        let allowed = |_: &Dma<'_>| nic.registers.get(at::CTRL) & at::ctrl::GIO_MASTER_DISABLE == 0;
        let Some(dma) = nic.memory.dma().filter(allowed) else {
            self.generator.schedule.hold();
            self.tally.flush(&nic.registers);
            return false;
        };

        let link = nic.link_up();
        if link && self.tx.active & self.tx.enabled != 0 {
            self.tx.run(&nic, &dma, shared, &mut self.tally, &mut self.outbox);
        }
        let made = self.generate(&nic, shared, link, now_ns);

        // A blocked frame waits for its queue's doorbell, and with it everything behind.
        if work & (0xFFFF << 16 | pending::CONFIG | pending::RESET) != 0 {
            self.retry = true;
        }
        let mut placed = self.place(&nic, &dma, shared, ROUND_PLACED);
        // What was asked for comes whole in this round, as much at a time as the packet buffer holds.
        while self.asked > 0 {
            self.send_asked(shared, ASKED_AT_ONCE, now_ns);
            placed += self.place(&nic, &dma, shared, usize::MAX);
        }
        drop(dma);

        let moved = !self.outbox.is_empty() || made > 0 || placed > 0;
        self.interrupt(&nic);
        nic.irq.run_timers(now_ns, &nic.faults);
        self.tally.flush(&nic.registers);
        moved
    }

    /// Moves frames from the packet buffer into rings, at most `limit`; returns how many.
    fn place(&mut self, nic: &Nic, dma: &Dma<'_>, shared: &mut Shared, limit: usize) -> usize {
        let mut placed = 0;
        if self.blocked && !std::mem::take(&mut self.retry) {
            return 0;
        }
        while placed < limit
            && let Some(frame) = self.ingress.front()
        {
            let mut around = Around { nic, dma, ledger: &mut shared.ledger, tally: &mut self.tally };
            if self.rx.place(&mut around, frame) == Placed::NoRoom {
                if !self.blocked {
                    self.tally.add(stat::RNBC, 1);
                }
                self.blocked = true;
                break;
            }
            self.blocked = false;
            self.ingress.pop(shared);
            placed += 1;
        }
        placed
    }

    /// Sends of the frames that a test asked for, at most `limit`.
    fn send_asked(&mut self, shared: &mut Shared, limit: u64, now_ns: u64) {
        let count = self.asked.min(limit);
        self.asked -= count;
        self.send(shared, count, now_ns);
    }

    /// Puts the frames that are due on the wire.
    fn generate(&mut self, nic: &Nic, shared: &mut Shared, link: bool, now_ns: u64) -> u64 {
        let on = self.rx.is_on(nic);
        self.ready = on && (self.ready || self.rx.has_room(nic));
        if !link || !self.ready {
            self.generator.schedule.hold();
            return 0;
        }
        self.sending = true;
        let mut made = u64::from(self.close_loop(nic, shared, now_ns));
        let schedule = &self.generator.schedule;
        if schedule.is_greedy() && !(self.ingress.is_empty() && self.rx.has_room(nic)) {
            return made;
        }
        while made < ROUND_MADE && self.generator.schedule.take(now_ns) {
            self.send(shared, 1, now_ns);
            made += 1;
        }
        made
    }

    /// Goes on with the closed loop, if one is under way; returns whether it sent a frame.
    fn close_loop(&mut self, nic: &Nic, shared: &mut Shared, now_ns: u64) -> bool {
        let Some(looper) = &mut self.looper else { return false };
        let back = self.looped.is_some_and(|id| shared.ledger.has(id));
        let armed_ns = nic.armed_ns.load(Ordering::Relaxed);
        let before = looper.counts;
        let due = looper.take(Seen { now_ns, back, armed_ns });
        let over = looper.is_over();
        if looper.counts != before {
            *nic.account.looped.lock().unwrap_or_else(PoisonError::into_inner) = looper.counts;
        }
        if due {
            self.looped = Some(self.generator.next_id());
            self.send(shared, 1, now_ns);
        }
        if over {
            self.end_loop();
        }
        due
    }

    fn end_loop(&mut self) {
        (self.looper, self.looped) = (None, None);
        self.nic.looping.store(false, Ordering::Relaxed);
    }

    fn send(&mut self, shared: &mut Shared, count: u64, now_ns: u64) {
        for _ in 0..count {
            let mut frame = shared.take();
            self.generator.make(now_ns, &mut frame);
            self.nic.account.sent.fetch_add(1, Ordering::Relaxed);
            self.ingress.arrive(&self.nic, shared, &mut self.tally, frame, now_ns);
        }
    }

    fn interrupt(&mut self, nic: &Nic) {
        let (rx, tx) = (std::mem::take(&mut self.rx.touched), std::mem::take(&mut self.tx.touched));
        let mut causes = 0;
        if rx != 0 {
            causes |= icr::RXDW;
        }
        if tx != 0 {
            causes |= icr::TXDW;
        }
        if self.tally.pending(stat::MPC) > 0 {
            causes |= icr::RXMISS;
        }
        if causes != 0 {
            nic.irq.raise(&nic.faults, causes, rx, tx);
        }
        let spurious = nic.faults.asked(Fault::IrqSpurious) || rx != 0 && nic.faults.hit_anywhere(Fault::IrqSpurious);
        if spurious {
            nic.irq.spurious();
        }
    }

    /// Carries out what was ordered; returns how many orders that were.
    fn carry_out(&mut self, shared: &mut Shared, now_ns: u64) -> u64 {
        let orders = std::mem::take(&mut self.nic.orders.lock().unwrap_or_else(PoisonError::into_inner).list);
        let count = orders.len() as u64;
        for order in orders {
            match order {
                Order::Send(count) => self.asked += u64::from(count),
                Order::Frame(frame) => {
                    let nic = self.nic.clone();
                    self.ingress.arrive(&nic, shared, &mut self.tally, frame, now_ns);
                }
                Order::Traffic(rate, gap) => {
                    let schedule = &mut self.generator.schedule;
                    schedule.set(rate, gap.unwrap_or(schedule.gap()));
                }
                Order::Loop(plan) => {
                    self.end_loop();
                    let looper = Looper::new(plan, now_ns, self.nic.spec.seed ^ 0x6_0000);
                    *self.nic.account.looped.lock().unwrap_or_else(PoisonError::into_inner) = looper.counts;
                    self.nic.looping.store(!looper.is_over(), Ordering::Relaxed);
                    self.looper = Some(looper).filter(|l| !l.is_over());
                }
                Order::Reset if self.nic.answers() => self.reset(shared),
                Order::Reset | Order::Barrier => {}
            }
        }
        count
    }

    /// Starts and ends outages, and keeps the link.
    fn run_outages(&mut self, partner: bool, now_ns: u64) {
        let nic = &self.nic;
        let flapping = self.flap.run(nic, now_ns);
        nic.stalled.store(self.stall.run(nic, now_ns), Ordering::Relaxed);
        let link = partner && !flapping && !nic.unlinked.load(Ordering::Relaxed);
        if link != nic.link.load(Ordering::Relaxed) {
            let was_up = nic.link_up();
            nic.link.store(link, Ordering::Release);
            if nic.link_up() != was_up {
                nic.irq.raise(&nic.faults, icr::LSC, 0, 0);
            }
        }
    }

    /// Everything back to its value after a reset, and out of all rings.
    fn reset(&mut self, shared: &mut Shared) {
        (0..at::QUEUES).for_each(|q| self.tx.clear(q));
        self.ingress.clear(shared);
        self.blocked = false;
        self.generator.schedule.hold();
        self.nic.irq.reset();
        self.tally = Tally::new();
        self.nic.registers.reset(self.nic.mac);
        self.configure();
        self.rx.rekey(&self.nic);
    }

    /// Grants what the driver wishes of its queues.
    fn configure(&mut self) {
        let registers = &self.nic.registers;
        let (mut rx, mut tx) = (0, 0);
        for q in 0..at::QUEUES {
            for (dctl, enabled) in [(at::rx(q, queue::DCTL), &mut rx), (at::tx(q, queue::DCTL), &mut tx)] {
                let wish = registers.get(dctl) & at::DCTL_WISH != 0 && q < usize::from(self.nic.spec.queues);
                let state = if wish { at::DCTL_ENABLE } else { 0 };
                registers.update(dctl, |old| old & !at::DCTL_ENABLE | state);
                *enabled |= u32::from(wish) << q;
            }
            if tx >> q & 1 == 0 {
                self.tx.clear(q);
            }
        }
        self.tx.active |= tx;
        (self.rx.enabled, self.tx.enabled) = (rx, tx);
    }

    fn due_ns(&self, now_ns: u64) -> u64 {
        let outages = self.flap.due_ns.min(self.stall.due_ns);
        if !self.nic.answers() {
            return outages;
        }
        let looper = self.looper.as_ref().filter(|_| self.sending).map_or(u64::MAX, |l| l.due_ns(now_ns));
        let frames = self.generator.schedule.next_ns().min(self.ingress.due_ns()).min(looper);
        outages.min(frames).min(self.nic.irq.due_ns())
    }
}

/// A fault that lasts: its period, and whether it is on.
#[derive(Debug)]
struct Outage {
    fault: Fault,
    on: bool,
    /// When it next starts or ends, in nanoseconds; zero before the first look.
    due_ns: u64,
}

impl Outage {
    fn new(fault: Fault) -> Self {
        Self { fault, on: false, due_ns: 0 }
    }

    /// Whether it is on now.
    fn run(&mut self, nic: &Nic, now_ns: u64) -> bool {
        let next = |period: Option<u64>| period.map_or(u64::MAX, |p| now_ns + p);
        let period = nic.faults.period_ns(self.fault);
        if self.due_ns == 0 {
            self.due_ns = next(period);
        }
        if !self.on {
            let planned = now_ns >= self.due_ns;
            if planned {
                nic.faults.count(self.fault);
            }
            if planned || nic.faults.asked(self.fault) {
                self.on = true;
                self.due_ns = now_ns + OUTAGE_NS.min(period.map_or(OUTAGE_NS, |p| p / 2));
            }
        } else if now_ns >= self.due_ns {
            self.on = false;
            self.due_ns = next(period);
        }
        self.on
    }
}
