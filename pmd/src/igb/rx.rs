//! Receive queues.
//!
//! ```text
//!            head                          published       tail
//!              │  frames come in here          │  not yet    │
//!  ─ holes ─┬──▼──────────────────────────────▼─────────────▼── holes ─
//!           harvest: ring → burst              doorbell       refill: pool → ring
//! ```
//!
//! Positions count up for ever and are taken modulo the ring's length. `head <= published <= tail < head + length`:
//! one hole always stays, because the device takes head = tail for an empty ring. Everything the device writes is
//! checked: a length must fit the buffer, a chain must fit the largest frame.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use spinwake::dma::{DescRing, Descriptor};
use spinwake::frame::{Burst, DATA_ROOM, Frame, Pool, Posted};
use spinwake::irq::Vector;
use spinwake::port::{Offloads, PortError, RxCounters, RxQueue};
use spinwake::sys::relax::Watch;
use spinwake::wait::{Source, Wake};

use super::desc::rx as desc;
use super::line::QueueIrq;
use super::nic::Nic;
use super::regs::{self, srrctl, xdctl};

/// Descriptors that are refilled together.
const BATCH: usize = 32;
/// The device is told of new buffers once they are this part of the ring; benches/guest-forward shows what that saves.
const PUBLISHED_PART: usize = 4;
/// Prefetch when fewer than 8 descriptors are on the chip and 8 are in memory; write each back at once.
const THRESHOLDS: u32 = 8 << xdctl::PTHRESH_SHIFT | 8 << xdctl::HTHRESH_SHIFT | 1 << xdctl::WTHRESH_SHIFT;
const _: () = assert!(DATA_ROOM.is_multiple_of(1024), "SRRCTL counts buffers in KiB");

/// What a receive queue needs to know.
pub(super) struct RxSetup {
    pub(super) queue: usize,
    pub(super) ring_len: usize,
    /// Bytes of the longest frame, without frame check sequence.
    pub(super) max_frame: usize,
    pub(super) offloads: Offloads,
    /// Drop frames that find no descriptor, so that they do not block other queues.
    pub(super) drop: bool,
    pub(super) irq: Option<QueueIrq>,
    pub(super) counters: Arc<RxCounters>,
}

/// One receive queue.
#[derive(Debug)]
pub(super) struct IgbRx {
    nic: Arc<Nic>,
    queue: usize,
    /// `None` only when it had to be left to the device.
    ring: Option<DescRing>,
    /// The buffers of the descriptors between head and tail.
    posted: Posted,
    len: usize,
    /// The device may fill descriptors below this one.
    published: usize,
    /// Refill in units of this many.
    batch: usize,
    /// Publish in units of this many, as long as the device has enough.
    quota: usize,
    chain: Chain,
    /// Some offload wants more of a descriptor than its length.
    metadata: bool,
    offloads: Offloads,
    max_frame: usize,
    irq: Option<QueueIrq>,
    counters: Arc<RxCounters>,
}

/// A frame of several buffers that is still coming in.
#[derive(Debug, Default)]
struct Chain {
    head: Option<Frame>,
    len: usize,
    /// The frame turned out to be bad: drop the rest of it.
    skip: bool,
}

impl Chain {
    fn is_idle(&self) -> bool {
        self.head.is_none() && !self.skip
    }
}

/// What a burst adds to the counters.
#[derive(Debug, Default)]
struct Tally {
    frames: usize,
    bytes: usize,
    errors: u64,
    lies: u64,
}

impl IgbRx {
    /// Sets the queue up and enables it. Its ring is empty.
    pub(super) fn start(nic: Arc<Nic>, setup: RxSetup) -> Result<Self, PortError> {
        let RxSetup { queue, ring_len, max_frame, offloads, drop, irq, counters } = setup;
        let ring = DescRing::new(nic.attachment(), ring_len, nic.device.numa_node())
            .map_err(|source| PortError::Dma { port: nic.name().into(), source })?;
        let base = ring.iova().get();
        let this = Self {
            queue,
            posted: Posted::new(ring_len),
            len: ring_len,
            published: 0,
            batch: BATCH.min(ring_len / 4),
            quota: ring_len / PUBLISHED_PART,
            chain: Chain::default(),
            metadata: offloads.rx_checksum || offloads.vlan_strip || offloads.rss_hash,
            offloads,
            max_frame,
            irq,
            counters,
            ring: Some(ring),
            nic,
        };
        this.nic.born();
        let bar = &this.nic.bar;
        bar.write(regs::rdbal(queue), base as u32);
        bar.write(regs::rdbah(queue), (base >> 32) as u32);
        bar.write(regs::rdlen(queue), (ring_len * 16) as u32);
        let drop = if drop { srrctl::DROP_EN } else { 0 };
        bar.write(regs::srrctl(queue), (DATA_ROOM / 1024) as u32 | srrctl::DESCTYPE_ADV_ONEBUF | drop);
        // Hardware resets the head when the queue is enabled; QEMU's igb leaves it where it was.
        bar.write(regs::rdh(queue), 0);
        bar.write(regs::rdt(queue), 0);
        this.nic.start_queue(regs::rxdctl(queue), THRESHOLDS, "the start of a receive queue")?;
        Ok(this)
    }

    /// Moves plain frames, one buffer each, into `burst`. Returns whether it stopped at a descriptor that is not plain.
    #[inline(always)]
    fn harvest(&mut self, burst: &mut Burst, tally: &mut Tally) -> bool {
        let Some(ring) = &self.ring else { return false };
        let mut want = burst.remaining_capacity().min(self.published - self.posted.head());
        while want > 0 {
            // Up to the end of the ring at a time.
            let run = ring.run(self.posted.head(), want);
            let first = burst.len();
            let (moved, bytes) = self.posted.harvest(burst, run, |descriptor| {
                let word = descriptor.load(1, Ordering::Acquire);
                let len = desc::len(word);
                let plain = word & (desc::DD | desc::EOP | desc::RXE) == desc::DD | desc::EOP;
                if plain && fits(len) { Some(len) } else { None }
            });
            if self.metadata {
                annotate(&mut burst[first..], run, self.offloads);
            }
            tally.frames += moved;
            tally.bytes += bytes;
            if let Some(odd) = run.get(moved) {
                return odd.load(1, Ordering::Relaxed) & desc::DD != 0;
            }
            want -= moved;
        }
        false
    }

    /// Takes descriptors one by one until a frame ends: chains, broken frames, and what should not be. Returns whether one
    /// ended, so that plain ones may follow.
    #[cold]
    #[inline(never)]
    fn harvest_odd(&mut self, pool: &mut Pool, burst: &mut Burst, tally: &mut Tally) -> bool {
        let Some(ring) = &self.ring else { return false };
        while self.posted.head() != self.published && !burst.is_full() {
            let word = ring.load(self.posted.head(), 1, Ordering::Acquire);
            if word & desc::DD == 0 {
                return false;
            }
            let at = self.posted.head();
            let Some(mut frame) = self.posted.pop() else { return false };
            let len = desc::len(word);
            let last = word & desc::EOP != 0;
            // The device fills a buffer before it goes on to the next.
            let sane = fits(len) && (last || len == DATA_ROOM) && self.chain.len + len <= self.max_frame.max(DATA_ROOM);
            if self.chain.skip || word & desc::RXE != 0 || !sane {
                if !self.chain.skip {
                    let broken = word & desc::RXE != 0;
                    tally.errors += u64::from(broken);
                    tally.lies += u64::from(!broken);
                }
                pool.give(frame);
                if let Some(head) = self.chain.head.take() {
                    pool.give(head);
                }
                self.chain = Chain { skip: !last, ..Chain::default() };
            } else {
                frame.set_len(len);
                self.chain.len += len;
                match &mut self.chain.head {
                    Some(head) => head.chain(frame),
                    None => self.chain.head = Some(frame),
                }
                if last && let Some(mut head) = self.chain.head.take() {
                    if self.metadata {
                        annotate(std::slice::from_mut(&mut head), ring.run(at, 1), self.offloads);
                    }
                    tally.frames += 1;
                    tally.bytes += mem::take(&mut self.chain.len);
                    burst.push(head);
                }
            }
            if last {
                return true;
            }
        }
        false
    }

    /// Puts buffers into the holes. Returns whether the pool had enough.
    #[inline(always)]
    fn refill(&mut self, pool: &mut Pool) -> bool {
        let Some(ring) = &self.ring else { return true };
        let mut want = self.len - 1 - self.posted.len();
        while want > 0 {
            let run = ring.run(self.posted.tail(), want);
            let posted = self.posted.post(pool, run, |descriptor, iova| descriptor.store(desc::give(iova)));
            if posted < run.len() {
                return false;
            }
            want -= posted;
        }
        true
    }

    /// Refills the ring if a batch is missing, and tells the device if it is worth a register write.
    #[inline(always)]
    fn replenish(&mut self, pool: &mut Pool) {
        if self.len - 1 - self.posted.len() >= self.batch {
            if !self.refill(pool) {
                self.counters.no_buf.add(1);
            }
            let unpublished = self.posted.tail() - self.published;
            // A device that runs short is told of every single buffer.
            let short = self.published - self.posted.head() < self.len / 2;
            if unpublished >= self.quota || (short && unpublished > 0) {
                self.published = self.posted.tail();
                self.nic.bar.doorbell(regs::rdt(self.queue), (self.published & (self.len - 1)) as u32);
            }
        }
    }
}

/// Whether a frame of `len` bytes is one, and fits a buffer.
#[inline(always)]
fn fits(len: usize) -> bool {
    len.wrapping_sub(1) < DATA_ROOM
}

/// Notes in frames what the device found out about them, in as many passes as there are wishes: most programs have one.
#[inline(always)]
fn annotate(frames: &mut [Frame], descriptors: &[Descriptor], offloads: Offloads) {
    if offloads.rx_checksum {
        for (frame, descriptor) in frames.iter_mut().zip(descriptors) {
            frame.set_verdicts(desc::verdicts(descriptor.load(1, Ordering::Relaxed)));
        }
    }
    if offloads.vlan_strip {
        for (frame, descriptor) in frames.iter_mut().zip(descriptors) {
            let word = descriptor.load(1, Ordering::Relaxed);
            if word & desc::VP != 0 {
                frame.set_vlan(Some(desc::vlan(word)));
            }
        }
    }
    if offloads.rss_hash {
        for (frame, descriptor) in frames.iter_mut().zip(descriptors) {
            if let Some(hash) = desc::rss_hash(descriptor.load(0, Ordering::Relaxed)) {
                frame.set_rss_hash(hash);
            }
        }
    }
}

impl RxQueue for IgbRx {
    fn rx_burst(&mut self, pool: &mut Pool, burst: &mut Burst) -> usize {
        self.nic.check_domain(pool);
        let mut tally = Tally::default();
        // A chain that the last burst left unfinished comes first.
        let mut odd = !self.chain.is_idle();
        while !odd || self.harvest_odd(pool, burst, &mut tally) {
            odd = self.harvest(burst, &mut tally);
            if !odd {
                break;
            }
        }
        if tally.frames > 0 {
            self.counters.frames.add(tally.frames as u64);
            self.counters.bytes.add(tally.bytes as u64);
        }
        if tally.errors | tally.lies != 0 {
            self.counters.errors.add(tally.errors);
            self.counters.lies.add(tally.lies);
        }
        self.replenish(pool);
        tally.frames
    }

    fn vector(&self) -> Option<&Arc<Vector>> {
        self.irq.as_ref().map(QueueIrq::vector)
    }

    fn counters(&self) -> &Arc<RxCounters> {
        &self.counters
    }
}

impl Source for IgbRx {
    fn label(&self) -> String {
        format!("{} rx {}", self.nic.name(), self.queue)
    }

    fn pending(&self) -> bool {
        let Some(ring) = &self.ring else { return false };
        let head = self.posted.head();
        head != self.published && ring.load(head, 1, Ordering::Relaxed) & desc::DD != 0
    }

    fn arm(&mut self) {
        if let Some(irq) = &mut self.irq {
            irq.arm(&self.nic);
        }
    }

    fn disarm(&mut self) {
        if let Some(irq) = &mut self.irq {
            irq.disarm(&self.nic);
        }
    }

    fn fired(&mut self) {
        if let Some(irq) = &self.irq {
            irq.fired();
        }
    }

    fn watch(&self) -> Option<Watch<'_>> {
        let head = self.posted.head();
        self.ring.as_ref().filter(|_| head != self.published).map(|ring| ring.watch(head))
    }

    fn wake(&self) -> Wake {
        match &self.irq {
            Some(irq) => Wake::Vector(irq.vector().clone(), irq.kind()),
            None => Wake::Never("the device has no interrupts".into()),
        }
    }

    fn moderate(&mut self, interval: Duration) -> Option<Duration> {
        self.irq.as_mut().map(|irq| irq.moderate(&self.nic, interval))
    }
}

impl Drop for IgbRx {
    fn drop(&mut self) {
        if let Some(irq) = &mut self.irq {
            irq.leave(&self.nic);
        }
        if !self.nic.stop_queue(regs::rxdctl(self.queue)) {
            self.posted.leak();
            if let Some(ring) = self.ring.take() {
                ring.leak();
            }
        }
        // What is not left to the device goes home before the port may start again.
        self.posted = Posted::new(1);
        self.chain = Chain::default();
        self.ring = None;
        self.nic.died();
    }
}
