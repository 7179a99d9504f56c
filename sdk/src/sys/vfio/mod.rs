//! VFIO's ioctls on its three kinds of file: container, group, device. Numbers and layouts: linux/vfio.h.
//!
//! Each function is one call. The structures that the kernel fills are read field by field and within bounds
//! ([`Info`]), so nothing it answers can lead outside a buffer.
#![expect(unsafe_code, reason = "system calls")]

mod info;

use std::ffi::CStr;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub use info::Info;

/// The only version of the interface there is (`VFIO_API_VERSION`).
pub const API_VERSION: i32 = 0;

/// Indices of `VFIO_DEVICE_GET_REGION_INFO` on a PCI device; 0 to 5 are the BARs.
pub const CONFIG_REGION_INDEX: u32 = 7;

/// Indices of `VFIO_DEVICE_GET_IRQ_INFO` and `VFIO_DEVICE_SET_IRQS` on a PCI device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum IrqIndex {
    /// The INTx line.
    Intx = 0,
    /// The MSI messages.
    Msi = 1,
    /// The MSI-X table.
    Msix = 2,
    /// The notice of an uncorrectable error.
    Err = 3,
    /// The kernel's wish to have the device back.
    Req = 4,
}

/// Bits of `flags` in the answers about a device and about a region.
pub mod flag {
    /// `VFIO_DEVICE_FLAGS_RESET`: the device can be reset alone.
    pub const DEVICE_RESET: u32 = 1 << 0;
    /// `VFIO_DEVICE_FLAGS_PCI`.
    pub const DEVICE_PCI: u32 = 1 << 1;
    /// `VFIO_REGION_INFO_FLAG_READ`.
    pub const REGION_READ: u32 = 1 << 0;
    /// `VFIO_REGION_INFO_FLAG_MMAP`.
    pub const REGION_MMAP: u32 = 1 << 2;
    /// `VFIO_IRQ_INFO_EVENTFD`.
    pub const IRQ_EVENTFD: u32 = 1 << 0;
}

/// `_IO(VFIO_TYPE, VFIO_BASE + nr)`: the direction and size bits are zero.
const fn request(nr: u8) -> libc::Ioctl {
    const VFIO_TYPE: libc::Ioctl = b';' as libc::Ioctl;
    const VFIO_BASE: libc::Ioctl = 100;
    VFIO_TYPE << 8 | (VFIO_BASE + nr as libc::Ioctl)
}

const GET_API_VERSION: libc::Ioctl = request(0);
const CHECK_EXTENSION: libc::Ioctl = request(1);
const SET_IOMMU: libc::Ioctl = request(2);
const GROUP_GET_STATUS: libc::Ioctl = request(3);
const GROUP_SET_CONTAINER: libc::Ioctl = request(4);
const GROUP_UNSET_CONTAINER: libc::Ioctl = request(5);
const GROUP_GET_DEVICE_FD: libc::Ioctl = request(6);
const DEVICE_GET_INFO: libc::Ioctl = request(7);
const DEVICE_GET_REGION_INFO: libc::Ioctl = request(8);
const DEVICE_GET_IRQ_INFO: libc::Ioctl = request(9);
const DEVICE_SET_IRQS: libc::Ioctl = request(10);
const DEVICE_RESET: libc::Ioctl = request(11);
// The container's own calls reuse the numbers of the device's.
const IOMMU_GET_INFO: libc::Ioctl = request(12);
const IOMMU_MAP_DMA: libc::Ioctl = request(13);
const IOMMU_UNMAP_DMA: libc::Ioctl = request(14);

/// `VFIO_TYPE1v2_IOMMU`.
const TYPE1V2: libc::c_ulong = 3;

/// The version of the interface that a container speaks.
pub fn api_version(container: BorrowedFd<'_>) -> io::Result<i32> {
    call(container, GET_API_VERSION, 0)
}

/// Whether the kernel has the type 1 IOMMU interface, version 2.
pub fn has_type1v2(container: BorrowedFd<'_>) -> io::Result<bool> {
    call(container, CHECK_EXTENSION, TYPE1V2).map(|found| found > 0)
}

/// Chooses type 1 version 2 for a container that has its first group.
pub fn set_type1v2(container: BorrowedFd<'_>) -> io::Result<()> {
    call(container, SET_IOMMU, TYPE1V2).map(drop)
}

/// What the IOMMU of a container accepts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IommuInfo {
    /// Bit n: it has pages of 2^n bytes. Zero when it does not say.
    pub page_sizes: u64,
    /// The addresses it permits, as it lists them; `None` when the kernel is too old to tell.
    pub iova_ranges: Option<Vec<RangeInclusive<u64>>>,
    /// How many more mappings it takes; `None` when it does not say.
    pub entries_left: Option<u32>,
}

/// What the IOMMU of a container accepts at this moment.
pub fn iommu_info(container: BorrowedFd<'_>) -> io::Result<IommuInfo> {
    query(container, IOMMU_GET_INFO, &[0]).map(|info| info::iommu(&info))
}

/// Makes memory visible to the devices of a container, readable and writable.
///
/// # Safety
///
/// `va .. va + len` is mapped memory of this process until [`unmap_dma`] of the same range has succeeded; devices may
/// write it at any time.
pub unsafe fn map_dma(container: BorrowedFd<'_>, va: *mut u8, iova: u64, len: u64) -> io::Result<()> {
    const READ_WRITE: u32 = 1 << 0 | 1 << 1;
    // struct vfio_iommu_type1_dma_map: argsz, flags, vaddr, iova, size.
    let mut arg = Vec::with_capacity(32);
    put_u32s(&mut arg, &[32, READ_WRITE]);
    put_u64s(&mut arg, &[va.expose_provenance() as u64, iova, len]);
    call_with(container, IOMMU_MAP_DMA, &mut arg).map(drop)
}

/// Takes a mapping away; returns how many bytes were taken.
pub fn unmap_dma(container: BorrowedFd<'_>, iova: u64, len: u64) -> io::Result<u64> {
    // struct vfio_iommu_type1_dma_unmap: argsz, flags, iova, size (in: wanted; out: done).
    let mut arg = Vec::with_capacity(24);
    put_u32s(&mut arg, &[24, 0]);
    put_u64s(&mut arg, &[iova, len]);
    call_with(container, IOMMU_UNMAP_DMA, &mut arg)?;
    Info::new(arg).u64(16).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether no device of the group is in the kernel's own use.
pub fn group_is_viable(group: BorrowedFd<'_>) -> io::Result<bool> {
    const VIABLE: u32 = 1 << 0;
    let mut arg = Vec::with_capacity(8);
    put_u32s(&mut arg, &[8, 0]);
    call_with(group, GROUP_GET_STATUS, &mut arg)?;
    Ok(Info::new(arg).u32(4).is_some_and(|flags| flags & VIABLE != 0))
}

/// Puts a group into a container.
pub fn group_set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let mut arg: i32 = container.as_raw_fd();
    // SAFETY: the argument is one 32-bit file descriptor, which the kernel only reads.
    unsafe { ioctl(group, GROUP_SET_CONTAINER, (&raw mut arg).cast()) }.map(drop)
}

/// Takes a group out of its container.
pub fn group_unset_container(group: BorrowedFd<'_>) -> io::Result<()> {
    call(group, GROUP_UNSET_CONTAINER, 0).map(drop)
}

/// Opens the device of that name in a group.
pub fn group_device(group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the argument is a zero-terminated text, which the kernel only reads.
    let fd = unsafe { ioctl(group, GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut().cast()) }?;
    // SAFETY: `fd` was just created and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What a device says of itself: see [`flag`].
pub fn device_flags(device: BorrowedFd<'_>) -> io::Result<u32> {
    let info = query(device, DEVICE_GET_INFO, &[0, 0, 0])?;
    info.u32(4).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// One region of a device: a BAR or configuration space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// See [`flag`].
    pub flags: u32,
    /// Bytes; zero when the device has no such region.
    pub size: u64,
    /// Where it starts in the device's file.
    pub offset: u64,
    /// The parts that may be mapped, as offset and length; `None` when nothing restricts them.
    pub sparse: Option<Vec<(u64, u64)>>,
    /// Whether the pages that hold the MSI-X table may be mapped too.
    pub msix_mappable: bool,
}

/// What the kernel says of region `index`.
pub fn region_info(device: BorrowedFd<'_>, index: u32) -> io::Result<RegionInfo> {
    query(device, DEVICE_GET_REGION_INFO, &[0, index]).and_then(|info| info::region(&info))
}

/// How many interrupts of that kind can signal an eventfd.
pub fn irq_count(device: BorrowedFd<'_>, index: IrqIndex) -> io::Result<u32> {
    // struct vfio_irq_info: argsz, flags, index, count.
    let info = query(device, DEVICE_GET_IRQ_INFO, &[0, index as u32])?;
    let (Some(flags), Some(count)) = (info.u32(4), info.u32(12)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Ok(if flags & flag::IRQ_EVENTFD != 0 { count } else { 0 })
}

/// Turns interrupts of that kind on, number `i` signalling `eventfds[i]`.
///
/// Returns zero when done. A positive number means that nothing was turned on: the kernel can give only that many.
pub fn irqs_on(device: BorrowedFd<'_>, index: IrqIndex, eventfds: &[BorrowedFd<'_>]) -> io::Result<i32> {
    let mut arg = irq_set(irq_flag::DATA_EVENTFD | irq_flag::ACTION_TRIGGER, index, eventfds.len());
    arg.extend(eventfds.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()));
    let len = arg.len() as u32;
    arg[..4].copy_from_slice(&len.to_ne_bytes());
    call_with(device, DEVICE_SET_IRQS, &mut arg)
}

/// Turns all interrupts of that kind off.
pub fn irqs_off(device: BorrowedFd<'_>, index: IrqIndex) -> io::Result<()> {
    let mut arg = irq_set(irq_flag::DATA_NONE | irq_flag::ACTION_TRIGGER, index, 0);
    call_with(device, DEVICE_SET_IRQS, &mut arg).map(drop)
}

/// Unmasks the one interrupt of that kind.
pub fn irq_unmask(device: BorrowedFd<'_>, index: IrqIndex) -> io::Result<()> {
    let mut arg = irq_set(irq_flag::DATA_NONE | irq_flag::ACTION_UNMASK, index, 1);
    call_with(device, DEVICE_SET_IRQS, &mut arg).map(drop)
}

/// Signals the eventfd of one interrupt of that kind which is on, as if it had fired.
pub fn irq_trigger(device: BorrowedFd<'_>, index: IrqIndex, number: u32) -> io::Result<()> {
    let mut arg = irq_set(irq_flag::DATA_NONE | irq_flag::ACTION_TRIGGER, index, 1);
    // `start` stands between index and count.
    arg[12..16].copy_from_slice(&number.to_ne_bytes());
    call_with(device, DEVICE_SET_IRQS, &mut arg).map(drop)
}

/// Resets a device.
pub fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    call(device, DEVICE_RESET, 0).map(drop)
}

/// `VFIO_IRQ_SET_*`.
mod irq_flag {
    pub(super) const DATA_NONE: u32 = 1 << 0;
    pub(super) const DATA_EVENTFD: u32 = 1 << 2;
    pub(super) const ACTION_UNMASK: u32 = 1 << 4;
    pub(super) const ACTION_TRIGGER: u32 = 1 << 5;
}

/// struct vfio_irq_set without data: argsz, flags, index, start, count.
fn irq_set(flags: u32, index: IrqIndex, count: usize) -> Vec<u8> {
    let mut arg = Vec::with_capacity(20 + 4 * count);
    put_u32s(&mut arg, &[20, flags, index as u32, 0, count as u32]);
    arg
}

/// A call whose argument is a number.
fn call(fd: BorrowedFd<'_>, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: these requests take a number in place of the pointer and touch no memory of ours.
    unsafe { ioctl(fd, request, std::ptr::without_provenance_mut(value as usize)) }
}

/// A call whose argument is a structure that starts with its own size, `argsz`.
///
/// # Panics
///
/// If `argsz` is larger than `arg`.
fn call_with(fd: BorrowedFd<'_>, request: libc::Ioctl, arg: &mut [u8]) -> io::Result<i32> {
    let argsz = u32::from_ne_bytes(arg.first_chunk().copied().unwrap_or([0xff; 4]));
    assert!(argsz as usize <= arg.len(), "a structure that says it is larger than its buffer");
    // SAFETY: requests of this shape read and write `argsz` bytes at most, which `arg` has.
    unsafe { ioctl(fd, request, arg.as_mut_ptr().cast()) }
}

/// An INFO call: `fields` follow `argsz`, and the answer is as long as the kernel wants it.
fn query(fd: BorrowedFd<'_>, request: libc::Ioctl, fields: &[u32]) -> io::Result<Info> {
    // Far above any capability chain that exists, and small enough to allocate on the kernel's word.
    const LONGEST: usize = 1 << 20;
    let mut len = 1024;
    // The chain may grow between two calls, but not for ever.
    for _ in 0..8 {
        let mut arg = Vec::with_capacity(len);
        put_u32s(&mut arg, &[len as u32]);
        put_u32s(&mut arg, fields);
        arg.resize(len, 0);
        call_with(fd, request, &mut arg)?;
        let wanted = Info::new(arg.clone()).u32(0).unwrap_or(0) as usize;
        if wanted <= len {
            return Ok(Info::new(arg));
        }
        if wanted > LONGEST {
            break;
        }
        len = wanted;
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer has no sensible length"))
}

/// # Safety
///
/// `arg` is what `request` takes: a number, or a pointer to as much memory as it reads and writes.
unsafe fn ioctl(fd: BorrowedFd<'_>, request: libc::Ioctl, arg: *mut libc::c_void) -> io::Result<i32> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, arg) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn put_u32s(to: &mut Vec<u8>, values: &[u32]) {
    to.extend(values.iter().flat_map(|v| v.to_ne_bytes()));
}

fn put_u64s(to: &mut Vec<u8>, values: &[u64]) {
    to.extend(values.iter().flat_map(|v| v.to_ne_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn request_numbers_are_those_of_the_header() {
        assert_eq!(GET_API_VERSION, 0x3b64);
        assert_eq!(DEVICE_SET_IRQS, 0x3b6e);
        assert_eq!(IOMMU_UNMAP_DMA, 0x3b72);
    }

    #[test]
    fn an_irq_set_has_the_layout_of_the_header() {
        let arg = irq_set(irq_flag::DATA_NONE | irq_flag::ACTION_UNMASK, IrqIndex::Msix, 1);
        let words: Vec<_> = arg.chunks(4).map(|w| u32::from_ne_bytes(w.try_into().unwrap())).collect();
        assert_eq!(words, [20, 0x11, 2, 0, 1]);
    }

    #[test]
    fn a_file_that_is_not_vfio_is_refused_by_the_kernel() {
        let file = tempfile::tempfile().unwrap();
        assert!(api_version(file.as_fd()).is_err());
        assert!(region_info(file.as_fd(), 0).is_err());
        assert!(irqs_on(file.as_fd(), IrqIndex::Msi, &[file.as_fd()]).is_err());
    }
}
