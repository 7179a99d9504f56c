//! Which pages of a peer's memory were written: what a virtual machine that moves to another host copies again.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::peer::{PeerArea, PeerError, PeerMemory, PeerRegion};

/// Bytes that one bit stands for (Linux, `vhost_types.h`, VHOST_PAGE_SIZE).
const PAGE: u64 = 4096;

/// A log of written pages in memory that the peer shares, one bit a page of 4 KiB, the lowest first. Any thread may mark, while
/// the peer takes marks away.
#[derive(Debug)]
pub struct DirtyLog {
    bits: PeerArea,
}

impl DirtyLog {
    /// Maps the log: `len` bytes of `fd` from byte `offset`.
    ///
    /// # Errors
    ///
    /// As [`PeerRegion::map`].
    pub fn map(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Self, PeerError> {
        let region = PeerRegion::map(0, 0, len, fd, offset)?;
        let memory = Arc::new(PeerMemory::new(vec![region])?);
        let bits = memory.area_at_guest(0, len as usize).ok_or(PeerError::Length { guest: 0, len, offset })?;
        Ok(Self { bits })
    }

    /// Marks the pages of `len` bytes at guest address `guest`, which have been written. Pages beyond the log are not
    /// remembered: the peer chose its size.
    #[inline]
    pub fn mark(&self, guest: u64, len: usize) {
        if len == 0 {
            return;
        }
        let bits = self.bits.u8s(0, self.bits.len());
        let last = guest.saturating_add(len as u64 - 1) / PAGE;
        for page in guest / PAGE..=last {
            let Some(byte) = usize::try_from(page / 8).ok().and_then(|at| bits.get(at)) else { break };
            let bit = 1 << (page % 8);
            // Release: who finds the mark finds the bytes. Always an atomic write, though the mark may stand already: a look
            // at it could come before the bytes are visible, and the peer take mark and page in between.
            byte.fetch_or(bit, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sys::mem::Memfd;

    fn log(len: u64) -> DirtyLog {
        let memfd = Memfd::new(c"log", 8192, None).unwrap();
        DirtyLog::map(memfd.as_fd(), 64, len).unwrap()
    }

    proptest! {
        #[test]
        fn marks_are_those_of_every_page_with_a_byte_written(writes in prop::collection::vec((0u64..200 * PAGE, 0usize..10_000), 0..8)) {
            let log = log(16);
            let mut pages = [false; 128];
            for &(at, len) in &writes {
                log.mark(at, len);
                for byte in (at..at + len as u64).step_by(512).chain((len > 0).then_some(at + len as u64 - u64::from(len > 0))) {
                    if let Some(page) = pages.get_mut((byte / PAGE) as usize) {
                        *page = true;
                    }
                }
            }
            let bits = log.bits.u8s(0, 16);
            for (page, &written) in pages.iter().enumerate() {
                prop_assert_eq!(bits[page / 8].load(Ordering::Relaxed) >> (page % 8) & 1 == 1, written, "page {}", page);
            }
        }
    }

    #[test]
    fn a_write_at_the_end_of_all_addresses_does_not_matter() {
        log(16).mark(u64::MAX - 3, 8);
    }
}
