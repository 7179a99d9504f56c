//! Sending: frames of ours, copied into the buffers that the peer has put up for receiving.
//!
//! Copied, because a receive buffer is wherever the peer wants it, and ours are in pools that it does not see. A frame that
//! was copied is done, so it goes home in the same call and none is ever in flight.
//!
//! The header in front of a plain frame is always the same: it is compared before it is written. Where the peer does not
//! touch it either, its cache line then stays with both, and only the frame's own lines move.

use std::sync::Arc;

use spinwake::frame::{BURST, Burst, Cut, Frame, Pool, Segmentation};
use spinwake::mem::{DirtyLog, PeerView};
use spinwake::port::{TxCounters, TxQueue};
use spinwake::wait::{Source, Wake};

use super::chain::offence;
use super::checksum;
use super::queue::{Hands, QueueEnd, Run};
use super::ring::{AnyRing, Chain, Ring};
use super::rx::LARGEST_FRAME;
use super::slot::{RingOffence, RingSlot};
use crate::virtio::features::Features;
use crate::virtio::header::{HEADER_LEN, NetHeader};

/// What stands before a frame of which there is nothing to say, in one buffer (5.1.6.4.1).
const PLAIN_HEADER: [u8; HEADER_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Buffers that one frame takes at most: LARGEST_FRAME in buffers of 64 bytes would still fit.
const MOST_CHAINS: usize = 1025;

/// A transmit queue: the device's half of the ring by which the peer receives.
#[derive(Debug)]
pub(super) struct VhostTx {
    end: QueueEnd,
    hands: Box<Hands>,
    /// The buffers of one frame.
    chains: Vec<Chain>,
    /// Bytes of the longest frame.
    max_frame: usize,
    counters: Arc<TxCounters>,
}

/// What a burst adds to the counters.
#[derive(Debug, Default)]
struct Tally {
    /// Frames at the front of the burst that are done with, refused ones among them.
    done: usize,
    bytes: usize,
    refused: u64,
    full: bool,
}

/// What sending works with, but the ring.
struct Work<'a> {
    view: &'a PeerView,
    hands: &'a mut Hands,
    chains: &'a mut Vec<Chain>,
    log: Option<Arc<DirtyLog>>,
    features: Features,
    max_frame: usize,
    tally: Tally,
}

/// What became of a frame that needed more thought.
enum Outcome {
    Sent,
    /// The peer cannot take it, now or later.
    Refused,
    /// There are not enough buffers now.
    Full,
}

impl VhostTx {
    /// A queue by the name of `label` that runs whatever ring `slot` has. Frames of more than `max_frame` bytes are refused.
    pub(super) fn new(label: String, slot: Arc<RingSlot>, max_frame: usize, counters: Arc<TxCounters>) -> Self {
        let (end, chains) = (QueueEnd::new(label, slot), Vec::with_capacity(MOST_CHAINS));
        Self { end, hands: Hands::new(), chains, max_frame: max_frame.min(LARGEST_FRAME), counters }
    }
}

impl TxQueue for VhostTx {
    fn tx_burst(&mut self, pool: &mut Pool, burst: &mut Burst) -> usize {
        let Some(Run { ring, view }) = self.end.ring() else { return 0 };
        if burst.is_empty() {
            return 0;
        }
        let config = ring.config();
        let (log, features, tally) = (config.log.clone(), config.features, Tally::default());
        let (hands, chains, max_frame) = (&mut *self.hands, &mut self.chains, self.max_frame);
        let mut work = Work { view, hands, chains, log, features, max_frame, tally };
        let result = match ring {
            AnyRing::Split(ring) => work.send(ring, burst),
            AnyRing::Packed(ring) => work.send(ring, burst),
        };
        let Tally { done, bytes, refused, full } = work.tally;
        self.end.end_burst(result);
        if done == burst.len() {
            pool.give_burst(burst);
        } else {
            for frame in burst.drain(..done) {
                pool.give(frame);
            }
        }
        self.counters.frames.add(done as u64 - refused);
        self.counters.bytes.add(bytes as u64);
        if refused > 0 {
            self.counters.refused.add(refused);
        }
        if full {
            self.counters.full.add(1);
        }
        done
    }

    fn reclaim(&mut self, _pool: &mut Pool) -> usize {
        // Nothing is in flight; but a worker that has nothing to send lets go of a ring here.
        self.end.ring();
        0
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn counters(&self) -> &Arc<TxCounters> {
        &self.counters
    }
}

impl Source for VhostTx {
    fn label(&self) -> String {
        self.end.label().into()
    }

    /// Whether the ring must be exchanged: completions are immediate, and buffers that the peer puts up are no work.
    fn pending(&self) -> bool {
        self.end.changed()
    }

    fn wake(&self) -> Wake {
        self.end.slot().wake()
    }

    fn fired(&mut self) {
        self.end.ring();
    }
}

impl Work<'_> {
    #[inline(always)]
    fn send<R: Ring>(&mut self, ring: &mut R, burst: &mut Burst) -> Result<(), RingOffence> {
        while let Some(frames) = burst.get_mut(self.tally.done..).filter(|frames| !frames.is_empty()) {
            ring.plain::<true>(frames.len(), &mut self.hands.batch)?;
            self.prefetch(frames);
            let sent = self.copy_plain(frames);
            ring.finish_plain::<true>(&self.hands.batch, sent);
            self.tally.done += sent;
            let batch = &self.hands.batch;
            if sent == batch.n && !batch.odd {
                self.tally.full = sent < frames.len();
                break;
            }
            let Some(frame) = frames.get_mut(sent) else { break };
            match self.send_odd(ring, frame)? {
                Outcome::Sent => {
                    self.tally.done += 1;
                    self.tally.bytes += frame.total_len();
                }
                Outcome::Refused => {
                    self.tally.done += 1;
                    self.tally.refused += 1;
                }
                Outcome::Full => {
                    self.tally.full = true;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Asks for the cache lines that the batch will be written to.
    #[inline(always)]
    fn prefetch(&self, frames: &[Frame]) {
        let batch = &self.hands.batch;
        for (i, frame) in frames.iter().take(batch.n.min(BURST)).enumerate() {
            let len = batch.len[i] as usize;
            if let Some(slice) = self.view.at(batch.addr[i], len.min(HEADER_LEN + frame.len())) {
                slice.first(HEADER_LEN).prefetch();
                slice.skip(HEADER_LEN).prefetch_for_write();
            }
        }
    }

    /// Copies plain frames into the batch, as long as each fits its buffer, and notes what was written. Returns how many.
    #[inline(always)]
    fn copy_plain(&mut self, frames: &[Frame]) -> usize {
        let batch = &mut self.hands.batch;
        let (mut sent, mut bytes) = (0, 0);
        for (i, frame) in frames.iter().take(batch.n.min(BURST)).enumerate() {
            let (addr, len) = (batch.addr[i], frame.len());
            let whole = HEADER_LEN + len;
            if frame.needs_care() || len.wrapping_sub(1) >= self.max_frame || whole > batch.len[i] as usize {
                break;
            }
            // Across two regions: not plain.
            let Some(slice) = self.view.at(addr, whole) else { break };
            slice.settle_12(PLAIN_HEADER);
            slice.skip(HEADER_LEN).write_from(frame.data());
            if let Some(log) = &self.log {
                log.mark(addr, whole);
            }
            batch.len[i] = whole as u32;
            bytes += len;
            sent = i + 1;
        }
        self.tally.bytes += bytes;
        sent
    }

    /// Sends one frame of whatever kind, into as many buffers as it takes.
    #[cold]
    #[inline(never)]
    fn send_odd<R: Ring>(&mut self, ring: &mut R, frame: &mut Frame) -> Result<Outcome, RingOffence> {
        let len = frame.total_len();
        if len == 0 || len > self.max_frame || !self.prepare(frame) {
            return Ok(Outcome::Refused);
        }
        if let Some(outcome) = self.gather(ring, (HEADER_LEN + len) as u64)? {
            return Ok(outcome);
        }
        let mut header = NetHeader::describe(frame);
        header.num_buffers = self.chains.len() as u16;
        let mut walk = self.hands.pieces.walk(self.view);
        let log = self.log.as_deref();
        walk.write(&header.to_bytes(), log)?;
        for segment in frame.segments() {
            walk.write(segment.data(), log)?;
        }
        let mut left = (HEADER_LEN + len) as u64;
        for chain in &*self.chains {
            let written = left.min(chain.bytes);
            ring.finish::<true>(chain, written as u32);
            left -= written;
        }
        Ok(Outcome::Sent)
    }

    /// Gathers buffers of `needed` bytes in all; says what becomes of the frame if it cannot.
    fn gather<R: Ring>(&mut self, ring: &mut R, needed: u64) -> Result<Option<Outcome>, RingOffence> {
        let (pieces, chains) = (&mut self.hands.pieces, &mut *self.chains);
        pieces.clear();
        chains.clear();
        let mut cursor = ring.cursor();
        while pieces.bytes() < needed {
            let mergeable = self.features.has(Features::MRG_RXBUF);
            // A frame that a whole ring has no room for would wait for ever.
            let most = if mergeable { ring.len().min(chains.capacity()) } else { 1 };
            if chains.len() == most || !pieces.has_room() {
                return Ok(Some(Outcome::Refused));
            }
            let Some(chain) = ring.chain::<true>(cursor, self.view, pieces)? else { return Ok(Some(Outcome::Full)) };
            // Each buffer has room for a header at least (5.1.6.3.1).
            if chain.bytes < HEADER_LEN as u64 {
                return Err(offence("a receive buffer is shorter than a header, of bytes", chain.bytes));
            }
            cursor = chain.next;
            chains.push(chain);
        }
        Ok(None)
    }

    /// Whether the peer takes what the frame asks for; what it does not finish, and can be done here, is done.
    fn prepare(&self, frame: &mut Frame) -> bool {
        // No header has a place for a tag.
        if frame.vlan().is_some() {
            return false;
        }
        if let Some(Segmentation { cut, ecn, .. }) = frame.requested_segmentation() {
            let needed = match cut {
                Cut::Tcp4 => Features::GUEST_TSO4,
                Cut::Tcp6 => Features::GUEST_TSO6,
                Cut::Udp if checksum::is_ipv6(frame) => Features::GUEST_USO6,
                Cut::Udp => Features::GUEST_USO4,
            };
            return self.features.has(needed.with(Features::GUEST_ECN.when(ecn)));
        }
        // The feature says nothing of the IPv4 header's sum, which is filled in anyway.
        self.features.has(Features::GUEST_CSUM) || checksum::finish(frame)
    }
}
