//! Another process's memory, mapped here from the file descriptors that it sent: where a virtual machine keeps its frames.
//!
//! ```text
//! fd, offset, len ──▶ PeerRegion ─┐
//! fd, offset, len ──▶ PeerRegion ─┴▶ PeerMemory ──▶ PeerView ──at(address, len)──▶ PeerSlice   frames: copied in and out
//!                                         └──area_at_user(address, len)──▶ PeerArea            rings: atomics
//! ```
//!
//! The peer may write to all of it at any time, and every address comes from it. So an address is looked up before it is used,
//! no reference ever points at the peer's bytes (atomics aside), and what was read once is not read again: bytes are copied
//! out, and checked as a copy.
//!
//! What this cannot guard against: a peer that shrinks its file after it was mapped makes a touch of the pages beyond the
//! new end a SIGBUS, which ends this process. [`PeerRegion::can_shrink`] tells whether the peer could. QEMU seals its
//! `memory-backend-memfd` against it; files in hugetlbfs, as DPDK uses them, cannot be sealed.
#![expect(unsafe_code, reason = "memory that another process writes too")]

mod area;
mod slice;

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::Arc;

pub use area::PeerArea;
pub use slice::PeerSlice;

use crate::sys::mem::{Mapping, can_shrink};

/// The smallest page of the machines that we run on.
const PAGE: u64 = 4096;

/// A peer's memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Nothing, or more than addresses can name.
    #[error(
        "the peer's memory region at {guest:#x} has an impossible length of {len:#x} bytes from offset {offset:#x}; the \
         peer is broken"
    )]
    Length {
        /// Where the peer has it.
        guest: u64,
        /// Bytes.
        len: u64,
        /// Where it starts in its file.
        offset: u64,
    },
    /// The file is shorter than the region.
    #[error(
        "the peer's memory region at {guest:#x} ends at byte {end:#x} of its file, which has {size:#x}; the peer is broken, \
         or sent a descriptor that is no memory"
    )]
    Short {
        /// Where the peer has it.
        guest: u64,
        /// Where it would end.
        end: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// Two regions lie over each other.
    #[error("the peer's memory regions at {first:#x} and {second:#x} overlap; the peer is broken")]
    Overlap {
        /// One of them, by guest address.
        first: u64,
        /// The other.
        second: u64,
    },
    /// A call failed.
    #[error(
        "{call} of the peer's memory region at {guest:#x} failed: {source}; check that the peer's memory is shared \
         (QEMU: share=on)"
    )]
    Call {
        /// Which.
        call: &'static str,
        /// Where the peer has the region.
        guest: u64,
        /// The meaning of errno.
        source: io::Error,
    },
}

/// One piece of a peer's memory. Clones share the mapping.
///
/// # Invariant
///
/// `skip .. skip + len` lies inside `mapping`; neither `guest + len` nor `user + len` wraps.
#[derive(Clone)]
pub struct PeerRegion {
    guest: u64,
    user: u64,
    len: u64,
    mapping: Arc<Mapping>,
    /// Bytes of the mapping before the region.
    skip: usize,
    can_shrink: bool,
}

impl PeerRegion {
    /// Maps `len` bytes of `fd` from byte `offset`, which the peer calls `guest` in its rings and `user` in its own process.
    /// The descriptor is not needed afterwards.
    ///
    /// # Errors
    ///
    /// When the numbers make no sense, the file is shorter, or it cannot be mapped.
    pub fn map(guest: u64, user: u64, len: u64, fd: BorrowedFd<'_>, offset: u64) -> Result<Self, PeerError> {
        let end = offset.checked_add(len).filter(|&end| end <= i64::MAX as u64 - (1 << 31));
        let wraps = guest.checked_add(len).is_none() || user.checked_add(len).is_none();
        let Some(end) = end.filter(|_| len > 0 && !wraps && usize::try_from(len).is_ok()) else {
            return Err(PeerError::Length { guest, len, offset });
        };
        let in_call = |call| move |source| PeerError::Call { call, guest, source };
        let file = File::from(fd.try_clone_to_owned().map_err(in_call("dup"))?);
        let about = file.metadata().map_err(in_call("fstat"))?;
        if !about.is_file() || about.size() < end {
            return Err(PeerError::Short { guest, end, size: about.size() });
        }
        // A file in hugetlbfs is mapped, and unmapped, in whole pages of its own; its block size tells which.
        let page = about.blksize().max(PAGE);
        let page = if page.is_power_of_two() && page <= 1 << 30 { page } else { PAGE };
        let start = offset & !(page - 1);
        let mapping = Mapping::shared_untouched(fd, start, (end - start).next_multiple_of(page) as usize)
            .map_err(in_call("mmap"))?;
        let skip = (offset - start) as usize;
        Ok(Self { guest, user, len, mapping: Arc::new(mapping), skip, can_shrink: can_shrink(fd) })
    }

    /// Where the peer has it, as its rings say it.
    pub fn guest(&self) -> u64 {
        self.guest
    }

    /// Where the peer has it in its own process.
    pub fn user(&self) -> u64 {
        self.user
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "a region has at least one byte")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the peer, or whoever else has the file, may make it shorter, which would end this process.
    pub fn can_shrink(&self) -> bool {
        self.can_shrink
    }

    fn extent(&self) -> Extent {
        // SAFETY: inside the mapping (type invariant).
        let base = unsafe { self.mapping.as_ptr().add(self.skip) };
        Extent { start: self.guest, len: self.len, base }
    }
}

impl fmt::Debug for PeerRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerRegion({:#x}, {:#x} bytes, {:#x} there)", self.guest, self.len, self.user)
    }
}

/// All memory that a peer shares, in regions that do not overlap.
#[derive(Debug, Default)]
pub struct PeerMemory {
    /// By guest address.
    regions: Box<[PeerRegion]>,
}

impl PeerMemory {
    /// The memory of these regions.
    ///
    /// # Errors
    ///
    /// When two of them overlap, in either numbering: an address would be ambiguous.
    pub fn new(mut regions: Vec<PeerRegion>) -> Result<Self, PeerError> {
        fn check(regions: &[PeerRegion], start: fn(&PeerRegion) -> u64) -> Result<(), PeerError> {
            match regions.windows(2).find(|pair| start(&pair[0]) + pair[0].len > start(&pair[1])) {
                Some(pair) => Err(PeerError::Overlap { first: pair[0].guest, second: pair[1].guest }),
                None => Ok(()),
            }
        }
        regions.sort_by_key(PeerRegion::user);
        check(&regions, PeerRegion::user)?;
        regions.sort_by_key(PeerRegion::guest);
        check(&regions, PeerRegion::guest)?;
        Ok(Self { regions: regions.into() })
    }

    /// Its regions, by guest address.
    pub fn regions(&self) -> &[PeerRegion] {
        &self.regions
    }

    /// The `len` bytes at `guest`; `None` unless one region has all of them.
    pub fn at(&self, guest: u64, len: usize) -> Option<PeerSlice<'_>> {
        self.region(guest)?.extent().slice(guest, len)
    }

    /// The `len` bytes at `user`, an address of the peer's own process, for a ring; `None` unless one region has all.
    pub fn area_at_user(self: &Arc<Self>, user: u64, len: usize) -> Option<PeerArea> {
        let region = self.regions.iter().find(|region| user.wrapping_sub(region.user) < region.len)?;
        self.area_at_guest(region.guest + (user - region.user), len)
    }

    /// The `len` bytes at `guest`, for a ring; `None` unless one region has all.
    pub fn area_at_guest(self: &Arc<Self>, guest: u64, len: usize) -> Option<PeerArea> {
        let slice = self.at(guest, len)?;
        // SAFETY: the slice lies in a region of `self`, which the area keeps.
        Some(unsafe { PeerArea::new(slice, guest, self.clone()) })
    }

    fn region(&self, guest: u64) -> Option<&PeerRegion> {
        let after = self.regions.partition_point(|region| region.guest <= guest);
        self.regions[..after].last().filter(|region| guest - region.guest < region.len)
    }
}

/// A part of guest addresses, and where it is here.
#[derive(Debug, Clone, Copy)]
struct Extent {
    start: u64,
    len: u64,
    base: NonNull<u8>,
}

impl Extent {
    const NOWHERE: Self = Self { start: 0, len: 0, base: NonNull::dangling() };

    /// The `len` bytes at `guest`, if all of them are here. The caller keeps the region mapped for `'a`.
    #[inline(always)]
    fn slice<'a>(self, guest: u64, len: usize) -> Option<PeerSlice<'a>> {
        let offset = guest.wrapping_sub(self.start);
        if offset >= self.len || len as u64 > self.len - offset {
            return None;
        }
        // SAFETY: an extent is a region's (every maker takes it from one, or is `NOWHERE`, which is empty), and `offset`
        // is less than its length.
        let ptr = unsafe { self.base.add(offset as usize) };
        // SAFETY: `len` bytes from there are in the region, which the caller keeps mapped.
        Some(unsafe { PeerSlice::new(ptr, len) })
    }

    #[inline(always)]
    fn up_to<'a>(self, guest: u64, len: usize) -> Option<PeerSlice<'a>> {
        let offset = guest.wrapping_sub(self.start);
        if offset >= self.len { None } else { self.slice(guest, (self.len - offset).min(len as u64) as usize) }
    }
}

/// A peer's memory as one worker sees it: an address is looked up first in the region where the last one was.
///
/// # Invariant
///
/// `last` is a region of `memory`, or empty.
#[derive(Debug)]
pub struct PeerView {
    memory: Arc<PeerMemory>,
    last: Cell<Extent>,
}

// SAFETY: `last` points into memory that `memory` keeps mapped, on whichever thread.
unsafe impl Send for PeerView {}

impl PeerView {
    /// A view of `memory`.
    pub fn new(memory: Arc<PeerMemory>) -> Self {
        Self { memory, last: Cell::new(Extent::NOWHERE) }
    }

    /// What it is a view of.
    pub fn memory(&self) -> &Arc<PeerMemory> {
        &self.memory
    }

    /// The `len` bytes at `guest`; `None` unless one region has all of them.
    #[inline(always)]
    pub fn at(&self, guest: u64, len: usize) -> Option<PeerSlice<'_>> {
        match self.last.get().slice(guest, len) {
            None => self.elsewhere(guest)?.slice(guest, len),
            found => found,
        }
    }

    /// The bytes at `guest`, `len` or as many as follow each other here: what lies across two regions is walked in pieces.
    /// `None` when not even the first is anywhere; never empty unless `len` is zero.
    #[inline(always)]
    pub fn up_to(&self, guest: u64, len: usize) -> Option<PeerSlice<'_>> {
        match self.last.get().up_to(guest, len) {
            None => self.elsewhere(guest)?.up_to(guest, len),
            found => found,
        }
    }

    #[cold]
    #[inline(never)]
    fn elsewhere(&self, guest: u64) -> Option<Extent> {
        let extent = self.memory.region(guest)?.extent();
        self.last.set(extent);
        Some(extent)
    }
}

#[cfg(test)]
mod tests;
