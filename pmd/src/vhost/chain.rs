//! Chains of descriptors, gathered before any of their bytes is touched, and walked to copy a frame in or out.
//!
//! A descriptor is read once, into a [`Desc`], and judged as that copy: the peer may change its memory at any time.

use spinwake::mem::{DirtyLog, PeerSlice, PeerView};

use super::slot::RingOffence;

/// Bytes of a descriptor, in a ring or a table.
pub(super) const DESC_BYTES: usize = 16;

/// Descriptors in a chain at most: what QEMU's rings have at most, too.
pub(super) const MOST_PIECES: usize = 1024;

/// More descriptors follow.
pub(super) const NEXT: u16 = 1;
/// The device writes (2.7.5): into receive buffers. Without it, it reads.
pub(super) const WRITE: u16 = 2;
/// The buffer is a table of descriptors (2.7.5.3).
pub(super) const INDIRECT: u16 = 4;

/// A descriptor, as it was when it was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    /// The next in the chain in a split ring, the buffer's id in a packed one.
    pub(super) link: u16,
}

impl Desc {
    /// From the two words of a descriptor in a split ring or its tables (2.7.5).
    #[inline(always)]
    pub(super) fn split(addr: u64, word: u64) -> Self {
        Self { addr, len: word as u32, flags: (word >> 32) as u16, link: (word >> 48) as u16 }
    }

    /// From the two words of a descriptor in a packed ring or its tables (2.8.13).
    #[inline(always)]
    pub(super) fn packed(addr: u64, word: u64) -> Self {
        Self { addr, len: word as u32, flags: (word >> 48) as u16, link: (word >> 32) as u16 }
    }

    /// Whether it is a whole chain by itself.
    #[inline(always)]
    pub(super) fn is_plain<const TO_PEER: bool>(self) -> bool {
        self.flags & (NEXT | WRITE | INDIRECT) == if TO_PEER { WRITE } else { 0 }
    }
}

/// How the descriptors of an indirect table follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TableKind {
    /// By their links.
    Linked,
    /// One after the other (2.8.7).
    InOrder,
}

pub(super) const fn offence(what: &'static str, value: u64) -> RingOffence {
    RingOffence { what, value }
}

/// The buffers of one chain or several, in guest addresses.
#[derive(Debug)]
pub(super) struct Pieces {
    list: Vec<(u64, u32)>,
    bytes: u64,
}

impl Pieces {
    /// None, with room for any chain.
    pub(super) fn new() -> Self {
        Self { list: Vec::with_capacity(2 * MOST_PIECES), bytes: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.bytes = 0;
    }

    /// Bytes in all.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether another chain, however long, still has room.
    pub(super) fn has_room(&self) -> bool {
        self.list.len() <= MOST_PIECES
    }

    /// Adds the buffer of a descriptor, which is no table.
    pub(super) fn add<const TO_PEER: bool>(&mut self, desc: Desc) -> Result<(), RingOffence> {
        if (desc.flags & WRITE != 0) != TO_PEER {
            return Err(offence("a descriptor goes the wrong way, at guest address", desc.addr));
        }
        if desc.len == 0 {
            return Err(offence("a descriptor has no bytes, at guest address", desc.addr));
        }
        if self.list.len() == self.list.capacity() {
            return Err(offence("a chain has more descriptors than", MOST_PIECES as u64));
        }
        self.list.push((desc.addr, desc.len));
        self.bytes += u64::from(desc.len);
        Ok(())
    }

    /// Adds the buffers of an indirect table.
    pub(super) fn add_table<const TO_PEER: bool>(
        &mut self,
        view: &PeerView,
        table: Desc,
        kind: TableKind,
    ) -> Result<(), RingOffence> {
        if table.flags & NEXT != 0 {
            return Err(offence("an indirect descriptor has a next one, at guest address", table.addr));
        }
        let count = table.len as usize / DESC_BYTES;
        if count == 0 || count > MOST_PIECES || !(table.len as usize).is_multiple_of(DESC_BYTES) {
            return Err(offence("an indirect table has an impossible length of bytes:", table.len.into()));
        }
        let words = |i: usize| {
            let addr = table.addr.wrapping_add((i * DESC_BYTES) as u64);
            let entry = view.at(addr, DESC_BYTES).ok_or(offence("no memory for a table at guest address", addr))?;
            Ok((entry.u64_at(0).unwrap_or(0), entry.u64_at(8).unwrap_or(0)))
        };
        let mut at = 0;
        for step in 1..=count {
            let (addr, word) = words(at)?;
            let mut desc = if kind == TableKind::Linked { Desc::split(addr, word) } else { Desc::packed(addr, word) };
            if kind == TableKind::InOrder && !TO_PEER {
                // DPDK 22.11 writes these tables once, for either direction, and leaves the flag set on what is only read.
                desc.flags &= !WRITE;
            }
            if desc.flags & INDIRECT != 0 {
                return Err(offence("an indirect table in another, at guest address", table.addr));
            }
            self.add::<TO_PEER>(desc)?;
            match kind {
                TableKind::InOrder => at = step,
                TableKind::Linked if desc.flags & NEXT == 0 => return Ok(()),
                TableKind::Linked => at = desc.link.into(),
            }
            if kind == TableKind::Linked && at >= count {
                return Err(offence("a table's descriptor has a next one beyond its end:", at as u64));
            }
        }
        match kind {
            TableKind::InOrder => Ok(()),
            TableKind::Linked => Err(offence("an indirect table runs in a circle, at guest address", table.addr)),
        }
    }

    /// From their first byte on.
    pub(super) fn walk<'a>(&'a self, view: &'a PeerView) -> Walk<'a> {
        Walk { left: &self.list, done: 0, view }
    }
}

/// A place in gathered buffers.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    left: &'a [(u64, u32)],
    /// Bytes of the first buffer that are behind.
    done: u32,
    view: &'a PeerView,
}

impl<'a> Walk<'a> {
    /// Copies the next bytes out. All of `to` is filled, or the ring is lost.
    pub(super) fn read(&mut self, mut to: &mut [u8]) -> Result<(), RingOffence> {
        while !to.is_empty() {
            let (_, slice) = self.next(to.len())?;
            let n = slice.read_into(to);
            to = &mut to[n..];
        }
        Ok(())
    }

    /// Copies bytes in, all of `from`, or the ring is lost.
    pub(super) fn write(&mut self, mut from: &[u8], log: Option<&DirtyLog>) -> Result<(), RingOffence> {
        while !from.is_empty() {
            let (addr, slice) = self.next(from.len())?;
            let n = slice.write_from(from);
            if let Some(log) = log {
                log.mark(addr, n);
            }
            from = &from[n..];
        }
        Ok(())
    }

    /// The next bytes, at most `most`, and their guest address; never empty.
    fn next(&mut self, most: usize) -> Result<(u64, PeerSlice<'a>), RingOffence> {
        let Some((&(addr, len), rest)) = self.left.split_first() else {
            return Err(offence("a chain is shorter than its frame by bytes:", most as u64));
        };
        let addr = addr.wrapping_add(self.done.into());
        let left = (len - self.done) as usize;
        let slice = self.view.up_to(addr, left.min(most)).ok_or(offence("no memory at guest address", addr))?;
        if slice.len() == left {
            (self.left, self.done) = (rest, 0);
        } else {
            self.done += slice.len() as u32;
        }
        Ok((addr, slice))
    }
}
