//! Memory that devices may reach, and the only maker of an [`Iova`].
//!
//! ```text
//! Memory ──Domain::map──▶ DmaRegion        one I/O virtual address, the same for every device of the domain
//!                            │
//!                            ├── DescRing  descriptors, read and written as atomics
//!                            └── Pool      buffers (crate::frame)
//! ```
//!
//! A [`Domain`] is the address space that all devices of a program share, so that a frame received on one port is sent
//! on another without a copy or a second mapping. It chooses addresses that every attached device permits, maps each
//! region into every device's IOMMU, and takes a region's mappings away before its memory is freed. Where a mapping
//! cannot be taken away the memory is leaked, and the log says so: a device might still write to it.
#![expect(unsafe_code, reason = "gives memory to devices; atomic access to descriptor rings")]

use std::collections::BTreeMap;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::device::{Device, DeviceError, Iommu};
use crate::mem::{MemError, MemRequest, Memory, PageSize};

/// An address as a device sees it. Only this module makes one; an address register or a descriptor takes nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(u64);

impl Iova {
    /// The number to write into a descriptor or an address register.
    #[inline(always)]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address of a byte of a pool's memory: `va` plus that pool's constant distance.
    #[inline(always)]
    pub(crate) fn of_buffer(va: usize, distance: u64) -> Self {
        Self((va as u64).wrapping_add(distance))
    }
}

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Iova({:#x})", self.0)
    }
}

/// Memory could not be made visible to devices.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// No memory.
    #[error(transparent)]
    Mem(#[from] MemError),
    /// A device's IOMMU refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The IOMMU takes no more mappings.
    #[error(
        "the IOMMU takes no more DMA mappings; raise it with \
         `echo 65535 > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit`, or use larger pages"
    )]
    NoEntries,
    /// No address is left that all attached devices permit.
    #[error("no {len} bytes of I/O virtual addresses are left that every attached device permits")]
    NoAddress {
        /// Bytes wanted.
        len: usize,
    },
    /// What is mapped already lies where a new device cannot reach.
    #[error(
        "{device} cannot reach memory that is mapped at {start:#x}..={end:#x}; open this device before making pools and \
         starting other ports"
    )]
    OutOfReach {
        /// The new device.
        device: String,
        /// First mapped address.
        start: u64,
        /// Last mapped address.
        end: u64,
    },
}

/// Where addresses are given out from: above 4 GiB, clear of everything that PCs keep below, and within the 39 bits that
/// the smallest IOMMUs translate. Lower ones are used when a device cannot reach these.
const PREFERRED_START: u64 = 1 << 32;
const DEFAULT_END: u64 = (1 << 39) - 1;
const LOWEST_START: u64 = 1 << 20;

/// The address space that a program's devices share.
#[derive(Debug, Clone, Default)]
pub struct Domain {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    spaces: Vec<Space>,
    /// Mapped regions by I/O virtual address: where they are and how long.
    regions: BTreeMap<u64, (usize, usize)>,
}

#[derive(Debug)]
struct Space {
    iommu: Arc<dyn Iommu>,
    /// The address limits of the devices that use this IOMMU, one entry a device.
    limits: Vec<u64>,
}

impl Domain {
    /// A domain with no devices and no memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// The domain that [`Pool::new`](crate::frame::Pool::new) and ports use unless they are given another.
    pub fn global() -> &'static Self {
        static GLOBAL: LazyLock<Domain> = LazyLock::new(Domain::new);
        &GLOBAL
    }

    /// Lets `device`, which can address `address_bits` bits, reach all memory of the domain, now and later, until the
    /// [`Attachment`] is dropped.
    ///
    /// # Errors
    ///
    /// When the device cannot reach what is mapped already, or its IOMMU refuses a mapping; nothing is left mapped then.
    pub fn attach(&self, device: &dyn Device, address_bits: u32) -> Result<Attachment, DmaError> {
        let limit = if address_bits >= 64 { u64::MAX } else { (1 << address_bits) - 1 };
        let iommu = device.iommu();
        let mut state = self.lock();
        let ranges = iommu.iova_ranges();
        for (&start, &(_, len)) in &state.regions {
            let end = start + (len as u64 - 1);
            if end > limit || !ranges.iter().any(|r| r.contains(&start) && r.contains(&end)) {
                return Err(DmaError::OutOfReach { device: device.name().into(), start, end });
            }
        }
        if let Some(space) = state.spaces.iter_mut().find(|s| Arc::ptr_eq(&s.iommu, &iommu)) {
            space.limits.push(limit);
        } else {
            let mut mapped: Vec<(u64, usize)> = Vec::new();
            for (&iova, &(va, len)) in &state.regions {
                // SAFETY: a region stays mapped memory until it has been taken from every space (`DmaRegion::drop`).
                if let Err(error) = unsafe { map(&*iommu, va, len, iova) } {
                    for (iova, len) in mapped {
                        unmap_or_warn(&*iommu, iova, len);
                    }
                    return Err(error);
                }
                mapped.push((iova, len));
            }
            state.spaces.push(Space { iommu: iommu.clone(), limits: vec![limit] });
        }
        drop(state);
        Ok(Attachment { domain: self.clone(), iommu, limit })
    }

    /// Makes `memory` visible to every device of the domain.
    ///
    /// # Errors
    ///
    /// When an IOMMU refuses or no address is left; nothing is left mapped then.
    pub fn map(&self, memory: Memory) -> Result<DmaRegion, DmaError> {
        let len = memory.len();
        let va = memory.as_ptr().as_ptr().expose_provenance();
        let mut state = self.lock();
        let iova = state.free_address(len, memory.page_size().bytes() as u64).ok_or(DmaError::NoAddress { len })?;
        for (done, space) in state.spaces.iter().enumerate() {
            // SAFETY: the memory lives in the region until it has been unmapped from every space (`DmaRegion::drop`),
            // which also sees to it that only raw-pointer and atomic accesses are made to what devices own.
            if let Err(error) = unsafe { map(&*space.iommu, va, len, iova) } {
                let stuck = state.spaces[..done].iter().filter(|s| !unmap_or_warn(&*s.iommu, iova, len)).count();
                if stuck > 0 {
                    state.regions.insert(iova, (va, len));
                    std::mem::forget(memory);
                }
                return Err(error);
            }
        }
        state.regions.insert(iova, (va, len));
        drop(state);
        Ok(DmaRegion { memory: ManuallyDrop::new(memory), iova: Iova(iova), domain: self.clone() })
    }

    /// Allocates and maps in one step.
    ///
    /// # Errors
    ///
    /// As [`Memory::alloc`] and [`map`](Self::map).
    pub fn alloc(&self, request: &MemRequest) -> Result<DmaRegion, DmaError> {
        self.map(Memory::alloc(request)?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent at every point where a panic could leave it, so a poisoned lock is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// An address for `len` bytes, aligned to `align`, that no region uses and every device reaches.
    fn free_address(&self, len: usize, align: u64) -> Option<u64> {
        let mut ranges = vec![LOWEST_START..=u64::MAX];
        for space in &self.spaces {
            let limit = space.limits.iter().copied().min().unwrap_or(u64::MAX);
            ranges = intersect(&ranges, &space.iommu.iova_ranges(), limit);
        }
        let preferred = intersect(&ranges, std::slice::from_ref(&(PREFERRED_START..=u64::MAX)), DEFAULT_END);
        self.first_fit(&preferred, len as u64, align).or_else(|| self.first_fit(&ranges, len as u64, align))
    }

    fn first_fit(&self, ranges: &[RangeInclusive<u64>], len: u64, align: u64) -> Option<u64> {
        ranges.iter().find_map(|range| {
            let mut start = range.start().checked_next_multiple_of(align)?;
            loop {
                let end = start.checked_add(len - 1)?;
                if end > *range.end() {
                    return None;
                }
                // Regions do not overlap, so the last one that starts at or below `end` is the only one to ask.
                match self.regions.range(..=end).next_back() {
                    Some((&taken, &(_, taken_len))) if taken + taken_len as u64 > start => {
                        start = (taken + taken_len as u64).checked_next_multiple_of(align)?;
                    }
                    _ => return Some(start),
                }
            }
        })
    }
}

/// The parts of `a` that lie in `b` and not above `limit`.
fn intersect(a: &[RangeInclusive<u64>], b: &[RangeInclusive<u64>], limit: u64) -> Vec<RangeInclusive<u64>> {
    let mut both = Vec::new();
    for x in a {
        for y in b {
            let (start, end) = (*x.start().max(y.start()), *x.end().min(y.end()).min(&limit));
            if start <= end {
                both.push(start..=end);
            }
        }
    }
    both
}

/// # Safety
///
/// As [`Iommu::map`].
unsafe fn map(iommu: &dyn Iommu, va: usize, len: usize, iova: u64) -> Result<(), DmaError> {
    if iommu.entries_left() == Some(0) {
        return Err(DmaError::NoEntries);
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { iommu.map(std::ptr::with_exposed_provenance_mut(va), len, iova) }?)
}

/// Takes a mapping away; returns whether that worked.
fn unmap_or_warn(iommu: &dyn Iommu, iova: u64, len: usize) -> bool {
    match iommu.unmap(iova, len) {
        Ok(()) => true,
        Err(error) => {
            log::error!("{error}; {len} bytes stay allocated, because a device may still write to them");
            false
        }
    }
}

/// A device's membership in a [`Domain`]. Dropping the last one of an IOMMU takes the domain's memory from it.
#[derive(Debug)]
pub struct Attachment {
    domain: Domain,
    iommu: Arc<dyn Iommu>,
    limit: u64,
}

impl Attachment {
    /// The domain it belongs to.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut state = self.domain.lock();
        let Some(at) = state.spaces.iter().position(|s| Arc::ptr_eq(&s.iommu, &self.iommu)) else { return };
        let limits = &mut state.spaces[at].limits;
        if let Some(mine) = limits.iter().position(|l| *l == self.limit) {
            limits.swap_remove(mine);
        }
        if !limits.is_empty() {
            return;
        }
        let stuck = state.regions.iter().filter(|&(&iova, &(_, len))| !unmap_or_warn(&*self.iommu, iova, len)).count();
        if stuck == 0 {
            state.spaces.swap_remove(at);
        }
        // A space that would not let go stays listed, so that its regions try again, and leak, when they are dropped.
    }
}

/// Memory that every device of a domain sees at one address.
///
/// # Invariant
///
/// `memory` is mapped at `iova` in every space of `domain`, page-aligned, and freed only after all of them gave it up.
#[derive(Debug)]
pub struct DmaRegion {
    memory: ManuallyDrop<Memory>,
    iova: Iova,
    domain: Domain,
}

impl DmaRegion {
    /// Where the process sees it.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.memory.as_ptr()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// Where devices see byte `offset`.
    ///
    /// # Panics
    ///
    /// If `offset` is not inside.
    pub fn iova(&self, offset: usize) -> Iova {
        assert!(offset < self.len(), "byte {offset} of a region of {} bytes", self.len());
        Iova(self.iova.0 + offset as u64)
    }

    /// What must be added to an address in this process to get what a device sees.
    pub(crate) fn distance(&self) -> u64 {
        self.iova.0.wrapping_sub(self.memory.as_ptr().as_ptr() as u64)
    }

    /// Gives the memory up for good: for a device that would not stop.
    pub fn leak(self) {
        std::mem::forget(self);
    }
}

impl Drop for DmaRegion {
    fn drop(&mut self) {
        let mut state = self.domain.lock();
        let len = self.memory.len();
        let mut free = true;
        for space in &state.spaces {
            free &= unmap_or_warn(&*space.iommu, self.iova.0, len);
        }
        if free {
            state.regions.remove(&self.iova.0);
            // SAFETY: every device gave the memory up (above), and `self` is not used again.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
        // Otherwise the address stays taken and the memory stays allocated: a device may still write to it.
    }
}

/// A ring of 16-byte descriptors shared with a device: two 64-bit words each, read and written as atomics.
///
/// It knows nothing of any device: who owns which descriptor, and what the words mean, is the driver's business. An
/// index is taken modulo the length, so none can be out of bounds.
///
/// # Invariant
///
/// `base` points at `mask + 1` descriptors inside `region`, 16-byte aligned; `mask + 1` is a power of two.
#[derive(Debug)]
pub struct DescRing {
    base: NonNull<u64>,
    mask: usize,
    region: DmaRegion,
}

// SAFETY: the region belongs to `self`, not to a thread.
unsafe impl Send for DescRing {}

impl DescRing {
    /// A zeroed ring of `len` descriptors, in memory near `node`.
    ///
    /// # Errors
    ///
    /// As [`Domain::alloc`].
    ///
    /// # Panics
    ///
    /// If `len` is not a power of two.
    pub fn new(domain: &Domain, len: usize, node: Option<usize>) -> Result<Self, DmaError> {
        assert!(len.is_power_of_two(), "a ring of {len} descriptors: the length must be a power of two");
        // A ring is a few KiB: a hugepage each would waste most of it.
        let region = domain.alloc(&MemRequest::new(len * 16).page(PageSize::Ordinary).node(node))?;
        Ok(Self { base: region.as_ptr().cast(), mask: len - 1, region })
    }

    /// Descriptors.
    #[inline(always)]
    #[expect(clippy::len_without_is_empty, reason = "a ring has a fixed, non-zero length")]
    pub fn len(&self) -> usize {
        self.mask + 1
    }

    /// Where the device finds descriptor 0.
    pub fn iova(&self) -> Iova {
        self.region.iova(0)
    }

    /// Reads word `word` (0 or 1) of descriptor `index`. Acquire when it tells who owns the descriptor: what the device
    /// wrote before it is then visible.
    #[inline(always)]
    pub fn load(&self, index: usize, word: usize, order: Ordering) -> u64 {
        self.word(index, word).load(order)
    }

    /// Writes word `word` (0 or 1) of descriptor `index`. The device sees it at the latest at the next
    /// [`Bar::doorbell`](crate::mmio::Bar::doorbell).
    #[inline(always)]
    pub fn store(&self, index: usize, word: usize, value: u64) {
        self.word(index, word).store(value, Ordering::Relaxed);
    }

    /// Gives the memory up for good: for a device that would not stop.
    pub fn leak(self) {
        self.region.leak();
    }

    #[inline(always)]
    fn word(&self, index: usize, word: usize) -> &AtomicU64 {
        let at = (index & self.mask) * 2 + (word & 1);
        // SAFETY: `at` is below `2 * (mask + 1)`, so the word lies in the region (type invariant).
        let ptr = unsafe { self.base.add(at) };
        // SAFETY: aligned, valid while `self` lives (type invariant), and accessed as an atomic by everyone.
        unsafe { AtomicU64::from_ptr(ptr.as_ptr()) }
    }
}
