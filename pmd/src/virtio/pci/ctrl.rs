//! The control queue: commands to the device, one at a time, each with a deadline (virtio 1.2, 5.1.6.5).
//!
//! ```text
//! descriptor:   class, command  ──▶  data  ──▶  acknowledgement (written by the device)
//! ```
//!
//! It is polled, so it asks for no interrupts. A device that does not answer in time may still read and write the memory of
//! the command: the queue is dead then, until the device is reset.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use spinwake::dma::DmaCells;
use spinwake::port::MacAddr;

use crate::virtio::ring::{Areas, Doorbell, RingKind, RingMemory};

/// For an answer. Devices in software take a few microseconds, some hardware asks its firmware.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Looks at the ring before the thread gives up its core in between.
const EAGER_LOOKS: u32 = 1000;
/// Descriptors of a command, and of the ring: two commands or more.
const CHAIN: u16 = 3;
pub(super) const RING_LEN: u16 = 8;
/// Where in the memory for commands each part lies, and the most data that fits.
const HEADER: usize = 0;
const DATA: usize = 16;
const ACK: usize = COMMAND_BYTES - 16;
pub(super) const COMMAND_BYTES: usize = 4096;
/// What the device answers (5.1.6.5): zero for done, one for refused. Until then:
const NO_ACK: u64 = 0xff;

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// There is no control queue.
    #[error("it has no control queue, by which to {what}")]
    Missing { what: &'static str },
    /// The device said no.
    #[error("it refuses to {what}")]
    Refused { what: &'static str },
    /// The device did not answer.
    #[error("it did not {what} within {limit:?}; stop and start the port, which resets it")]
    Silent { what: &'static str, limit: Duration },
    /// An earlier command was not answered.
    #[error("it cannot be told to {what}, because it left an earlier command unanswered; stop and start the port")]
    Dead { what: &'static str },
}

/// What the device can be told.
#[derive(Debug)]
pub(super) enum Command<'a> {
    Promiscuous(bool),
    AllMulticast(bool),
    /// Receive frames to these groups, besides its own address.
    Groups(&'a [MacAddr]),
    Address(MacAddr),
    VlanAdd(u16),
    VlanRemove(u16),
    /// Use this many queue pairs.
    Pairs(u16),
    /// Spread flows over the receive queues by a hash.
    Rss(&'a Rss),
}

/// How flows are spread (5.1.6.5.7.1, struct virtio_net_rss_config).
#[derive(Debug)]
pub(super) struct Rss {
    pub(super) hash_types: u32,
    /// Receive queues; a power of two.
    pub(super) table: Vec<u16>,
    pub(super) pairs: u16,
    pub(super) key: Vec<u8>,
}

impl Command<'_> {
    /// What it is for, as part of a sentence.
    pub(super) const fn what(&self) -> &'static str {
        match self {
            Self::Promiscuous(_) => "switch promiscuous mode",
            Self::AllMulticast(_) => "switch the reception of all groups",
            Self::Groups(_) => "set its address filter",
            Self::Address(_) => "take an address",
            Self::VlanAdd(_) => "receive a VLAN",
            Self::VlanRemove(_) => "stop receiving a VLAN",
            Self::Pairs(_) => "use that many queues",
            Self::Rss(_) => "spread flows over its queues",
        }
    }

    /// Class and command number.
    const fn numbers(&self) -> [u8; 2] {
        match self {
            Self::Promiscuous(_) => [0, 0],
            Self::AllMulticast(_) => [0, 1],
            Self::Groups(_) => [1, 0],
            Self::Address(_) => [1, 1],
            Self::VlanAdd(_) => [2, 0],
            Self::VlanRemove(_) => [2, 1],
            Self::Pairs(_) => [4, 0],
            Self::Rss(_) => [4, 1],
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Self::Promiscuous(on) | Self::AllMulticast(on) => vec![u8::from(*on)],
            Self::Groups(groups) => {
                // Two tables, each with its length: of stations, which is empty, and of groups.
                let mut data = [0, groups.len() as u32].map(u32::to_le_bytes).concat();
                data.extend(groups.iter().flat_map(|group| group.0));
                data
            }
            Self::Address(mac) => mac.0.to_vec(),
            Self::VlanAdd(word) | Self::VlanRemove(word) | Self::Pairs(word) => word.to_le_bytes().to_vec(),
            Self::Rss(rss) => {
                let mut data = rss.hash_types.to_le_bytes().to_vec();
                data.extend((rss.table.len() as u16 - 1).to_le_bytes());
                // Frames without a hash go to queue 0.
                data.extend(0u16.to_le_bytes());
                data.extend(rss.table.iter().flat_map(|queue| queue.to_le_bytes()));
                data.extend(rss.pairs.to_le_bytes());
                data.push(rss.key.len() as u8);
                data.extend(&rss.key);
                data
            }
        }
    }
}

/// The control queue.
#[derive(Debug)]
pub(super) struct Control {
    kind: RingKind,
    len: u16,
    memory: RingMemory,
    /// [`COMMAND_BYTES`] for the command itself.
    cells: Arc<DmaCells>,
    offset: usize,
    doorbell: Arc<dyn Doorbell>,
    /// Split: the next index. Packed: the next position.
    next: u16,
    /// Packed: of the next position.
    wrap: bool,
    dead: bool,
}

impl Control {
    /// The queue of `memory`, whose commands lie at byte `offset` of the same memory.
    pub(super) fn new(kind: RingKind, memory: RingMemory, offset: usize, doorbell: Arc<dyn Doorbell>) -> Self {
        let (len, cells) = (memory.len(), memory.cells().clone());
        let this = Self { kind, len, memory, cells, offset, doorbell, next: 0, wrap: true, dead: false };
        let Areas { driver, .. } = this.memory.areas();
        match kind {
            // No interrupts: the flag, and with an event index the event below, which each command sets.
            RingKind::Split => this.cells.u16s(driver, 1)[0].store(1, Ordering::Relaxed),
            // 2.8.10: flags, the upper half, are RING_EVENT_FLAGS_DISABLE.
            RingKind::Packed => this.cells.u32s(driver, 1)[0].store(1 << 16, Ordering::Relaxed),
        }
        this
    }

    /// Tells the device, and waits for its answer.
    pub(super) fn run(&mut self, command: &Command<'_>) -> Result<(), CommandError> {
        let what = command.what();
        if self.dead {
            return Err(CommandError::Dead { what });
        }
        let data = command.data();
        assert!(DATA + data.len() <= ACK, "a command of {} bytes", data.len());
        self.write(HEADER, &command.numbers());
        self.write(DATA, &data);
        self.cells.u64s(self.offset + ACK, 1)[0].store(NO_ACK, Ordering::Relaxed);
        let parts = [(HEADER, 2, false), (DATA, data.len(), false), (ACK, 1, true)];
        match self.kind {
            RingKind::Split => self.offer_split(parts),
            RingKind::Packed => self.offer_packed(parts),
        }
        fence(Ordering::SeqCst);
        self.doorbell.ring();
        if !self.await_answer() {
            self.dead = true;
            return Err(CommandError::Silent { what, limit: ANSWER_LIMIT });
        }
        let ack = self.cells.u64s(self.offset + ACK, 1)[0].load(Ordering::Relaxed) & 0xff;
        if ack == 0 { Ok(()) } else { Err(CommandError::Refused { what }) }
    }

    /// Writes `bytes` at byte `at` of the command, in whole words.
    fn write(&self, at: usize, bytes: &[u8]) {
        let words = self.cells.u64s(self.offset + at, bytes.len().div_ceil(8));
        for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
    }

    fn iova(&self, at: usize) -> u64 {
        self.cells.iova(self.offset + at).get()
    }

    /// 2.7.5: with IN_ORDER, which the device may go by, descriptors are used in the order of the table.
    fn offer_split(&mut self, parts: [(usize, usize, bool); CHAIN as usize]) {
        const NEXT: u64 = 1;
        const WRITE: u64 = 2;
        let Areas { descriptors, driver, .. } = self.memory.areas();
        let table = self.cells.u64s(descriptors, 2 * usize::from(self.len));
        // The ring's length is a power of two, so indices that wrap are as good as those that do not.
        let head = self.next.wrapping_mul(CHAIN) % self.len;
        for (i, (at, len, write)) in (head..).zip(parts) {
            let flags = if write { WRITE } else { NEXT };
            let (place, next) = (usize::from(i % self.len), u64::from((i + 1) % self.len));
            table[2 * place].store(self.iova(at), Ordering::Relaxed);
            table[2 * place + 1].store(len as u64 | flags << 32 | next << 48, Ordering::Relaxed);
        }
        let len = usize::from(self.len);
        // Flags, index, ring, and the event: one before this command asks for none (2.7.10).
        let available = self.cells.u16s(driver, 3 + len);
        available[2 + usize::from(self.next) % len].store(head, Ordering::Relaxed);
        available[2 + len].store(self.next.wrapping_sub(1), Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
        available[1].store(self.next, Ordering::Release);
    }

    /// 2.8.13: the flags of the first descriptor are written last.
    fn offer_packed(&mut self, parts: [(usize, usize, bool); CHAIN as usize]) {
        const NEXT: u64 = 1;
        const WRITE: u64 = 2;
        let ring = self.cells.u64s(self.memory.areas().descriptors, 2 * usize::from(self.len));
        let mut first = None;
        for (at, len, write) in parts {
            let turn: u64 = if self.wrap { 1 << 7 } else { 1 << 15 };
            let flags = turn | if write { WRITE } else { NEXT };
            let position = usize::from(self.next);
            ring[2 * position].store(self.iova(at), Ordering::Relaxed);
            let word = len as u64 | flags << 48;
            match first {
                None => first = Some((position, word)),
                Some(_) => ring[2 * position + 1].store(word, Ordering::Relaxed),
            }
            self.next += 1;
            if self.next == self.len {
                (self.next, self.wrap) = (0, !self.wrap);
            }
        }
        if let Some((position, word)) = first {
            ring[2 * position + 1].store(word, Ordering::Release);
        }
    }

    fn await_answer(&self) -> bool {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let mut looks = 0;
        loop {
            let late = looks >= EAGER_LOOKS && Instant::now() >= deadline;
            if self.is_answered() {
                return true;
            }
            if late {
                return false;
            }
            looks += 1;
            if looks < EAGER_LOOKS { std::hint::spin_loop() } else { std::thread::sleep(Duration::from_micros(20)) }
        }
    }

    fn is_answered(&self) -> bool {
        let Areas { descriptors, device, .. } = self.memory.areas();
        match self.kind {
            RingKind::Split => self.cells.u16s(device, 2)[1].load(Ordering::Acquire) == self.next,
            RingKind::Packed => {
                // The device writes over the first descriptor of the chain.
                let len = self.len;
                let first = (self.next + len - CHAIN) % len;
                let wrap = if self.next < CHAIN { !self.wrap } else { self.wrap };
                let word = self.cells.u64s(descriptors, 2 * usize::from(len))[2 * usize::from(first) + 1]
                    .load(Ordering::Acquire);
                let (available, used) = (word >> 55 & 1 != 0, word >> 63 != 0);
                available == wrap && used == wrap
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use spinwake::dma::Domain;
    use spinwake::mem::{MemRequest, PageSize};

    use super::*;

    /// The device's half: reads a command at each doorbell, and answers as told.
    #[derive(Debug)]
    struct Peer {
        kind: RingKind,
        cells: Arc<DmaCells>,
        areas: Areas,
        state: Mutex<PeerState>,
    }

    #[derive(Debug, Default)]
    struct PeerState {
        /// What it answers; it stays silent where there is nothing more.
        answers: Vec<u8>,
        /// Commands seen: header and data.
        seen: Vec<(Vec<u8>, Vec<u8>)>,
        next: u16,
        wrap: bool,
    }

    impl Peer {
        /// Bytes at an address of the device.
        fn read(&self, iova: u64, len: usize) -> Vec<u8> {
            let at = (iova - self.cells.iova(0).get()) as usize;
            let words = self.cells.u64s(at, len.div_ceil(8));
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
            bytes.truncate(len);
            bytes
        }

        fn answer(&self, state: &mut PeerState, parts: &[(u64, u32, u16)]) -> bool {
            state.seen.push((self.read(parts[0].0, parts[0].1 as usize), self.read(parts[1].0, parts[1].1 as usize)));
            assert_eq!(parts[2].1, 1);
            if state.answers.is_empty() {
                return false;
            }
            let at = (parts[2].0 - self.cells.iova(0).get()) as usize;
            self.cells.u64s(at, 1)[0].store(state.answers.remove(0).into(), Ordering::Relaxed);
            true
        }

        fn descriptor(&self, at: usize) -> (u64, u64) {
            let words = self.cells.u64s(self.areas.descriptors + 16 * at, 2);
            (words[0].load(Ordering::Relaxed), words[1].load(Ordering::Acquire))
        }
    }

    impl Doorbell for Peer {
        fn ring(&self) {
            let mut state = self.state.lock().unwrap();
            match self.kind {
                RingKind::Split => {
                    let ring = self.cells.u16s(self.areas.driver, 2 + usize::from(RING_LEN));
                    assert_eq!(ring[1].load(Ordering::Acquire), state.next.wrapping_add(1));
                    let mut at = ring[2 + usize::from(state.next % RING_LEN)].load(Ordering::Relaxed);
                    assert_eq!(at, state.next.wrapping_mul(CHAIN) % RING_LEN, "descriptors in the order of the table");
                    let mut parts = Vec::new();
                    loop {
                        let (address, word) = self.descriptor(at.into());
                        parts.push((address, word as u32, (word >> 32) as u16));
                        if word >> 32 & 1 == 0 {
                            break;
                        }
                        at = (word >> 48) as u16;
                    }
                    assert_eq!(parts.iter().map(|part| part.2).collect::<Vec<_>>(), [1, 1, 2]);
                    state.next = state.next.wrapping_add(1);
                    if self.answer(&mut state, &parts) {
                        self.cells.u16s(self.areas.device, 2)[1].store(state.next, Ordering::Release);
                    }
                }
                RingKind::Packed => {
                    let (first, wrap) = (state.next, !state.wrap);
                    let mut parts = Vec::new();
                    for _ in 0..CHAIN {
                        let (address, word) = self.descriptor(state.next.into());
                        let turn = !state.wrap;
                        assert_eq!((word >> 55 & 1 != 0, word >> 63 != 0), (turn, !turn), "it is available");
                        parts.push((address, word as u32, (word >> 48) as u16 & 3));
                        state.next += 1;
                        if state.next == RING_LEN {
                            (state.next, state.wrap) = (0, turn);
                        }
                    }
                    assert_eq!(parts.iter().map(|part| part.2).collect::<Vec<_>>(), [1, 1, 2]);
                    if self.answer(&mut state, &parts) {
                        let flags = if wrap { 1 << 55 | 1 << 63 } else { 0 };
                        let at = self.areas.descriptors + 16 * usize::from(first);
                        self.cells.u64s(at, 2)[1].store(flags | 1, Ordering::Release);
                    }
                }
            }
        }
    }

    fn control(kind: RingKind, answers: &[u8]) -> (Control, Arc<Peer>) {
        let bytes = RingMemory::bytes(kind, RING_LEN);
        let request = MemRequest::new(bytes + COMMAND_BYTES).page(PageSize::Ordinary);
        let cells = Arc::new(DmaCells::new(Domain::new().alloc(&request).unwrap()));
        let memory = RingMemory::new(kind, RING_LEN, cells.clone(), 0);
        let state = Mutex::new(PeerState { answers: answers.to_vec(), ..PeerState::default() });
        let peer = Arc::new(Peer { kind, areas: memory.areas(), cells, state });
        (Control::new(kind, memory, bytes, peer.clone()), peer)
    }

    #[test]
    fn commands_arrive_whole_over_many_turns_of_either_ring() {
        for kind in [RingKind::Split, RingKind::Packed] {
            let (mut control, peer) = control(kind, &[0; 100]);
            for n in 0..50 {
                let groups: Vec<_> = (0..n).map(|i| MacAddr([1, 0, 0x5e, 0, 0, i])).collect();
                control.run(&Command::Groups(&groups)).unwrap();
                control.run(&Command::Pairs(n.into())).unwrap();
                let state = peer.state.lock().unwrap();
                let [.., (first, data), (second, pairs)] = state.seen.as_slice() else { panic!("{:?}", state.seen) };
                assert_eq!((first.as_slice(), second.as_slice()), ([1, 0].as_slice(), [4, 0].as_slice()));
                assert_eq!(data.len(), 8 + 6 * usize::from(n), "{kind:?}");
                assert_eq!((data[4], pairs.as_slice()), (n, [n, 0].as_slice()));
                assert!(data[8..].chunks(6).zip(&groups).all(|(bytes, group)| bytes == group.0));
            }
        }
    }

    #[test]
    fn an_address_table_of_any_length_fits() {
        let (mut control, _) = control(RingKind::Split, &[0]);
        control.run(&Command::Groups(&[MacAddr::BROADCAST; super::super::filters::EXACT_GROUPS])).unwrap();
    }

    #[test]
    fn a_refusal_is_told_and_the_next_command_goes_on() {
        for kind in [RingKind::Split, RingKind::Packed] {
            let (mut control, _) = control(kind, &[1, 77, 0]);
            for _ in 0..2 {
                let error = control.run(&Command::VlanAdd(5)).unwrap_err();
                assert_eq!(error.to_string(), "it refuses to receive a VLAN");
            }
            control.run(&Command::Promiscuous(true)).unwrap();
        }
    }

    #[test]
    fn a_silent_device_is_given_no_more_commands() {
        for kind in [RingKind::Split, RingKind::Packed] {
            let (mut control, peer) = control(kind, &[]);
            let error = control.run(&Command::AllMulticast(true)).unwrap_err();
            assert!(matches!(error, CommandError::Silent { .. }), "{error}");
            peer.state.lock().unwrap().answers.push(0);
            let error = control.run(&Command::AllMulticast(true)).unwrap_err();
            assert!(error.to_string().contains("stop and start the port"), "{error}");
            assert_eq!(peer.state.lock().unwrap().seen.len(), 1);
        }
    }

    #[test]
    fn the_spreading_of_flows_is_described_as_the_device_reads_it() {
        let rss = Rss { hash_types: 0x3f, table: vec![0, 1, 0, 1], pairs: 2, key: vec![9; 40] };
        let data = Command::Rss(&rss).data();
        assert_eq!(data[..8], [0x3f, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(data[8..19], [0, 0, 1, 0, 0, 0, 1, 0, 2, 0, 40]);
        assert_eq!(data.len(), 19 + 40);
    }
}
