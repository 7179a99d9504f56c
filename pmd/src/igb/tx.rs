//! Transmit queues.
//!
//! One data descriptor a segment. Only the last descriptor of a batch (a burst, or a quarter of a small ring) asks for
//! its completion, so one look at that descriptor tells that all frames of the batch are done.
//!
//! Frames that need nothing but sending take the short path: one pass over the burst writes descriptors, then the
//! frames move as a block. The first frame that is a chain, wants a VLAN tag or a checksum, or cannot be sent,
//! sends the rest of its burst down the careful path.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use spinwake::dma::DescRing;
use spinwake::frame::{Burst, Frame, InFlight, L4Checksum, Pool};
use spinwake::port::{Offloads, PortError, TxCounters, TxQueue};
use spinwake::sys::relax::Watch;
use spinwake::wait::{Source, Wake};

use super::desc::tx as desc;
use super::line::QueueIrq;
use super::nic::Nic;
use super::regs::{self, xdctl};

/// The shortest frame that the device takes; it pads up to 64 (TCTL.PSP).
const MIN_FRAME: usize = 17;
/// Segments of a chain at most. QEMU's igb takes 64; with a context descriptor they fit the smallest ring.
const MAX_SEGMENTS: usize = 24;
/// Prefetch when fewer than 8 descriptors are on the chip; write back at once.
const THRESHOLDS: u32 = 8 << xdctl::PTHRESH_SHIFT | 1 << xdctl::HTHRESH_SHIFT | 1 << xdctl::WTHRESH_SHIFT;
/// The least a network header can have, and an Ethernet header.
const MIN_L3: usize = 20;
const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;

/// What a transmit queue needs to know.
pub(super) struct TxSetup {
    pub(super) queue: usize,
    pub(super) ring_len: usize,
    /// Bytes of the longest frame, without frame check sequence.
    pub(super) max_frame: usize,
    pub(super) offloads: Offloads,
    pub(super) irq: Option<QueueIrq>,
    pub(super) counters: Arc<TxCounters>,
}

/// One transmit queue. Positions count up for ever and are taken modulo the ring's length.
#[derive(Debug)]
pub(super) struct IgbTx {
    nic: Arc<Nic>,
    queue: usize,
    /// `None` only when it had to be left to the device.
    ring: Option<DescRing>,
    frames: InFlight,
    len: usize,
    /// The next descriptor to write.
    tail: usize,
    /// The oldest descriptor whose frame was not given back.
    clean: usize,
    /// The batches in flight, oldest at `first_batch`; as many as the ring has.
    batches: Box<[Batch]>,
    first_batch: usize,
    next_batch: usize,
    /// Descriptors in a batch at most.
    batch: usize,
    /// The context that the device has.
    context: Option<[u64; 2]>,
    max_frame: usize,
    offloads: Offloads,
    irq: Option<QueueIrq>,
    counters: Arc<TxCounters>,
}

/// Descriptors whose last one tells when all of them are done.
#[derive(Debug, Clone, Copy, Default)]
struct Batch {
    /// One past the last descriptor.
    end: usize,
    /// Frames that they carry.
    frames: usize,
}

impl Batch {
    /// Whether the device has sent all of it.
    #[inline(always)]
    fn is_done(self, ring: &DescRing, order: Ordering) -> bool {
        ring.load(self.end.wrapping_sub(1), 1, order) & desc::DD != 0
    }
}

impl IgbTx {
    /// Sets the queue up and enables it.
    pub(super) fn start(nic: Arc<Nic>, setup: TxSetup) -> Result<Self, PortError> {
        let TxSetup { queue, ring_len, max_frame, offloads, irq, counters } = setup;
        let ring = DescRing::new(nic.attachment(), ring_len, nic.device.numa_node())
            .map_err(|source| PortError::Dma { port: nic.name().into(), source })?;
        let base = ring.iova().get();
        let this = Self {
            queue,
            ring: Some(ring),
            frames: InFlight::new(ring_len),
            len: ring_len,
            tail: 0,
            clean: 0,
            batches: vec![Batch::default(); ring_len].into(),
            first_batch: 0,
            next_batch: 0,
            batch: ring_len / 4,
            context: None,
            max_frame,
            offloads,
            irq,
            counters,
            nic,
        };
        this.nic.born();
        let bar = &this.nic.bar;
        bar.write(regs::tdbal(queue), base as u32);
        bar.write(regs::tdbah(queue), (base >> 32) as u32);
        bar.write(regs::tdlen(queue), (ring_len * 16) as u32);
        bar.write(regs::tdwbal(queue), 0);
        bar.write(regs::tdwbah(queue), 0);
        bar.write(regs::tdh(queue), 0);
        bar.write(regs::tdt(queue), 0);
        this.nic.start_queue(regs::txdctl(queue), THRESHOLDS, "the start of a transmit queue")?;
        Ok(this)
    }

    /// Descriptors that may be written; one stays free, because head = tail means an empty ring.
    #[inline(always)]
    fn free(&self) -> usize {
        self.len - 1 - (self.tail - self.clean)
    }

    /// The oldest batch in flight, if there is one.
    #[inline(always)]
    fn oldest_batch(&self) -> Batch {
        self.batches[self.first_batch & (self.batches.len() - 1)]
    }

    /// Gives the frames of finished batches back; returns how many.
    #[inline(always)]
    fn reclaim_batches(&mut self, pool: &mut Pool) -> usize {
        let Some(ring) = &self.ring else { return 0 };
        let before = self.frames.len();
        while self.first_batch != self.next_batch {
            let batch = self.oldest_batch();
            if !batch.is_done(ring, Ordering::Acquire) {
                break;
            }
            self.first_batch += 1;
            self.clean = batch.end;
            self.frames.give_back(pool, batch.frames);
        }
        before - self.frames.len()
    }

    /// Asks for the completion of the last descriptor written, on behalf of all since the last batch, which carry `frames`.
    #[inline(always)]
    fn close_batch(&mut self, frames: usize) {
        let Some(ring) = &self.ring else { return };
        let last = self.tail.wrapping_sub(1);
        ring.store(last, 1, ring.load(last, 1, Ordering::Relaxed) | desc::RS);
        let at = self.next_batch & (self.batches.len() - 1);
        self.batches[at] = Batch { end: self.tail, frames };
        self.next_batch += 1;
    }

    /// Sends frames from the front of `burst` that need nothing but sending, at most a batch. Returns frames and bytes.
    #[inline(always)]
    fn send_plain(&mut self, pool: &Pool, burst: &mut Burst) -> (usize, usize) {
        let Some(ring) = &self.ring else { return (0, 0) };
        let limit = self.free().min(self.batch).min(burst.len());
        let longest = self.max_frame - MIN_FRAME;
        let mut sent = 0;
        let mut bytes = 0;
        while sent < limit {
            // Up to the end of the ring at a time.
            let run = ring.run(self.tail + sent, limit - sent);
            let mut plain = 0;
            for (frame, descriptor) in burst[sent..].iter().zip(run) {
                let len = frame.len();
                let Some(iova) = pool.plain_iova(frame) else { break };
                if len.wrapping_sub(MIN_FRAME) > longest {
                    break;
                }
                descriptor.store([iova.get(), desc::whole(len)]);
                bytes += len;
                plain += 1;
            }
            sent += plain;
            if plain < run.len() {
                break;
            }
        }
        if sent > 0 {
            self.frames.push_from(burst, sent);
            self.tail += sent;
            self.close_batch(sent);
        }
        (sent, bytes)
    }

    /// Sends or refuses frames from the front of `burst`, whatever they are. Returns how many it took, and how many
    /// frames and bytes it sent.
    #[cold]
    #[inline(never)]
    fn send_careful(&mut self, pool: &Pool, burst: &mut Burst) -> (usize, usize, usize) {
        let mut free = self.free();
        let mut fit = 0;
        for frame in burst.iter() {
            let need = self.segments_of(frame).map_or(0, |segments| segments + 1);
            if need > free {
                break;
            }
            free -= need;
            fit += 1;
        }
        let (mut sent, mut bytes, mut refused) = (0, 0, 0);
        let (mut open, mut frames) = (self.tail, 0);
        for frame in burst.drain(..fit) {
            if self.segments_of(&frame).is_none() {
                // Dropping it sends it home.
                refused += 1;
                continue;
            }
            sent += 1;
            frames += 1;
            bytes += self.send_any(pool, frame);
            if self.tail - open >= self.batch {
                self.close_batch(frames);
                (open, frames) = (self.tail, 0);
            }
        }
        if self.tail != open {
            self.close_batch(frames);
        }
        if refused > 0 {
            self.counters.refused.add(refused);
        }
        (fit, sent, bytes)
    }

    /// How many segments `frame` has; `None` if the device cannot send it.
    fn segments_of(&self, frame: &Frame) -> Option<usize> {
        let mut total = 0;
        let mut segments = 0;
        for segment in frame.segments() {
            // An empty buffer has no meaning to the device.
            if segment.is_empty() || segments == MAX_SEGMENTS {
                return None;
            }
            total += segment.len();
            segments += 1;
        }
        if frame.vlan().is_some() && !self.offloads.vlan_insert || frame.requested_segmentation().is_some() {
            return None;
        }
        if let Some((l2, l3, _, l4)) = frame.requested_checksums() {
            let l4_len = match l4 {
                L4Checksum::None => 0,
                L4Checksum::Udp => 8,
                L4Checksum::Tcp => 20,
            };
            if !self.offloads.tx_checksum || l2 < ETHERNET || l3 < MIN_L3 || l2 + l3 + l4_len > total {
                return None;
            }
        }
        let longest = self.max_frame - if frame.vlan().is_some() { VLAN_TAG } else { 0 };
        (MIN_FRAME..=longest).contains(&total).then_some(segments)
    }

    /// Writes the descriptors of one frame that can be sent and for which there is room. Returns its bytes.
    fn send_any(&mut self, pool: &Pool, frame: Frame) -> usize {
        let Some(ring) = &self.ring else { return 0 };
        let total = frame.total_len();
        let mut options = 0;
        if frame.needs_care() {
            let (context, wanted) = context_of(&frame);
            options = wanted;
            if wanted != 0 && self.context != Some(context) {
                ring.store(self.tail, 0, context[0]);
                ring.store(self.tail, 1, context[1]);
                self.context = Some(context);
                self.tail += 1;
            }
        }
        let mut segments = frame.segments().peekable();
        while let Some(segment) = segments.next() {
            let end = if segments.peek().is_none() { desc::EOP } else { 0 };
            ring.store(self.tail, 0, pool.iova(segment).get());
            ring.store(self.tail, 1, desc::part(segment.len(), total, options | end));
            self.tail += 1;
        }
        self.frames.push(frame);
        total
    }
}

/// The context descriptor that `frame` needs, and the options of its data descriptors: zero when it needs none.
fn context_of(frame: &Frame) -> ([u64; 2], u64) {
    let mut options = 0;
    let (mut l2_len, mut l3_len, mut tucmd) = (ETHERNET, 0, 0);
    if let Some((l2, l3, network, transport)) = frame.requested_checksums() {
        (l2_len, l3_len) = (l2, l3);
        if network {
            options |= desc::IXSM;
            tucmd |= desc::TUCMD_IPV4;
        }
        match transport {
            L4Checksum::None => {}
            L4Checksum::Tcp => {
                options |= desc::TXSM;
                tucmd |= desc::TUCMD_TCP;
            }
            L4Checksum::Udp => {
                options |= desc::TXSM;
                tucmd |= desc::TUCMD_UDP;
            }
        }
    }
    if frame.vlan().is_some() {
        options |= desc::VLE;
    }
    (desc::context(frame.vlan().unwrap_or(0), l2_len, l3_len, tucmd), options)
}

impl TxQueue for IgbTx {
    fn tx_burst(&mut self, pool: &mut Pool, burst: &mut Burst) -> usize {
        self.nic.check_domain(pool);
        self.reclaim_batches(pool);
        let (mut taken, mut frames, mut bytes) = (0, 0, 0);
        let before = self.tail;
        while !burst.is_empty() {
            let (sent, sent_bytes) = self.send_plain(pool, burst);
            (taken, frames, bytes) = (taken + sent, frames + sent, bytes + sent_bytes);
            if sent == 0 {
                let (more, sent, sent_bytes) = self.send_careful(pool, burst);
                (taken, frames, bytes) = (taken + more, frames + sent, bytes + sent_bytes);
                break;
            }
        }
        if !burst.is_empty() {
            self.counters.full.add(1);
        }
        if self.tail != before {
            self.counters.frames.add(frames as u64);
            self.counters.bytes.add(bytes as u64);
            self.nic.bar.doorbell(regs::tdt(self.queue), (self.tail & (self.len - 1)) as u32);
        }
        taken
    }

    fn reclaim(&mut self, pool: &mut Pool) -> usize {
        self.reclaim_batches(pool)
    }

    fn in_flight(&self) -> usize {
        self.frames.len()
    }

    fn counters(&self) -> &Arc<TxCounters> {
        &self.counters
    }
}

impl Source for IgbTx {
    fn label(&self) -> String {
        format!("{} tx {}", self.nic.name(), self.queue)
    }

    fn pending(&self) -> bool {
        let Some(ring) = &self.ring else { return false };
        self.first_batch != self.next_batch && self.oldest_batch().is_done(ring, Ordering::Relaxed)
    }

    fn watch(&self) -> Option<Watch<'_>> {
        let last = self.oldest_batch().end.wrapping_sub(1);
        self.ring.as_ref().filter(|_| self.first_batch != self.next_batch).map(|ring| ring.watch(last))
    }

    /// Every burst ends with a descriptor that asks for its completion, and so raises the cause: whatever is in flight
    /// fires, and nothing in flight needs no interrupt.
    fn arm(&mut self) {
        if self.first_batch != self.next_batch
            && let Some(irq) = &mut self.irq
        {
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

impl Drop for IgbTx {
    fn drop(&mut self) {
        if let Some(irq) = &mut self.irq {
            irq.leave(&self.nic);
        }
        if !self.nic.stop_queue(regs::txdctl(self.queue)) {
            self.frames.leak();
            if let Some(ring) = self.ring.take() {
                ring.leak();
            }
        }
        // What is not left to the device goes home before the port may start again.
        self.frames = InFlight::new(1);
        self.ring = None;
        self.nic.died();
    }
}
