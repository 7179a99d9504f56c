//! What a receive and a transmit queue are made from, and what their port may ask of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use spinwake::dma::Domain;
use spinwake::frame::Pool;
use spinwake::irq::{IrqKind, Vector};
use spinwake::port::{PortError, RxQueue, TxQueue};
use spinwake::wait::Wake;

use super::features::Features;
use super::ring::{Doorbell, Fault, RingMemory};

/// What a queue needs to know.
#[derive(Debug)]
pub(crate) struct QueueSetup {
    /// Its name in reports: `0000:01:00.0 rx 0`.
    pub(crate) label: String,
    /// Where its ring is.
    pub(crate) memory: RingMemory,
    /// What was agreed on with the device.
    pub(crate) features: Features,
    /// How the device is told.
    pub(crate) doorbell: Arc<dyn Doorbell>,
    /// What the device fires; `None` when the queue can only be polled.
    pub(crate) irq: Option<(Arc<Vector>, IrqKind)>,
    /// What the device reaches; pools must be of it.
    pub(crate) domain: Domain,
    /// Bytes of the longest frame, without frame check sequence. Frames that ask to be cut may be longer on transmit.
    pub(crate) max_frame: usize,
}

/// A receive queue whose device can go and come back.
pub(crate) trait DriverRx: RxQueue {
    /// Takes back all buffers, which go home, and brings ring and positions to their initial state. To be called only while
    /// the device does not touch the ring. Returns how many buffers it had.
    fn reset(&mut self) -> usize;

    /// Leaves all buffers to the device for good: for one that would not stop.
    fn abandon(&mut self);

    /// Whether it still works, for the control plane.
    fn health(&self) -> &Arc<RingHealth>;
}

/// A transmit queue whose device can go and come back.
pub(crate) trait DriverTx: TxQueue {
    /// As [`DriverRx::reset`]. Returns how many frames were in flight.
    fn reset(&mut self) -> usize;

    /// Leaves all frames to the device for good: for one that would not stop.
    fn abandon(&mut self);

    /// Whether it still works, for the control plane.
    fn health(&self) -> &Arc<RingHealth>;
}

/// Whether a queue found its ring beyond sense. Such a queue does nothing until it is reset.
#[derive(Debug, Default)]
pub(crate) struct RingHealth(AtomicU8);

impl RingHealth {
    /// What ended the queue's work, if something did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        [Fault::UsedIndex, Fault::NotInFlight].into_iter().find(|fault| *fault as u8 == self.0.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, fault: Option<Fault>) {
        self.0.store(fault.map_or(0, |fault| fault as u8), Ordering::Relaxed);
    }
}

/// What both directions have besides their ring.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) label: String,
    pub(super) len: usize,
    pub(super) features: Features,
    doorbell: Arc<dyn Doorbell>,
    irq: Option<(Arc<Vector>, IrqKind)>,
    domain: Domain,
    pub(super) max_frame: usize,
    pub(super) health: Arc<RingHealth>,
    /// The same, for the queue itself.
    pub(super) broken: bool,
}

impl Common {
    /// Takes a setup apart.
    pub(super) fn new(setup: QueueSetup) -> (Self, RingMemory) {
        let QueueSetup { label, memory, features, doorbell, irq, domain, max_frame } = setup;
        let (health, len) = (Arc::default(), usize::from(memory.len()));
        (Self { label, len, features, doorbell, irq, domain, max_frame, health, broken: false }, memory)
    }

    /// Refuses the setup.
    pub(super) fn unsupported(&self, why: impl fmt::Display) -> PortError {
        PortError::Unsupported { port: self.label.clone(), why: why.to_string() }
    }

    #[inline(always)]
    pub(super) fn check_domain(&self, pool: &Pool) {
        assert!(
            *pool.domain() == self.domain,
            "a pool that this port's device cannot reach: it is in another DMA domain"
        );
    }

    /// Tells the device if it wants to be told.
    #[inline(always)]
    pub(super) fn notify(&self, wanted: bool) {
        if wanted {
            self.doorbell.ring();
        }
    }

    #[cold]
    pub(super) fn break_down(&mut self, fault: Fault) {
        self.broken = true;
        self.health.set(Some(fault));
    }

    pub(super) fn recover(&mut self) {
        self.broken = false;
        self.health.set(None);
    }

    pub(super) fn vector(&self) -> Option<&Arc<Vector>> {
        self.irq.as_ref().map(|(vector, _)| vector)
    }

    pub(super) fn wake(&self) -> Wake {
        match &self.irq {
            Some((vector, kind)) => Wake::Vector(Arc::clone(vector), *kind),
            None => Wake::Never("the device has no interrupts".into()),
        }
    }
}
