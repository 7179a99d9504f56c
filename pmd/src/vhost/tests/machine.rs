//! A virtual machine's memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use spinwake::mem::{PeerArea, PeerMemory, PeerRegion};
use spinwake::sys::mem::Memfd;

/// Bytes of all of it.
pub(super) const SIZE: usize = 16 << 20;

/// Where regions begin, and by which guest address: the second follows the first in guest addresses too, the third does not.
/// Behind each of the last two, some of the file is in no region.
const REGIONS: [(usize, usize, u64); 3] =
    [(0, 1 << 20, 1 << 32), (1 << 20, 7 << 20, (1 << 32) + (1 << 20)), (9 << 20, 6 << 20, 1 << 40)];

/// Where rings and tables end and buffers begin.
pub(super) const BUFFERS: usize = 0x2_0000;

/// The memory, as the machine sees it, by offset, and as the back end does, by guest address.
pub(super) struct Machine {
    mine: PeerArea,
    memory: Arc<PeerMemory>,
    pub(super) shared: Arc<PeerMemory>,
    next: usize,
}

impl Machine {
    pub(super) fn new() -> Self {
        let memfd = Memfd::new(c"machine", SIZE, None).unwrap();
        let map = |guest, len: usize, offset: usize| {
            PeerRegion::map(guest, guest ^ 1 << 62, len as u64, memfd.as_fd(), offset as u64).unwrap()
        };
        let memory = Arc::new(PeerMemory::new(vec![map(0, SIZE, 0)]).unwrap());
        let shared = REGIONS.map(|(offset, len, guest)| map(guest, len, offset)).into();
        let mine = memory.area_at_guest(0, SIZE).unwrap();
        Self { mine, memory, shared: Arc::new(PeerMemory::new(shared).unwrap()), next: BUFFERS }
    }

    /// The same memory, for another thread.
    pub(super) fn again(&self) -> Self {
        let mine = self.memory.area_at_guest(0, SIZE).unwrap();
        Self { mine, memory: self.memory.clone(), shared: self.shared.clone(), next: self.next }
    }

    /// The guest address of the byte at `offset`.
    pub(super) fn guest(&self, offset: usize) -> u64 {
        let (start, _, guest) = REGIONS.iter().rfind(|region| region.0 <= offset).unwrap();
        guest + (offset - start) as u64
    }

    /// The offset of a guest address.
    pub(super) fn offset(&self, guest: u64) -> usize {
        let (start, _, base) = REGIONS.iter().rfind(|region| region.2 <= guest).unwrap();
        start + (guest - base) as usize
    }

    /// Room for a buffer, which may lie across the first two regions. Used again after some megabytes.
    pub(super) fn room(&mut self, len: usize) -> usize {
        let [_, (second, second_len, _), (third, third_len, _)] = REGIONS;
        let end = if self.next < third { second + second_len } else { third + third_len };
        if self.next + len > end {
            self.next = if self.next < third { third } else { BUFFERS };
        }
        let at = self.next;
        self.next += len;
        at
    }

    /// Goes on giving out room from here.
    pub(super) fn seek(&mut self, at: usize) {
        self.next = at;
    }

    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        assert_eq!(self.memory.at(at as u64, bytes.len()).unwrap().write_from(bytes), bytes.len());
    }

    pub(super) fn read(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.at(at as u64, len).unwrap().read_into(&mut bytes);
        bytes
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        self.mine.u16s(at, 1)[0].load(Ordering::Acquire)
    }

    pub(super) fn set_u16(&self, at: usize, value: u16) {
        self.mine.u16s(at, 1)[0].store(value, Ordering::Release);
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        self.mine.u32s(at, 1)[0].load(Ordering::Acquire)
    }

    pub(super) fn set_u32(&self, at: usize, value: u32) {
        self.mine.u32s(at, 1)[0].store(value, Ordering::Release);
    }

    pub(super) fn set_u64(&self, at: usize, value: u64) {
        self.mine.u64s(at, 1)[0].store(value, Ordering::Release);
    }

    /// The parts of the file that are in no region.
    pub(super) fn outside() -> [std::ops::Range<usize>; 2] {
        [8 << 20..9 << 20, 15 << 20..SIZE]
    }
}
