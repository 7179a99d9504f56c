//! Sending: descriptors to frames, with what the device adds on the way (82576 datasheet 7.2).

use std::sync::atomic::Ordering;

use super::layout::{self as at, queue, stat, tctl};
use super::memory::{Dma, DmaFault};
use super::nic::Nic;
use super::packet::{MAX_FRAME, MIN_FRAME, fold, sum};
use super::registers::Tally;
use super::wire::Shared;

/// Bits of a data descriptor's command word (7.2.2.3).
mod command {
    /// Bits 23:20: descriptor type.
    pub(super) const TYPE_SHIFT: u32 = 20;
    pub(super) const CONTEXT: u32 = 2;
    pub(super) const DATA: u32 = 3;
    pub(super) const EOP: u32 = 1 << 24;
    pub(super) const RS: u32 = 1 << 27;
    /// Advanced descriptor.
    pub(super) const DEXT: u32 = 1 << 29;
    pub(super) const VLE: u32 = 1 << 30;
    pub(super) const TSE: u32 = 1 << 31;
}
/// Bits of its options word.
mod options {
    pub(super) const IXSM: u32 = 1 << 8;
    pub(super) const TXSM: u32 = 1 << 9;
    pub(super) const PAYLEN_SHIFT: u32 = 14;
}
/// Descriptor done, in the second 64-bit word of a written-back descriptor.
const DD: u64 = 1 << 32;

/// Descriptors and bytes that one queue sends in a round.
const ROUND_DESCRIPTORS: usize = 64;
/// Less than the partner's packet buffer, so that a partner with free descriptors loses nothing.
const ROUND_BYTES: usize = 40 << 10;

/// A frame that the port sent.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) frame: Vec<u8>,
    /// When the doorbell rang for it, in nanoseconds. The last one does, when another rang before the fabric looked.
    pub(super) rung_ns: u64,
}

/// A NIC's transmit side.
#[derive(Debug)]
pub(super) struct Transmitter {
    queues: [Queue; at::QUEUES],
    /// Queues that are enabled, by bit.
    pub(super) enabled: u32,
    /// Queues that may have something to send, by bit.
    pub(super) active: u32,
    /// Queues that wrote back in this round, by bit.
    pub(super) touched: u32,
    turn: usize,
}

#[derive(Debug, Default)]
struct Queue {
    contexts: [Context; 2],
    /// The frame being put together, and the command and options of its first descriptor.
    frame: Vec<u8>,
    first: Option<(u32, u32)>,
    /// A piece of it could not be read, or it grew too long.
    broken: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Context {
    ip_len: usize,
    mac_len: usize,
    vlan: u16,
    /// 0 UDP, 1 TCP.
    transport: u32,
}

impl Transmitter {
    pub(super) fn new() -> Self {
        Self { queues: Default::default(), enabled: 0, active: 0, touched: 0, turn: 0 }
    }

    /// Forgets what queue `q` had begun: it was disabled.
    pub(super) fn clear(&mut self, q: usize) {
        self.queues[q] = Queue::default();
        self.active &= !(1 << q);
    }

    /// Sends what the queues hold, within a round's bounds, into `out`.
    pub(super) fn run(
        &mut self,
        nic: &Nic,
        dma: &Dma<'_>,
        shared: &mut Shared,
        tally: &mut Tally,
        out: &mut Vec<Sent>,
    ) {
        if nic.registers.get(at::TCTL) & tctl::EN == 0 {
            return;
        }
        let mut bytes = ROUND_BYTES;
        // Start with another queue each round, or the first one could starve the rest.
        self.turn = (self.turn + 1) % at::QUEUES;
        for q in (self.turn..at::QUEUES).chain(0..self.turn) {
            if bytes == 0 || (self.active & self.enabled) >> q & 1 == 0 {
                continue;
            }
            if self.run_queue(q, nic, dma, &mut bytes, shared, tally, out) {
                self.active &= !(1 << q);
            }
        }
    }

    /// Sends from queue `q`; returns whether it is empty.
    #[expect(clippy::too_many_arguments, reason = "one call site; the pieces belong to three owners")]
    fn run_queue(
        &mut self,
        q: usize,
        nic: &Nic,
        dma: &Dma<'_>,
        bytes: &mut usize,
        shared: &mut Shared,
        tally: &mut Tally,
        out: &mut Vec<Sent>,
    ) -> bool {
        let registers = &nic.registers;
        let word = |within| registers.get(at::tx(q, within));
        let base = u64::from(word(queue::BAH)) << 32 | u64::from(word(queue::BAL));
        let len = word(queue::LEN) / 16;
        let mut head = word(queue::HEAD);
        let tail = registers.acquire(at::tx(q, queue::TAIL));
        let rung_ns = nic.rung_ns(q);
        if tail >= len || head >= len {
            if len > 0 && tail >= len {
                nic.account.bad_descriptors.fetch_add(1, Ordering::Relaxed);
            }
            return true;
        }
        for _ in 0..ROUND_DESCRIPTORS {
            if head == tail || *bytes == 0 {
                break;
            }
            let at = base.wrapping_add(u64::from(head) * 16);
            let (Ok(low), Ok(high)) = (dma.load(at), dma.load(at + 8)) else {
                // No ring there: the device cannot go on.
                return true;
            };
            head = (head + 1) % len;
            if let Some(frame) = self.queues[q].take(nic, dma, shared, low, high) {
                *bytes = bytes.saturating_sub(frame.len());
                count(tally, &frame);
                out.push(Sent { frame, rung_ns });
            }
            registers.set(at::tx(q, queue::HEAD), head);
            if high as u32 & command::RS != 0 && self.write_back(nic, dma, q, at, high, head).is_ok() {
                self.touched |= 1 << q;
            }
        }
        head == tail
    }

    /// Tells the driver that a descriptor is done: in the descriptor, or by the head's place (7.2.3).
    fn write_back(&self, nic: &Nic, dma: &Dma<'_>, q: usize, at: u64, high: u64, head: u32) -> Result<(), DmaFault> {
        let low = nic.registers.get(at::tx(q, queue::WBAL));
        if low & 1 != 0 {
            let to = u64::from(nic.registers.get(at::tx(q, queue::WBAH))) << 32 | u64::from(low & !3);
            return dma.write(to, &head.to_le_bytes());
        }
        dma.store(at + 8, high | DD)
    }
}

impl Queue {
    /// Takes in a descriptor; returns the frame that it completes.
    fn take(&mut self, nic: &Nic, dma: &Dma<'_>, shared: &mut Shared, low: u64, high: u64) -> Option<Vec<u8>> {
        let (command, opts) = (high as u32, (high >> 32) as u32);
        let kind = command >> command::TYPE_SHIFT & 0xF;
        if command & command::DEXT == 0 || !matches!(kind, command::CONTEXT | command::DATA) {
            // Legacy descriptors and unknown ones.
            nic.account.bad_descriptors.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        if kind == command::CONTEXT {
            let lens = low as u32;
            self.contexts[(opts >> 4 & 1) as usize] = Context {
                ip_len: (lens & 0x1FF) as usize,
                mac_len: (lens >> 9 & 0x7F) as usize,
                vlan: (lens >> 16) as u16,
                transport: command >> 11 & 3,
            };
            return None;
        }
        if self.first.is_none() {
            self.first = Some((command, opts));
            self.frame = shared.take();
        }
        let len = (command & 0xFFFF) as usize;
        self.broken |= len == 0 || self.frame.len() + len > MAX_FRAME;
        if !self.broken {
            self.broken = dma.read(low, len, &mut self.frame).is_err();
        }
        if command & command::EOP == 0 {
            return None;
        }
        let (command, opts) = self.first.take()?;
        let mut frame = std::mem::take(&mut self.frame);
        let sendable = !std::mem::take(&mut self.broken)
            && frame.len() > 14
            && command & command::TSE == 0
            && frame.len() == (opts >> options::PAYLEN_SHIFT) as usize
            && self.offload(&mut frame, command, opts, nic);
        if !sendable {
            nic.account.bad_descriptors.fetch_add(1, Ordering::Relaxed);
            shared.recycle(frame);
            return None;
        }
        Some(frame)
    }

    /// Fills in checksums and the tag, and pads; false when the descriptors ask for what cannot be.
    fn offload(&self, frame: &mut Vec<u8>, command: u32, opts: u32, nic: &Nic) -> bool {
        let context = self.contexts[(opts >> 4 & 1) as usize];
        let transport = context.mac_len + context.ip_len;
        // The transport's sum covers the packet: what the driver put into its field is the pseudo header's part.
        if opts & options::TXSM != 0 {
            let field = transport + if context.transport == 1 { 16 } else { 6 };
            if context.transport > 1 || field + 2 > frame.len() {
                return false;
            }
            let value = match !fold(sum(&frame[transport..])) {
                0 if context.transport == 0 => 0xFFFF,
                value => value,
            };
            frame[field..field + 2].copy_from_slice(&value.to_be_bytes());
        }
        if opts & options::IXSM != 0 {
            let field = context.mac_len + 10;
            if context.ip_len < 20 || transport > frame.len() {
                return false;
            }
            frame[field..field + 2].fill(0);
            let value = !fold(sum(&frame[context.mac_len..transport]));
            frame[field..field + 2].copy_from_slice(&value.to_be_bytes());
        }
        if command & command::VLE != 0 {
            let [vet_high, vet_low] = (nic.registers.get(at::VET) as u16).to_be_bytes();
            let [tag_high, tag_low] = context.vlan.to_be_bytes();
            frame.splice(12..12, [vet_high, vet_low, tag_high, tag_low]);
        }
        if frame.len() < MIN_FRAME && nic.registers.get(at::TCTL) & tctl::PSP != 0 {
            frame.resize(MIN_FRAME, 0);
        }
        true
    }
}

fn count(tally: &mut Tally, frame: &[u8]) {
    let bytes = frame.len() as u64 + 4;
    for packets in [stat::GPTC, stat::TPT] {
        tally.add(packets, 1);
    }
    for octets in [stat::GOTCL, stat::TOTL] {
        tally.add(octets, bytes);
    }
    if frame[..6] == [0xFF; 6] {
        tally.add(stat::BPTC, 1);
    } else if frame[0] & 1 != 0 {
        tally.add(stat::MPTC, 1);
    }
    tally.add_size(stat::PTC64, frame.len());
}
