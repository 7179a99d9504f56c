//! The wire to a port: what it does to frames on their way, and the packet buffer where they end up.
//!
//! ```text
//! generator, cable, loop ──▶ faults ──▶ packet buffer (64 KiB) ──▶ receive rings
//!                             └ late or held back ┘
//! ```

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::atomic::Ordering;

use super::fault::{Fault, Rng};
use super::layout::stat;
use super::nic::Nic;
use super::packet::MIN_FRAME;
use super::registers::Tally;
use super::sink::Ledger;

/// Bytes in the receive packet buffer (8.3.3, RXPBS: 64 KiB).
const PACKET_BUFFER: usize = 64 << 10;
/// What a frame takes in it besides its bytes.
const FRAME_OVERHEAD: usize = 16;
/// A frame held back for the next one to pass waits this long at most.
const REORDER_LIMIT_NS: u64 = 1_000_000;
/// Frames on their way at most: what comes when a delay fault has taken up so many is lost.
const MAX_LATE: usize = 4096;
/// Empty buffers kept for reuse.
const MAX_SPARE: usize = 1024;

/// The receiving end of one port's wire.
#[derive(Debug)]
pub(super) struct Ingress {
    buffer: VecDeque<Vec<u8>>,
    buffered: usize,
    late: BinaryHeap<Reverse<Late>>,
    /// Frames ever made late: equal times stay in order.
    lates: u64,
    held: Option<(u64, Vec<u8>)>,
    rng: Rng,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Late {
    due_ns: u64,
    order: u64,
    frame: Vec<u8>,
}

/// What the fabric has at hand for all NICs.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) ledger: Ledger,
    /// Empty frame buffers.
    pub(super) spare: Vec<Vec<u8>>,
}

impl Shared {
    /// An empty buffer.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(2048))
    }

    pub(super) fn recycle(&mut self, frame: Vec<u8>) {
        recycle(frame, &mut self.spare);
    }
}

/// Keeps a buffer for reuse, if not enough are kept already.
pub(super) fn recycle(mut frame: Vec<u8>, spare: &mut Vec<Vec<u8>>) {
    if spare.len() < MAX_SPARE {
        frame.clear();
        spare.push(frame);
    }
}

impl Ingress {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            buffer: VecDeque::new(),
            buffered: 0,
            late: BinaryHeap::new(),
            lates: 0,
            held: None,
            rng: Rng::new(seed),
        }
    }

    /// A frame comes down the wire.
    pub(super) fn arrive(&mut self, nic: &Nic, shared: &mut Shared, tally: &mut Tally, frame: Vec<u8>, now_ns: u64) {
        if !nic.link.load(Ordering::Relaxed) || !nic.answers() {
            nic.account.unlinked.fetch_add(1, Ordering::Relaxed);
            return shared.recycle(frame);
        }
        let faults = &nic.faults;
        if faults.hit(Fault::Drop, &mut self.rng) {
            return shared.recycle(frame);
        }
        if faults.hit(Fault::Duplicate, &mut self.rng) {
            shared.ledger.copied(&frame);
            let mut copy = shared.take();
            copy.extend_from_slice(&frame);
            self.buffer_up(shared, tally, copy);
        }
        if self.late.len() < MAX_LATE && faults.hit(Fault::Delay, &mut self.rng) {
            self.lates += 1;
            let due_ns = now_ns + faults.delay_ns(Fault::Delay, &mut self.rng);
            self.late.push(Reverse(Late { due_ns, order: self.lates, frame }));
            return;
        }
        if self.held.is_none() && faults.hit(Fault::Reorder, &mut self.rng) {
            self.held = Some((now_ns + REORDER_LIMIT_NS, frame));
            return;
        }
        self.buffer_up(shared, tally, frame);
        if let Some((_, held)) = self.held.take() {
            self.buffer_up(shared, tally, held);
        }
    }

    /// Lets through what was late and is due.
    pub(super) fn run(&mut self, shared: &mut Shared, tally: &mut Tally, now_ns: u64) {
        while self.late.peek().is_some_and(|Reverse(l)| l.due_ns <= now_ns) {
            if let Some(Reverse(late)) = self.late.pop() {
                self.buffer_up(shared, tally, late.frame);
            }
        }
        if self.held.as_ref().is_some_and(|(due, _)| *due <= now_ns)
            && let Some((_, frame)) = self.held.take()
        {
            self.buffer_up(shared, tally, frame);
        }
    }

    /// When the next late frame is due, in nanoseconds; `u64::MAX` for none.
    pub(super) fn due_ns(&self) -> u64 {
        let late = self.late.peek().map_or(u64::MAX, |Reverse(l)| l.due_ns);
        late.min(self.held.as_ref().map_or(u64::MAX, |(due, _)| *due))
    }

    /// The frame that the receiver must place next.
    pub(super) fn front(&self) -> Option<&[u8]> {
        self.buffer.front().map(Vec::as_slice)
    }

    /// Takes out the frame that was placed, or thrown away.
    pub(super) fn pop(&mut self, shared: &mut Shared) {
        if let Some(frame) = self.buffer.pop_front() {
            self.buffered -= frame.len() + FRAME_OVERHEAD;
            shared.recycle(frame);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Empties the packet buffer: the device was reset.
    pub(super) fn clear(&mut self, shared: &mut Shared) {
        while !self.is_empty() {
            self.pop(shared);
        }
    }

    fn buffer_up(&mut self, shared: &mut Shared, tally: &mut Tally, mut frame: Vec<u8>) {
        if frame.len() < MIN_FRAME {
            // Nothing this short is on a real wire; the sender's MAC would have padded it.
            frame.resize(MIN_FRAME, 0);
        }
        if self.buffered + frame.len() + FRAME_OVERHEAD > PACKET_BUFFER {
            tally.add(stat::MPC, 1);
            return shared.recycle(frame);
        }
        self.buffered += frame.len() + FRAME_OVERHEAD;
        self.buffer.push_back(frame);
    }
}
