//! The kernel's answers to INFO calls: fixed fields, then a chain of capabilities. Read within bounds, never trusted.

use std::io;

use super::{IommuInfo, RegionInfo};

/// The bytes of an answer.
#[derive(Debug, Clone)]
pub struct Info {
    bytes: Vec<u8>,
}

impl Info {
    /// The answer that reads as `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// The 32 bits at byte `at`.
    pub fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    /// The 64 bits at byte `at`.
    pub fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }

    /// Where capability `id` starts, following the chain from `first`.
    ///
    /// struct vfio_info_cap_header: id and version of 16 bits each, then the offset of the next, zero at the end.
    fn capability(&self, first: u32, id: u16) -> Option<usize> {
        // The kernel defines fewer than ten, so a longer chain is a loop.
        const LONGEST: usize = 64;
        let mut at = first as usize;
        for _ in 0..LONGEST {
            if at == 0 {
                break;
            }
            if self.u32(at)? as u16 == id {
                return Some(at);
            }
            at = self.u32(at.checked_add(4)?)? as usize;
        }
        None
    }

    /// The `count` pairs of 64 bits from byte `at`, as many as are there.
    fn pairs(&self, at: usize, count: u32) -> Vec<(u64, u64)> {
        (0..count as usize)
            .map_while(|i| {
                let pair = at.checked_add(i.checked_mul(16)?)?;
                Some((self.u64(pair)?, self.u64(pair.checked_add(8)?)?))
            })
            .collect()
    }
}

/// struct vfio_iommu_type1_info: argsz, flags, iova_pgsizes, cap_offset.
pub(super) fn iommu(info: &Info) -> IommuInfo {
    const FLAG_PGSIZES: u32 = 1 << 0;
    const FLAG_CAPS: u32 = 1 << 1;
    const CAP_IOVA_RANGE: u16 = 1;
    const CAP_DMA_AVAIL: u16 = 3;
    let flags = info.u32(4).unwrap_or(0);
    let chain = info.u32(16).filter(|_| flags & FLAG_CAPS != 0).unwrap_or(0);
    // The capabilities' own fields follow their header of eight bytes; the ranges, a count and a reserved word.
    let ranges = info.capability(chain, CAP_IOVA_RANGE).map(|at| {
        let count = info.u32(at + 8).unwrap_or(0);
        info.pairs(at + 16, count).into_iter().map(|(start, end)| start..=end).collect()
    });
    IommuInfo {
        page_sizes: info.u64(8).filter(|_| flags & FLAG_PGSIZES != 0).unwrap_or(0),
        iova_ranges: ranges,
        entries_left: info.capability(chain, CAP_DMA_AVAIL).and_then(|at| info.u32(at + 8)),
    }
}

/// struct vfio_region_info: argsz, flags, index, cap_offset, size, offset.
pub(super) fn region(info: &Info) -> io::Result<RegionInfo> {
    const FLAG_CAPS: u32 = 1 << 3;
    const CAP_SPARSE_MMAP: u16 = 1;
    const CAP_MSIX_MAPPABLE: u16 = 3;
    let (Some(flags), Some(chain), Some(size), Some(offset)) = (info.u32(4), info.u32(12), info.u64(16), info.u64(24))
    else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let chain = if flags & FLAG_CAPS != 0 { chain } else { 0 };
    let sparse = info.capability(chain, CAP_SPARSE_MMAP).map(|at| {
        let count = info.u32(at + 8).unwrap_or(0);
        info.pairs(at + 16, count)
    });
    let msix_mappable = info.capability(chain, CAP_MSIX_MAPPABLE).is_some();
    Ok(RegionInfo { flags, size, offset, sparse, msix_mappable })
}

#[cfg(test)]
mod tests {
    use super::super::{put_u32s, put_u64s};
    use super::*;
    use proptest::prelude::*;

    fn words(values: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_u32s(&mut bytes, values);
        bytes
    }

    #[test]
    fn an_iommu_answer_is_read() {
        let mut bytes = words(&[88, 3, 0x1000, 0, 24, 0]);
        bytes.extend(words(&[1 << 16 | 3, 40, 65535, 0])); // at 24: DMA_AVAIL
        bytes.extend(words(&[1 << 16 | 1, 0, 2, 0])); // at 40: IOVA_RANGE
        put_u64s(&mut bytes, &[0, 0xfedf_ffff, 0xfef0_0000, (1 << 39) - 1]);
        let info = iommu(&Info::new(bytes));
        assert_eq!((info.page_sizes, info.entries_left), (0x1000, Some(65535)));
        assert_eq!(info.iova_ranges.unwrap(), [0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1]);
    }

    #[test]
    fn a_region_answer_is_read() {
        let mut bytes = words(&[80, 0xf, 0, 32, 0x4000, 0, 0x8000, 0]);
        bytes.extend(words(&[1 << 16 | 3, 40]));
        bytes.extend(words(&[1 << 16 | 1, 0, 1, 0]));
        put_u64s(&mut bytes, &[0x1000, 0x3000]);
        let region = region(&Info::new(bytes)).unwrap();
        assert_eq!((region.size, region.offset), (0x4000, 0x8000));
        assert_eq!(region.sparse.unwrap(), [(0x1000, 0x3000)]);
        assert!(region.msix_mappable);
    }

    #[test]
    fn a_chain_that_loops_or_leaves_the_answer_ends() {
        // At 32: points at itself. A count of 2^32 - 1 areas gives those that fit.
        assert!(!region(&Info::new(words(&[40, 8, 0, 32, 1, 0, 0, 0, 9, 32]))).unwrap().msix_mappable);
        assert!(region(&Info::new(words(&[32, 8, 0, u32::MAX, 1, 0, 0, 0]))).unwrap().sparse.is_none());
        let sparse = region(&Info::new(words(&[48, 8, 0, 32, 1, 0, 0, 0, 1, 0, u32::MAX, 0]))).unwrap().sparse;
        assert_eq!(sparse, Some(Vec::new()));
        assert!(region(&Info::new(words(&[16, 0, 0, 0]))).is_err());
    }

    proptest! {
        #[test]
        fn no_answer_hangs_or_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let info = Info::new(bytes);
            let _ = (iommu(&info), region(&info).ok());
        }

        #[test]
        fn no_chain_hangs_or_panics(values in prop::collection::vec(0..64u32, 8..40)) {
            let mut values = values;
            values[1] = 0xf;
            let info = Info::new(words(&values));
            let _ = (iommu(&info), region(&info).ok());
        }
    }
}
