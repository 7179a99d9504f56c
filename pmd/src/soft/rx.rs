//! Receiving: which frames the port wants, which queue gets them, and what its descriptors say about them.
//!
//! 82576 datasheet 7.1. The model's own rule on top: whatever a descriptor is made to say by a fault, the data goes where
//! the driver's buffers are and nowhere else.

use super::clock::now_ns;
use super::fault::{Fault, Faults, Rng};
use super::layout::{self as at, ctrl, queue, rctl, rxcsum, srrctl, stat};
use super::memory::{Dma, DmaFault};
use super::nic::Nic;
use super::packet::{ETHERNET, Headers, Ip, TCP, UDP, check_sequence};
use super::registers::{Registers, Tally};
use super::rss::{Scaled, Toeplitz};
use super::sink::Ledger;

/// Extended status and error bits of a written-back descriptor (7.1.5.2).
mod status {
    pub(super) const DD: u64 = 1 << 0;
    pub(super) const EOP: u64 = 1 << 1;
    pub(super) const VP: u64 = 1 << 3;
    pub(super) const UDPCS: u64 = 1 << 4;
    pub(super) const L4I: u64 = 1 << 5;
    pub(super) const IPCS: u64 = 1 << 6;
    pub(super) const L4E: u64 = 1 << 29;
    pub(super) const IPE: u64 = 1 << 30;
    pub(super) const RXE: u64 = 1 << 31;
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// A queue has it, or nobody wants it: the next one.
    Done,
    /// Its queue has no descriptors now and may hold up the others.
    NoRoom,
}

/// A NIC's receive side.
pub(super) struct Receiver {
    toeplitz: Toeplitz,
    /// Queues that are enabled, by bit.
    pub(super) enabled: u32,
    /// Queues that received in this round, by bit.
    pub(super) touched: u32,
    rng: Rng,
    scratch: Vec<u8>,
}

/// What of the surroundings a frame's way needs.
pub(super) struct Around<'a> {
    pub(super) nic: &'a Nic,
    pub(super) dma: &'a Dma<'a>,
    pub(super) ledger: &'a mut Ledger,
    pub(super) tally: &'a mut Tally,
}

/// A receive ring as its registers give it.
#[derive(Debug, Clone, Copy)]
struct Ring {
    q: usize,
    base: u64,
    len: u32,
    head: u32,
    tail: u32,
    buffer: usize,
    drop: bool,
}

impl Receiver {
    pub(super) fn new(nic: &Nic) -> Self {
        let rng = Rng::new(nic.spec.seed ^ 0x2_0000);
        Self { toeplitz: Toeplitz::new(&nic.registers), enabled: 0, touched: 0, rng, scratch: Vec::new() }
    }

    /// Takes over the RSS key.
    pub(super) fn rekey(&mut self, nic: &Nic) {
        self.toeplitz = Toeplitz::new(&nic.registers);
    }

    /// Whether any frame would be looked at.
    pub(super) fn is_on(&self, nic: &Nic) -> bool {
        nic.registers.get(at::RCTL) & rctl::EN != 0 && self.enabled != 0
    }

    /// Whether some queue has descriptors.
    pub(super) fn has_room(&self, nic: &Nic) -> bool {
        (0..at::QUEUES).any(|q| self.enabled >> q & 1 != 0 && Ring::of(&nic.registers, q).free() > 0)
    }

    /// Places a frame into a ring.
    pub(super) fn place(&mut self, around: &mut Around<'_>, frame: &[u8]) -> Placed {
        let registers = &around.nic.registers;
        let control = registers.get(at::RCTL);
        if control & rctl::EN == 0 {
            return Placed::Done;
        }
        let headers = Headers::of(frame);
        if !fits(registers, control, frame.len(), headers.vlan.is_some()) {
            around.tally.add(stat::ROC, 1);
            return Placed::Done;
        }
        if !wanted(registers, control, frame, headers.vlan) {
            around.nic.account.filtered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return Placed::Done;
        }
        let scaled = self.toeplitz.scale(registers, frame, headers.ip.as_ref());
        if self.enabled >> scaled.queue & 1 == 0 {
            around.tally.add(stat::MPC, 1);
            return Placed::Done;
        }
        let strip = headers.vlan.filter(|_| registers.get(at::CTRL) & ctrl::VME != 0);
        let data = self.as_stored(frame, strip.is_some(), control & rctl::SECRC == 0);
        let ring = Ring::of(registers, scaled.queue);
        // Only advanced descriptors with one buffer are modelled; a queue set up for another kind receives nothing.
        let one_buffer = registers.get(at::rx(ring.q, queue::SRRCTL)) >> srrctl::DESCTYPE_SHIFT & 7 == 1;
        let needed = data.len().div_ceil(ring.buffer) as u32;
        if !one_buffer || ring.free() < needed {
            self.give_back(data);
            if !one_buffer || ring.drop {
                registers.add(at::rx(ring.q, queue::RQDPC), 1);
                return Placed::Done;
            }
            return Placed::NoRoom;
        }
        let verdict = verdict(registers, frame, headers.ip.as_ref());
        let about = About { scaled, kind: packet_kind(&headers), vlan: strip, verdict };
        self.write(around, ring, if data.is_empty() { frame } else { &data }, &about, frame);
        self.give_back(data);
        count(around.tally, frame);
        self.touched |= 1 << ring.q;
        Placed::Done
    }

    /// The frame as it stands in memory, when that differs from the wire: tag out, check sequence in.
    fn as_stored(&mut self, frame: &[u8], strip: bool, keep_sequence: bool) -> Vec<u8> {
        let mut data = std::mem::take(&mut self.scratch);
        data.clear();
        if strip {
            data.extend_from_slice(&frame[..12]);
            data.extend_from_slice(&frame[16..]);
        } else {
            data.extend_from_slice(frame);
        }
        if keep_sequence {
            data.extend_from_slice(&check_sequence(frame));
        }
        data
    }

    fn give_back(&mut self, data: Vec<u8>) {
        self.scratch = data;
    }

    /// Writes `data` and its descriptors.
    fn write(&mut self, around: &mut Around<'_>, mut ring: Ring, data: &[u8], about: &About, frame: &[u8]) {
        let faults = &around.nic.faults;
        let mut chunks = data.chunks(ring.buffer).peekable();
        while let Some(chunk) = chunks.next() {
            let last = chunks.peek().is_none();
            let descriptor = ring.descriptor(ring.head);
            let mut word = ((chunk.len() as u64) << 32) | status::DD;
            let written = around.dma.load(descriptor).and_then(|buffer| around.dma.write(buffer, chunk));
            if written.is_err() {
                // The buffer cannot be reached: the frame is broken, and the driver gets to know.
                word = status::DD | status::RXE | (word & !0xFFFF_FFFF);
            }
            let mut low = 0;
            if last {
                word |= status::EOP | about.verdict | if about.vlan.is_some() { status::VP } else { 0 };
                word |= u64::from(about.vlan.unwrap_or(0)) << 48;
                // Before it is, so that nobody answers a frame that has not been shown.
                around.ledger.show(around.nic.id, frame, now_ns());
                low = u64::from(about.scaled.hash) << 32 | about.kind | u64::from(about.scaled.kind);
                word = self.lie(faults, around.ledger, (&mut low, word), ring.buffer, frame);
            }
            let stored = around.dma.store(descriptor, low).and_then(|()| around.dma.store(descriptor + 8, word));
            if stored == Err(DmaFault) {
                // No ring there: nothing can be said to the driver.
                return;
            }
            ring.head = (ring.head + 1) % ring.len;
            around.nic.registers.set(at::rx(ring.q, queue::HEAD), ring.head);
        }
    }

    /// What the last descriptor of a frame says, in place of `word`, when a fault makes it lie.
    fn lie(
        &mut self,
        faults: &Faults,
        ledger: &mut Ledger,
        (low, word): (&mut u64, u64),
        buffer: usize,
        frame: &[u8],
    ) -> u64 {
        let with_length = |len: usize| word & !(0xFFFF << 32) | (len as u64 & 0xFFFF) << 32;
        let mut hit = |fault| faults.hit(fault, &mut self.rng);
        if hit(Fault::LieLength) {
            return with_length((buffer + 1 + frame.len() % 100).min(0xFFFF));
        }
        if hit(Fault::LieZero) {
            return with_length(0);
        }
        if hit(Fault::LieError) {
            return word | status::RXE;
        }
        if hit(Fault::LieChain) {
            ledger.taint(frame);
            return word & !status::EOP;
        }
        if hit(Fault::LieMeta) {
            let garbage = self.rng.next();
            *low = garbage;
            // Any verdict, any tag; length, DD, EOP and RXE stay.
            let free = 0xFFFF_0000_6000_0078;
            return word & !free | self.rng.next() & free;
        }
        word
    }
}

/// What a frame's last descriptor says besides its length.
struct About {
    scaled: Scaled,
    /// Packet type, in its place in the descriptor.
    kind: u64,
    vlan: Option<u16>,
    verdict: u64,
}

impl Ring {
    fn of(registers: &Registers, q: usize) -> Self {
        let word = |within| registers.get(at::rx(q, within));
        let control = word(queue::SRRCTL);
        let buffer = match (control & 0x7F) as usize {
            0 => 2048 >> (registers.get(at::RCTL) >> rctl::BSIZE_SHIFT & 3),
            kib => kib * 1024,
        };
        Self {
            q,
            base: u64::from(word(queue::BAH)) << 32 | u64::from(word(queue::BAL)),
            len: word(queue::LEN) / 16,
            head: word(queue::HEAD),
            tail: registers.acquire(at::rx(q, queue::TAIL)),
            buffer,
            drop: control & srrctl::DROP_EN != 0,
        }
    }

    /// Descriptors that the device may fill.
    fn free(&self) -> u32 {
        if self.head >= self.len || self.tail >= self.len { 0 } else { (self.tail + self.len - self.head) % self.len }
    }

    fn descriptor(&self, index: u32) -> u64 {
        self.base.wrapping_add(u64::from(index) * 16)
    }
}

/// Whether the frame is not too long (8.10.1 LPE, 8.10.3 RLPML).
fn fits(registers: &Registers, control: u32, len: usize, tagged: bool) -> bool {
    if control & rctl::LPE != 0 {
        len + 4 <= (registers.get(at::RLPML) & 0x3FFF) as usize
    } else {
        len <= ETHERNET + 1500 + if tagged { 4 } else { 0 }
    }
}

/// Whether the filters let the frame in (7.1.2).
fn wanted(registers: &Registers, control: u32, frame: &[u8], vlan: Option<u16>) -> bool {
    if let Some(tag) = vlan.filter(|_| control & rctl::VFE != 0) {
        let id = usize::from(tag & 0xFFF);
        if registers.get(at::VFTA + 4 * (id / 32)) >> (id % 32) & 1 == 0 {
            return false;
        }
    }
    let to = &frame[..6];
    let multicast = to[0] & 1 != 0;
    if to == [0xFF; 6] && control & (rctl::BAM | rctl::MPE) != 0 {
        return true;
    }
    if control & if multicast { rctl::MPE } else { rctl::UPE } != 0 {
        return true;
    }
    let low = u32::from_le_bytes([to[0], to[1], to[2], to[3]]);
    let high = u32::from(u16::from_le_bytes([to[4], to[5]])) | at::RAH_AV;
    let exact = (0..16).map(|i| at::RA + 8 * i).chain((0..8).map(|i| at::RA2 + 8 * i));
    for address in exact {
        if registers.get(address + 4) & (at::RAH_AV | 0xFFFF) == high && registers.get(address) == low {
            return true;
        }
    }
    let shift = [4, 3, 2, 0][(control >> rctl::MO_SHIFT & 3) as usize];
    let hash = (usize::from(to[5]) << 8 | usize::from(to[4])) >> shift & 0xFFF;
    multicast && registers.get(at::MTA + 4 * (hash / 32)) >> (hash % 32) & 1 != 0
}

/// What the checksums are found to be, as far as RXCSUM asks (7.1.11).
fn verdict(registers: &Registers, frame: &[u8], ip: Option<&Ip>) -> u64 {
    let wanted = registers.get(at::RXCSUM);
    let Some(ip) = ip else { return 0 };
    let mut bits = 0;
    if wanted & rxcsum::IPOFLD != 0
        && let Some(good) = ip.header_sums_up(frame)
    {
        bits |= status::IPCS | if good { 0 } else { status::IPE };
    }
    if wanted & rxcsum::TUOFLD != 0
        && let Some(good) = ip.transport_sums_up(frame)
    {
        bits |= status::L4I | if good { 0 } else { status::L4E };
        bits |= if ip.protocol == UDP { status::UDPCS } else { 0 };
    }
    bits
}

/// The packet type, in its place in the descriptor (7.1.5.2.1).
fn packet_kind(headers: &Headers) -> u64 {
    let Some(ip) = headers.ip else { return 0 };
    let network = if ip.version == 4 { 0x10 } else { 0x40 };
    let transport = match ip.protocol {
        _ if ip.fragment => 0,
        TCP => 0x100,
        UDP => 0x200,
        _ => 0,
    };
    network | transport
}

fn count(tally: &mut Tally, frame: &[u8]) {
    let bytes = frame.len() as u64 + 4;
    for packets in [stat::GPRC, stat::TPR] {
        tally.add(packets, 1);
    }
    for octets in [stat::GORCL, stat::TORL] {
        tally.add(octets, bytes);
    }
    if frame[..6] == [0xFF; 6] {
        tally.add(stat::BPRC, 1);
    } else if frame[0] & 1 != 0 {
        tally.add(stat::MPRC, 1);
    }
    tally.add_size(stat::PRC64, frame.len());
}
