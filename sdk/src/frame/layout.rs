//! Where the buffers of a pool lie in its memory.
//!
//! No buffer straddles two pages: a device behind an IOMMU then always finds it in one piece. Hardware does not care, but
//! QEMU's NIC models silently drop a frame whose transmit buffer they cannot map at once, and two neighbouring pages of a
//! process are rarely neighbours in the guest's memory.
//!
//! What is left of a page shifts its buffers by a few cache lines, so that pages that hold but one buffer do not crowd
//! their frames into the same sets of the L1 cache.

use super::STRIDE;
use crate::mem::PageSize;

const CACHE_LINE: usize = 64;

/// A placement of buffers in pages of one size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    page: usize,
    per_page: usize,
    /// Positions, a cache line apart, at which the first buffer of a page may start.
    shifts: usize,
}

impl Layout {
    pub(super) fn of(page: PageSize) -> Self {
        let page = page.bytes();
        let per_page = page / STRIDE;
        Self { page, per_page, shifts: (page - per_page * STRIDE) / CACHE_LINE + 1 }
    }

    /// Bytes of memory for `count` buffers.
    pub(super) fn bytes(self, count: usize) -> usize {
        count.div_ceil(self.per_page) * self.page
    }

    /// Where buffer `index` starts.
    pub(super) fn offset(self, index: usize) -> usize {
        let (page, place) = (index / self.per_page, index % self.per_page);
        page * self.page + page % self.shifts * CACHE_LINE + place * STRIDE
    }

    /// Which buffer holds the byte at `offset`, one at which some buffer starts.
    pub(super) fn index(self, offset: usize) -> usize {
        // The shift is less than a buffer, so it does not change the quotient.
        offset / self.page * self.per_page + offset % self.page / STRIDE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_lie_in_one_page_each_and_do_not_overlap() {
        for size in PageSize::ALL {
            let layout = Layout::of(size);
            let count = 3 * layout.per_page.min(2000) + 1;
            let mut end = 0;
            for index in 0..count {
                let start = layout.offset(index);
                assert!(start >= end, "{size}: buffer {index} begins in the one before");
                end = start + STRIDE;
                assert_eq!(start / size.bytes(), (end - 1) / size.bytes(), "{size}: buffer {index} straddles");
                assert_eq!((layout.index(start), start % CACHE_LINE), (index, 0));
            }
            assert!(end <= layout.bytes(count));
        }
    }
}
