//! The packed virtqueue (VIRTIO 1.2, 2.8).
//!
//! Each descriptor becomes the device's by its flags; the first one of a burst last, so that a device that looks there
//! finds the whole burst, and leaves the cache lines alone while they are being written. Ids are slots.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spinwake::dma::{Descriptor, View};
use spinwake::frame::{Burst, DATA_ROOM, Posted, Verdicts};
use spinwake::sys::relax::Watch;

use super::super::features::Features;
use super::super::header::HEADER_LEN;
use super::super::tx::window::Window;
use super::suppress::{self, ask_packed, publish_packed};
use super::{Fault, Filler, Ring, RingMemory, Used};

/// Flags in their place in word 1: available is what the driver's wrap counter was, used is what the device's was.
const AVAIL: u64 = 1 << 7 << 48;
const USED: u64 = 1 << 15 << 48;
/// The id in its place.
const ID_SHIFT: u32 = 32;
const ONE_ID: u64 = 1 << ID_SHIFT;
const ID: u64 = 0xffff << ID_SHIFT;

/// A driver's packed ring.
#[derive(Debug)]
pub(in super::super) struct Packed {
    memory: RingMemory,
    mask: usize,
    in_order: bool,
    event_idx: bool,
    /// Descriptors as pairs, and as words: the second of each pair says whose it is.
    descriptors: View<Descriptor>,
    words: View<AtomicU64>,
    driver_events: View<AtomicU32>,
    device_events: View<AtomicU32>,
    /// Descriptors before this position are the device's, or were.
    published: usize,
    /// Where the device says next what it has used.
    used: usize,
}

/// What is needed to write descriptors one after another.
#[derive(Debug)]
pub(in super::super) struct Cursor {
    /// Word 1, but for the length.
    word: u64,
    /// What is turned in the flags of the next descriptor to keep it from the device for now.
    hold: u64,
}

impl Packed {
    /// The flags of a descriptor used at `position`.
    #[inline(always)]
    fn used_flags(&self, position: usize) -> u64 {
        if position & (self.mask + 1) == 0 { AVAIL | USED } else { 0 }
    }

    /// The word that says whose the descriptor at `position` is.
    #[inline(always)]
    fn word(&self, position: usize) -> &AtomicU64 {
        &self.words[2 * (position & self.mask) + 1]
    }

    /// What the device wrote where it says next what it has used, if it has.
    #[inline(always)]
    fn next_used(&self, order: Ordering) -> Option<u64> {
        if self.used == self.published {
            return None;
        }
        let word = self.word(self.used).load(order);
        (word & (AVAIL | USED) == self.used_flags(self.used)).then_some(word)
    }
}

fn id_of(word: u64) -> u32 {
    u32::from((word >> ID_SHIFT) as u16)
}

impl Ring for Packed {
    type Cursor = Cursor;

    fn new(memory: RingMemory, features: Features, _filler: Filler) -> Self {
        let (areas, cells, len) = (memory.areas(), memory.cells(), usize::from(memory.len()));
        let mut this = Self {
            mask: len - 1,
            in_order: features.has(Features::IN_ORDER),
            event_idx: features.has(Features::EVENT_IDX),
            descriptors: cells.view(areas.descriptors, len),
            words: cells.view(areas.descriptors, 2 * len),
            driver_events: cells.view(areas.driver, 1),
            device_events: cells.view(areas.device, 1),
            published: 0,
            used: 0,
            memory,
        };
        this.reset();
        this
    }

    fn reset(&mut self) {
        self.memory.clear();
        (self.published, self.used) = (0, 0);
        self.disarm();
    }

    #[inline(always)]
    fn run(&self, position: usize, most: usize) -> &[Descriptor] {
        let at = position & self.mask;
        &self.descriptors[at..at + most.min(self.mask + 1 - at)]
    }

    #[inline(always)]
    fn cursor(&self, position: usize, head: usize, flags: u16) -> Cursor {
        let available = if position & (self.mask + 1) == 0 { AVAIL } else { USED };
        let id = (head & self.mask) as u64;
        // The flags of the first one stay as the lap before left them, the device's both alike.
        let hold = if position == self.published { AVAIL } else { 0 };
        Cursor { word: u64::from(flags) << 48 | available | id << ID_SHIFT, hold }
    }

    #[inline(always)]
    fn put(cursor: &mut Cursor, descriptor: &Descriptor, address: u64, len: u32) {
        descriptor.set(0, address, Ordering::Relaxed);
        // Release: who sees the flags sees the address, and the buffer.
        descriptor.set(1, (cursor.word ^ cursor.hold) | u64::from(len), Ordering::Release);
        cursor.hold = 0;
        cursor.word += ONE_ID;
    }

    #[inline(always)]
    fn put_empty(cursor: &mut Cursor, descriptor: &Descriptor, address: u64) {
        Self::put(cursor, descriptor, address, (HEADER_LEN + DATA_ROOM) as u32);
    }

    fn table_entry(address: u64, len: u32, _n: usize, _of: usize) -> [u64; 2] {
        [address, u64::from(len)]
    }

    #[inline(always)]
    fn offer(&mut self, _head: usize, _n: usize) {}

    #[inline(always)]
    fn publish(&mut self, tail: usize) -> bool {
        if tail == self.published {
            return false;
        }
        let head = self.word(self.published);
        let word = head.load(Ordering::Relaxed) ^ AVAIL;
        let told = publish_packed(head, word, &self.device_events[0], (self.used, tail), self.mask + 1);
        self.published = tail;
        told
    }

    #[inline(always)]
    fn ready(&mut self, _want: usize, outstanding: usize) -> Result<usize, Fault> {
        Ok(outstanding)
    }

    #[inline(always)]
    fn harvest(
        &mut self,
        posted: &mut Posted,
        burst: &mut Burst,
        most: usize,
        headed: Option<impl FnMut(&[u8; HEADER_LEN]) -> Option<Verdicts>>,
    ) -> (usize, usize, usize) {
        let run = self.run(self.used, most);
        let mut expected = self.used_flags(self.used) | ((self.used & self.mask) as u64) << ID_SHIFT;
        let filled = |descriptor: &Descriptor| {
            let word = descriptor.load(1, Ordering::Acquire);
            let len = (word as u32 as usize).wrapping_sub(HEADER_LEN);
            let good = word & (AVAIL | USED | ID) == expected && len.wrapping_sub(1) < DATA_ROOM;
            expected += ONE_ID;
            good.then_some(len)
        };
        let (moved, bytes) = match headed {
            Some(verdicts) => posted.harvest_headed(burst, run, filled, verdicts),
            None => posted.harvest(burst, run, filled),
        };
        let looked = run.len();
        self.used += moved;
        (moved, looked, bytes)
    }

    fn peek(&mut self, outstanding: usize) -> Result<Option<Used>, Fault> {
        if outstanding == 0 {
            return Ok(None);
        }
        Ok(self.next_used(Ordering::Acquire).map(|word| Used { id: id_of(word), len: word as u32 }))
    }

    fn consume(&mut self, slots: usize) {
        self.used += slots;
    }

    #[inline(always)]
    fn reclaim(&mut self, window: &mut Window) -> Result<usize, Fault> {
        let mut frames = 0;
        while window.outstanding() > 0
            && let Some(word) = self.next_used(Ordering::Acquire)
        {
            let id = id_of(word);
            if self.in_order {
                // One descriptor for all up to the one that it names (2.8.13).
                let (retired, slots) = window.retire_through(id).ok_or(Fault::NotInFlight)?;
                frames += retired;
                self.used += slots;
            } else if window.is_orderly() && id == (self.used & self.mask) as u32 {
                window.retire(1);
                frames += 1;
                self.used += 1;
            } else {
                self.used += window.complete(id).ok_or(Fault::NotInFlight)?;
                frames += window.settle();
            }
        }
        Ok(frames)
    }

    #[inline(always)]
    fn pending(&self) -> bool {
        self.next_used(Ordering::Relaxed).is_some()
    }

    fn watch(&self) -> Watch<'_> {
        Watch::on(self.word(self.used))
    }

    fn arm(&mut self) {
        let wish = ask_packed(self.used, self.mask + 1, self.event_idx);
        self.driver_events[0].store(wish, Ordering::Relaxed);
    }

    fn disarm(&mut self) {
        self.driver_events[0].store(suppress::DISABLE, Ordering::Relaxed);
    }
}
