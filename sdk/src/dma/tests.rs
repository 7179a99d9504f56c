use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::device::{DeviceId, Mapping, Notices};
use crate::irq::IrqKind;
use crate::mem::PageSize;
use crate::mmio::Bar;

/// An IOMMU that keeps an account and refuses, or panics, on demand.
#[derive(Debug, Default)]
struct Fake {
    mapped: Mutex<BTreeMap<u64, usize>>,
    /// Mappings that it takes before it refuses one more.
    room: Option<usize>,
    panics: bool,
    holds_on: AtomicBool,
    /// Whether it is another process.
    peer: bool,
    /// Addresses that it permits, if not all.
    ranges: Option<RangeInclusive<u64>>,
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
        vec![self.ranges.clone().unwrap_or(0..=u64::MAX)]
    }
    fn entries_left(&self) -> Option<usize> {
        None
    }
    fn needs_shared(&self) -> bool {
        self.peer
    }
    unsafe fn map(&self, Mapping { len, iova, fd, .. }: Mapping<'_>) -> Result<(), DeviceError> {
        assert!(fd.is_some() || !self.peer, "memory that a peer cannot map");
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
    let attached = Domain::new().attach(&Behind(Arc::default()), 64).unwrap();
    let error = DescRing::new(&attached, 1 << 63, None).unwrap_err();
    assert!(matches!(error, DmaError::Mem(MemError::TooLong { .. })), "{error}");
}

#[test]
fn a_region_of_one_device_is_seen_by_no_other() {
    let (one, two) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
    let domain = Domain::new();
    let first = domain.attach(&Behind(one.clone()), 64).unwrap();
    let _second = domain.attach(&Behind(two.clone()), 64).unwrap();
    let own = first.alloc(&MemRequest::new(1).page(PageSize::Ordinary)).unwrap();
    let common = page(&domain).unwrap();
    assert_ne!(own.iova(0), common.iova(0));
    assert_eq!((one.mapped(), two.mapped()), (2, 1));
    // One that cannot reach it need not.
    let three = Arc::new(Fake { ranges: Some(common.iova(0).get()..=u64::MAX), ..Fake::default() });
    let _third = domain.attach(&Behind(three.clone()), 64).unwrap();
    assert_eq!(three.mapped(), 1);
    drop(own);
    assert_eq!((one.mapped(), two.mapped(), three.mapped()), (1, 1, 1));
}

#[test]
fn a_region_of_one_device_comes_back_with_its_device_alone() {
    let (one, two) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
    let domain = Domain::new();
    let first = domain.attach(&Behind(one.clone()), 64).unwrap();
    let _own = first.alloc(&MemRequest::new(1).page(PageSize::Ordinary)).unwrap();
    drop(first);
    assert_eq!(one.mapped(), 0);
    let _second = domain.attach(&Behind(two.clone()), 64).unwrap();
    let _first = domain.attach(&Behind(one.clone()), 64).unwrap();
    assert_eq!((one.mapped(), two.mapped()), (1, 0));
}

#[test]
fn a_refused_region_of_one_device_leaves_nothing() {
    let full = Arc::new(Fake { room: Some(0), ..Fake::default() });
    let domain = Domain::new();
    let attached = domain.attach(&Behind(full.clone()), 64).unwrap();
    let refused = attached.alloc(&MemRequest::new(1).page(PageSize::Ordinary));
    assert!(matches!(refused, Err(DmaError::Device(_))));
    assert_eq!((full.mapped(), domain.mapped_regions()), (0, 0));
}

#[test]
fn a_peer_in_the_domain_makes_all_memory_shared() {
    let (card, peer) = (Arc::new(Fake::default()), Arc::new(Fake { peer: true, ..Fake::default() }));
    let domain = Domain::new();
    let at_card = domain.attach(&Behind(card.clone()), 64).unwrap();
    let own = at_card.alloc(&MemRequest::new(1).page(PageSize::Ordinary)).unwrap();
    // What the peer will never see is in nobody's way.
    let at_peer = domain.attach(&Behind(peer.clone()), 64).unwrap();
    let (common, rings) =
        (page(&domain).unwrap(), at_peer.alloc(&MemRequest::new(1).page(PageSize::Ordinary)).unwrap());
    assert!(!own.is_shared() && common.is_shared() && rings.is_shared());
    assert_eq!((card.mapped(), peer.mapped()), (2, 2));
    let private = Memory::alloc(&MemRequest::new(1).page(PageSize::Ordinary)).unwrap();
    let error = domain.map(private).unwrap_err();
    assert!(matches!(error, DmaError::NoDescriptor { len: 4096 }), "{error}");
    assert_eq!(card.mapped(), 2);
}

#[test]
fn a_peer_that_comes_after_private_memory_is_refused() {
    let (card, peer) = (Arc::new(Fake::default()), Arc::new(Fake { peer: true, ..Fake::default() }));
    let domain = Domain::new();
    let _card = domain.attach(&Behind(card.clone()), 64).unwrap();
    let shared = domain.alloc(&MemRequest::new(1).page(PageSize::Ordinary).sharing(Sharing::Shared)).unwrap();
    let private = page(&domain).unwrap();
    let error = domain.attach(&Behind(peer.clone()), 64).unwrap_err();
    assert!(matches!(error, DmaError::NotShared { start, .. } if start == private.iova(0).get()), "{error}");
    assert!(error.to_string().contains("open this device before making pools"), "{error}");
    assert_eq!((card.mapped(), peer.mapped()), (2, 0));
    drop(private);
    let _peer = domain.attach(&Behind(peer.clone()), 64).unwrap();
    assert_eq!(peer.mapped(), 1);
    drop(shared);
    assert_eq!(peer.mapped(), 0);
}

/// A peer that takes so many regions.
#[derive(Debug)]
struct Room(usize, Mutex<Vec<Vec<u64>>>);

impl TableUser for Room {
    fn added(&self, added: &TableRegion, table: &[TableRegion]) -> Result<(), DeviceError> {
        assert_eq!(table.last().map(TableRegion::iova), Some(added.iova()));
        if table.len() > self.0 {
            return Err(Fake::refusal("add"));
        }
        self.1.lock().unwrap().push(table.iter().map(TableRegion::iova).collect());
        Ok(())
    }
    fn removed(&self, _: &TableRegion, table: &[TableRegion]) {
        self.1.lock().unwrap().push(table.iter().map(TableRegion::iova).collect());
    }
}

#[test]
fn a_memory_table_hands_on_descriptors_of_the_same_memory() {
    let room = Arc::new(Room(1, Mutex::default()));
    let domain = Domain::new();
    let table: Arc<dyn Iommu> = Arc::new(MemoryTable::new("peer", room.clone()));
    let attached = domain.attach_space("peer", table.clone(), 64).unwrap();
    let region = page(&domain).unwrap();
    let refused = attached.alloc(&MemRequest::new(1).page(PageSize::Ordinary));
    assert!(matches!(refused, Err(DmaError::Device(_))), "the peer has no room");
    let at = region.iova(0).get();
    drop(region);
    assert_eq!(*room.1.lock().unwrap(), [vec![at], vec![]]);
    drop(attached);
    assert_eq!(Arc::strong_count(&table), 1);
}
