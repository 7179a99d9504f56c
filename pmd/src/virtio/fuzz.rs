//! The driver's half of rings under a device that says anything, from bytes: see [`crate::fuzz`].

use std::cell::{OnceCell, RefCell};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use spinwake::device::{DeviceError, Iommu};
use spinwake::dma::{Attachment, DmaCells, Domain, MemoryTable, TableRegion, TableUser};
use spinwake::frame::{Burst, DATA_ROOM, Frame, HEADROOM, Pool, PoolConfig};
use spinwake::mem::{MemRequest, PageSize, PeerMemory, PeerRegion};
use spinwake::port::{RxCounters, TxCounters};
use spinwake::wait::Source;

use super::features::Features;
use super::header::HEADER_LEN;
use super::queue::{DriverRx, DriverTx, QueueSetup, RingHealth};
use super::ring::{Areas, Doorbell, RingKind, RingMemory, flag};
use super::rx::rx_queue;
use super::tx::tx_queue;
use crate::fuzz::{Input, STEPS, buffers};

/// The longest ring, as a power of two, and frames for more than it.
const SHIFT_MAX: u32 = 6;
const FRAMES: usize = 200;
/// Frames in the program's hands at most.
const KEPT: usize = 40;
const WHOLE: u32 = (HEADER_LEN + DATA_ROOM) as u32;

const FEATURES: [Features; 8] = [
    Features::IN_ORDER,
    Features::EVENT_IDX,
    Features::INDIRECT_DESC,
    Features::MRG_RXBUF,
    Features::CSUM,
    Features::GUEST_CSUM,
    Features::HOST_TSO4.with(Features::HOST_TSO6).with(Features::HOST_ECN),
    Features::HOST_USO,
];

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Counts.
#[derive(Debug, Default)]
struct Bell(AtomicUsize);

impl Doorbell for Bell {
    fn ring(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the device is told of memory.
#[derive(Debug, Default)]
struct Regions(Mutex<Vec<TableRegion>>);

impl TableUser for Regions {
    fn added(&self, _: &TableRegion, table: &[TableRegion]) -> Result<(), DeviceError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = table.to_vec();
        Ok(())
    }

    fn removed(&self, _: &TableRegion, _: &[TableRegion]) {}
}

/// What stays from run to run.
struct Rig {
    pool: Pool,
    cells: Arc<DmaCells>,
    /// The same memory as the device sees it.
    memory: PeerMemory,
    domain: Domain,
    _attachment: Attachment,
}

thread_local! {
    static RIG: OnceCell<RefCell<Rig>> = const { OnceCell::new() };
}

impl Rig {
    fn new() -> Self {
        let (domain, regions) = (Domain::new(), Arc::new(Regions::default()));
        let table: Arc<dyn Iommu> = Arc::new(MemoryTable::new("device", regions.clone()));
        let attachment = domain.attach_space("device", table, 47).expect("a space for the device");
        let bytes = RingMemory::bytes(RingKind::Split, 1 << SHIFT_MAX);
        let request = MemRequest::new(bytes).page(PageSize::Ordinary);
        let cells = Arc::new(DmaCells::new(attachment.alloc(&request).expect("memory for rings")));
        let config = PoolConfig { frames: FRAMES, ..PoolConfig::default() };
        let pool = Pool::new_in(&domain, &config).expect("a pool");
        let map = |region: &TableRegion| {
            PeerRegion::map(region.iova(), region.iova(), region.bytes(), region.fd(), 0).expect("mapped memory")
        };
        let table = regions.0.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = PeerMemory::new(table.iter().map(map).collect()).expect("regions apart");
        drop(table);
        Self { pool, cells, memory, domain, _attachment: attachment }
    }
}

/// Runs a receive or a transmit queue against a device that does what `bytes` say.
pub fn driver_rings(bytes: &[u8]) {
    RIG.with(|rig| {
        let rig = &mut *rig.get_or_init(|| Rig::new().into()).borrow_mut();
        let mut input = Input::new(bytes);
        let (shape, mask) = (input.u8(), input.u8());
        let features = FEATURES
            .iter()
            .zip(0..)
            .fold(Features::VERSION_1, |features, (&feature, bit)| features.with(feature.when(mask >> bit & 1 == 1)));
        let kind = if shape & 1 == 0 { RingKind::Split } else { RingKind::Packed };
        let len = 1 << (1 + u32::from(shape >> 2) % SHIFT_MAX);
        let memory = || RingMemory::new(kind, len, rig.cells.clone(), 0);
        let large = features.has(Features::MRG_RXBUF) || shape & 2 == 2;
        let setup = QueueSetup {
            label: "fuzz".into(),
            memory: memory(),
            features,
            doorbell: Arc::new(Bell::default()),
            irq: None,
            domain: rig.domain.clone(),
            max_frame: if !large {
                1518
            } else if shape & 128 == 0 {
                9018
            } else {
                65_550
            },
        };
        let device = Device {
            kind,
            len,
            areas: memory().areas(),
            in_order: features.has(Features::IN_ORDER),
            mergeable: features.has(Features::MRG_RXBUF),
            next: 0,
            used: 0,
            held: Vec::new(),
            honest: true,
        };
        let mut run = Run { device, kept: Vec::new(), moved: 0, bytes: 0 };
        if shape & 2 == 0 {
            let counters = Arc::<RxCounters>::default();
            let mut rx = rx_queue(setup, counters.clone()).expect("frames that fit");
            run.receive(rig, rx.as_mut(), &counters, &mut input);
        } else {
            let counters = Arc::<TxCounters>::default();
            let mut tx = tx_queue(setup, counters.clone()).expect("a queue");
            run.transmit(rig, tx.as_mut(), &counters, &mut input);
        }
        run.kept.into_iter().for_each(|frame| rig.pool.give(frame));
        assert_eq!(rig.pool.available(), FRAMES, "buffers are lost");
    });
}

/// One run.
struct Run {
    device: Device,
    /// Frames in the program's hands.
    kept: Vec<Frame>,
    moved: u64,
    bytes: u64,
}

impl Run {
    fn receive(&mut self, rig: &mut Rig, rx: &mut dyn DriverRx, counters: &RxCounters, input: &mut Input<'_>) {
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            match input.below(16) {
                0..5 => {
                    let mut burst = Burst::new();
                    let moved = rx.rx_burst(&mut rig.pool, &mut burst);
                    assert_eq!(moved, burst.len());
                    self.moved += moved as u64;
                    self.bytes += burst.iter().map(|frame| frame.total_len() as u64).sum::<u64>();
                    self.keep(&mut rig.pool, burst, input);
                }
                5 => {
                    wait(rx, input);
                }
                6 if input.below(4) == 0 => {
                    rx.reset();
                    assert_eq!(rx.health().fault(), None);
                    self.device.reset();
                }
                _ => self.device.act(rig, input),
            }
            self.check(rx.health(), counters.lies.get(), rx.pending());
            assert_eq!((counters.frames.get(), counters.bytes.get()), (self.moved, self.bytes));
        }
        let posted = rx.reset();
        assert!(posted <= usize::from(self.device.len) + 64);
    }

    fn transmit(&mut self, rig: &mut Rig, tx: &mut dyn DriverTx, counters: &TxCounters, input: &mut Input<'_>) {
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            match input.below(16) {
                0..5 => {
                    let mut burst = input.burst(&mut rig.pool);
                    let all = burst.len();
                    let taken = tx.tx_burst(&mut rig.pool, &mut burst);
                    assert_eq!(taken + burst.len(), all);
                    self.moved += taken as u64;
                    self.keep(&mut rig.pool, burst, input);
                }
                5 => {
                    wait(tx, input);
                    tx.reclaim(&mut rig.pool);
                }
                6 if input.below(4) == 0 => {
                    tx.reset();
                    assert_eq!((tx.health().fault(), tx.in_flight()), (None, 0));
                    self.device.reset();
                }
                _ => self.device.act(rig, input),
            }
            assert!(tx.in_flight() <= usize::from(self.device.len));
            self.check(tx.health(), counters.lies.get(), tx.pending());
            assert_eq!(counters.frames.get() + counters.refused.get(), self.moved);
            self.all_once(&mut rig.pool);
        }
        if self.device.honest {
            // All that the device took, it gives back; then nothing is in flight.
            self.device.finish(rig);
            tx.reclaim(&mut rig.pool);
            assert_eq!((tx.in_flight(), tx.health().fault()), (0, None));
        }
        tx.reset();
    }

    fn check(&self, health: &RingHealth, lies: u64, pending: bool) {
        let fault = health.fault();
        assert!(fault.is_none() || (lies > 0 && !pending));
        assert!(!self.device.honest || (fault.is_none() && lies == 0), "an honest device is blamed: {fault:?}");
    }

    /// The program keeps some frames, each of which must be in a buffer of its own, and gives others back.
    fn keep(&mut self, pool: &mut Pool, frames: Burst, input: &mut Input<'_>) {
        self.kept.extend(frames);
        let mut places = HashSet::new();
        for segment in self.kept.iter().flat_map(Frame::segments) {
            assert!(segment.len() <= segment.room());
            assert!(places.insert(place(segment)), "a buffer twice");
        }
        let most = if input.flag() { 0 } else { KEPT };
        while self.kept.len() > most {
            pool.give(self.kept.remove(0));
        }
    }

    /// All that the pool has are buffers of their own, and none of those that are kept.
    fn all_once(&self, pool: &mut Pool) {
        let free: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        let places: HashSet<_> = free.iter().chain(self.kept.iter().flat_map(Frame::segments)).map(place).collect();
        assert_eq!(places.len(), free.len() + buffers(&self.kept), "a buffer twice");
        free.into_iter().for_each(|frame| pool.give(frame));
    }
}

/// Which buffer a segment is in, whatever its headroom.
fn place(segment: &Frame) -> usize {
    segment.data().as_ptr().addr() - (HEADROOM + DATA_ROOM - segment.room())
}

/// What the engine does between bursts.
fn wait<S: Source + ?Sized>(source: &mut S, input: &mut Input<'_>) {
    match input.below(3) {
        0 => source.arm(),
        1 => source.disarm(),
        _ => drop(source.watch()),
    }
}

/// The device's half of the ring, honest until it is told otherwise.
struct Device {
    kind: RingKind,
    len: u16,
    areas: Areas,
    in_order: bool,
    mergeable: bool,
    /// How many places it has looked at, and used: split by chain, packed by descriptor.
    next: usize,
    used: usize,
    /// Chains that it has: head, places in the ring, address of the first buffer, and its length.
    held: Vec<Held>,
    honest: bool,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    id: u16,
    places: u16,
    addr: u64,
    /// Bytes that the device may write.
    writable: u32,
    /// Its header was written as it shall be.
    headed: bool,
}

impl Device {
    fn reset(&mut self) {
        (self.next, self.used) = (0, 0);
        self.held.clear();
        // What was written into the ring is gone, what was counted is not.
    }

    /// What it does next.
    fn act(&mut self, rig: &Rig, input: &mut Input<'_>) {
        match input.below(32) {
            0 => {
                let (id, len) = (input.pick(&[0, 1, 2, 5, 64, 0xffff, u32::MAX]), input.u32());
                let ahead = input.pick(&[1, 1, 2, 0, 3, 64, 65, 0xffff]);
                self.honest = false;
                self.mark(rig, id, len, ahead);
            }
            1 => {
                let bytes = RingMemory::bytes(self.kind, self.len);
                let at = usize::from(input.u16()) * 2 % bytes;
                self.honest = false;
                rig.cells.u16s(at, 1)[0].store(input.u16(), Ordering::Release);
            }
            2 => {
                // A chain that it has is used with any length.
                self.honest = false;
                let len = input.pick(&[0, 1, 11, 12, 13, WHOLE + 1, u32::MAX]);
                self.give_back(rig, input, Some(len));
            }
            3 => {
                self.honest = false;
                self.write_any_header(rig, input);
            }
            4 => self.wish(rig, input),
            5..12 => (0..input.pick(&[1, 2, 8, 64])).for_each(|_| _ = self.take(rig)),
            12..16 => self.span(rig, input),
            16..18 if self.in_order => self.batch(rig, input),
            _ => self.give_back(rig, input, None),
        }
    }

    /// Takes the next chain that the driver made available.
    fn take(&mut self, rig: &Rig) -> bool {
        let cells = &rig.cells;
        let mask = usize::from(self.len) - 1;
        let desc = |at: usize| {
            let words = cells.u64s(self.areas.descriptors + 16 * (at & mask), 2);
            (words[0].load(Ordering::Relaxed), words[1].load(Ordering::Acquire))
        };
        let held = match self.kind {
            RingKind::Split => {
                let index = cells.u16s(self.areas.driver + 2, 1)[0].load(Ordering::Acquire);
                if index == self.next as u16 || (self.honest && self.held.len() > mask) {
                    return false;
                }
                let id = cells.u16s(self.areas.driver + 4 + 2 * (self.next & mask), 1)[0].load(Ordering::Relaxed);
                let (addr, word) = desc(id.into());
                Held { id, places: 1, addr, writable: writable(word as u32, (word >> 32) as u16), headed: false }
            }
            RingKind::Packed => {
                let turn = |at: usize| if at & usize::from(self.len) == 0 { AVAIL } else { USED };
                let (addr, mut word) = desc(self.next);
                if (word >> 48) as u16 & (AVAIL | USED) != turn(self.next) || self.next.saturating_sub(self.used) > mask
                {
                    return false;
                }
                let first = writable(word as u32, (word >> 48) as u16);
                let mut places = 1;
                while word >> 48 & u64::from(flag::NEXT) != 0 && places < self.len {
                    word = desc(self.next + usize::from(places)).1;
                    places += 1;
                }
                Held { id: (word >> 32) as u16, places, addr, writable: first, headed: false }
            }
        };
        assert!(!self.honest || rig.memory.at(held.addr, 1).is_some(), "a buffer where no memory is");
        self.next += usize::from(held.places);
        self.held.push(held);
        true
    }

    /// Uses a chain: the oldest where order was agreed on, else any.
    fn give_back(&mut self, rig: &Rig, input: &mut Input<'_>, len: Option<u32>) {
        if self.held.is_empty() {
            return;
        }
        let at = if self.in_order { 0 } else { input.below(self.held.len()) };
        let held = self.held.remove(at);
        write_header(rig, &held, 1);
        let honest = input.pick(&[72, 72, 13, 1526, WHOLE, WHOLE]).min(held.writable);
        self.mark(rig, held.id.into(), len.unwrap_or(honest), held.places);
    }

    /// Uses some of the oldest chains by one entry (2.7.9, 2.8.9). Those before the last are full.
    fn batch(&mut self, rig: &Rig, input: &mut Input<'_>) {
        let count = input.below(self.held.len() + 1);
        self.held[..count].iter().for_each(|held| write_header(rig, held, 1));
        let Some(last) = self.held[..count].last().copied() else { return };
        let places = self.held.drain(..count).map(|held| held.places).sum();
        self.mark(rig, last.id.into(), last.writable.min(72), places);
    }

    /// Uses several buffers for one frame, where that was agreed on.
    fn span(&mut self, rig: &Rig, input: &mut Input<'_>) {
        let count = if self.mergeable { input.pick(&[2, 2, 3, 4]) } else { 1 };
        if self.held.len() < count {
            return;
        }
        for n in 0..count {
            let at = if self.in_order { 0 } else { input.below(self.held.len()) };
            let held = self.held.remove(at);
            if n == 0 {
                write_header(rig, &held, count as u8);
            }
            let len = if n + 1 < count { WHOLE } else { input.pick(&[13, 72, 1526]) };
            self.mark(rig, held.id.into(), len.min(held.writable), held.places);
        }
    }

    /// Uses all that there is.
    fn finish(&mut self, rig: &Rig) {
        loop {
            while self.take(rig) {}
            if self.held.is_empty() {
                return;
            }
            let held = self.held.remove(0);
            self.mark(rig, held.id.into(), 0, held.places);
        }
    }

    /// Writes a used entry that goes `places` on.
    fn mark(&mut self, rig: &Rig, id: u32, len: u32, places: u16) {
        let (cells, mask) = (&rig.cells, usize::from(self.len) - 1);
        match self.kind {
            RingKind::Split => {
                let entry = cells.u32s(self.areas.device + 4 + 8 * (self.used & mask), 2);
                entry[0].store(id, Ordering::Relaxed);
                entry[1].store(len, Ordering::Relaxed);
                self.used += usize::from(places);
                cells.u16s(self.areas.device + 2, 1)[0].store(self.used as u16, Ordering::Release);
            }
            RingKind::Packed => {
                let turn = if self.used & usize::from(self.len) == 0 { AVAIL | USED } else { 0 };
                let word = u64::from(turn) << 48 | u64::from(id as u16) << 32 | u64::from(len);
                cells.u64s(self.areas.descriptors + 16 * (self.used & mask) + 8, 1)[0].store(word, Ordering::Release);
                self.used += usize::from(places).min(mask + 1);
            }
        }
    }

    /// Writes a header that may say anything into a buffer that it has.
    fn write_any_header(&mut self, rig: &Rig, input: &mut Input<'_>) {
        let which = input.below(self.held.len());
        let Some(held) = self.held.get_mut(which).filter(|held| held.writable > 0) else { return };
        held.headed = true;
        let mut header = PLAIN;
        match input.below(4) {
            0 => header = input.array(),
            1 => header[..10].copy_from_slice(&[1, 1, 54, 0, 100, 0, 34, 0, 16, 0]),
            2 => header[..10].copy_from_slice(&[input.u8(), input.u8(), 0, 0, 1, 0, 34, 0, 6, 0]),
            _ => header[10] = input.u8() & 7,
        }
        // A scribbled address may be anywhere.
        if let Some(slice) = rig.memory.at(held.addr, HEADER_LEN) {
            slice.write_from(&header);
        }
    }

    /// Says when it wants to be told: anything is allowed.
    fn wish(&self, rig: &Rig, input: &mut Input<'_>) {
        let cells = &rig.cells;
        match self.kind {
            RingKind::Split => {
                cells.u16s(self.areas.device, 1)[0].store(input.u16(), Ordering::Relaxed);
                let event = self.areas.device + 4 + 8 * usize::from(self.len);
                cells.u16s(event, 1)[0].store(input.u16(), Ordering::Relaxed);
            }
            RingKind::Packed => cells.u32s(self.areas.device, 1)[0].store(input.u32(), Ordering::Relaxed),
        }
    }
}

/// A header that says nothing, of a frame in one buffer.
const PLAIN: [u8; HEADER_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Writes the header of a frame of which there is nothing to say, in `buffers`, unless another one was written.
fn write_header(rig: &Rig, held: &Held, buffers: u8) {
    if held.writable > 0
        && !held.headed
        && let Some(slice) = rig.memory.at(held.addr, HEADER_LEN)
    {
        let mut header = PLAIN;
        header[10] = buffers;
        slice.write_from(&header);
    }
}

/// What the device may write to a buffer of `len` bytes with these flags.
fn writable(len: u32, flags: u16) -> u32 {
    if flags & flag::WRITE == 0 { 0 } else { len }
}
