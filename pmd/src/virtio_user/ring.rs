//! One virtqueue as the back end is told of it, and the seat in which its driver's half is handed to a worker.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use spinwake::dma::DmaCells;
use spinwake::irq::Vector;

use crate::virtio::ring::{Doorbell, RingKind, RingMemory};

/// One virtqueue: where it lies, and the two eventfds, which stay the same however often the back end changes.
#[derive(Debug)]
pub(super) struct Ring {
    /// Its number for the back end: receive queues are even, transmit queues odd (VIRTIO 1.2, 5.1.2).
    pub(super) index: u32,
    pub(super) label: String,
    pub(super) len: u16,
    kind: RingKind,
    cells: Arc<DmaCells>,
    offset: usize,
    /// Signalled by the driver.
    pub(super) kick: Arc<Vector>,
    /// Signalled by the back end; and by us, to wake a worker whose back end came or went.
    pub(super) call: Arc<Vector>,
    /// The last generation without a back end that the queue has seen: it has taken its buffers back.
    acknowledged: AtomicU32,
    /// The queue was dropped.
    gone: AtomicBool,
}

/// What a ring is made of.
#[derive(Debug)]
pub(super) struct RingPlan {
    pub(super) index: u32,
    pub(super) label: String,
    pub(super) len: u16,
    pub(super) kind: RingKind,
    /// Where in the memory of all rings.
    pub(super) offset: usize,
}

impl Ring {
    /// A ring of `plan` in `cells`, whose queue has nothing to take back in `generation`.
    pub(super) fn new(plan: RingPlan, cells: Arc<DmaCells>, generation: u32) -> std::io::Result<Self> {
        let RingPlan { index, label, len, kind, offset } = plan;
        let (kick, call) = (Arc::new(Vector::new()?), Arc::new(Vector::new()?));
        let (acknowledged, gone) = (AtomicU32::new(generation), AtomicBool::new(false));
        Ok(Self { index, label, len, kind, cells, offset, kick, call, acknowledged, gone })
    }

    pub(super) fn is_packed(&self) -> bool {
        self.kind == RingKind::Packed
    }

    pub(super) fn memory(&self) -> RingMemory {
        RingMemory::new(self.kind, self.len, self.cells.clone(), self.offset)
    }

    /// Where its areas are in this process: descriptors, the driver's, the device's.
    pub(super) fn addresses(&self) -> [u64; 3] {
        let areas = self.memory().areas();
        [areas.descriptors, areas.driver, areas.device].map(|at| self.cells.address(at))
    }

    /// The queue took its buffers back.
    pub(super) fn acknowledge(&self, generation: u32) {
        self.acknowledged.store(generation, Ordering::Release);
    }

    /// Whether nobody touches the ring any longer in `generation`.
    pub(super) fn is_quiet(&self, generation: u32) -> bool {
        self.is_gone() || self.acknowledged.load(Ordering::Acquire) == generation
    }

    pub(super) fn leave(&self) {
        self.gone.store(true, Ordering::Release);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

/// Kicks the back end.
#[derive(Debug)]
pub(super) struct Kick(pub(super) Arc<Vector>);

impl Doorbell for Kick {
    fn ring(&self) {
        self.0.signal(1);
    }
}

/// A ring, and its driver's half `Q` from when it is made, with the first back end, until its worker takes it.
#[derive(Debug)]
pub(super) struct Seat<Q: ?Sized> {
    pub(super) ring: Arc<Ring>,
    half: Mutex<Option<Box<Q>>>,
}

impl<Q: ?Sized> Seat<Q> {
    pub(super) fn new(ring: Arc<Ring>) -> Self {
        Self { ring, half: Mutex::new(None) }
    }

    pub(super) fn put(&self, half: Box<Q>) {
        *self.half.lock().unwrap_or_else(PoisonError::into_inner) = Some(half);
    }

    pub(super) fn take(&self) -> Option<Box<Q>> {
        self.half.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
