//! A start of the port: its rings, and the features that it settled on with its first back end.

use std::sync::Arc;

use spinwake::dma::{DmaCells, Domain};
use spinwake::frame::DATA_ROOM;
use spinwake::irq::IrqKind;
use spinwake::port::{Offloads, PortConfig, PortError, RxCounters, TxCounters};

use super::channel::Failure;
use super::ring::{Kick, Ring, RingPlan, Seat};
use super::session::Session;
use super::spec::UserSpec;
use crate::virtio::features::{Features, agree};
use crate::virtio::queue::{DriverRx, DriverTx, QueueSetup, RingHealth};
use crate::virtio::ring::{RingKind, RingMemory};
use crate::virtio::rx::rx_queue;
use crate::virtio::tx::tx_queue;

/// Bytes of an Ethernet header and two VLAN tags.
const HEADERS: usize = 14 + 2 * 4;
/// The MTU that everybody has.
const STANDARD_MTU: u16 = 1500;
/// Bytes of the longest frame that is to be cut, without VLAN tags (VIRTIO 1.2, 5.1.6.3.1).
const LARGE_FRAME: usize = 65_550;

/// Bytes of memory for the rings of `config`.
pub(super) fn ring_bytes(spec: &UserSpec, config: &PortConfig) -> usize {
    plans("", spec, config).1
}

/// The rings of `config`, one behind the other, and the bytes of them all.
fn plans(name: &str, spec: &UserSpec, config: &PortConfig) -> (Vec<RingPlan>, usize) {
    let kind = if spec.packed { RingKind::Packed } else { RingKind::Split };
    let rx = (0..config.rx_queues).map(|q| (u32::from(q) * 2, format!("{name} rx {q}"), config.rx_ring_len));
    let tx = (0..config.tx_queues).map(|q| (u32::from(q) * 2 + 1, format!("{name} tx {q}"), config.tx_ring_len));
    let mut end = 0;
    let plans = rx.chain(tx).map(|(index, label, len)| {
        let offset = end;
        end += RingMemory::bytes(kind, len);
        RingPlan { index, label, len, kind, offset }
    });
    (plans.collect(), end)
}

/// What lives from a start to a stop, over any number of back ends.
#[derive(Debug)]
pub(super) struct Run {
    name: String,
    config: PortConfig,
    spec: UserSpec,
    domain: Domain,
    pub(super) rx: Vec<Arc<Seat<dyn DriverRx>>>,
    pub(super) tx: Vec<Arc<Seat<dyn DriverTx>>>,
    rx_counters: Vec<Arc<RxCounters>>,
    tx_counters: Vec<Arc<TxCounters>>,
    /// What the first back end agreed to. Later ones must do the same.
    settled: Option<Features>,
    /// By the names of the queues.
    health: Vec<(String, Arc<RingHealth>)>,
}

impl Run {
    /// Rings for `config` in `cells`, of [`ring_bytes`], with nothing in them.
    pub(super) fn new(
        name: &str,
        spec: &UserSpec,
        config: &PortConfig,
        cells: &Arc<DmaCells>,
        generation: u32,
    ) -> std::io::Result<Self> {
        let mut run = Self {
            name: name.into(),
            config: config.clone(),
            spec: spec.clone(),
            domain: cells.region().domain().clone(),
            rx: Vec::new(),
            tx: Vec::new(),
            rx_counters: Vec::new(),
            tx_counters: Vec::new(),
            settled: None,
            health: Vec::new(),
        };
        for plan in plans(name, spec, config).0 {
            let ring = Arc::new(Ring::new(plan, cells.clone(), generation)?);
            if ring.index.is_multiple_of(2) {
                run.rx.push(Arc::new(Seat::new(ring)));
            } else {
                run.tx.push(Arc::new(Seat::new(ring)));
            }
        }
        Ok(run)
    }

    /// Counters for its queues, in their order.
    pub(super) fn counting(mut self, rx: &[Arc<RxCounters>], tx: &[Arc<TxCounters>]) -> Self {
        (self.rx_counters, self.tx_counters) = (rx.to_vec(), tx.to_vec());
        self
    }

    pub(super) fn mtu(&self) -> u16 {
        self.config.mtu
    }

    /// All rings.
    pub(super) fn rings(&self) -> impl Iterator<Item = &Ring> {
        self.rx.iter().map(|seat| &*seat.ring).chain(self.tx.iter().map(|seat| &*seat.ring))
    }

    /// Those whose queues live.
    pub(super) fn living(&self) -> impl Iterator<Item = &Ring> {
        self.rings().filter(|ring| !ring.is_gone())
    }

    /// Whether the back end has left all rings in a state that makes sense.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let broken = |(label, health): &(String, Arc<RingHealth>)| Some((label.clone(), health.fault()?));
        match self.health.iter().find_map(broken) {
            None => Ok(()),
            Some((ring, fault)) => Err(Failure::Ring { ring, fault }),
        }
    }

    /// Wakes the workers of all queues.
    pub(super) fn wake(&self) {
        self.living().for_each(|ring| ring.call.signal(1));
    }

    /// Agrees with the first back end on features, and makes the driver's halves for them; asks later ones for the same.
    pub(super) fn settle(&mut self, session: &Session) -> Result<Features, Failure> {
        let pairs = self.config.rx_queues.max(self.config.tx_queues);
        if session.pairs < pairs {
            return Err(Failure::Unfit(format!(
                "has {} pairs of queues, and {pairs} are asked for; ask for fewer (queues=), or give it more",
                session.pairs
            )));
        }
        if let Some(settled) = self.settled {
            let lost = settled.without(session.offered);
            if lost.is_empty() {
                return Ok(settled);
            }
            return Err(Failure::Unfit(format!(
                "offers less than the one before it and cannot take its place: it lacks {lost}; start it as the first was"
            )));
        }
        let agreement = agree(with_control(session.offered), self.wanted(), self.needed())
            .map_err(|error| Failure::Unfit(format!("does not fit what the port is asked to do: {error}")))?;
        let features = agreement.features.common(session.offered);
        self.build(features).map_err(|error| Failure::Unfit(format!("got no queues: {error}")))?;
        log::info!("{}: {agreement}", self.name);
        self.settled = Some(features);
        Ok(features)
    }

    fn wanted(&self) -> Features {
        Features::EVENT_IDX
            .with(Features::INDIRECT_DESC)
            .with(Features::IN_ORDER)
            .with(Features::MTU)
            .with(Features::PROTOCOL_FEATURES)
            .with(Features::MRG_RXBUF.when(self.spec.mergeable))
            .with(Features::for_driver(self.config.offloads))
    }

    fn needed(&self) -> Features {
        Features::VERSION_1
            .with(Features::RING_PACKED.when(self.spec.packed))
            // With fewer than it is told of, DPDK forgets all queues but the first two.
            .with(Features::MQ.with(Features::CTRL_VQ).when(self.config.rx_queues.max(self.config.tx_queues) > 1))
            .with(Features::MRG_RXBUF.when(self.max_receive() > DATA_ROOM))
            .with(needed_for(self.config.offloads))
    }

    /// Bytes of the longest frame to receive: a small MTU is no reason to lose what a neighbour sends.
    fn max_receive(&self) -> usize {
        let plain = usize::from(self.config.mtu.max(STANDARD_MTU)) + HEADERS;
        if self.config.offloads.large_receive { plain.max(LARGE_FRAME) } else { plain }
    }

    /// Bytes of the longest frame to send, unless it is to be cut.
    fn max_send(&self) -> usize {
        usize::from(self.config.mtu) + HEADERS
    }

    fn build(&mut self, features: Features) -> Result<(), PortError> {
        let setup = |ring: &Ring, max_frame| QueueSetup {
            label: ring.label.clone(),
            memory: ring.memory(),
            features,
            doorbell: Arc::new(Kick(ring.kick.clone())),
            irq: Some((ring.call.clone(), IrqKind::Msix)),
            domain: self.domain.clone(),
            max_frame,
        };
        let mut health = Vec::new();
        for (seat, counters) in self.rx.iter().zip(&self.rx_counters) {
            let half = rx_queue(setup(&seat.ring, self.max_receive()), counters.clone())?;
            health.push((seat.ring.label.clone(), half.health().clone()));
            seat.put(half);
        }
        for (seat, counters) in self.tx.iter().zip(&self.tx_counters) {
            let half = tx_queue(setup(&seat.ring, self.max_send()), counters.clone())?;
            health.push((seat.ring.label.clone(), half.health().clone()));
            seat.put(half);
        }
        self.health = health;
        Ok(())
    }
}

/// What a back end that offers these can do for frames.
pub(super) fn offloads_of(offered: Features) -> Offloads {
    let rx_checksum = offered.has(Features::GUEST_CSUM);
    let tx_checksum = offered.has(Features::CSUM);
    let can = |wish: Offloads| offered.has(needed_for(wish));
    let none = Offloads::default();
    Offloads {
        rx_checksum,
        tx_checksum,
        tcp_segmentation: tx_checksum && can(Offloads { tcp_segmentation: true, ..none }),
        udp_segmentation: tx_checksum && can(Offloads { udp_segmentation: true, ..none }),
        large_receive: rx_checksum && offered.has(Features::MRG_RXBUF) && can(Offloads { large_receive: true, ..none }),
        ..none
    }
}

/// Without these the offloads cannot be had; ECN and large UDP frames are welcome, and rare.
fn needed_for(offloads: Offloads) -> Features {
    let rare = Features::HOST_ECN.with(Features::GUEST_ECN).with(Features::GUEST_USO4).with(Features::GUEST_USO6);
    Features::for_driver(offloads).without(rare)
}

/// What is offered in all: the control queue is the front end's own affair, and ours needs none.
fn with_control(offered: Features) -> Features {
    offered.with(Features::CTRL_VQ.when(offered.has(Features::MQ)))
}
