//! The driver's half of a virtqueue: where it lies in memory, and what its two kinds have in common.
//!
//! A descriptor is used at its own position: position `p` belongs to slot `p` modulo the ring's length, and positions count
//! up for ever. What stands where, by lines of the cache:
//!
//! ```text
//! split:   descriptors │ …flags,idx│ available entries │ used_event … │ …flags,idx│ used entries │ avail_event
//! packed:  descriptors │ driver's event suppression │ device's event suppression
//! ```
//!
//! The index of each split part shares no line with its entries, nor do the events: a device that writes one line does
//! not take another from the driver.

mod packed;
mod split;
mod suppress;

use std::fmt;
use std::sync::Arc;

use spinwake::dma::{Descriptor, DmaCells};
use spinwake::frame::{Burst, Pool, Posted, Verdicts};
use spinwake::sys::relax::Watch;

pub(super) use packed::Packed;
pub(super) use split::Split;

use super::features::Features;
use super::header::HEADER_LEN;
use super::tx::window::Window;

/// The two layouts of a virtqueue (VIRTIO 1.2, 2.7 and 2.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RingKind {
    /// Three areas: descriptors, available ring, used ring.
    Split,
    /// One ring of descriptors that both sides write, and two event suppression structures.
    Packed,
}

/// Bytes from one thing that two sides write to the next: processors fetch lines of 64 bytes in pairs.
const APART: usize = 128;
/// Regions and their parts come in pages.
const PAGE: usize = 4096;
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;

/// Where the three areas of a ring begin, in bytes from the start of its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Areas {
    /// The descriptors.
    pub(crate) descriptors: usize,
    /// What the driver writes: the available ring, or its event suppression structure.
    pub(crate) driver: usize,
    /// What the device writes: the used ring, or its event suppression structure.
    pub(crate) device: usize,
}

impl Areas {
    /// Of a ring at byte 0, and the byte behind it.
    const fn of(kind: RingKind, len: u16) -> (Self, usize) {
        let len = len as usize;
        let driver = (len * DESCRIPTOR).next_multiple_of(APART);
        match kind {
            RingKind::Split => {
                // Flags and index are the last four bytes before the entries' first line.
                let available = driver + APART;
                let used = (available + 2 * len + 2).next_multiple_of(APART) + APART;
                (Self { descriptors: 0, driver: available - 4, device: used - 4 }, used + 8 * len + 2)
            }
            RingKind::Packed => (Self { descriptors: 0, driver, device: driver + APART }, driver + 2 * APART),
        }
    }
}

/// Where one virtqueue lies: three areas inside some [`DmaCells`].
#[derive(Debug)]
pub(crate) struct RingMemory {
    kind: RingKind,
    len: u16,
    cells: Arc<DmaCells>,
    offset: usize,
}

impl RingMemory {
    /// Bytes of a ring of `len` descriptors: whole pages.
    pub(crate) const fn bytes(kind: RingKind, len: u16) -> usize {
        Areas::of(kind, len).1.next_multiple_of(PAGE)
    }

    /// A ring of `len` descriptors at byte `offset` of `cells`.
    ///
    /// # Panics
    ///
    /// If `len` is not a power of two, at least 2 and at most 32,768, or the ring does not lie within, at a page.
    pub(crate) fn new(kind: RingKind, len: u16, cells: Arc<DmaCells>, offset: usize) -> Self {
        assert!(len.is_power_of_two() && len >= 2, "a ring of {len} descriptors: a power of two is needed");
        assert!(offset.is_multiple_of(PAGE), "a ring begins at a page, not at byte {offset}");
        assert!(offset + Self::bytes(kind, len) <= cells.len(), "a ring at byte {offset} of {}", cells.len());
        Self { kind, len, cells, offset }
    }

    /// Its layout.
    pub(crate) fn kind(&self) -> RingKind {
        self.kind
    }

    /// Descriptors.
    pub(crate) fn len(&self) -> u16 {
        self.len
    }

    /// Where its areas begin in the cells.
    pub(crate) fn areas(&self) -> Areas {
        let (areas, _) = Areas::of(self.kind, self.len);
        Areas {
            descriptors: self.offset + areas.descriptors,
            driver: self.offset + areas.driver,
            device: self.offset + areas.device,
        }
    }

    /// The memory that it lies in.
    pub(crate) fn cells(&self) -> &Arc<DmaCells> {
        &self.cells
    }

    /// Zeroes it all.
    fn clear(&self) {
        for cell in self.cells.u64s(self.offset, Self::bytes(self.kind, self.len) / 8) {
            cell.store(0, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

/// How the device is told that a queue has something for it: a register write, or an eventfd.
pub(crate) trait Doorbell: Send + Sync + fmt::Debug {
    /// Tells it.
    fn ring(&self);
}

/// Who fills the buffers of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filler {
    /// The device: a receive queue.
    Device,
    /// The driver: a transmit queue.
    Driver,
}

/// The device is done with a buffer, it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Used {
    /// The slot of the buffer's first descriptor. Unchecked.
    pub(super) id: u32,
    /// Bytes that the device wrote. Unchecked.
    pub(super) len: u32,
}

/// What a ring cannot go on from: the device says what cannot be about whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The used index is ahead of all that the device was given.
    UsedIndex = 1,
    /// It returned a buffer that it does not have.
    NotInFlight = 2,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UsedIndex => "the device claims to have used more buffers than it was given",
            Self::NotInFlight => "the device returned a buffer that it does not have",
        })
    }
}

/// Descriptor flags (VIRTIO 1.2, 2.7.5 and 2.8.1).
pub(super) mod flag {
    /// The chain goes on.
    pub(in super::super) const NEXT: u16 = 1;
    /// The device writes the buffer.
    pub(in super::super) const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub(in super::super) const INDIRECT: u16 = 4;
}

/// The mechanics of a virtqueue of one kind, seen by its driver. Queues are made of it at compile time, so no burst
/// asks what kind it is.
pub(super) trait Ring: Send + fmt::Debug + Sized + 'static {
    /// What is needed to write descriptors one after another.
    type Cursor;

    /// The ring in `memory`, in its initial state.
    fn new(memory: RingMemory, features: Features, filler: Filler) -> Self;

    /// Brings memory and positions to their initial state. Only while the device does not touch the ring.
    fn reset(&mut self);

    /// The slots from `position` on, at most `most` of them, as far as the ring's end.
    fn run(&self, position: usize, most: usize) -> &[Descriptor];

    /// Ready to write the descriptors from `position` on, as far as the ring's end, with these flags. The first one belongs to
    /// the buffer whose first descriptor is at `head`, each one after it to one of its own.
    fn cursor(&self, position: usize, head: usize, flags: u16) -> Self::Cursor;

    /// Writes the next descriptor.
    fn put(cursor: &mut Self::Cursor, descriptor: &Descriptor, address: u64, len: u32);

    /// Writes the next descriptor of one whole buffer to receive into.
    fn put_empty(cursor: &mut Self::Cursor, descriptor: &Descriptor, address: u64);

    /// The words of entry `n` of a table of `of` descriptors.
    fn table_entry(address: u64, len: u32, n: usize, of: usize) -> [u64; 2];

    /// `n` buffers whose first descriptors stand one after another from `head` on are ready for the device.
    fn offer(&mut self, head: usize, n: usize);

    /// Hands over everything offered; the next descriptor to write is at `tail`. Returns whether the device wants to be
    /// told.
    fn publish(&mut self, tail: usize) -> bool;

    /// How many buffers the device may have used, out of `outstanding`, if a look is worth it when `want` are wanted.
    ///
    /// # Errors
    ///
    /// When it claims more than `outstanding`.
    fn ready(&mut self, want: usize, outstanding: usize) -> Result<usize, Fault>;

    /// Moves frames of one buffer each from the head of `posted` to `burst`, up to `most`, as far as the ring's end, as long
    /// as the device used them in order. With `headed`, only those whose header makes verdicts. Returns how many it
    /// moved, how many it looked for, and their bytes.
    fn harvest(
        &mut self,
        posted: &mut Posted,
        burst: &mut Burst,
        most: usize,
        headed: Option<impl FnMut(&[u8; HEADER_LEN]) -> Option<Verdicts>>,
    ) -> (usize, usize, usize);

    /// What the device used next; `None` when it has used no more out of `outstanding` buffers.
    ///
    /// # Errors
    ///
    /// As [`ready`](Self::ready).
    fn peek(&mut self, outstanding: usize) -> Result<Option<Used>, Fault>;

    /// Goes on to what the device uses after a buffer of `slots` descriptors.
    fn consume(&mut self, slots: usize);

    /// Takes out of `window` what the device has sent; returns how many frames, the oldest ones, can go home.
    ///
    /// # Errors
    ///
    /// When the device says what cannot be.
    fn reclaim(&mut self, window: &mut Window) -> Result<usize, Fault>;

    /// Whether the device has used something that was not consumed.
    fn pending(&self) -> bool;

    /// What is written when the device uses something.
    fn watch(&self) -> Watch<'_>;

    /// Asks for an interrupt at the next used buffer.
    fn arm(&mut self);

    /// Asks for no interrupts.
    fn disarm(&mut self);
}

/// Moves what is posted by a closure into `run` of `ring`, which the pool fills.
#[inline(always)]
pub(super) fn post<R: Ring>(ring: &R, posted: &mut Posted, pool: &mut Pool, most: usize) -> (usize, usize) {
    let run = ring.run(posted.tail(), most);
    let mut cursor = ring.cursor(posted.tail(), posted.tail(), flag::WRITE);
    let n = posted.post(pool, run, |descriptor, iova| {
        R::put_empty(&mut cursor, descriptor, iova.get() - HEADER_LEN as u64);
    });
    (n, run.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_lie_apart_and_aligned() {
        for len in (1..16).map(|shift| 1_u16 << shift) {
            let (split, end) = Areas::of(RingKind::Split, len);
            let n = usize::from(len);
            assert!(split.descriptors + 16 * n <= split.driver && split.driver + 6 + 2 * n <= split.device);
            assert!(split.device + 6 + 8 * n <= end && end <= RingMemory::bytes(RingKind::Split, len));
            // 2.7: alignment of available and used ring; the entries begin a line.
            assert!(split.driver % 2 == 0 && split.device % 4 == 0);
            assert!((split.driver + 4) % 128 == 0 && (split.device + 4) % 128 == 0);
            let (packed, end) = Areas::of(RingKind::Packed, len);
            assert!(packed.descriptors + 16 * n <= packed.driver && packed.driver + 128 == packed.device);
            assert!(packed.device + 4 <= end && packed.driver % 4 == 0);
        }
    }
}
