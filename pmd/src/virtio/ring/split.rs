//! The split virtqueue (VIRTIO 1.2, 2.7).
//!
//! What the driver does not do is what makes it fast: available entries are written once, as slot and entry go together
//! while each buffer is one descriptor; the used index is read when what it said last does not fill a burst; with
//! IN_ORDER, or when all is back, the used entries of a transmit queue are not read at all.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use spinwake::dma::{Descriptor, View};
use spinwake::frame::{Burst, DATA_ROOM, Posted, Verdicts};
use spinwake::sys::relax::Watch;

use super::super::features::Features;
use super::super::header::HEADER_LEN;
use super::super::tx::window::Window;
use super::suppress::{self, publish_split};
use super::{Fault, Filler, Ring, RingMemory, Used, flag};

/// A driver's split ring.
#[derive(Debug)]
pub(in super::super) struct Split {
    memory: RingMemory,
    mask: usize,
    filler: Filler,
    in_order: bool,
    event_idx: bool,
    descriptors: View<Descriptor>,
    /// Flags and index of the available ring.
    available_head: View<AtomicU16>,
    /// Entries of the available ring, and `used_event` behind them.
    available: View<AtomicU16>,
    /// Flags and index of the used ring.
    used_head: View<AtomicU16>,
    /// Entries of the used ring: id, and length in the upper half.
    used: View<AtomicU64>,
    /// `avail_event`, where the driver's notifications are suppressed by event, else the used ring's flags.
    asks: View<AtomicU16>,
    /// Buffers put into the available ring, and how many of them the device knows of.
    offered: usize,
    published: usize,
    /// How far the next buffer's slot is ahead of its available entry: moves with each chain of descriptors.
    skew: usize,
    /// Available entries to come that may be wrong, since `skew` changed.
    stale: usize,
    /// Used entries that are known of, and how many of them were consumed.
    seen: usize,
    done: usize,
    armed: bool,
    /// What stands in `used_event`.
    event: u16,
}

/// Positions that the used index may advance before an event that is kept out of reach is moved on.
const REACH: u16 = 1 << 14;

impl Split {
    /// The device used `n` more buffers than were known, out of `outstanding`.
    #[inline(always)]
    fn refresh(&mut self, outstanding: usize) -> Result<usize, Fault> {
        // Acquire: what the device wrote before the index, entries and buffers, is visible after it.
        let index = self.used_head[1].load(Ordering::Acquire);
        let seen = self.seen + usize::from(index.wrapping_sub(self.seen as u16));
        if seen - self.done > outstanding {
            return Err(Fault::UsedIndex);
        }
        self.seen = seen;
        if self.event_idx && !self.armed && (self.done as u16).wrapping_sub(self.event) > REACH {
            self.disarm();
        }
        Ok(seen - self.done)
    }

    /// Writes the available entries of `n` buffers from slot `head` on.
    #[cold]
    fn write_entries(&mut self, head: usize, n: usize) {
        for i in 0..n {
            let slot = head.wrapping_add(i) & self.mask;
            self.available[(self.offered + i) & self.mask].store(slot as u16, Ordering::Relaxed);
        }
        self.stale = self.stale.saturating_sub(n);
    }

    fn set_event(&mut self, event: u16) {
        self.event = event;
        self.available[self.mask + 1].store(event, Ordering::Relaxed);
    }
}

impl Ring for Split {
    /// Word 1 of the descriptor.
    type Cursor = u64;

    fn new(memory: RingMemory, features: Features, filler: Filler) -> Self {
        let (areas, cells, len) = (memory.areas(), memory.cells(), usize::from(memory.len()));
        let event_idx = features.has(Features::EVENT_IDX);
        let asks = if event_idx { areas.device + 4 + 8 * len } else { areas.device };
        let mut this = Self {
            mask: len - 1,
            filler,
            in_order: features.has(Features::IN_ORDER),
            event_idx,
            descriptors: cells.view(areas.descriptors, len),
            available_head: cells.view(areas.driver, 2),
            available: cells.view(areas.driver + 4, len + 1),
            used_head: cells.view(areas.device, 2),
            used: cells.view(areas.device + 4, len),
            asks: cells.view(asks, 1),
            offered: 0,
            published: 0,
            skew: 0,
            stale: 0,
            seen: 0,
            done: 0,
            armed: false,
            event: 0,
            memory,
        };
        this.reset();
        this
    }

    fn reset(&mut self) {
        self.memory.clear();
        for (entry, slot) in self.available[..=self.mask].iter().zip(0..) {
            entry.store(slot, Ordering::Relaxed);
        }
        if self.filler == Filler::Device {
            let word = ((HEADER_LEN + DATA_ROOM) as u64) | u64::from(flag::WRITE) << 32;
            self.descriptors.iter().for_each(|descriptor| descriptor.set(1, word, Ordering::Relaxed));
        }
        (self.offered, self.published, self.skew, self.stale) = (0, 0, 0, 0);
        (self.seen, self.done) = (0, 0);
        self.disarm();
    }

    #[inline(always)]
    fn run(&self, position: usize, most: usize) -> &[Descriptor] {
        let at = position & self.mask;
        &self.descriptors[at..at + most.min(self.mask + 1 - at)]
    }

    #[inline(always)]
    fn cursor(&self, position: usize, _head: usize, flags: u16) -> u64 {
        let next = if flags & flag::NEXT == 0 { 0 } else { position.wrapping_add(1) & self.mask };
        u64::from(flags) << 32 | (next as u64) << 48
    }

    #[inline(always)]
    fn put(cursor: &mut u64, descriptor: &Descriptor, address: u64, len: u32) {
        descriptor.store([address, *cursor | u64::from(len)]);
    }

    #[inline(always)]
    fn put_empty(_cursor: &mut u64, descriptor: &Descriptor, address: u64) {
        // Word 1 is always the same: `reset` has written it.
        descriptor.set(0, address, Ordering::Relaxed);
    }

    fn table_entry(address: u64, len: u32, n: usize, of: usize) -> [u64; 2] {
        let next = if n + 1 < of { u64::from(flag::NEXT) << 32 | ((n + 1) as u64) << 48 } else { 0 };
        [address, u64::from(len) | next]
    }

    #[inline(always)]
    fn offer(&mut self, head: usize, n: usize) {
        let skew = head.wrapping_sub(self.offered) & self.mask;
        if skew != self.skew {
            self.skew = skew;
            self.stale = self.mask + 1;
        }
        if self.stale > 0 {
            self.write_entries(head, n);
        }
        self.offered += n;
    }

    #[inline(always)]
    fn publish(&mut self, _tail: usize) -> bool {
        if self.offered == self.published {
            return false;
        }
        let (old, new) = (self.published as u16, self.offered as u16);
        self.published = self.offered;
        publish_split(&self.available_head[1], old, new, &self.asks[0], self.event_idx)
    }

    #[inline(always)]
    fn ready(&mut self, want: usize, outstanding: usize) -> Result<usize, Fault> {
        let known = self.seen - self.done;
        if known >= want { Ok(known) } else { self.refresh(outstanding) }
    }

    #[inline(always)]
    fn harvest(
        &mut self,
        posted: &mut Posted,
        burst: &mut Burst,
        most: usize,
        headed: Option<impl FnMut(&[u8; HEADER_LEN]) -> Option<Verdicts>>,
    ) -> (usize, usize, usize) {
        let at = self.done & self.mask;
        let run = &self.used[at..at + most.min(self.mask + 1 - at)];
        let mut slot = at as u32;
        let filled = |entry: &AtomicU64| {
            let word = entry.load(Ordering::Relaxed);
            let len = ((word >> 32) as usize).wrapping_sub(HEADER_LEN);
            let good = word as u32 == slot && len.wrapping_sub(1) < DATA_ROOM;
            slot += 1;
            good.then_some(len)
        };
        let (moved, bytes) = match headed {
            Some(verdicts) => posted.harvest_headed(burst, run, filled, verdicts),
            None => posted.harvest(burst, run, filled),
        };
        self.done += moved;
        (moved, run.len(), bytes)
    }

    fn peek(&mut self, outstanding: usize) -> Result<Option<Used>, Fault> {
        if self.ready(1, outstanding)? == 0 {
            return Ok(None);
        }
        let word = self.used[self.done & self.mask].load(Ordering::Relaxed);
        Ok(Some(Used { id: word as u32, len: (word >> 32) as u32 }))
    }

    fn consume(&mut self, _slots: usize) {
        self.done += 1;
    }

    #[inline(always)]
    fn reclaim(&mut self, window: &mut Window) -> Result<usize, Fault> {
        let outstanding = window.outstanding();
        let used = self.refresh(outstanding)?;
        if used == 0 {
            return Ok(0);
        }
        // In order only the number counts; and when all is back, the order does not matter.
        if (self.in_order || used == outstanding) && !window.has_early() {
            self.done += used;
            window.retire(used);
            return Ok(used);
        }
        let mut frames = 0;
        if window.is_orderly() {
            let mut slot = window.oldest() & self.mask;
            while frames < used {
                let word = self.used[(self.done + frames) & self.mask].load(Ordering::Relaxed);
                if word as u32 != slot as u32 {
                    break;
                }
                slot = (slot + 1) & self.mask;
                frames += 1;
            }
            self.done += frames;
            window.retire(frames);
        }
        while self.done != self.seen {
            let word = self.used[self.done & self.mask].load(Ordering::Relaxed);
            window.complete(word as u32).ok_or(Fault::NotInFlight)?;
            self.done += 1;
        }
        Ok(frames + window.settle())
    }

    #[inline(always)]
    fn pending(&self) -> bool {
        self.seen != self.done || self.used_head[1].load(Ordering::Relaxed) != self.done as u16
    }

    fn watch(&self) -> Watch<'_> {
        Watch::on(&self.used_head[1])
    }

    fn arm(&mut self) {
        self.armed = true;
        if self.event_idx {
            self.set_event(self.done as u16);
        } else {
            self.available_head[0].store(0, Ordering::Relaxed);
        }
    }

    fn disarm(&mut self) {
        self.armed = false;
        if self.event_idx {
            // The position just passed: the device comes by again after 65,536 buffers, and by then it has been moved on.
            self.set_event((self.done as u16).wrapping_sub(1));
        } else {
            self.available_head[0].store(suppress::NONE, Ordering::Relaxed);
        }
    }
}
