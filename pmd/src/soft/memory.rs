//! The memory that a soft NIC may reach: its IOMMU, which really translates, and every access that the model makes.
//!
//! ```text
//! driver ──map/unmap──▶ SoftIommu { table } ◀──Dma (a read lock on the table)── fabric
//! ```
//!
//! The model touches a program's memory only through a [`Dma`], which holds the table for reading. `unmap` and the end
//! of bus mastering need it for writing: when they return, the model is out of that memory and cannot enter it again. An
//! address that the table does not hold is a fault: counted, and the access does not happen.
#![expect(unsafe_code, reason = "the model's DMA: copies to and from memory that a driver mapped")]

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use spinwake::device::{DeviceError, Iommu, Mapping};

const PAGE: u64 = 4096;

/// A soft NIC's IOMMU.
///
/// # Invariant
///
/// Each entry of `table` is memory of this process that stays mapped while the entry is there: [`Iommu::map`]'s caller
/// promised that until `unmap` of the same range has succeeded, and `unmap` succeeds by taking the entry out.
pub(super) struct SoftIommu {
    device: String,
    table: RwLock<Table>,
    faults: AtomicU64,
}

#[derive(Debug)]
struct Table {
    /// By address, ascending, without overlap.
    entries: Vec<Entry>,
    ranges: Vec<RangeInclusive<u64>>,
    limit: Option<usize>,
    mastering: bool,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    iova: u64,
    len: u64,
    /// An exposed address: see [`SoftIommu`]'s invariant.
    va: usize,
}

/// The device gave an address that it may not reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DmaFault;

impl SoftIommu {
    pub(super) fn new(device: &str) -> Self {
        let table = Table {
            entries: Vec::new(),
            // What the smallest PC's IOMMU permits: 39 bits without the interrupt window.
            ranges: vec![0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1],
            limit: None,
            mastering: false,
        };
        Self { device: device.into(), table: RwLock::new(table), faults: AtomicU64::new(0) }
    }

    /// Opens the memory to the model; `None` while bus mastering is off.
    pub(super) fn dma(&self) -> Option<Dma<'_>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.mastering.then(|| Dma { table, faults: &self.faults, last: Cell::new(0) })
    }

    /// Allows or forbids DMA; when it returns, none that is now forbidden is under way.
    pub(super) fn set_mastering(&self, on: bool) {
        self.write().mastering = on;
    }

    /// Waits until no access of the model that began before is under way.
    pub(super) fn wait_idle(&self) {
        drop(self.write());
    }

    pub(super) fn mastering(&self) -> bool {
        self.table.read().unwrap_or_else(PoisonError::into_inner).mastering
    }

    /// Permits only these addresses from now on.
    pub(super) fn set_ranges(&self, ranges: Vec<RangeInclusive<u64>>) {
        self.write().ranges = ranges;
    }

    /// Takes at most `limit` mappings from now on.
    pub(super) fn set_limit(&self, limit: Option<usize>) {
        self.write().limit = limit;
    }

    /// Accesses that no mapping allowed.
    pub(super) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, call: &'static str, kind: io::ErrorKind, why: String) -> DeviceError {
        DeviceError::Call { device: self.device.clone(), call, source: io::Error::new(kind, why), hint: String::new() }
    }
}

impl fmt::Debug for SoftIommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftIommu").field("device", &self.device).field("faults", &self.faults).finish_non_exhaustive()
    }
}

impl Iommu for SoftIommu {
    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).ranges.clone()
    }

    fn entries_left(&self) -> Option<usize> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.limit.map(|limit| limit.saturating_sub(table.entries.len()))
    }

    unsafe fn map(&self, Mapping { va, len, iova, .. }: Mapping<'_>) -> Result<(), DeviceError> {
        let refuse = |kind, why| Err(self.refuse("map", kind, why));
        let size = len as u64;
        let Some(end) = iova.checked_add(size.wrapping_sub(1)).filter(|_| size > 0) else {
            return refuse(io::ErrorKind::InvalidInput, format!("{len} bytes at {iova:#x} are no range"));
        };
        if !(va.addr() as u64 | size | iova).is_multiple_of(PAGE) {
            return refuse(io::ErrorKind::InvalidInput, format!("{len} bytes at {iova:#x} are not whole pages"));
        }
        let mut table = self.write();
        if table.limit.is_some_and(|limit| table.entries.len() >= limit) {
            return refuse(io::ErrorKind::StorageFull, "it takes no more mappings".into());
        }
        if !table.ranges.iter().any(|r| r.contains(&iova) && r.contains(&end)) {
            return refuse(io::ErrorKind::InvalidInput, format!("{iova:#x}..={end:#x} is not permitted"));
        }
        let index = table.entries.partition_point(|e| e.iova < iova);
        let before = index.checked_sub(1).map(|i| table.entries[i]);
        if before.is_some_and(|e| e.iova + e.len > iova) || table.entries.get(index).is_some_and(|e| e.iova <= end) {
            return refuse(io::ErrorKind::AlreadyExists, format!("{iova:#x}..={end:#x} is mapped already"));
        }
        table.entries.insert(index, Entry { iova, len: size, va: va.expose_provenance() });
        Ok(())
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<(), DeviceError> {
        // The write lock is what makes this safe: no `Dma` is open while we hold it, and the next one has a new table.
        let mut table = self.write();
        match table.entries.binary_search_by_key(&iova, |e| e.iova) {
            Ok(index) if table.entries[index].len == len as u64 => {
                table.entries.remove(index);
                Ok(())
            }
            _ => Err(self.refuse("unmap", io::ErrorKind::NotFound, format!("{len} bytes at {iova:#x} are not mapped"))),
        }
    }
}

/// The memory, open for one round of the model.
///
/// # Invariant
///
/// While it lives its table cannot change, so each entry's memory stays mapped ([`SoftIommu`]'s invariant).
pub(super) struct Dma<'a> {
    table: RwLockReadGuard<'a, Table>,
    faults: &'a AtomicU64,
    /// The entry that served last: most accesses hit it again.
    last: Cell<usize>,
}

impl Dma<'_> {
    /// Appends `len` bytes at `iova` to `into`.
    pub(super) fn read(&self, iova: u64, len: usize, into: &mut Vec<u8>) -> Result<(), DmaFault> {
        self.check(iova, len)?;
        let (mut iova, mut left) = (iova, len);
        while left > 0 {
            let (va, run) = self.translate(iova, left)?;
            let old = into.len();
            into.resize(old + run, 0);
            // SAFETY: `translate` gave `run` bytes of mapped memory (type invariant); the vector has as many after `old`
            // and is not part of it, being this thread's own.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    std::ptr::with_exposed_provenance::<u8>(va),
                    into[old..].as_mut_ptr(),
                    run,
                );
            };
            (iova, left) = (iova + run as u64, left - run);
        }
        Ok(())
    }

    /// Copies `from` to `iova`: all of it, or nothing.
    pub(super) fn write(&self, iova: u64, from: &[u8]) -> Result<(), DmaFault> {
        self.check(iova, from.len())?;
        let (mut iova, mut left) = (iova, from);
        while !left.is_empty() {
            let (va, run) = self.translate(iova, left.len())?;
            // SAFETY: `translate` gave `run` bytes of mapped memory (type invariant) and `left` has at least as many;
            // a driver's buffers are no part of the fabric's own memory.
            unsafe {
                std::ptr::copy_nonoverlapping(left.as_ptr(), std::ptr::with_exposed_provenance_mut::<u8>(va), run);
            };
            (iova, left) = (iova + run as u64, &left[run..]);
        }
        Ok(())
    }

    /// Reads a 64-bit word.
    pub(super) fn load(&self, iova: u64) -> Result<u64, DmaFault> {
        Ok(self.word(iova)?.load(Ordering::Acquire))
    }

    /// Writes a 64-bit word after everything that was written before.
    pub(super) fn store(&self, iova: u64, value: u64) -> Result<(), DmaFault> {
        self.word(iova)?.store(value, Ordering::Release);
        Ok(())
    }

    fn word(&self, iova: u64) -> Result<&AtomicU64, DmaFault> {
        match self.translate(iova, 8) {
            // Entries start on pages, so alignment survives translation.
            Ok((va, 8)) if iova.is_multiple_of(8) => {
                // SAFETY: eight bytes of mapped memory, aligned, for as long as `self` lives (type invariant); drivers
                // access descriptors as atomics too (the promise of `Iommu::map`'s caller).
                Ok(unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(va)) })
            }
            Ok(_) => Err(self.fault()),
            Err(fault) => Err(fault),
        }
    }

    /// Whether all of `len` bytes at `iova` are mapped, so that a copy happens whole or not at all.
    fn check(&self, iova: u64, len: usize) -> Result<(), DmaFault> {
        let (mut iova, mut left) = (iova, len);
        while left > 0 {
            let (_, run) = self.translate(iova, left)?;
            left -= run;
            iova = iova.wrapping_add(run as u64);
        }
        Ok(())
    }

    /// Where `iova` is in this process, and how many of `len` bytes lie there in one piece.
    #[inline]
    fn translate(&self, iova: u64, len: usize) -> Result<(usize, usize), DmaFault> {
        let inside = |e: &Entry| iova >= e.iova && iova - e.iova < e.len;
        let entries = &self.table.entries;
        let index = match entries.get(self.last.get()) {
            Some(entry) if inside(entry) => self.last.get(),
            _ => match entries.partition_point(|e| e.iova <= iova).checked_sub(1) {
                Some(index) if inside(&entries[index]) => index,
                _ => return Err(self.fault()),
            },
        };
        self.last.set(index);
        let entry = &entries[index];
        let skip = iova - entry.iova;
        Ok((entry.va + skip as usize, len.min((entry.len - skip) as usize)))
    }

    #[cold]
    fn fault(&self) -> DmaFault {
        self.faults.fetch_add(1, Ordering::Relaxed);
        DmaFault
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[repr(align(4096))]
    struct Pages([u8; 8192]);

    fn mapped(iommu: &SoftIommu, pages: &mut Pages, iova: u64, range: std::ops::Range<usize>) {
        let bytes = &mut pages.0[range];
        // SAFETY: the tests keep `pages` until they have unmapped it or the IOMMU is gone.
        unsafe { iommu.map(Mapping { va: bytes.as_mut_ptr(), len: bytes.len(), iova, fd: None }) }.unwrap();
    }

    #[test]
    fn an_access_across_two_mappings_is_whole_and_one_past_the_end_does_not_happen() {
        let iommu = SoftIommu::new("soft0");
        let mut pages = Box::new(Pages([0; 8192]));
        mapped(&iommu, &mut pages, 0x10_0000, 4096..8192);
        mapped(&iommu, &mut pages, 0x10_1000, 0..4096);
        assert!(iommu.dma().is_none(), "bus mastering is off");
        iommu.set_mastering(true);
        let dma = iommu.dma().unwrap();
        dma.write(0x10_0ffe, &[1, 2, 3, 4]).unwrap();
        let mut back = Vec::new();
        dma.read(0x10_0ffe, 4, &mut back).unwrap();
        assert_eq!(back, [1, 2, 3, 4]);
        assert_eq!(dma.write(0x10_1ffe, &[9; 4]), Err(DmaFault));
        assert_eq!(dma.load(0x10_0004), Err(DmaFault), "not aligned");
        drop(dma);
        assert_eq!(iommu.faults(), 2);
        assert_eq!((&pages.0[..2], &pages.0[4094..4096], &pages.0[8190..]), (&[3, 4][..], &[0, 0][..], &[1, 2][..]));
    }

    #[test]
    fn what_is_not_permitted_is_refused() {
        let iommu = SoftIommu::new("soft0");
        let mut pages = Box::new(Pages([0; 8192]));
        mapped(&iommu, &mut pages, 0x10_0000, 0..4096);
        let at = pages.0[4096..].as_mut_ptr();
        // SAFETY: none of these succeeds.
        let try_map =
            |iova, len| unsafe { iommu.map(Mapping { va: at, len, iova, fd: None }) }.unwrap_err().to_string();
        assert!(try_map(0x10_0000, 4096).contains("mapped already"));
        assert!(try_map(0x20_0001, 4096).contains("whole pages"));
        assert!(try_map(0xfee0_0000, 4096).contains("not permitted"));
        assert!(try_map(0x20_0000, 0).contains("no range"));
        iommu.set_limit(Some(1));
        assert_eq!(iommu.entries_left(), Some(0));
        assert!(try_map(0x20_0000, 4096).contains("no more mappings"));
        assert!(iommu.unmap(0x10_0000, 8192).is_err());
        iommu.unmap(0x10_0000, 4096).unwrap();
        assert!(iommu.unmap(0x10_0000, 4096).is_err());
    }

    #[test]
    fn unmap_waits_for_an_open_access() {
        let iommu = Arc::new(SoftIommu::new("soft0"));
        let mut pages = Box::new(Pages([0; 8192]));
        mapped(&iommu, &mut pages, 0x10_0000, 0..8192);
        iommu.set_mastering(true);
        let dma = iommu.dma().unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let unmapper = std::thread::spawn({
            let (iommu, done) = (iommu.clone(), done.clone());
            move || {
                iommu.unmap(0x10_0000, 8192).unwrap();
                done.store(true, Ordering::SeqCst);
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!done.load(Ordering::SeqCst));
        dma.write(0x10_0000, &[1]).unwrap();
        drop(dma);
        unmapper.join().unwrap();
        assert_eq!(iommu.dma().unwrap().write(0x10_0000, &[1]), Err(DmaFault));
    }
}
