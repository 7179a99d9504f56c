//! A region of a device: which of it can be mapped, and how the rest is reached.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::file::DeviceFile;
use crate::mmio::{Bar, RegisterIo, Width};
use crate::sys::mem::Mapping;
use crate::sys::vfio::{self, RegionInfo, flag};

/// The unit in which parts of a BAR are mapped. On machines with larger pages the kernel refuses smaller parts, and
/// those registers are then reached through the file.
const PAGE: u64 = 4096;

/// A region whose place and size make sense.
///
/// # Invariant
///
/// `offset + len` is a valid file offset, and `len` is a multiple of four and at most `isize::MAX`.
#[derive(Debug, Clone)]
pub(super) struct Region {
    info: RegionInfo,
}

impl Region {
    /// Asks for region `index`; `None` when the device has none of that number.
    pub(super) fn of(file: &DeviceFile, index: u32) -> io::Result<Option<Self>> {
        let info = vfio::region_info(file.fd(), index)?;
        if info.size == 0 { Ok(None) } else { Self::checked(info).map(Some) }
    }

    fn checked(info: RegionInfo) -> io::Result<Self> {
        let end = info.offset.checked_add(info.size).filter(|&end| end <= i64::MAX as u64);
        if end.is_none() || !info.size.is_multiple_of(4) || isize::try_from(info.size).is_err() {
            let what = format!("a region of {:#x} bytes at {:#x} makes no sense", info.size, info.offset);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(Self { info })
    }

    /// Bytes.
    pub(super) fn len(&self) -> usize {
        self.info.size as usize
    }

    /// Reads bytes from `at` on.
    pub(super) fn read(&self, file: &DeviceFile, at: usize, buf: &mut [u8]) -> io::Result<()> {
        file.file().read_exact_at(buf, self.place(at, buf.len())?)
    }

    /// Writes bytes from `at` on.
    pub(super) fn write(&self, file: &DeviceFile, at: usize, data: &[u8]) -> io::Result<()> {
        file.file().write_all_at(data, self.place(at, data.len())?)
    }

    /// The region as a BAR: mapped where the kernel lets us, through the file where not.
    pub(super) fn bar(self, file: &Arc<DeviceFile>, index: usize, msix_table: Option<Range<u64>>) -> Bar {
        let mapped = windows(&self.info, msix_table).into_iter().filter_map(|window| {
            let len = (window.end - window.start) as usize;
            match Mapping::shared(file.fd(), self.info.offset + window.start, len) {
                Ok(mapping) => Some((window.start as usize, mapping)),
                Err(error) => {
                    log::warn!(
                        "{}: {window:#x?} of BAR {index} could not be mapped ({error}); its registers are reached by system calls, \
                         which is slow",
                        file.name()
                    );
                    None
                }
            }
        });
        let (len, windows) = (self.len(), mapped.collect());
        Bar::new(len, windows, Some(Arc::new(RegionIo { file: file.clone(), region: self })))
    }

    /// Where in the file the `len` bytes at `at` are.
    fn place(&self, at: usize, len: usize) -> io::Result<u64> {
        match at.checked_add(len) {
            Some(end) if end <= self.len() => Ok(self.info.offset + at as u64),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the region has {:#x} bytes", self.len()))),
        }
    }
}

/// Registers reached by reading and writing the device's file.
///
/// Every BAR has one, mapped or not: it keeps the device open while the BAR's mappings do so too in the kernel's eyes.
#[derive(Debug)]
struct RegionIo {
    file: Arc<DeviceFile>,
    region: Region,
}

impl RegisterIo for RegionIo {
    fn read(&self, offset: usize, width: Width) -> u64 {
        let mut bytes = [0; 8];
        let part = &mut bytes[..width.bytes()];
        match self.region.read(&self.file, offset, part) {
            // Registers are little-endian on the bus and in the file.
            Ok(()) => u64::from_le_bytes(bytes),
            Err(_) => u64::MAX >> (64 - 8 * width.bytes()),
        }
    }

    fn write(&self, offset: usize, width: Width, value: u64) {
        // A write that does not arrive is lost, as on a bus without a device.
        let _ = self.region.write(&self.file, offset, &value.to_le_bytes()[..width.bytes()]);
    }
}

/// The parts of a region to map: what the kernel offers, less what makes no sense.
fn windows(info: &RegionInfo, msix_table: Option<Range<u64>>) -> Vec<Range<u64>> {
    if info.flags & flag::REGION_MMAP == 0 {
        return Vec::new();
    }
    if let Some(areas) = &info.sparse {
        return areas.iter().filter_map(|&(start, len)| sensible(info.size, start, len)).collect();
    }
    let whole = 0..info.size;
    match msix_table {
        // A kernel that does not say that the table may be mapped refuses a mapping that includes it.
        Some(table) if !info.msix_mappable => {
            // The table's place is the device's word, so it may lie outside.
            let before = 0..(table.start / PAGE * PAGE).min(info.size);
            let after = table.end.div_ceil(PAGE).saturating_mul(PAGE).min(info.size)..info.size;
            [before, after].into_iter().filter(|range| !range.is_empty()).collect()
        }
        _ => Vec::from([whole]),
    }
}

fn sensible(size: u64, start: u64, len: u64) -> Option<Range<u64>> {
    let end = start.checked_add(len)?;
    let good = len > 0 && end <= size && start.is_multiple_of(PAGE) && len.is_multiple_of(4);
    if !good {
        log::warn!(
            "a mappable area of {len:#x} bytes at {start:#x} in a region of {size:#x} makes no sense and is left out"
        );
    }
    good.then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(windows: Vec<Range<u64>>) -> Vec<(u64, u64)> {
        windows.into_iter().map(|window| (window.start, window.end)).collect()
    }

    fn info(size: u64) -> RegionInfo {
        RegionInfo { flags: flag::REGION_READ | flag::REGION_MMAP, size, ..RegionInfo::default() }
    }

    #[test]
    fn a_region_that_cannot_be_mapped_is_not() {
        assert_eq!(pairs(windows(&RegionInfo { flags: flag::REGION_READ, ..info(0x4000) }, None)), []);
        assert_eq!(pairs(windows(&info(0x4000), None)), [(0, 0x4000)]);
        assert_eq!(pairs(windows(&info(0x100), None)), [(0, 0x100)]);
    }

    #[test]
    fn only_the_areas_offered_are_mapped_and_only_those_that_make_sense() {
        let sparse = vec![(0, 0x1000), (0x2000, 0x2000), (0x3000, 0x2000), (0x10, 0x1000), (0x1000, 0), (u64::MAX, 2)];
        let info = RegionInfo { sparse: Some(sparse), ..info(0x4000) };
        assert_eq!(pairs(windows(&info, None)), [(0, 0x1000), (0x2000, 0x4000)]);
    }

    #[test]
    fn the_pages_of_the_msix_table_are_left_out_unless_the_kernel_allows_them() {
        assert_eq!(pairs(windows(&info(0x4000), Some(0x1010..0x1100))), [(0, 0x1000), (0x2000, 0x4000)]);
        assert_eq!(pairs(windows(&info(0x1000), Some(0..0x100))), []);
        assert_eq!(pairs(windows(&info(0x100), Some(0..0x40))), []);
        assert_eq!(pairs(windows(&info(0x1000), Some(0x8000..0x8100))), [(0, 0x1000)]);
        let free = RegionInfo { msix_mappable: true, ..info(0x4000) };
        assert_eq!(pairs(windows(&free, Some(0x1010..0x1100))), [(0, 0x4000)]);
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for (offset, size) in [(u64::MAX, 8), (0, u64::MAX - 3), (1 << 63, 8), (0, 6)] {
            assert!(Region::checked(RegionInfo { offset, ..info(size) }).is_err());
        }
        let region = Region::checked(RegionInfo { offset: 0x100, ..info(0x10) }).unwrap();
        assert_eq!(region.place(0xc, 4).unwrap(), 0x10c);
        assert!(region.place(0xd, 4).is_err() && region.place(usize::MAX, 4).is_err());
    }

    proptest! {
        #[test]
        fn windows_lie_in_their_region(size in 0..0x10000u64, areas in prop::collection::vec(any::<(u64, u64)>(), 0..4),
                                       sparse: bool, table in any::<(u64, u64)>()) {
            let info = RegionInfo { sparse: sparse.then_some(areas), ..info(size) };
            for window in windows(&info, Some(table.0..table.0.saturating_add(table.1))) {
                prop_assert!(window.start < window.end && window.start.is_multiple_of(PAGE));
                prop_assert!(window.end <= size);
            }
        }
    }
}
