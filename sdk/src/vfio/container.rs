//! VFIO's container: one IOMMU address space, shared by the groups in it.
#![expect(unsafe_code, reason = "DMA mappings of memory that the caller answers for")]

use std::fs::OpenOptions;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::OpenError;
use super::check::Candidate;
use super::memlock::Memlock;
use crate::device::{DeviceError, Iommu, Mapping};
use crate::sys::vfio;

/// A container with its groups.
///
/// The kernel drops all mappings when the last group leaves. A container that was left by all its groups is therefore
/// over: it takes no new group and no new mapping, and what it had mapped counts as unmapped.
#[derive(Debug)]
pub(super) struct Container {
    fd: OwnedFd,
    /// Numbers of the groups in it. Held during calls, so that none leaves while a mapping changes.
    groups: Mutex<Vec<u32>>,
}

impl Container {
    /// A container without groups.
    pub(super) fn open(candidate: &Candidate<'_>) -> Result<Self, OpenError> {
        let path = candidate.host.container_path();
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|e| candidate.not_opened(&path, e))?;
        let fd = OwnedFd::from(file);
        let version = vfio::api_version(fd.as_fd()).map_err(|e| candidate.call("VFIO_GET_API_VERSION", e, ""))?;
        if version != vfio::API_VERSION {
            let what = format!("the kernel's VFIO has version {version}, and we speak {}", vfio::API_VERSION);
            return Err(OpenError::Nonsense { bdf: candidate.bdf(), what });
        }
        if !vfio::has_type1v2(fd.as_fd()).map_err(|e| candidate.call("VFIO_CHECK_EXTENSION", e, ""))? {
            return Err(OpenError::NoType1v2 { bdf: candidate.bdf() });
        }
        Ok(Self { fd, groups: Mutex::new(Vec::new()) })
    }

    /// Whether another group may join.
    pub(super) fn is_live(&self) -> bool {
        !self.groups().is_empty()
    }

    /// Puts the candidate's group, opened as `group`, into this container.
    pub(super) fn attach(&self, candidate: &Candidate<'_>, group: BorrowedFd<'_>) -> Result<(), OpenError> {
        let mut groups = self.groups();
        vfio::group_set_container(group, self.fd.as_fd())
            .map_err(|e| candidate.call("VFIO_GROUP_SET_CONTAINER", e, refused(groups.is_empty())))?;
        if groups.is_empty()
            && let Err(source) = vfio::set_type1v2(self.fd.as_fd())
        {
            // Closing both files undoes it as well, should this fail.
            let _ = vfio::group_unset_container(group);
            return Err(candidate.call("VFIO_SET_IOMMU", source, refused(true)));
        }
        groups.push(candidate.group.number);
        Ok(())
    }

    /// Takes group `number`, opened as `group`, out of this container.
    pub(super) fn detach(&self, number: u32, group: BorrowedFd<'_>) {
        let mut groups = self.groups();
        match vfio::group_unset_container(group) {
            Ok(()) => groups.retain(|&other| other != number),
            Err(error) => log::warn!("IOMMU group {number}: VFIO_GROUP_UNSET_CONTAINER failed: {error}"),
        }
    }

    fn groups(&self) -> MutexGuard<'_, Vec<u32>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, groups: &[u32], call: &'static str, source: io::Error, hint: String) -> DeviceError {
        DeviceError::Call { device: name(groups), call, source, hint }
    }

    /// What to do about a mapping that the kernel refused.
    fn advice(&self, error: &io::Error, len: usize, iova: u64) -> String {
        let info = vfio::iommu_info(self.fd.as_fd()).unwrap_or_default();
        match error.raw_os_error() {
            Some(libc_errno::ENOMEM) => Memlock::of(Path::new("/proc/self")).advice(len as u64),
            Some(libc_errno::ENOSPC) => {
                "; the container takes no more mappings: use fewer and larger ones (1 GiB pages), or \
                 raise the parameter dma_entry_limit of the module vfio_iommu_type1"
                    .to_owned()
            }
            Some(libc_errno::EEXIST) => format!("; a part of {} is mapped already", span(iova, len)),
            _ => explain_address(&info, iova, len),
        }
    }
}

impl Iommu for Container {
    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        match vfio::iommu_info(self.fd.as_fd()) {
            Ok(info) => permitted(&info),
            // No group is left in it, so no address means anything.
            Err(_) => Vec::new(),
        }
    }

    fn entries_left(&self) -> Option<usize> {
        vfio::iommu_info(self.fd.as_fd()).ok()?.entries_left.map(|n| n as usize)
    }

    unsafe fn map(&self, Mapping { va, len, iova, .. }: Mapping<'_>) -> Result<(), DeviceError> {
        let groups = self.groups();
        if groups.is_empty() {
            return Err(DeviceError::Missing { device: name(&groups), what: "device left to map memory for".into() });
        }
        // SAFETY: the caller's promise, which is the same.
        let mapped = unsafe { vfio::map_dma(self.fd.as_fd(), va, iova, len as u64) };
        mapped.map_err(|e| {
            let hint = self.advice(&e, len, iova);
            self.failed(&groups, "VFIO_IOMMU_MAP_DMA", e, hint)
        })
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<(), DeviceError> {
        const CALL: &str = "VFIO_IOMMU_UNMAP_DMA";
        let groups = self.groups();
        if groups.is_empty() {
            // The kernel took all mappings away when the last group left.
            return Ok(());
        }
        let done = vfio::unmap_dma(self.fd.as_fd(), iova, len as u64)
            .map_err(|e| self.failed(&groups, CALL, e, format!("; {} is not one whole mapping", span(iova, len))))?;
        if done == len as u64 {
            return Ok(());
        }
        let source = io::Error::other(format!("{done} of {len} bytes at {iova:#x} were mapped"));
        Err(self.failed(&groups, CALL, source, "; unmap exactly what was mapped".into()))
    }
}

/// The values of errno that tell one refusal from another (asm-generic/errno-base.h).
mod libc_errno {
    pub(super) const ENOMEM: i32 = 12;
    pub(super) const EEXIST: i32 = 17;
    pub(super) const ENOSPC: i32 = 28;
}

/// What to do when a group is not let into a container, the first or a later one.
fn refused(first: bool) -> &'static str {
    if first {
        "; the kernel log says why: commonly the platform cannot remap interrupts (switch it on in the firmware's setup, or \
         load vfio_iommu_type1 with allow_unsafe_interrupts=1), or firmware reserves memory for the device (RMRR)"
    } else {
        "; its IOMMU cannot join the address space that the process's other devices share"
    }
}

fn name(groups: &[u32]) -> String {
    match groups {
        [] => "the closed VFIO container".into(),
        [one] => format!("IOMMU group {one}"),
        several => {
            let numbers: Vec<_> = several.iter().map(ToString::to_string).collect();
            format!("IOMMU groups {}", numbers.join(", "))
        }
    }
}

fn span(iova: u64, len: usize) -> String {
    format!("{iova:#x}..{:#x}", u128::from(iova) + len as u128)
}

/// The addresses that `info` permits: ascending, merged, without what is no range.
fn permitted(info: &vfio::IommuInfo) -> Vec<RangeInclusive<u64>> {
    let Some(listed) = &info.iova_ranges else {
        // Kernels before 5.4 do not tell. 39 bits are the least that any IOMMU translates, and the hole is where x86
        // takes writes for interrupt messages (Intel SDM volume 3, section 11.11.1).
        return vec![0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1];
    };
    let mut ranges: Vec<_> = listed.iter().filter(|r| r.start() <= r.end()).cloned().collect();
    ranges.sort_by_key(|r| *r.start());
    let mut merged: Vec<RangeInclusive<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// What is wrong with an address that was refused, if something is.
fn explain_address(info: &vfio::IommuInfo, iova: u64, len: usize) -> String {
    let page = 1u64.checked_shl(info.page_sizes.trailing_zeros()).unwrap_or(4096);
    if !iova.is_multiple_of(page) || !(len as u64).is_multiple_of(page) || len == 0 {
        return format!("; {} is not made of whole pages of {page} bytes", span(iova, len));
    }
    let ranges = permitted(info);
    let last = iova.checked_add(len as u64 - 1);
    if last.is_some_and(|last| ranges.iter().any(|r| r.contains(&iova) && r.contains(&last))) {
        return String::new();
    }
    let listed: Vec<_> = ranges.iter().map(|r| format!("{:#x}..={:#x}", r.start(), r.end())).collect();
    format!("; {} is not within what the IOMMU permits: {}", span(iova, len), listed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(ranges: Option<Vec<RangeInclusive<u64>>>) -> vfio::IommuInfo {
        vfio::IommuInfo { page_sizes: 0x4020_1000, iova_ranges: ranges, entries_left: None }
    }

    #[test]
    fn ranges_are_put_in_order() {
        #[expect(clippy::reversed_empty_ranges, reason = "what a broken kernel might say")]
        let listed = vec![0x9000..=0xffff, 0x8000..=0x7000, 0..=0xfff, 0x1000..=0x1fff, 0x1800..=u64::MAX];
        assert_eq!(permitted(&info(Some(listed))), [0..=u64::MAX]);
        assert_eq!(permitted(&info(Some(vec![5..=6, 1..=2]))), [1..=2, 5..=6]);
        assert_eq!(permitted(&info(None)).len(), 2);
    }

    #[test]
    fn a_wrong_address_is_explained() {
        let info = info(Some(vec![0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]));
        assert_eq!(explain_address(&info, 0x10_0000, 0x1000), "");
        assert_eq!(explain_address(&info, 0xfedf_f000, 0x1000), "");
        let text = explain_address(&info, 0xfedf_f000, 0x2000);
        assert!(text.contains("0xfedff000..0xfee01000 is not within") && text.contains("0xfef00000..="), "{text}");
        assert!(explain_address(&info, u64::MAX - 0xfff, 0x2000).contains("is not within"));
        assert!(explain_address(&info, 0x10, 0x1000).contains("whole pages of 4096"));
        assert!(explain_address(&vfio::IommuInfo::default(), 0x10, 0x1000).contains("whole pages of 4096"));
    }
}
