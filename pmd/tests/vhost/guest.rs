//! A peer: memory, split rings as a driver keeps them, and the `vhost` crate's front end.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use spinwake::mem::{PeerArea, PeerMemory, PeerRegion};
use spinwake::sys::mem::Memfd;
use spinwake::sys::socket;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::rig::wait_until;

/// Where the guest has its memory, and where its process has it.
pub(crate) const GUEST: u64 = 0x1_0000_0000;
pub(crate) const USER: u64 = 0x7000_0000_0000;
pub(crate) const MEMORY: usize = 4 << 20;
pub(crate) const PAGE: u64 = 4096;
/// Descriptors of each ring.
pub(crate) const LEN: u16 = 64;
/// A header before each frame (5.1.6.1, VERSION_1).
pub(crate) const HEADER: usize = 12;

/// Bytes from one ring to the next, and to its parts: a page for each, so that a dirty log tells them apart.
const RING: u64 = 4 * PAGE;
const AVAILABLE: u64 = PAGE;
const USED: u64 = 2 * PAGE;
/// Where buffers start, two pages for each descriptor of each ring.
const BUFFERS: u64 = 1 << 20;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const LOG_ALL: u64 = 1 << 26;
pub(crate) const PROTOCOL: u64 = 1 << 30;
const WRITE: u64 = 2;

/// A virtual machine's memory.
pub(crate) struct Guest {
    pub(crate) memfd: Memfd,
    memory: PeerArea,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let memfd = Memfd::new(c"guest", MEMORY, None).unwrap();
        let region = PeerRegion::map(0, 0, MEMORY as u64, memfd.as_fd(), 0).unwrap();
        let memory = Arc::new(PeerMemory::new(vec![region]).unwrap());
        Self { memory: memory.area_at_guest(0, MEMORY).unwrap(), memfd }
    }

    pub(crate) fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: MEMORY as u64,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.memfd.as_fd().as_raw_fd(),
        }
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        self.memory.u8s(at as usize, len).iter().map(|byte| byte.load(Ordering::Relaxed)).collect()
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let to = self.memory.u8s(at as usize, bytes.len());
        to.iter().zip(bytes).for_each(|(to, from)| to.store(*from, Ordering::Relaxed));
    }

    fn u16(&self, at: u64) -> u16 {
        self.memory.u16s(at as usize, 1)[0].load(Ordering::Acquire)
    }

    pub(crate) fn set_u16(&self, at: u64, value: u16) {
        self.memory.u16s(at as usize, 1)[0].store(value, Ordering::Release);
    }
}

/// Where written pages are noted, a bit each.
pub(crate) struct Log {
    pub(crate) memfd: Memfd,
    bits: PeerArea,
}

impl Log {
    /// For all of the guest's addresses.
    pub(crate) const BYTES: u64 = (GUEST + MEMORY as u64) / PAGE / 8;

    pub(crate) fn new() -> Self {
        let bytes = Self::BYTES as usize;
        let memfd = Memfd::new(c"log", bytes, None).unwrap();
        let region = PeerRegion::map(0, 0, Self::BYTES, memfd.as_fd(), 0).unwrap();
        let bits = Arc::new(PeerMemory::new(vec![region]).unwrap()).area_at_guest(0, bytes).unwrap();
        Self { memfd, bits }
    }

    /// The pages of the guest's memory that are noted.
    pub(crate) fn pages(&self) -> BTreeSet<u64> {
        let bytes = self.bits.u8s(0, self.bits.len());
        let is_noted = |page: &u64| bytes[(page / 8) as usize].load(Ordering::Acquire) & 1 << (page % 8) != 0;
        let noted = (0..8 * Self::BYTES).filter(is_noted);
        noted.map(|page| page.checked_sub(GUEST / PAGE).expect("a page of the guest's")).collect()
    }
}

/// One split ring, from the driver's side. Offsets are into the guest's memory.
pub(crate) struct Ring {
    pub(crate) index: usize,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    added: u16,
    seen: u16,
    /// Where each descriptor's buffer was last.
    at: [u64; LEN as usize],
}

impl Ring {
    pub(crate) fn new(index: usize) -> Self {
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self { index, kick: eventfd(), call: eventfd(), added: 0, seen: 0, at: [0; LEN as usize] }
    }

    fn start(&self) -> u64 {
        self.index as u64 * RING
    }

    pub(crate) fn used_page(&self) -> u64 {
        self.start() + USED
    }

    pub(crate) fn available(&self) -> u64 {
        self.start() + AVAILABLE
    }

    /// Where descriptor `slot` has its buffer.
    pub(crate) fn buffer(&self, slot: u16) -> u64 {
        BUFFERS + (self.index as u64 * u64::from(LEN) + u64::from(slot)) * 2 * PAGE
    }

    pub(crate) fn addresses(&self, log: bool) -> VringConfigData {
        VringConfigData {
            queue_max_size: LEN,
            queue_size: LEN,
            flags: log.into(),
            desc_table_addr: USER + self.start(),
            used_ring_addr: USER + self.used_page(),
            avail_ring_addr: USER + self.available(),
            log_addr: log.then_some(GUEST + self.used_page()),
        }
    }

    /// Gives the device a buffer of `len` bytes, to write (`true`) or to read.
    pub(crate) fn add(&mut self, guest: &Guest, len: u32, write: bool) -> u16 {
        self.add_at(guest, self.buffer(self.added % LEN), len, write)
    }

    /// The same, with the buffer there.
    pub(crate) fn add_at(&mut self, guest: &Guest, at: u64, len: u32, write: bool) -> u16 {
        let slot = self.added % LEN;
        self.at[usize::from(slot)] = at;
        let descriptor = self.start() + 16 * u64::from(slot);
        let flags = if write { WRITE } else { 0 };
        guest.write(descriptor, &(GUEST + at).to_le_bytes());
        guest.write(descriptor + 8, &(u64::from(len) | flags << 32).to_le_bytes());
        guest.set_u16(self.available() + 4 + 2 * u64::from(slot), slot);
        self.added = self.added.wrapping_add(1);
        guest.set_u16(self.available() + 2, self.added);
        slot
    }

    /// Gives the device a frame to read.
    pub(crate) fn add_frame(&mut self, guest: &Guest, bytes: &[u8]) {
        let at = self.buffer(self.added % LEN);
        guest.write(at, &[0; HEADER]);
        guest.write(at + HEADER as u64, bytes);
        self.add(guest, (HEADER + bytes.len()) as u32, false);
        self.kick.write(1).unwrap();
    }

    /// What the device has used since the last time: slot and bytes.
    pub(crate) fn used(&mut self, guest: &Guest) -> Vec<(u16, u32)> {
        let end = guest.u16(self.used_page() + 2);
        let mut used = Vec::new();
        while self.seen != end {
            let at = self.used_page() + 4 + 8 * u64::from(self.seen % LEN);
            let entry = guest.read(at, 8);
            let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
            used.push((word(0) as u16, word(4)));
            self.seen = self.seen.wrapping_add(1);
        }
        used
    }

    /// What the device has written since the last time: where, and how many bytes.
    pub(crate) fn written(&mut self, guest: &Guest) -> Vec<(u64, usize)> {
        self.used(guest).into_iter().map(|(slot, len)| (self.at[usize::from(slot)], len as usize)).collect()
    }

    /// The frames that the device has written since the last time.
    pub(crate) fn received(&mut self, guest: &Guest) -> Vec<Vec<u8>> {
        let written = self.written(guest).into_iter();
        written.map(|(at, len)| guest.read(at + HEADER as u64, len - HEADER)).collect()
    }
}

/// The front end, connected.
pub(crate) struct Peer {
    pub(crate) frontend: Frontend,
    stream: UnixStream,
}

impl Peer {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::from_stream(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn from_stream(stream: UnixStream) -> Self {
        Self { frontend: Frontend::from_stream(stream.try_clone().unwrap(), 64), stream }
    }

    /// Agrees on what is offered of `wanted`, and on all of the protocol's features. Returns what was offered.
    pub(crate) fn negotiate(&mut self, wanted: u64) -> u64 {
        let front = &mut self.frontend;
        front.set_owner().unwrap();
        let offered = front.get_features().unwrap();
        let protocol = front.get_protocol_features().unwrap();
        front.set_protocol_features(protocol).unwrap();
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        front.set_features(offered & wanted).unwrap();
        offered
    }

    pub(crate) fn share(&self, guest: &Guest) {
        self.frontend.set_mem_table(&[guest.region()]).unwrap();
    }

    /// Sets a ring up and enables it, to go on at `base`.
    pub(crate) fn start(&mut self, ring: &Ring, base: u16, log: bool) {
        let (front, index) = (&mut self.frontend, ring.index);
        front.set_vring_num(index, LEN).unwrap();
        front.set_vring_base(index, base).unwrap();
        front.set_vring_addr(index, &ring.addresses(log)).unwrap();
        front.set_vring_call(index, &ring.call).unwrap();
        front.set_vring_kick(index, &ring.kick).unwrap();
        front.set_vring_enable(index, true).unwrap();
    }

    pub(crate) fn set_log(&self, memfd: &Memfd, bytes: u64) {
        let region =
            VhostUserDirtyLogRegion { mmap_size: bytes, mmap_offset: 0, mmap_handle: memfd.as_fd().as_raw_fd() };
        self.frontend.set_log_base(0, Some(region)).unwrap();
    }

    /// Sends a message with or without a number, and returns the number that is answered.
    pub(crate) fn ask(&self, request: u32, number: Option<u64>) -> u64 {
        let body = number.map_or(Vec::new(), |number| number.to_le_bytes().to_vec());
        (&self.stream).write_all(&message(request, &body)).unwrap();
        let mut answer = [0; 20];
        (&self.stream).read_exact(&mut answer).unwrap();
        assert_eq!(answer[..12], [request, 5, 8].map(u32::to_le_bytes).concat());
        u64::from_le_bytes(answer[12..].try_into().unwrap())
    }

    /// Waits until the other side has closed.
    pub(crate) fn wait_for_the_end(&self) {
        wait_for_the_end(&self.stream);
    }
}

/// A message that asks for an answer.
pub(crate) fn message(request: u32, body: &[u8]) -> Vec<u8> {
    let header = [request, 9, body.len() as u32].map(u32::to_le_bytes).concat();
    [&header[..], body].concat()
}

/// Waits until the other side of a socket has closed; what it says before is thrown away.
pub(crate) fn wait_for_the_end(stream: &UnixStream) {
    wait_until("the end of a connection", || match socket::receive(stream.as_fd(), &mut [0; 4096], &mut Vec::new()) {
        Ok(received) => received.bytes == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    });
}
