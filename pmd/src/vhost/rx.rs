//! Receiving: frames that the peer transmits, copied out of its memory.
//!
//! They are copied because a frame of ours lives in a pool of ours: it may leave by another port, whose device does not reach
//! the peer's memory; it may be kept for longer than the peer lets us have its buffer; and the peer may change its
//! buffer while we read it. What a copy costs is the peer's cache lines, which any look at the frame would cost too.
//!
//! ```text
//! ring ─plain─▶ batch ─fitting─▶ prefetch all, then copy each ─▶ burst      one buffer, one frame: nearly all of them
//!      ─chain─▶ pieces ───────▶ one frame, of as many buffers as it takes ─▶ burst
//! ```

use std::sync::Arc;

use spinwake::frame::{BURST, Burst, DATA_ROOM, Frame, Pool};
use spinwake::irq::Vector;
use spinwake::mem::PeerView;
use spinwake::port::{RxCounters, RxQueue};
use spinwake::sys::relax::Watch;
use spinwake::wait::{Source, Wake};

use super::chain::offence;
use super::queue::{Hands, QueueEnd, Run};
use super::ring::{AnyRing, Ring};
use super::slot::{RingOffence, RingSlot};
use crate::virtio::features::Features;
use crate::virtio::header::{HEADER_LEN, NetHeader};

/// Bytes of the longest frame that segmentation makes: an IP packet of 65,535 behind an Ethernet header with two VLAN tags.
pub(super) const LARGEST_FRAME: usize = 65_535 + 22;

/// A frame of that size in buffers.
const MOST_BUFFERS: usize = LARGEST_FRAME.div_ceil(DATA_ROOM);

/// A receive queue: the device's half of the ring by which the peer transmits.
#[derive(Debug)]
pub(super) struct VhostRx {
    end: QueueEnd,
    hands: Box<Hands>,
    /// Bytes of the longest frame.
    max_frame: usize,
    counters: Arc<RxCounters>,
}

/// What a burst adds to the counters.
#[derive(Debug, Default)]
struct Tally {
    frames: usize,
    bytes: usize,
    errors: u64,
    lies: u64,
    dry: bool,
}

/// What receiving works with, but the ring.
struct Work<'a> {
    view: &'a PeerView,
    hands: &'a mut Hands,
    max_frame: usize,
    /// The peer may say something in the header.
    headers: bool,
    tally: Tally,
}

impl VhostRx {
    /// A queue by the name of `label` that runs whatever ring `slot` has. Frames of more than `max_frame` bytes are dropped.
    pub(super) fn new(label: String, slot: Arc<RingSlot>, max_frame: usize, counters: Arc<RxCounters>) -> Self {
        let max_frame = max_frame.min(LARGEST_FRAME);
        Self { end: QueueEnd::new(label, slot), hands: Hands::new(), max_frame, counters }
    }

    #[cold]
    #[inline(never)]
    fn count_faults(&self, tally: &Tally) {
        self.counters.errors.add(tally.errors);
        self.counters.lies.add(tally.lies);
        self.counters.no_buf.add(tally.dry.into());
    }
}

impl RxQueue for VhostRx {
    fn rx_burst(&mut self, pool: &mut Pool, burst: &mut Burst) -> usize {
        let Some(Run { ring, view }) = self.end.ring() else { return 0 };
        let headers = ring.config().features.has(Features::CSUM);
        let (hands, max_frame) = (&mut *self.hands, self.max_frame);
        let mut work = Work { view, hands, max_frame, headers, tally: Tally::default() };
        let result = match ring {
            AnyRing::Split(ring) => work.receive(ring, pool, burst),
            AnyRing::Packed(ring) => work.receive(ring, pool, burst),
        };
        let tally = work.tally;
        self.end.end_burst(result);
        if tally.frames > 0 {
            self.counters.frames.add(tally.frames as u64);
            self.counters.bytes.add(tally.bytes as u64);
        }
        if tally.errors | tally.lies | u64::from(tally.dry) != 0 {
            self.count_faults(&tally);
        }
        tally.frames
    }

    fn vector(&self) -> Option<&Arc<Vector>> {
        None
    }

    fn counters(&self) -> &Arc<RxCounters> {
        &self.counters
    }
}

impl Source for VhostRx {
    fn label(&self) -> String {
        self.end.label().into()
    }

    fn pending(&self) -> bool {
        self.end.has_chain() || self.end.changed()
    }

    fn arm(&mut self) {
        self.end.arm();
    }

    fn disarm(&mut self) {
        self.end.disarm();
    }

    fn wake(&self) -> Wake {
        self.end.slot().wake()
    }

    fn watch(&self) -> Option<Watch<'_>> {
        self.end.watch()
    }
}

impl Work<'_> {
    #[inline(always)]
    fn receive<R: Ring>(&mut self, ring: &mut R, pool: &mut Pool, burst: &mut Burst) -> Result<(), RingOffence> {
        let mut odd_left = BURST;
        while !burst.is_full() {
            ring.plain::<false>(burst.remaining_capacity(), &mut self.hands.batch)?;
            let fitting = self.fitting();
            if fitting > 0 {
                let got = self.copy_plain(pool, burst, fitting);
                ring.finish_plain::<false>(&self.hands.batch, got);
                if got < fitting {
                    self.tally.dry = true;
                    break;
                }
            }
            let batch = &self.hands.batch;
            // The batch ended before a chain that needs more thought, or at the ring's end.
            if fitting == batch.n && !batch.odd {
                break;
            }
            // What is thrown away fills no burst: a peer that goes on putting up such chains would keep us here for ever.
            if odd_left == 0 || burst.is_full() || !self.receive_odd(ring, pool, burst)? {
                break;
            }
            odd_left -= 1;
        }
        Ok(())
    }

    /// How many chains of the batch, from the first on, are frames that fit a buffer of ours. Asks for their cache lines.
    #[inline(always)]
    fn fitting(&self) -> usize {
        let batch = &self.hands.batch;
        let most = self.max_frame.min(DATA_ROOM);
        for i in 0..batch.n.min(BURST) {
            let len = batch.len[i] as usize;
            if len.wrapping_sub(HEADER_LEN + 1) >= most {
                return i;
            }
            let Some(slice) = self.view.at(batch.addr[i], len) else { return i };
            // The header often stands in a line of its own; one that says nothing is never read.
            if self.headers {
                slice.first(HEADER_LEN).prefetch();
            }
            slice.skip(HEADER_LEN).prefetch();
        }
        batch.n
    }

    /// Copies the first `n` chains of the batch, which fit. Returns how many are done: fewer when the pool is dry.
    #[inline(always)]
    fn copy_plain(&mut self, pool: &mut Pool, burst: &mut Burst, n: usize) -> usize {
        let first = burst.len();
        let got = pool.take_some(burst, n);
        let batch = &self.hands.batch;
        // Frames with a header that makes no sense, by bit.
        let mut bad = 0u32;
        let mut bytes = 0;
        for (i, frame) in burst[first..].iter_mut().enumerate().take(BURST) {
            let len = batch.len[i] as usize;
            // Never missing: `fitting` has found it.
            let Some(slice) = self.view.at(batch.addr[i], len) else { continue };
            frame.set_len(len - HEADER_LEN);
            slice.skip(HEADER_LEN).read_into(frame.data_mut());
            bytes += len - HEADER_LEN;
            if self.headers
                && let Some(header) = slice.read_12().map(NetHeader::from_bytes)
                && !header.is_plain()
                && header.note(frame).is_err()
            {
                bad |= 1 << i;
                bytes -= len - HEADER_LEN;
            }
        }
        self.tally.bytes += bytes;
        self.tally.frames += got;
        if bad != 0 {
            self.drop_bad(pool, burst, first, bad);
        }
        got
    }

    #[cold]
    #[inline(never)]
    fn drop_bad(&mut self, pool: &mut Pool, burst: &mut Burst, first: usize, bad: u32) {
        for i in (0..u32::BITS as usize).rev().filter(|i| bad >> i & 1 != 0) {
            if let Some(frame) = burst.pop_at(first + i) {
                pool.give(frame);
                self.tally.frames -= 1;
                self.tally.lies += 1;
            }
        }
    }

    /// Takes one chain of whatever shape. Returns whether it did: not when there is none, or the pool is dry.
    #[cold]
    #[inline(never)]
    fn receive_odd<R: Ring>(&mut self, ring: &mut R, pool: &mut Pool, burst: &mut Burst) -> Result<bool, RingOffence> {
        let Self { hands, view, max_frame, tally, .. } = self;
        let pieces = &mut hands.pieces;
        pieces.clear();
        let Some(chain) = ring.chain::<false>(ring.cursor(), view, pieces)? else { return Ok(false) };
        let len = match pieces.bytes().checked_sub(HEADER_LEN as u64) {
            None => return Err(offence("a frame is shorter than its header, of bytes", pieces.bytes())),
            Some(len) if len == 0 || len > *max_frame as u64 => {
                // The driver breaks no rule of the ring by it.
                tally.errors += 1;
                ring.finish::<false>(&chain, 0);
                return Ok(true);
            }
            Some(len) => len as usize,
        };
        let mut segments = Burst::<MOST_BUFFERS>::new();
        let wanted = len.div_ceil(DATA_ROOM);
        if pool.take_some(&mut segments, wanted) < wanted {
            tally.dry = true;
            pool.give_burst(&mut segments);
            return Ok(false);
        }
        let mut walk = pieces.walk(view);
        let mut header = [0; HEADER_LEN];
        // An error drops the segments, which sends them home.
        walk.read(&mut header)?;
        let mut left = len;
        for segment in &mut segments {
            segment.set_len(left.min(DATA_ROOM));
            left -= segment.len();
            walk.read(segment.data_mut())?;
        }
        ring.finish::<false>(&chain, 0);
        let Some(mut frame) = join(segments) else { return Ok(true) };
        if self.headers && NetHeader::from_bytes(header).note(&mut frame).is_err() {
            self.tally.lies += 1;
            pool.give(frame);
        } else {
            self.tally.frames += 1;
            self.tally.bytes += len;
            burst.push(frame);
        }
        Ok(true)
    }
}

/// One frame of these segments. From the last on, so that each is put behind a single one.
fn join(mut segments: Burst<MOST_BUFFERS>) -> Option<Frame> {
    let mut whole = segments.pop()?;
    while let Some(mut segment) = segments.pop() {
        segment.chain(whole);
        whole = segment;
    }
    Some(whole)
}
