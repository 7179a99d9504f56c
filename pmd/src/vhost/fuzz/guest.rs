//! A machine whose driver follows the rules, but for now and then.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use spinwake::mem::{PeerArea, PeerMemory, PeerRegion};
use spinwake::sys::mem::Memfd;

use super::super::chain::{INDIRECT, NEXT, WRITE};
use super::super::slot::RingKind;
use crate::fuzz::Input;

/// Bytes of the machine's memory.
pub(super) const SIZE: usize = 0x2_4000;

/// Offset, bytes and guest address of each region: the second follows the first in guest addresses too, the third does not.
/// Behind each of the last two, some of the file is in no region.
pub(super) const REGIONS: [(usize, usize, u64); 3] =
    [(0, 0xa000, 1 << 32), (0xa000, 0xe000, (1 << 32) + 0xa000), (0x1_a000, 0x8000, 1 << 40)];
const OUTSIDE: [(usize, usize); 2] = [(0x1_8000, 0x2000), (0x2_2000, 0x2000)];

/// What user addresses have that guest addresses do not.
pub(super) const USER: u64 = 1 << 46;

/// Rings lie one behind the other, each at most this long, then tables of 16 entries, then buffers.
pub(super) const LEN_MAX: u16 = 128;
const STRIDE: usize = 0x2000;
const TABLES: usize = 0x8000;
const TABLE: usize = 0x100;
const BUFFERS: usize = 0xc000;

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// The machine's memory, as it sees it by offset, and as the back end does by guest address.
pub(super) struct Guest {
    memfd: Memfd,
    mine: PeerArea,
    pub(super) shared: Arc<PeerMemory>,
}

impl Guest {
    pub(super) fn new() -> Self {
        let memfd = Memfd::new(c"machine", SIZE, None).expect("a memfd");
        let map = |guest, len: usize, offset: usize| {
            PeerRegion::map(guest, guest ^ USER, len as u64, memfd.as_fd(), offset as u64).expect("mapped memory")
        };
        let all = Arc::new(PeerMemory::new(vec![map(0, SIZE, 0)]).expect("one region"));
        let shared = REGIONS.map(|(offset, len, guest)| map(guest, len, offset)).into();
        let mine = all.area_at_guest(0, SIZE).expect("the whole of it");
        Self { mine, shared: Arc::new(PeerMemory::new(shared).expect("regions apart")), memfd }
    }

    /// The same memory, for another thread.
    pub(super) fn again(&self) -> Self {
        let mine = self.mine.memory().area_at_guest(0, SIZE).expect("the whole of it");
        let memfd = Memfd::new(c"none", 4096, None).expect("a memfd");
        Self { mine, shared: self.shared.clone(), memfd }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// As it was at first.
    pub(super) fn clear(&self) {
        self.mine.u64s(0, SIZE / 8).iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// All of it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let words = self.mine.u64s(0, SIZE / 8);
        words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
    }

    /// Whether nothing was written where no region is.
    pub(super) fn is_whole(&self) -> bool {
        OUTSIDE
            .iter()
            .all(|&(at, len)| self.mine.u64s(at, len / 8).iter().all(|word| word.load(Ordering::Relaxed) == 0))
    }

    /// The guest address of the byte at `offset`.
    pub(super) fn address(&self, offset: usize) -> u64 {
        let (start, _, guest) = REGIONS.iter().rfind(|region| region.0 <= offset).copied().unwrap_or(REGIONS[0]);
        guest + (offset - start) as u64
    }

    fn u16(&self, at: usize) -> u16 {
        self.mine.u16s(at, 1)[0].load(Ordering::Acquire)
    }

    fn set_u16(&self, at: usize, value: u16) {
        self.mine.u16s(at, 1)[0].store(value, Ordering::Release);
    }

    /// Writes any 16 bits anywhere.
    pub(super) fn spoil(&self, input: &mut Input<'_>) {
        let (at, value) = (usize::from(input.u16()) * 2, input.u16());
        if !OUTSIDE.iter().any(|&(start, len)| (start..start + len).contains(&at)) && at < SIZE {
            self.set_u16(at, value);
        }
    }
}

/// The driver's half of ring number `number`, written as plainly as the specification has it.
#[derive(Debug, Clone)]
pub(super) struct Driver {
    pub(super) kind: RingKind,
    pub(super) len: u16,
    base: usize,
    /// The available index, or the next place and its wrap counter.
    next: u16,
    wrap: bool,
}

impl Driver {
    pub(super) fn new(kind: RingKind, len: u16, number: usize) -> Self {
        Self { kind, len, base: number * STRIDE, next: 0, wrap: true }
    }

    /// Offset and bytes of its areas (2.7, 2.8.10).
    pub(super) fn areas(&self) -> [(usize, usize); 3] {
        let len = usize::from(self.len);
        let (driver, device) = match self.kind {
            RingKind::Split => (6 + 2 * len, 6 + 8 * len),
            RingKind::Packed => (4, 4),
        };
        [(self.base, 16 * len), (self.base + 0x1000, driver), (self.base + 0x1800, device)]
    }

    fn write(&self, guest: &Guest, at: usize, [addr, len, flags, link]: [u64; 4]) {
        guest.mine.u64s(at, 1)[0].store(addr, Ordering::Relaxed);
        guest.mine.u32s(at + 8, 1)[0].store(len as u32, Ordering::Relaxed);
        let (flags_at, link_at) = if self.kind == RingKind::Split { (12, 14) } else { (14, 12) };
        guest.set_u16(at + link_at, link as u16);
        guest.set_u16(at + flags_at, flags as u16);
    }

    /// Puts a chain of some buffers into the ring, all of it as the rules say.
    pub(super) fn add(&mut self, guest: &Guest, input: &mut Input<'_>, to_driver: bool) {
        let pieces = input.pick(&[1, 1, 1, 2, 3, 16]);
        let indirect = input.u8() & 3 == 0;
        let first = self.next;
        let places = if indirect { 1 } else { pieces.min(usize::from(self.len)) };
        let table = TABLES + (usize::from(first) % 64) * TABLE;
        let flag = if to_driver { WRITE } else { 0 };
        let entry = |n: usize, input: &mut Input<'_>| {
            let at = BUFFERS + 64 * usize::from(input.u8());
            let len = input.pick(&[72, 72, 76, 12, 13, 1526, 2060, 2061, 64, 1, 9000, 0x4000]);
            let more = if n + 1 < pieces { NEXT } else { 0 };
            (guest.address(at), len, flag | more)
        };
        if indirect {
            for n in 0..pieces {
                let (addr, len, flags) = entry(n, input);
                self.write(guest, table + 16 * n, [addr, len, flags.into(), n as u64 + 1]);
            }
        }
        let mut head_flags = (0, 0);
        for n in 0..places {
            let at = self.base + 16 * usize::from(self.next % self.len);
            let (addr, len, mut flags) =
                if indirect { (guest.address(table), 16 * pieces as u64, INDIRECT) } else { entry(n, input) };
            if n + 1 == places {
                flags &= !NEXT;
            }
            match self.kind {
                RingKind::Split => {
                    let link = (self.next.wrapping_add(1)) % self.len;
                    self.write(guest, at, [addr, len, flags.into(), link.into()]);
                    self.next = self.next.wrapping_add(1);
                }
                RingKind::Packed => {
                    flags |= if self.wrap { AVAIL } else { USED };
                    if n == 0 {
                        head_flags = (at + 14, flags);
                        flags ^= AVAIL | USED;
                    }
                    self.write(guest, at, [addr, len, flags.into(), (first % self.len).into()]);
                    self.next = (self.next + 1) % self.len;
                    self.wrap ^= self.next == 0;
                }
            }
        }
        match self.kind {
            RingKind::Split => {
                // Descriptors are taken by position, so a chain of several leaves some unused.
                let index = guest.u16(self.base + 0x1002);
                guest.set_u16(self.base + 0x1004 + 2 * usize::from(index % self.len), first % self.len);
                guest.set_u16(self.base + 0x1002, index.wrapping_add(1));
            }
            RingKind::Packed => guest.set_u16(head_flags.0, head_flags.1),
        }
    }

    /// Says when it wants to be told.
    pub(super) fn wish(&self, guest: &Guest, input: &mut Input<'_>) {
        let at = self.base + 0x1000;
        match self.kind {
            RingKind::Split if input.flag() => guest.set_u16(at, input.u8().into()),
            RingKind::Split => guest.set_u16(at + 4 + 2 * usize::from(self.len), input.u16()),
            RingKind::Packed => {
                guest.set_u16(at, input.u16());
                guest.set_u16(at + 2, input.u8().into());
            }
        }
    }

    /// Writes something that is nearly right, or all wrong.
    pub(super) fn scribble(&self, guest: &Guest, input: &mut Input<'_>) {
        let ends: [usize; 4] = [0xa000 - 40, 0x1_8000 - 40, 0x2_2000 - 40, 0x1_8000];
        let addr = match input.below(8) {
            0 => input.u64(),
            1 => input.pick(&[0, u64::MAX, u64::MAX - 10, (1 << 32) - 1, 1 << 40]),
            2 => guest.address(input.pick(&ends)),
            3 => guest.address(TABLES + 16 * usize::from(input.u8())),
            // The ring itself: what is written there changes what is read.
            4 => guest.address(self.base + 16 * usize::from(input.u8())),
            5 => guest.address(self.base + 0x1000 + 16 * usize::from(input.u8())),
            _ => guest.address(BUFFERS + 64 * usize::from(input.u8())),
        };
        let len =
            input.pick(&[0, 1, 11, 12, 13, 16, 32, 64, 72, 256, 1530, 2060, 2061, 9000, 65_569, 80_000, u32::MAX]);
        let flags = input.pick(&[0, 0, NEXT, NEXT, WRITE, WRITE, WRITE | NEXT, INDIRECT, INDIRECT | NEXT, 7, 0xff7f]);
        let link = u16::from(input.u8());
        let at = match input.below(3) {
            0 => TABLES + 16 * usize::from(input.u8()),
            _ => self.base + 16 * usize::from(link % self.len.max(1)),
        };
        let turn = if self.kind == RingKind::Packed { input.pick(&[AVAIL, USED, 0, AVAIL | USED]) } else { 0 };
        self.write(guest, at, [addr, len.into(), u64::from(flags & !turn ^ turn), link.into()]);
        if self.kind == RingKind::Split {
            let index = guest.u16(self.base + 0x1002);
            match input.below(8) {
                0 => guest.set_u16(self.base + 0x1002, input.u16()),
                1 => guest.set_u16(self.base + 0x1002, index.wrapping_sub(1)),
                2..4 => guest.set_u16(self.base + 0x1004 + 2 * usize::from(index % LEN_MAX), input.u8().into()),
                _ => guest.set_u16(self.base + 0x1002, index.wrapping_add(1)),
            }
        }
    }
}
