//! Transmit queues.
//!
//! The header stands in the headroom of each frame, so a frame of one segment is one descriptor. A header of zeros, which
//! is what most frames need, is written only where there is none yet: a buffer that goes round keeps it, and its cache
//! line need not move.
//!
//! Frames that need nothing but sending take the short path: one pass over the burst writes descriptors, then the frames
//! move as a block. The first frame that is a chain, asks for a checksum or a cut, or cannot be sent, sends the rest of
//! its burst down the careful path. There, a frame of many segments takes one descriptor, which points at a table of
//! them in a buffer of its own, where the device knows such tables.

pub(super) mod window;

use std::sync::Arc;

use arrayvec::ArrayVec;
use spinwake::frame::{BURST, Burst, Cut, DATA_ROOM, Frame, InFlight, L4Checksum, Pool};
use spinwake::port::{PortError, TxCounters, TxQueue};
use spinwake::sys::relax::Watch;
use spinwake::wait::{Source, Wake};

use super::features::Features;
use super::header::{HEADER_LEN, NetHeader};
use super::queue::{Common, DriverTx, QueueSetup, RingHealth};
use super::ring::{Filler, Packed, Ring, RingKind, Split, flag};
use window::Window;

/// An Ethernet header: there is no frame without.
const MIN_FRAME: usize = 14;
/// The least a network header can have.
const MIN_L3: usize = 20;
/// The longest frame that asks to be cut: an IP packet behind an Ethernet header with two VLAN tags.
const MAX_LARGE: usize = 65_535 + 22;
/// From this many segments on a table is worth its buffer: up to here the descriptors fit one cache line.
const MAX_DIRECT: usize = 4;
/// Descriptors in a table at most, and bytes of each.
const MAX_TABLE: usize = DATA_ROOM / ENTRY;
const ENTRY: usize = 16;
/// Parts of the ring in flight, and of the pool, from which on a look for finished frames is worth a cache line.
const RING_PART: usize = 2;
const POOL_PART: usize = 8;

/// Makes a transmit queue on an idle ring.
///
/// # Errors
///
/// None so far.
pub(crate) fn tx_queue(setup: QueueSetup, counters: Arc<TxCounters>) -> Result<Box<dyn DriverTx>, PortError> {
    Ok(match setup.memory.kind() {
        RingKind::Split => Box::new(Tx::<Split>::new(setup, counters)),
        RingKind::Packed => Box::new(Tx::<Packed>::new(setup, counters)),
    })
}

/// One transmit queue.
#[derive(Debug)]
struct Tx<R> {
    common: Common,
    ring: R,
    window: Window,
    /// The frames in flight, in the window's order.
    frames: InFlight,
    /// Descriptors of a chain at most.
    max_segments: usize,
    counters: Arc<TxCounters>,
}

/// How the careful path sends a frame.
#[derive(Debug)]
enum Plan {
    /// Not at all: the device cannot.
    Refuse,
    /// By a descriptor a segment, or one for a table.
    Send {
        /// A buffer for the header, where the frame has no headroom left.
        header: Option<Frame>,
        /// A buffer for a table of descriptors.
        table: Option<Frame>,
    },
}

/// What was done with a part of a burst.
#[derive(Debug, Default)]
struct Tally {
    taken: usize,
    sent: usize,
    bytes: usize,
    refused: u64,
}

impl<R: Ring> Tx<R> {
    fn new(setup: QueueSetup, counters: Arc<TxCounters>) -> Self {
        let (common, memory) = Common::new(setup);
        let len = common.len;
        Self {
            ring: R::new(memory, common.features, Filler::Driver),
            window: Window::new(len),
            frames: InFlight::new(len),
            // A chain is no longer than the ring, a table neither (2.7.5.3.1).
            max_segments: MAX_TABLE.min(len),
            counters,
            common,
        }
    }

    /// Gives finished frames back; returns how many.
    #[inline(always)]
    fn reclaim_finished(&mut self, pool: &mut Pool) -> usize {
        if self.common.broken || self.frames.is_empty() {
            return 0;
        }
        match self.ring.reclaim(&mut self.window) {
            Ok(frames) => {
                self.frames.give_back(pool, frames);
                frames
            }
            Err(fault) => {
                self.counters.lies.add(1);
                self.common.break_down(fault);
                0
            }
        }
    }

    /// Sends frames from the front of `burst` that need nothing but sending.
    #[inline(always)]
    fn send_plain(&mut self, pool: &Pool, burst: &mut Burst, tally: &mut Tally) -> usize {
        let limit = self.window.free().min(burst.len());
        let longest = self.common.max_frame.saturating_sub(MIN_FRAME);
        let start = self.window.next();
        let (mut sent, mut bytes) = (0, 0);
        while sent < limit {
            // Up to the end of the ring at a time.
            let at = start + sent;
            let run = self.ring.run(at, limit - sent);
            let mut cursor = self.ring.cursor(at, at, 0);
            let mut plain = 0;
            for (frame, descriptor) in burst[sent..].iter_mut().zip(run) {
                let len = frame.len();
                let Some(iova) = pool.plain_iova(frame) else { break };
                if len.wrapping_sub(MIN_FRAME) > longest {
                    break;
                }
                let Some(header) = frame.prepend(HEADER_LEN) else { break };
                if *header != [0; HEADER_LEN] {
                    header.fill(0);
                }
                let address = iova.get() - HEADER_LEN as u64;
                R::put(&mut cursor, descriptor, address, (HEADER_LEN + len) as u32);
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
            self.window.push(sent);
            self.ring.offer(start, sent);
            tally.taken += sent;
            tally.sent += sent;
            tally.bytes += bytes;
        }
        sent
    }

    /// Sends or refuses frames from the front of `burst`, whatever they are.
    #[cold]
    #[inline(never)]
    fn send_careful(&mut self, pool: &mut Pool, burst: &mut Burst, tally: &mut Tally) {
        let mut plans = ArrayVec::<Plan, BURST>::new();
        let mut free = self.window.free();
        for frame in burst.iter() {
            let Some((plan, slots)) = self.plan(frame, free, pool) else { break };
            free -= slots;
            plans.push(plan);
        }
        tally.taken += plans.len();
        let taken = burst.drain(..plans.len());
        for (plan, frame) in plans.into_iter().zip(taken) {
            match plan {
                // Dropping the frame sends it home.
                Plan::Refuse => tally.refused += 1,
                Plan::Send { header, table } => {
                    tally.sent += 1;
                    tally.bytes += frame.total_len();
                    self.send_any(pool, frame, header, table);
                }
            }
        }
    }

    /// How to send `frame` with `free` slots, and how many of them it takes; `None` when that must wait.
    fn plan(&self, frame: &Frame, free: usize, pool: &mut Pool) -> Option<(Plan, usize)> {
        let Some(segments) = self.segments_of(frame) else { return Some((Plan::Refuse, 0)) };
        let own_header = frame.headroom::<HEADER_LEN>().is_none();
        let segments = segments + usize::from(own_header);
        if segments > self.max_segments {
            return Some((Plan::Refuse, 0));
        }
        let header = if own_header { Some(pool.take()?) } else { None };
        let table = if segments > MAX_DIRECT.min(free) && self.common.features.has(Features::INDIRECT_DESC) && free > 0
        {
            // Without a table it may still fit.
            pool.take()
        } else {
            None
        };
        let slots = if table.is_some() { 1 } else { segments };
        (slots <= free).then_some((Plan::Send { header, table }, slots))
    }

    /// How many segments `frame` has; `None` if the device cannot send it.
    fn segments_of(&self, frame: &Frame) -> Option<usize> {
        let (mut total, mut segments) = (0, 0);
        for segment in frame.segments() {
            if segment.is_empty() || segments == self.max_segments {
                return None;
            }
            total += segment.len();
            segments += 1;
        }
        let can = |feature| self.common.features.has(feature);
        if frame.vlan().is_some() {
            return None;
        }
        let mut l4_wanted = false;
        if let Some((l2, l3, _, l4)) = frame.requested_checksums() {
            let l4_len = match l4 {
                L4Checksum::None => 0,
                L4Checksum::Udp => 8,
                L4Checksum::Tcp => 20,
            };
            l4_wanted = l4 != L4Checksum::None;
            // The device needs the headers in front of it, all in the first segment.
            let whole = l2 >= MIN_FRAME && l3 >= MIN_L3 && l2 + l3 + l4_len <= frame.len();
            if !whole || (l4_wanted && !can(Features::CSUM)) {
                return None;
            }
        }
        let longest = match frame.requested_segmentation() {
            Some(wish) => {
                let feature = match wish.cut {
                    Cut::Tcp4 => Features::HOST_TSO4,
                    Cut::Tcp6 => Features::HOST_TSO6,
                    Cut::Udp => Features::HOST_USO,
                };
                let feature = feature.with(Features::HOST_ECN.when(wish.ecn));
                if !can(feature) || !l4_wanted || wish.payload == 0 {
                    return None;
                }
                MAX_LARGE
            }
            None => self.common.max_frame,
        };
        (MIN_FRAME..=longest).contains(&total).then_some(segments)
    }

    /// Writes the descriptors of one frame that can be sent and for which there is room.
    fn send_any(&mut self, pool: &Pool, mut frame: Frame, header: Option<Frame>, table: Option<Frame>) {
        let bytes = NetHeader::describe(&mut frame).to_bytes();
        if let Some(mut header) = header {
            header.copy_from(&bytes);
            header.chain(frame);
            frame = header;
        } else if let Some(room) = frame.prepend(HEADER_LEN) {
            room.copy_from_slice(&bytes);
        }
        let start = self.window.next();
        let mut slots = 1;
        match table {
            Some(mut table) => {
                let len = fill_table::<R>(pool, &mut table, &frame);
                let address = pool.iova(&table).get();
                self.put(start, start, flag::INDIRECT, address, len);
                // It goes home with the frame.
                table.chain(frame);
                frame = table;
            }
            None => {
                slots = frame.segments().count();
                for (segment, at) in frame.segments().zip(start..) {
                    let next = if at + 1 < start + slots { flag::NEXT } else { 0 };
                    self.put(at, start, next, pool.iova(segment).get(), segment.len());
                }
            }
        }
        self.window.push_chain(slots);
        self.ring.offer(start, 1);
        self.frames.push(frame);
    }

    /// Writes the descriptor at `position`, of the frame that begins at `head`.
    fn put(&self, position: usize, head: usize, flags: u16, address: u64, len: usize) {
        let mut cursor = self.ring.cursor(position, head, flags);
        for descriptor in self.ring.run(position, 1) {
            R::put(&mut cursor, descriptor, address, len as u32);
        }
    }
}

/// Writes a table of the descriptors of `frame`, which has no more segments than fit, into the buffer `table`. Returns the
/// table's bytes.
fn fill_table<R: Ring>(pool: &Pool, table: &mut Frame, frame: &Frame) -> usize {
    let segments = frame.segments().count();
    table.set_len(segments * ENTRY);
    for (n, (segment, entry)) in frame.segments().zip(table.data_mut().chunks_exact_mut(ENTRY)).enumerate() {
        let [address, word] = R::table_entry(pool.iova(segment).get(), segment.len() as u32, n, segments);
        entry[..8].copy_from_slice(&address.to_le_bytes());
        entry[8..].copy_from_slice(&word.to_le_bytes());
    }
    segments * ENTRY
}

impl<R: Ring> TxQueue for Tx<R> {
    fn tx_burst(&mut self, pool: &mut Pool, burst: &mut Burst) -> usize {
        self.common.check_domain(pool);
        if self.common.broken {
            return 0;
        }
        // Not at each burst: the device is still at work on what it was given last, and a look takes the cache line from it.
        let many = (self.common.len / RING_PART).min(pool.capacity() / POOL_PART);
        if self.window.in_flight() >= many || self.window.free() < burst.len() {
            self.reclaim_finished(pool);
        }
        let mut tally = Tally::default();
        while !burst.is_empty() && !self.common.broken {
            if self.send_plain(pool, burst, &mut tally) == 0 {
                self.send_careful(pool, burst, &mut tally);
                // A chain may lack slots, or a buffer for its header, where its burst by itself was no reason to look.
                if burst.is_empty() || self.window.free() == 0 || self.reclaim_finished(pool) == 0 {
                    break;
                }
            }
        }
        if tally.refused > 0 {
            self.counters.refused.add(tally.refused);
        }
        if !burst.is_empty() {
            self.counters.full.add(1);
        }
        if tally.sent > 0 {
            self.counters.frames.add(tally.sent as u64);
            self.counters.bytes.add(tally.bytes as u64);
            let wanted = self.ring.publish(self.window.next());
            self.common.notify(wanted);
        }
        tally.taken
    }

    fn reclaim(&mut self, pool: &mut Pool) -> usize {
        self.reclaim_finished(pool)
    }

    fn in_flight(&self) -> usize {
        self.frames.len()
    }

    fn counters(&self) -> &Arc<TxCounters> {
        &self.counters
    }
}

impl<R: Ring> Source for Tx<R> {
    fn label(&self) -> String {
        self.common.label.clone()
    }

    fn pending(&self) -> bool {
        !self.common.broken && !self.frames.is_empty() && self.ring.pending()
    }

    fn watch(&self) -> Option<Watch<'_>> {
        (!self.frames.is_empty()).then(|| self.ring.watch())
    }

    /// For the next completion, whatever is in flight then.
    fn arm(&mut self) {
        self.ring.arm();
    }

    fn disarm(&mut self) {
        self.ring.disarm();
    }

    fn wake(&self) -> Wake {
        self.common.wake()
    }
}

impl<R: Ring> DriverTx for Tx<R> {
    fn reset(&mut self) -> usize {
        let held = self.frames.len();
        self.frames = InFlight::new(self.common.len);
        self.window = Window::new(self.common.len);
        self.ring.reset();
        self.common.recover();
        held
    }

    fn abandon(&mut self) {
        self.frames.leak();
        self.common.broken = true;
    }

    fn health(&self) -> &Arc<RingHealth> {
        &self.common.health
    }
}
