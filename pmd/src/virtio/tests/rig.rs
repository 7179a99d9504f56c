//! A queue, its memory, and the same memory as a device in another process would map it.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use spinwake::device::{DeviceError, Iommu};
use spinwake::dma::{Attachment, DmaCells, Domain, MemoryTable, TableRegion, TableUser};
use spinwake::frame::{Frame, Pool, PoolConfig};
use spinwake::mem::{MemRequest, PageSize};
use spinwake::port::{RxCounters, TxCounters};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::super::features::Features;
use super::super::queue::{DriverRx, DriverTx, QueueSetup};
use super::super::ring::{Doorbell, RingKind, RingMemory};
use super::super::rx::rx_queue;
use super::super::tx::tx_queue;
use super::peer::Peer;

/// Counts how often the driver rings.
#[derive(Debug, Default)]
pub(super) struct Bell(AtomicUsize);

impl Doorbell for Bell {
    fn ring(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Bell {
    /// How often, since the last call.
    pub(super) fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Regions(Mutex<Vec<TableRegion>>);

impl TableUser for Regions {
    fn added(&self, _: &TableRegion, table: &[TableRegion]) -> Result<(), DeviceError> {
        *self.0.lock().unwrap() = table.to_vec();
        Ok(())
    }

    fn removed(&self, _: &TableRegion, table: &[TableRegion]) {
        *self.0.lock().unwrap() = table.to_vec();
    }
}

pub(super) struct Rig {
    pub(super) pool: Pool,
    pub(super) memory: GuestMemoryMmap,
    pub(super) bell: Arc<Bell>,
    pub(super) kind: RingKind,
    pub(super) len: u16,
    pub(super) features: Features,
    domain: Domain,
    cells: Arc<DmaCells>,
    _attachment: Attachment,
}

impl Rig {
    pub(super) fn new(kind: RingKind, len: u16, features: Features, frames: usize) -> Self {
        let (domain, regions) = (Domain::new(), Arc::new(Regions::default()));
        let table: Arc<dyn Iommu> = Arc::new(MemoryTable::new("peer", regions.clone()));
        let attachment = domain.attach_space("peer", table, 47).unwrap();
        let request = MemRequest::new(RingMemory::bytes(kind, len)).page(PageSize::Ordinary);
        let cells = Arc::new(DmaCells::new(attachment.alloc(&request).unwrap()));
        let pool = Pool::new_in(&domain, &PoolConfig { frames, ..PoolConfig::default() }).unwrap();
        let mut ranges: Vec<_> = regions
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|region| {
                let file = File::from(region.fd().try_clone_to_owned().unwrap());
                (GuestAddress(region.iova()), region.bytes() as usize, Some(FileOffset::new(file, 0)))
            })
            .collect();
        ranges.sort_by_key(|range| range.0);
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        Self { pool, memory, bell: Arc::default(), kind, len, features, domain, cells, _attachment: attachment }
    }

    fn setup(&self, max_frame: usize) -> QueueSetup {
        QueueSetup {
            label: "queue".into(),
            memory: RingMemory::new(self.kind, self.len, self.cells.clone(), 0),
            features: self.features,
            doorbell: self.bell.clone(),
            irq: None,
            domain: self.domain.clone(),
            max_frame,
        }
    }

    pub(super) fn rx(&self, max_frame: usize) -> (Box<dyn DriverRx>, Arc<RxCounters>) {
        let counters = Arc::<RxCounters>::default();
        (rx_queue(self.setup(max_frame), counters.clone()).unwrap(), counters)
    }

    pub(super) fn tx(&self, max_frame: usize) -> (Box<dyn DriverTx>, Arc<TxCounters>) {
        let counters = Arc::<TxCounters>::default();
        (tx_queue(self.setup(max_frame), counters.clone()).unwrap(), counters)
    }

    /// The device's half of the ring.
    pub(super) fn peer(&self) -> Peer {
        let areas = RingMemory::new(self.kind, self.len, self.cells.clone(), 0).areas();
        let at = |offset| self.cells.iova(offset).get();
        Peer::new(self.kind, self.len, [at(areas.descriptors), at(areas.driver), at(areas.device)], self.features)
    }

    /// The ring's bytes, as the device sees them.
    pub(super) fn ring(&self) -> (u64, usize) {
        (self.cells.iova(0).get(), RingMemory::bytes(self.kind, self.len))
    }

    /// The bytes of a buffer.
    pub(super) fn read(&self, address: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// The bytes of frame `number`, of `len` of them.
pub(super) fn pattern(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (number.wrapping_mul(31) ^ i.wrapping_mul(7) ^ (i >> 8)) as u8).collect()
}

/// All bytes of a frame.
pub(super) fn bytes_of(frame: &Frame) -> Vec<u8> {
    frame.segments().flat_map(|segment| segment.data().iter().copied()).collect()
}
