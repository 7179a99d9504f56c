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
#![expect(unsafe_code, reason = "gives memory to devices")]

mod ring;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

pub use ring::{DescRing, Descriptor};

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

/// # Invariant
///
/// A region whose address stands in `mapped` of any space stands in `regions`, and its memory is not freed. An address
/// enters the account before its IOMMU is called and leaves it after, so a call that panics can lose memory, never free
/// what a device still reaches.
#[derive(Debug, Default)]
struct State {
    spaces: Vec<Space>,
    /// Regions by I/O virtual address: where they are and how long.
    regions: BTreeMap<u64, (usize, usize)>,
}

/// One IOMMU. A space without devices stays listed while there is something that it would not let go.
#[derive(Debug)]
struct Space {
    iommu: Arc<dyn Iommu>,
    /// The address limits of the devices that use this IOMMU, one entry a device.
    limits: Vec<u64>,
    /// Addresses of the regions that it may have mapped.
    mapped: BTreeSet<u64>,
}

impl Space {
    /// Maps the region of `len` bytes at `va`.
    ///
    /// # Safety
    ///
    /// As [`Iommu::map`]; the memory is not freed while `mapped` has `iova`.
    unsafe fn map(&mut self, iova: u64, (va, len): (usize, usize)) -> Result<(), DmaError> {
        if self.iommu.entries_left() == Some(0) {
            return Err(DmaError::NoEntries);
        }
        self.mapped.insert(iova);
        // SAFETY: the caller's promise: `mapped` has the address until `unmap` has succeeded.
        let result = unsafe { self.iommu.map(std::ptr::with_exposed_provenance_mut(va), len, iova) };
        if result.is_err() {
            self.mapped.remove(&iova);
        }
        Ok(result?)
    }

    /// Takes a mapping away, if it has it; returns whether it is gone.
    fn unmap(&mut self, iova: u64, len: usize) -> bool {
        if !self.mapped.contains(&iova) {
            return true;
        }
        let result = self.iommu.unmap(iova, len);
        match &result {
            Ok(()) => _ = self.mapped.remove(&iova),
            Err(error) => {
                log::error!("{error}; {len} bytes stay allocated, because a device may still write to them");
            }
        }
        result.is_ok()
    }
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
        let State { spaces, regions } = &mut *state;
        let at = spaces.iter().position(|s| Arc::ptr_eq(&s.iommu, &iommu)).unwrap_or_else(|| {
            spaces.push(Space { iommu: iommu.clone(), limits: Vec::new(), mapped: BTreeSet::new() });
            spaces.len() - 1
        });
        let space = &mut spaces[at];
        let missing: Vec<_> = regions.iter().filter(|&(iova, _)| !space.mapped.contains(iova)).collect();
        for (done, &(&iova, &place)) in missing.iter().enumerate() {
            // SAFETY: a region's memory is not freed while a space has it in `mapped` (invariant of `State`).
            if let Err(error) = unsafe { space.map(iova, place) } {
                for &(&iova, &(_, len)) in &missing[..done] {
                    space.unmap(iova, len);
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
    /// When an IOMMU refuses or no address is left; nothing is left mapped then.
    pub fn map(&self, memory: Memory) -> Result<DmaRegion, DmaError> {
        // Not to be freed by a panic: a device may have it by then.
        let memory = ManuallyDrop::new(memory);
        let len = memory.len();
        let place = (memory.as_ptr().as_ptr().expose_provenance(), len);
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(iova) = state.free_address(len, memory.page_size().bytes() as u64) else {
            drop(guard);
            drop(ManuallyDrop::into_inner(memory));
            return Err(DmaError::NoAddress { len });
        };
        state.regions.insert(iova, place);
        for at in 0..state.spaces.len() {
            // A space that no device uses only waits to be rid of what it would not let go.
            if state.spaces[at].limits.is_empty() {
                continue;
            }
            // SAFETY: the memory is not freed while a space has it in `mapped` (invariant of `State`): `release` sees to
            // it. Whoever gets the region's address answers for how it is accessed.
            if let Err(error) = unsafe { state.spaces[at].map(iova, place) } {
                let free = state.release(iova);
                drop(guard);
                if free {
                    drop(ManuallyDrop::into_inner(memory));
                }
                return Err(error);
            }
        }
        drop(guard);
        Ok(DmaRegion { memory, iova: Iova(iova), domain: self.clone() })
    }

    /// Allocates and maps in one step.
    ///
    /// # Errors
    ///
    /// As [`Memory::alloc`] and [`map`](Self::map).
    pub fn alloc(&self, request: &MemRequest) -> Result<DmaRegion, DmaError> {
        self.map(Memory::alloc(request)?)
    }

    /// Regions that live, or that some IOMMU would not give back.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn mapped_regions(&self) -> usize {
        self.lock().regions.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic leaves the account on the safe side (invariant of `State`), so a poisoned lock is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the region at `iova` from every space; returns whether its memory may be freed. If not, its address stays
    /// taken.
    fn release(&mut self, iova: u64) -> bool {
        let Some(&(_, len)) = self.regions.get(&iova) else { return false };
        let mut free = true;
        for space in &mut self.spaces {
            free &= space.unmap(iova, len);
        }
        if free {
            self.regions.remove(&iova);
        }
        free
    }

    /// Takes out the spaces that no device uses and that have nothing mapped. To be dropped without the lock: an IOMMU's
    /// end is its own affair.
    fn take_unused(&mut self) -> Vec<Space> {
        self.spaces.extract_if(.., |space| space.limits.is_empty() && space.mapped.is_empty()).collect()
    }

    /// An address for `len` bytes, aligned to `align`, that no region uses and every device reaches.
    fn free_address(&self, len: usize, align: u64) -> Option<u64> {
        let mut ranges = vec![LOWEST_START..=u64::MAX];
        for space in &self.spaces {
            // A space that no device uses has no say.
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
                    Some((&taken, &(_, taken_len))) if taken + (taken_len as u64 - 1) >= start => {
                        start = taken.checked_add(taken_len as u64)?.checked_next_multiple_of(align)?;
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
        let mut guard = self.domain.lock();
        let State { spaces, regions } = &mut *guard;
        let Some(space) = spaces.iter_mut().find(|s| Arc::ptr_eq(&s.iommu, &self.iommu)) else { return };
        if let Some(mine) = space.limits.iter().position(|l| *l == self.limit) {
            space.limits.swap_remove(mine);
        }
        if space.limits.is_empty() {
            for (&iova, &(_, len)) in &*regions {
                space.unmap(iova, len);
            }
        }
        // A space that would not let go stays listed, so that its regions try again, and leak, when they are dropped.
        let unused = guard.take_unused();
        drop(guard);
        drop(unused);
    }
}

/// Memory that every device of a domain sees at one address.
///
/// # Invariant
///
/// `memory` is mapped at `iova` in every space of `domain` that a device uses, page-aligned, and freed only after all
/// spaces gave it up.
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

    /// How big its pages are.
    pub fn page_size(&self) -> PageSize {
        self.memory.page_size()
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

    /// The address space that its [`iova`](Self::iova) belongs to. In another one that address is nothing, or other memory.
    pub fn domain(&self) -> &Domain {
        &self.domain
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
        let free = state.release(self.iova.0);
        let unused = state.take_unused();
        drop(state);
        drop(unused);
        if free {
            // SAFETY: every device gave the memory up (above), and `self` is not used again.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
        // Otherwise the address stays taken and the memory stays allocated: a device may still write to it.
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::device::{DeviceId, Notices};
    use crate::irq::IrqKind;
    use crate::mmio::Bar;

    /// An IOMMU that keeps an account and refuses, or panics, on demand.
    #[derive(Debug, Default)]
    struct Fake {
        mapped: Mutex<BTreeMap<u64, usize>>,
        /// Mappings that it takes before it refuses one more.
        room: Option<usize>,
        panics: bool,
        holds_on: AtomicBool,
    }

    impl Fake {
        fn mapped(&self) -> usize {
            self.mapped.lock().unwrap().len()
        }

        fn hold_on(&self, on: bool) {
            self.holds_on.store(on, Ordering::Relaxed);
        }

        fn refusal(call: &'static str) -> DeviceError {
            let source = std::io::Error::other("told to");
            DeviceError::Call { device: "fake".into(), call, source, hint: String::new() }
        }
    }

    impl Iommu for Fake {
        fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
            vec![0..=u64::MAX]
        }
        fn entries_left(&self) -> Option<usize> {
            None
        }
        unsafe fn map(&self, _: *mut u8, len: usize, iova: u64) -> Result<(), DeviceError> {
            let full = self.room.is_some_and(|room| self.mapped() >= room);
            assert!(!(full && self.panics), "on purpose");
            if full {
                return Err(Self::refusal("map"));
            }
            assert_eq!(self.mapped.lock().unwrap().insert(iova, len), None, "mapped twice");
            Ok(())
        }
        fn unmap(&self, iova: u64, len: usize) -> Result<(), DeviceError> {
            if self.holds_on.load(Ordering::Relaxed) {
                return Err(Self::refusal("unmap"));
            }
            let removed = self.mapped.lock().unwrap().remove(&iova);
            if removed == Some(len) { Ok(()) } else { Err(Self::refusal("unmap")) }
        }
    }

    #[derive(Debug)]
    struct Behind(Arc<Fake>);

    impl Device for Behind {
        fn name(&self) -> &str {
            "fake"
        }
        fn id(&self) -> DeviceId {
            DeviceId { vendor: 0, device: 0 }
        }
        fn numa_node(&self) -> Option<usize> {
            None
        }
        fn bar(&self, _: usize) -> Result<Bar, DeviceError> {
            Err(Fake::refusal("bar"))
        }
        fn config_read(&self, _: u16, _: &mut [u8]) -> Result<(), DeviceError> {
            Ok(())
        }
        fn config_write(&self, _: u16, _: &[u8]) -> Result<(), DeviceError> {
            Ok(())
        }
        fn reset(&self) -> Result<(), DeviceError> {
            Ok(())
        }
        fn set_bus_master(&self, _: bool) -> Result<(), DeviceError> {
            Ok(())
        }
        fn iommu(&self) -> Arc<dyn Iommu> {
            self.0.clone()
        }
        fn irq_count(&self, _: IrqKind) -> usize {
            0
        }
        fn irq_enable(&self, _: IrqKind, _: &[BorrowedFd<'_>]) -> Result<(), DeviceError> {
            Ok(())
        }
        fn irq_disable(&self) -> Result<(), DeviceError> {
            Ok(())
        }
        fn irq_unmask(&self) -> Result<(), DeviceError> {
            Ok(())
        }
        fn notices(&self) -> Option<&Notices> {
            None
        }
    }

    fn page(domain: &Domain) -> Result<DmaRegion, DmaError> {
        domain.alloc(&MemRequest::new(1).page(PageSize::Ordinary))
    }

    /// Whether a page of this process is still mapped there.
    fn is_memory(address: usize) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| {
            let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).unwrap());
            (start..end).contains(&address)
        })
    }

    #[test]
    fn every_device_sees_every_region_while_both_live() {
        let (one, two) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
        let domain = Domain::new();
        let first = domain.attach(&Behind(one.clone()), 64).unwrap();
        let a = page(&domain).unwrap();
        let second = domain.attach(&Behind(two.clone()), 32).unwrap_err();
        assert!(matches!(second, DmaError::OutOfReach { .. }), "{second}");
        let _second = domain.attach(&Behind(two.clone()), 39).unwrap();
        let b = page(&domain).unwrap();
        assert_ne!(a.iova(0), b.iova(0));
        assert_eq!((one.mapped(), two.mapped()), (2, 2));
        drop(a);
        assert_eq!((one.mapped(), two.mapped()), (1, 1));
        drop(first);
        assert_eq!((one.mapped(), two.mapped()), (0, 1));
        drop(b);
        assert_eq!(two.mapped(), 0);
    }

    #[test]
    fn devices_of_one_iommu_share_its_mappings() {
        let shared = Arc::new(Fake::default());
        let domain = Domain::new();
        let first = domain.attach(&Behind(shared.clone()), 64).unwrap();
        let _region = page(&domain).unwrap();
        let second = domain.attach(&Behind(shared.clone()), 64).unwrap();
        drop(first);
        assert_eq!(shared.mapped(), 1);
        drop(second);
        assert_eq!(shared.mapped(), 0);
    }

    #[test]
    fn a_refused_region_is_mapped_nowhere() {
        let (one, two) = (Arc::new(Fake::default()), Arc::new(Fake { room: Some(0), ..Fake::default() }));
        let domain = Domain::new();
        let _first = domain.attach(&Behind(one.clone()), 64).unwrap();
        let _second = domain.attach(&Behind(two), 64).unwrap();
        assert!(matches!(page(&domain), Err(DmaError::Device(_))));
        assert_eq!(one.mapped(), 0);
    }

    #[test]
    fn memory_that_an_iommu_keeps_is_never_freed() {
        let iommu = Arc::new(Fake::default());
        let domain = Domain::new();
        let _attached = domain.attach(&Behind(iommu.clone()), 64).unwrap();
        let region = page(&domain).unwrap();
        let (at, iova) = (region.as_ptr().as_ptr() as usize, region.iova(0));
        iommu.hold_on(true);
        drop(region);
        iommu.hold_on(false);
        assert!(is_memory(at));
        assert_ne!(page(&domain).unwrap().iova(0), iova);
    }

    #[test]
    fn memory_kept_by_an_iommu_whose_attachment_failed_is_not_freed() {
        let iommu = Arc::new(Fake { room: Some(1), holds_on: AtomicBool::new(true), ..Fake::default() });
        let domain = Domain::new();
        let (a, b) = (page(&domain).unwrap(), page(&domain).unwrap());
        assert!(matches!(domain.attach(&Behind(iommu.clone()), 64), Err(DmaError::Device(_))));
        let places = [a, b].map(|region| {
            let place = (region.iova(0).get(), region.as_ptr().as_ptr() as usize);
            drop(region);
            place
        });
        assert_eq!(iommu.mapped(), 1);
        for (iova, at) in places {
            let kept = iommu.mapped.lock().unwrap().contains_key(&iova);
            assert!(!kept || is_memory(at), "a device still reaches memory that was freed");
        }
    }

    #[test]
    fn a_device_that_comes_back_after_a_failed_unmap_sees_everything() {
        let iommu = Arc::new(Fake::default());
        let domain = Domain::new();
        let attached = domain.attach(&Behind(iommu.clone()), 64).unwrap();
        let _kept = page(&domain).unwrap();
        iommu.hold_on(true);
        drop(attached);
        iommu.hold_on(false);
        let _new = page(&domain).unwrap();
        assert_eq!(iommu.mapped(), 1);
        let _attached = domain.attach(&Behind(iommu.clone()), 64).unwrap();
        assert_eq!(iommu.mapped(), 2);
    }

    #[test]
    fn a_panic_while_mapping_frees_nothing_that_is_mapped() {
        let calm = Arc::new(Fake::default());
        let domain = Domain::new();
        let _calm = domain.attach(&Behind(calm.clone()), 64).unwrap();
        let wild = Arc::new(Fake { room: Some(0), panics: true, ..Fake::default() });
        let _wild = domain.attach(&Behind(wild), 64).unwrap();
        let memory = Memory::alloc(&MemRequest::new(1).page(PageSize::Ordinary)).unwrap();
        let at = memory.as_ptr().as_ptr() as usize;
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| domain.map(memory)));
        assert!(panic.is_err() && calm.mapped() == 1 && is_memory(at));
    }

    #[test]
    fn regions_come_and_go_while_devices_do() {
        const ROUNDS: usize = 200;
        let domain = Domain::new();
        let iommus: [Arc<Fake>; 2] = std::array::from_fn(|_| Arc::default());
        std::thread::scope(|scope| {
            for iommu in &iommus {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let attached = domain.attach(&Behind(iommu.clone()), 64).unwrap();
                        let region = page(&domain).unwrap();
                        assert!(iommu.mapped.lock().unwrap().contains_key(&region.iova(0).get()));
                        drop(attached);
                        assert_eq!(iommu.mapped(), 0);
                    }
                });
            }
        });
        let state = domain.lock();
        assert!(state.spaces.is_empty() && state.regions.is_empty());
    }

    #[test]
    fn a_ring_too_long_for_any_memory_is_refused() {
        let error = DescRing::new(&Domain::new(), 1 << 63, None).unwrap_err();
        assert!(matches!(error, DmaError::Mem(MemError::TooLong { .. })), "{error}");
    }
}
