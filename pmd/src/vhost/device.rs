//! One back end as its port, its queues and its connections see it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use log::Level;
use spinwake::irq::Vector;
use spinwake::port::PortConfig;

use super::slot::RingSlot;
use super::spec::VhostSpec;
use crate::virtio::features::Features;
use crate::voice::Voice;

/// Everything that lives longer than a connection.
#[derive(Debug)]
pub(super) struct Device {
    /// The spec without its keys: `vhost:/run/sw.sock`.
    pub(super) name: String,
    pub(super) spec: VhostSpec,
    /// Two for each pair: what the peer receives (even), what it sends (odd).
    pub(super) slots: Box<[Arc<RingSlot>]>,
    pub(super) counts: Counts,
    pub(super) link_vector: Arc<Vector>,
    offer: Mutex<Offer>,
    voice: Voice,
    is_up: AtomicBool,
}

/// What peers are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) features: Features,
    /// Pairs of queues.
    pub(super) pairs: u16,
    /// Largest payload of an Ethernet frame, in bytes.
    pub(super) mtu: u16,
}

/// What has happened on the socket.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Peers that connected.
    pub(super) connections: AtomicU64,
    /// Connections that were closed because of what the peer did.
    pub(super) offences: AtomicU64,
    /// Rings that a worker did not let go of in time.
    pub(super) late: AtomicU64,
}

impl Counts {
    /// For statistics.
    pub(super) fn named(&self) -> Vec<(&'static str, u64)> {
        let counts = [("connections", &self.connections), ("offences", &self.offences), ("late_workers", &self.late)];
        counts.map(|(name, count)| (name, count.load(Ordering::Relaxed))).into()
    }
}

impl Device {
    /// `alarm` wakes the thread that serves connections.
    pub(super) fn new(spec: VhostSpec, alarm: &Arc<Vector>, config: &PortConfig) -> io::Result<Self> {
        let slot = |_| RingSlot::new(alarm.clone()).map(Arc::new);
        Ok(Self {
            name: format!("vhost:{}", spec.path.display()),
            slots: (0..2 * usize::from(spec.pairs)).map(slot).collect::<io::Result<_>>()?,
            counts: Counts::default(),
            link_vector: Arc::new(Vector::new()?),
            offer: Mutex::new(Offer::new(&spec, config)),
            voice: Voice::default(),
            is_up: AtomicBool::new(false),
            spec,
        })
    }

    /// Says what happens, as a line in the log.
    pub(super) fn say(&self, level: Level, what: impl fmt::Display) {
        self.voice.say(level, &self.name, what);
    }

    /// What the next connection is offered.
    pub(super) fn offer(&self) -> Offer {
        *self.offer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers what `config` asks for from the next connection on. Returns whether that is anything else than before.
    pub(super) fn set_offer(&self, config: &PortConfig) -> bool {
        let offer = Offer::new(&self.spec, config);
        let mut now = self.offer.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *now, offer) != offer
    }

    /// Whether a peer has rings that run.
    pub(super) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    pub(super) fn set_up(&self, up: bool) {
        if self.is_up.swap(up, Ordering::Relaxed) != up {
            self.link_vector.signal(1);
        }
    }
}

impl Offer {
    fn new(spec: &VhostSpec, config: &PortConfig) -> Self {
        let pairs = config.rx_queues.max(config.tx_queues);
        // GUEST_ANNOUNCE is the guest's and QEMU's affair, but QEMU asks us: without it, nobody tells the network where a
        // guest is that has moved.
        let features = Features::VERSION_1
            .with(Features::MRG_RXBUF)
            .with(Features::MTU)
            .with(Features::GUEST_ANNOUNCE)
            .with(Features::INDIRECT_DESC)
            .with(Features::EVENT_IDX)
            .with(Features::IN_ORDER)
            .with(Features::LOG_ALL)
            .with(Features::PROTOCOL_FEATURES)
            .with(Features::RING_PACKED.when(spec.packed))
            .with(Features::MQ.when(pairs > 1))
            .with(Features::for_device(config.offloads));
        Self { features, pairs, mtu: config.mtu }
    }
}
