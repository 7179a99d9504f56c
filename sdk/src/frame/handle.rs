//! A frame: one packet in one buffer, or a chain of them.
#![expect(unsafe_code, reason = "a frame is exclusive access to its buffer")]

use std::fmt;
use std::ptr::NonNull;

use super::header::{Extra, Home};
use super::{DATA_ROOM, HEADROOM};

/// Bits of the flags.
pub(super) mod flag {
    pub(in super::super) const CHAINED: u16 = 1 << 0;
    pub(in super::super) const VLAN: u16 = 1 << 1;
    pub(in super::super) const RSS: u16 = 1 << 2;
    pub(in super::super) const L3_GOOD: u16 = 1 << 3;
    pub(in super::super) const L3_BAD: u16 = 1 << 4;
    pub(in super::super) const L4_GOOD: u16 = 1 << 5;
    pub(in super::super) const L4_BAD: u16 = 1 << 6;
    pub(in super::super) const SUM_L3: u16 = 1 << 7;
    pub(in super::super) const SUM_TCP: u16 = 1 << 8;
    pub(in super::super) const SUM_UDP: u16 = 1 << 9;
    pub(in super::super) const SEGMENT: u16 = 1 << 10;
    /// A device must do more than send one buffer as it is.
    pub(in super::super) const CARE: u16 = CHAINED | VLAN | SUM_L3 | SUM_TCP | SUM_UDP | SEGMENT;
}

/// What a device found out about a checksum of a received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// The device did not look.
    Unknown,
    /// It is right.
    Good,
    /// It is wrong.
    Bad,
}

/// What a device found out about both checksums of a received frame, ready to be noted: a driver makes a table of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdicts {
    /// In their places in a frame's word.
    bits: u64,
}

impl Verdicts {
    /// About the network header's checksum and the transport's.
    pub const fn new(l3: Checksum, l4: Checksum) -> Self {
        const fn bits(sum: Checksum, good: u16, bad: u16) -> u64 {
            match sum {
                Checksum::Unknown => 0,
                Checksum::Good => (good as u64) << 32,
                Checksum::Bad => (bad as u64) << 32,
            }
        }
        Self { bits: bits(l3, flag::L3_GOOD, flag::L3_BAD) | bits(l4, flag::L4_GOOD, flag::L4_BAD) }
    }
}

/// Which transport checksum a device shall fill in on transmit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4Checksum {
    /// None.
    None,
    /// TCP's.
    Tcp,
    /// UDP's.
    Udp,
}

/// What a large frame carries that a device shall cut into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

/// How a device shall cut a large frame: each piece gets a copy of the headers, with lengths, numbers and checksums of its
/// own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// What it carries.
    pub cut: Cut,
    /// Bytes of payload behind the transport header in each piece but the last: TCP's maximum segment size.
    pub payload: u16,
    /// The TCP header has the CWR bit, which only the first piece keeps.
    pub ecn: bool,
}

/// One packet, owned. Dropping it, on any thread, sends its buffer home.
///
/// A frame that is longer than a buffer is a chain: its first segment is here, and [`segments`](Self::segments) walks
/// all of them. Bytes are raw Ethernet, without preamble and frame check sequence.
///
/// # Invariant
///
/// `buffer` is a buffer of the pool whose id stands in `word`, and belongs to this frame alone. `word` packs, from the
/// low end, 16 bits each: bytes of data, offset of the data in the buffer, flags, pool id; offset and length together
/// stay inside the buffer. With `CHAINED` set, the header's `next` is a frame.
pub struct Frame {
    buffer: NonNull<u8>,
    word: u64,
}

// SAFETY: a frame is the only access to its buffer and header, and its way home is open to every thread.
unsafe impl Send for Frame {}
// SAFETY: `&Frame` only reads.
unsafe impl Sync for Frame {}

impl Frame {
    /// An empty frame in `buffer` of the pool `pool`.
    ///
    /// # Safety
    ///
    /// `buffer` is a buffer of that pool and belongs to nobody else.
    #[inline(always)]
    pub(super) unsafe fn empty(buffer: NonNull<u8>, pool: u16) -> Self {
        Self { buffer, word: u64::from(pool) << 48 | (HEADROOM as u64) << 16 }
    }

    /// A frame of `len` bytes out of an empty one, as its pool gave it.
    #[inline(always)]
    pub(super) fn filled_from_empty(mut self, len: usize) -> Self {
        debug_assert!(self.word & 0xffff_ffff_ffff == (HEADROOM as u64) << 16 && len <= DATA_ROOM);
        self.word |= len as u64;
        self
    }

    /// Whether it is of the pool `pool`, and none of the flags in `not` is set.
    #[inline(always)]
    pub(super) fn is_of(&self, pool: u16, not: u16) -> bool {
        self.word & (0xffff << 48 | u64::from(not) << 32) == u64::from(pool) << 48
    }

    /// Gives up the frame without sending its buffer home. The rest of a chain must have been taken off before.
    #[inline(always)]
    pub(super) fn into_buffer(self) -> NonNull<u8> {
        let buffer = self.buffer;
        std::mem::forget(self);
        buffer
    }

    /// The id of its pool.
    #[inline(always)]
    pub(super) fn pool(&self) -> u16 {
        (self.word >> 48) as u16
    }

    #[inline(always)]
    pub(super) fn flags(&self) -> u16 {
        (self.word >> 32) as u16
    }

    #[inline(always)]
    fn set_flags(&mut self, clear: u16, set: u16) {
        self.word = self.word & !(u64::from(clear) << 32) | u64::from(set) << 32;
    }

    #[inline(always)]
    fn offset(&self) -> usize {
        usize::from((self.word >> 16) as u16)
    }

    #[inline(always)]
    fn set_span(&mut self, offset: usize, len: usize) {
        debug_assert!(offset + len <= HEADROOM + DATA_ROOM);
        self.word = self.word & !0xffff_ffff | (offset as u64) << 16 | len as u64;
    }

    /// Bytes of data in the first segment; all of them, unless it is a chain.
    #[inline(always)]
    pub fn len(&self) -> usize {
        usize::from(self.word as u16)
    }

    /// Whether the first segment has no data.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of data in all segments.
    #[inline]
    pub fn total_len(&self) -> usize {
        if self.is_chained() { self.segments().map(Frame::len).sum() } else { self.len() }
    }

    /// Whether more segments follow the first.
    #[inline(always)]
    pub fn is_chained(&self) -> bool {
        self.flags() & flag::CHAINED != 0
    }

    /// Where the data starts in this process, for a driver that turns it into an address for its device.
    #[inline(always)]
    pub(super) fn data_ptr(&self) -> NonNull<u8> {
        // SAFETY: the offset stays inside the buffer (type invariant).
        unsafe { self.buffer.add(self.offset()) }
    }

    /// The data of the first segment.
    #[inline]
    pub fn data(&self) -> &[u8] {
        // SAFETY: data lies inside the buffer, which is initialised memory that belongs to this frame (type invariant).
        unsafe { std::slice::from_raw_parts(self.data_ptr().as_ptr(), self.len()) }
    }

    /// The data of the first segment, to change in place.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `data`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data_ptr().as_ptr(), self.len()) }
    }

    /// The segments, this frame first.
    pub fn segments(&self) -> Segments<'_> {
        Segments { at: Some(self) }
    }

    /// Says that the buffer now holds `len` bytes of data, starting where it starts now: what a driver calls when its
    /// device has filled the buffer, and a program before it writes a new frame.
    ///
    /// # Panics
    ///
    /// If there is no room for that many.
    #[inline(always)]
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.room(), "more bytes than the buffer has room for");
        self.set_span(self.offset(), len);
    }

    /// How long the data may become at most, from where it starts now.
    #[inline(always)]
    pub fn room(&self) -> usize {
        HEADROOM + DATA_ROOM - self.offset()
    }

    /// Replaces the data of the first segment by a copy of `bytes`.
    ///
    /// # Panics
    ///
    /// If there is no room for them.
    pub fn copy_from(&mut self, bytes: &[u8]) {
        self.set_len(bytes.len());
        self.data_mut().copy_from_slice(bytes);
    }

    /// Adds `n` bytes in front of the data and returns them to be written; `None` when the headroom is used up.
    #[inline]
    pub fn prepend(&mut self, n: usize) -> Option<&mut [u8]> {
        let offset = self.offset().checked_sub(n)?;
        self.set_span(offset, self.len() + n);
        Some(&mut self.data_mut()[..n])
    }

    /// The `N` bytes in front of the data; `None` where the headroom is shorter.
    #[inline(always)]
    pub fn headroom<const N: usize>(&self) -> Option<&[u8; N]> {
        let offset = self.offset().checked_sub(N)?;
        // SAFETY: the offset, and what is less, stays inside the buffer (type invariant).
        let at = unsafe { self.buffer.add(offset) };
        // SAFETY: the bytes up to the data lie inside the buffer, which is initialised memory that belongs to this frame
        // (type invariant); an array of bytes has no alignment.
        Some(unsafe { at.cast::<[u8; N]>().as_ref() })
    }

    /// Takes `n` bytes off the front of the first segment; returns whether it had that many.
    pub fn trim_front(&mut self, n: usize) -> bool {
        let enough = n <= self.len();
        if enough {
            self.set_span(self.offset() + n, self.len() - n);
        }
        enough
    }

    /// Shortens the first segment to `len` bytes; does nothing when it is not longer.
    pub fn truncate(&mut self, len: usize) {
        self.set_span(self.offset(), self.len().min(len));
    }

    /// Puts `tail` behind the last segment.
    pub fn chain(&mut self, tail: Frame) {
        let mut last = self;
        while last.is_chained() {
            last = last.extra_mut().next.as_mut().expect("a chained frame has a next segment (type invariant)");
        }
        last.extra_mut().next = Some(tail);
        last.set_flags(0, flag::CHAINED);
    }

    /// Takes off everything behind the first segment.
    pub fn unchain(&mut self) -> Option<Frame> {
        if !self.is_chained() {
            return None;
        }
        self.set_flags(flag::CHAINED, 0);
        self.extra_mut().next.take()
    }

    /// The VLAN tag (priority, DEI, id) that the device took out on receive, or shall put in on transmit.
    #[inline]
    pub fn vlan(&self) -> Option<u16> {
        (self.flags() & flag::VLAN != 0).then(|| self.extra().vlan)
    }

    /// Sets or removes the VLAN tag that the device shall put in on transmit.
    pub fn set_vlan(&mut self, tag: Option<u16>) {
        self.set_flags(flag::VLAN, if tag.is_some() { flag::VLAN } else { 0 });
        if let Some(tag) = tag {
            self.extra_mut().vlan = tag;
        }
    }

    /// The receive-side-scaling hash, where the port was asked for it.
    #[inline]
    pub fn rss_hash(&self) -> Option<u32> {
        (self.flags() & flag::RSS != 0).then(|| self.extra().rss_hash)
    }

    /// Records the hash: for drivers.
    pub fn set_rss_hash(&mut self, hash: u32) {
        self.set_flags(0, flag::RSS);
        self.extra_mut().rss_hash = hash;
    }

    /// What the device said about the network header's checksum.
    #[inline]
    pub fn l3_checksum(&self) -> Checksum {
        verdict(self.flags(), flag::L3_GOOD, flag::L3_BAD)
    }

    /// What the device said about the transport checksum.
    #[inline]
    pub fn l4_checksum(&self) -> Checksum {
        verdict(self.flags(), flag::L4_GOOD, flag::L4_BAD)
    }

    /// Records what the device said about the checksums: for drivers.
    #[inline]
    pub fn set_checksums(&mut self, l3: Checksum, l4: Checksum) {
        self.set_verdicts(Verdicts::new(l3, l4));
    }

    /// As [`set_checksums`](Self::set_checksums), in three instructions.
    #[inline(always)]
    pub fn set_verdicts(&mut self, verdicts: Verdicts) {
        const ALL: u64 = ((flag::L3_GOOD | flag::L3_BAD | flag::L4_GOOD | flag::L4_BAD) as u64) << 32;
        self.word = self.word & !ALL | verdicts.bits;
    }

    /// Asks the sending device to fill in checksums: the IPv4 header's if `l3`, and a transport's. `l2_len` bytes stand
    /// before the network header, which is `l3_len` bytes long. The transport field must hold the pseudo-header's sum.
    ///
    /// # Panics
    ///
    /// If `l2_len` is over 127 or `l3_len` over 511: no device takes more.
    pub fn request_checksums(&mut self, l2_len: usize, l3_len: usize, l3: bool, l4: L4Checksum) {
        assert!(l2_len < 128 && l3_len < 512, "header lengths {l2_len} and {l3_len} are out of range");
        let mut set = if l3 { flag::SUM_L3 } else { 0 };
        set |= match l4 {
            L4Checksum::None => 0,
            L4Checksum::Tcp => flag::SUM_TCP,
            L4Checksum::Udp => flag::SUM_UDP,
        };
        self.set_flags(flag::SUM_L3 | flag::SUM_TCP | flag::SUM_UDP, set);
        let extra = self.extra_mut();
        (extra.l2_len, extra.l3_len) = (l2_len as u8, l3_len as u16);
    }

    /// What [`request_checksums`](Self::request_checksums) asked for: `l2_len`, `l3_len`, network sum, transport sum.
    #[inline]
    pub fn requested_checksums(&self) -> Option<(usize, usize, bool, L4Checksum)> {
        let flags = self.flags();
        if flags & (flag::SUM_L3 | flag::SUM_TCP | flag::SUM_UDP) == 0 {
            return None;
        }
        let l4 = match flags & (flag::SUM_TCP | flag::SUM_UDP) {
            0 => L4Checksum::None,
            flag::SUM_TCP => L4Checksum::Tcp,
            _ => L4Checksum::Udp,
        };
        let extra = self.extra();
        Some((extra.l2_len.into(), extra.l3_len.into(), flags & flag::SUM_L3 != 0, l4))
    }

    /// Asks the sending device to cut the frame, or not to. Checksums must be requested too: a device fills them in for each
    /// piece.
    pub fn request_segmentation(&mut self, segmentation: Option<Segmentation>) {
        self.set_flags(flag::SEGMENT, if segmentation.is_some() { flag::SEGMENT } else { 0 });
        if let Some(segmentation) = segmentation {
            self.extra_mut().segmentation = Some(segmentation);
        }
    }

    /// What [`request_segmentation`](Self::request_segmentation) asked for.
    #[inline]
    pub fn requested_segmentation(&self) -> Option<Segmentation> {
        if self.flags() & flag::SEGMENT == 0 { None } else { self.extra().segmentation }
    }

    /// Whether a device must do more with it than send one buffer as it is: a chain, a VLAN tag, a checksum, a cut.
    #[inline(always)]
    pub fn needs_care(&self) -> bool {
        self.flags() & flag::CARE != 0
    }

    #[cold]
    fn extra(&self) -> &Extra {
        let extra = self.home().extra(self.buffer);
        // SAFETY: a header belongs to the owner of its buffer's frame (invariant of `Header`), which is borrowed here.
        unsafe { &*extra }
    }

    #[cold]
    fn extra_mut(&mut self) -> &mut Extra {
        let extra = self.home().extra(self.buffer);
        // SAFETY: as for `extra`; `&mut self` makes the access exclusive.
        unsafe { &mut *extra }
    }

    #[inline]
    pub(super) fn home(&self) -> &Home {
        // SAFETY: the home lives while this frame does (invariant of `Home`), which is borrowed as long as the result.
        unsafe { Home::of(self.pool()).as_ref() }
    }
}

fn verdict(flags: u16, good: u16, bad: u16) -> Checksum {
    if flags & bad != 0 {
        Checksum::Bad
    } else if flags & good != 0 {
        Checksum::Good
    } else {
        Checksum::Unknown
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // Segment by segment rather than by recursion: a chain's length is not ours to choose.
        let mut rest = self.unchain();
        while let Some(mut segment) = rest {
            rest = segment.unchain();
        }
        // SAFETY: the buffer is of that home (type invariant), belonged to this frame, and is not used again.
        unsafe { Home::give_back(Home::of(self.pool()), self.buffer) };
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("len", &self.len())
            .field("total_len", &self.total_len())
            .field("vlan", &self.vlan())
            .finish_non_exhaustive()
    }
}

/// Walks the segments of a frame.
#[derive(Debug)]
pub struct Segments<'a> {
    at: Option<&'a Frame>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a Frame;

    fn next(&mut self) -> Option<&'a Frame> {
        let frame = self.at?;
        self.at = if frame.is_chained() { frame.extra().next.as_ref() } else { None };
        Some(frame)
    }
}
