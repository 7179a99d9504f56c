//! Memory that devices may reach, and the only maker of an [`Iova`].
//!
//! ```text
//! Memory ──Domain::map──────▶ DmaRegion ──▶ Pool      buffers (crate::frame); one I/O virtual address, the same for
//!                                                     every device of the domain
//!        ──Attachment::alloc─▶ DmaRegion ──▶ DescRing  descriptors, read and written as atomics; seen by one device
//!                                        └─▶ DmaCells  the same for rings of several parts
//! ```
//!
//! A [`Domain`] is the address space that all devices of a program share, so that a frame received on one port is sent
//! on another without a copy or a second mapping. It chooses addresses that every attached device permits, maps each
//! region into every device's IOMMU, and takes a region's mappings away before its memory is freed. Where a mapping
//! cannot be taken away the memory is leaked, and the log says so: a device might still write to it.
//!
//! A device that is another process ([`MemoryTable`]) reaches memory through file descriptors only. With one in the domain,
//! all memory is allocated so that it has one.
#![expect(unsafe_code, reason = "gives memory to devices")]

mod cells;
mod region;
mod ring;
mod space;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::RangeInclusive;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

pub use cells::{Cell, DmaCells, View};
pub use region::{Attachment, DmaRegion};
pub use ring::{DescRing, Descriptor};
pub use table::{MemoryTable, TableRegion, TableUser};

use crate::device::{Device, DeviceError, Iommu};
use crate::mem::{MemError, MemRequest, Memory, Sharing};
use space::{Entry, Space, is};

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
    /// What is mapped already has no descriptor to give to a new device that is another process.
    #[error(
        "{device} reaches memory through file descriptors only, and what is mapped at {start:#x}..={end:#x} has none; open \
         this device before making pools and starting other ports"
    )]
    NotShared {
        /// The new device.
        device: String,
        /// First mapped address.
        start: u64,
        /// Last mapped address.
        end: u64,
    },
    /// New memory has no descriptor to give to a device that is another process.
    #[error(
        "{len} bytes private to this process cannot be mapped, because a device of the domain reaches memory through file \
         descriptors only; allocate them as shared"
    )]
    NoDescriptor {
        /// Bytes to be mapped.
        len: usize,
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

/// # Invariant
///
/// A region whose address stands in `mapped` of any space stands in `regions`, and its memory is not freed. An address
/// enters the account before its IOMMU is called and leaves it after, so a call that panics can lose memory, never free
/// what a device still reaches.
#[derive(Debug, Default)]
struct State {
    spaces: Vec<Space>,
    /// Regions by I/O virtual address.
    regions: BTreeMap<u64, Entry>,
}

/// Two are equal if they are the same address space.
impl PartialEq for Domain {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl Eq for Domain {}

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
        self.attach_space(device.name(), device.iommu(), address_bits)
    }

    /// As [`attach`](Self::attach), for a device called `device` that is on no bus.
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach).
    pub fn attach_space(&self, device: &str, iommu: Arc<dyn Iommu>, address_bits: u32) -> Result<Attachment, DmaError> {
        let limit = if address_bits >= 64 { u64::MAX } else { (1 << address_bits) - 1 };
        let mut state = self.lock();
        let ranges = iommu.iova_ranges();
        let State { spaces, regions } = &mut *state;
        let visible = |entry: &Entry| entry.owner.as_ref().is_none_or(|owner| is(owner, &iommu));
        for (&start, Entry { memory, .. }) in regions.iter().filter(|(_, entry)| visible(entry)) {
            let end = start + (memory.len() as u64 - 1);
            if end > limit || !ranges.iter().any(|r| r.contains(&start) && r.contains(&end)) {
                return Err(DmaError::OutOfReach { device: device.into(), start, end });
            }
            if iommu.needs_shared() && memory.fd().is_none() {
                return Err(DmaError::NotShared { device: device.into(), start, end });
            }
        }
        let at = spaces.iter().position(|s| Arc::ptr_eq(&s.iommu, &iommu)).unwrap_or_else(|| {
            spaces.push(Space::new(iommu.clone()));
            spaces.len() - 1
        });
        let space = &mut spaces[at];
        let missing: Vec<_> =
            regions.iter().filter(|&(iova, entry)| visible(entry) && !space.mapped.contains(iova)).collect();
        for (done, &(&iova, Entry { memory, .. })) in missing.iter().enumerate() {
            // SAFETY: a region's memory is not freed while a space has it in `mapped` (invariant of `State`).
            if let Err(error) = unsafe { space.map(iova, memory) } {
                for &(&iova, Entry { memory, .. }) in &missing[..done] {
                    space.unmap(iova, memory.len());
                }
                drop(state.take_unused());
                return Err(error);
            }
        }
        space.limits.push(limit);
        drop(state);
        Ok(Attachment { domain: self.clone(), iommu, limit })
    }

    /// Makes `memory` visible to every device of the domain.
    ///
    /// # Errors
    ///
    /// When an IOMMU refuses, no address is left, or a device is another process and the memory is private to this one;
    /// nothing is left mapped then.
    pub fn map(&self, memory: Memory) -> Result<DmaRegion, DmaError> {
        self.map_for(memory, None)
    }

    /// Allocates and maps in one step. The memory is shared if a device of the domain is another process, whatever
    /// `request` says.
    ///
    /// # Errors
    ///
    /// As [`Memory::alloc`] and [`map`](Self::map).
    pub fn alloc(&self, request: &MemRequest) -> Result<DmaRegion, DmaError> {
        self.alloc_for(request, None)
    }

    /// Allocates and maps for the devices of `owner`, or for all.
    fn alloc_for(&self, request: &MemRequest, owner: Option<&Arc<dyn Iommu>>) -> Result<DmaRegion, DmaError> {
        let owner = owner.map(Arc::downgrade);
        let shared = self.lock().needs_shared(owner.as_ref());
        let sharing = if shared { Sharing::Shared } else { request.sharing };
        self.map_for(Memory::alloc(&request.clone().sharing(sharing))?, owner)
    }

    fn map_for(&self, memory: Memory, owner: Option<Weak<dyn Iommu>>) -> Result<DmaRegion, DmaError> {
        let len = memory.len();
        let memory = Arc::new(memory);
        let mut guard = self.lock();
        let state = &mut *guard;
        if memory.fd().is_none() && state.needs_shared(owner.as_ref()) {
            return Err(DmaError::NoDescriptor { len });
        }
        let Some(iova) = state.free_address(len, memory.page_size().bytes() as u64, owner.as_ref()) else {
            return Err(DmaError::NoAddress { len });
        };
        let entry = Entry { memory: ManuallyDrop::new(memory.clone()), owner: owner.clone() };
        state.regions.insert(iova, entry);
        for space in state.spaces.iter_mut().filter(|space| space.sees(owner.as_ref())) {
            // SAFETY: the memory is not freed while a space has it in `mapped` (invariant of `State`): `release` sees to
            // it. Whoever gets the region's address answers for how it is accessed.
            if let Err(error) = unsafe { space.map(iova, &memory) } {
                let released = state.release(iova);
                drop(guard);
                drop(released);
                return Err(error);
            }
        }
        drop(guard);
        Ok(DmaRegion { memory, iova: Iova(iova), domain: self.clone() })
    }

    /// Regions that live, or that some IOMMU would not give back.
    #[cfg(test)]
    pub(crate) fn mapped_regions(&self) -> usize {
        self.lock().regions.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic leaves the account on the safe side (invariant of `State`), so a poisoned lock is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether a region of `owner` will be seen by a device that reaches it through its file descriptor only.
    fn needs_shared(&self, owner: Option<&Weak<dyn Iommu>>) -> bool {
        self.spaces.iter().any(|space| space.sees(owner) && space.iommu.needs_shared())
    }

    /// Takes the region at `iova` from every space; returns the account's hold on its memory. If some space would not let
    /// go, the account keeps it, and its address stays taken.
    fn release(&mut self, iova: u64) -> Option<Arc<Memory>> {
        let len = self.regions.get(&iova)?.memory.len();
        let mut free = true;
        for space in &mut self.spaces {
            free &= space.unmap(iova, len);
        }
        if !free {
            return None;
        }
        self.regions.remove(&iova).map(|entry| ManuallyDrop::into_inner(entry.memory))
    }

    /// Takes out the spaces that no device uses and that have nothing mapped. To be dropped without the lock: an IOMMU's
    /// end is its own affair.
    fn take_unused(&mut self) -> Vec<Space> {
        self.spaces.extract_if(.., |space| space.limits.is_empty() && space.mapped.is_empty()).collect()
    }

    /// An address for `len` bytes of `owner`, aligned to `align`, that no region uses and every device reaches that sees it.
    fn free_address(&self, len: usize, align: u64, owner: Option<&Weak<dyn Iommu>>) -> Option<u64> {
        let mut ranges = vec![LOWEST_START..=u64::MAX];
        for space in self.spaces.iter().filter(|space| space.sees(owner)) {
            if let Some(&limit) = space.limits.iter().min() {
                ranges = intersect(&ranges, &space.iommu.iova_ranges(), limit);
            }
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
                    Some((&taken, entry)) if taken + (entry.memory.len() as u64 - 1) >= start => {
                        start = taken.checked_add(entry.memory.len() as u64)?.checked_next_multiple_of(align)?;
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

#[cfg(test)]
mod tests;
