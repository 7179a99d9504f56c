//! The port: control plane of one back end.

use std::sync::Arc;

use spinwake::irq::{IrqKind, Vector};
use spinwake::port::{
    Capabilities, ConfigError, Link, MacAddr, Offloads, Port, PortConfig, PortError, PortStats, QueueStats, Queues,
    RxCounters, RxQueue, TxCounters, TxQueue,
};

use super::OpenError;
use super::device::Device;
use super::door::Door;
use super::rx::VhostRx;
use super::server::{Server, Service};
use super::spec::VhostSpec;
use super::tx::VhostTx;

/// Megabits a second that the link is said to have: memory knows none.
const MBPS: u32 = 10_000;
/// The longest frames' payload that QEMU's guests take.
const MTU_MAX: u16 = 65_521;
/// What a frame has beside its payload: two addresses, type, one VLAN tag.
const FRAME_OVERHEAD: usize = 18;
/// The longest frame that is to be cut into segments: an IP packet's 65,535 bytes, and the same beside it.
const LARGE_FRAME: usize = 65_535 + FRAME_OVERHEAD;

/// What our side can do with frames: a peer is memory, so that all of it is done by describing frames, or by the peer.
const OFFLOADS: Offloads = Offloads {
    rx_checksum: true,
    tx_checksum: true,
    vlan_strip: false,
    vlan_insert: false,
    rss_hash: false,
    tcp_segmentation: true,
    udp_segmentation: true,
    large_receive: true,
};

/// A vhost-user back end.
#[derive(Debug)]
pub struct VhostPort {
    device: Arc<Device>,
    server: Arc<Server>,
    /// Until the first start, peers wait in the socket's queue.
    door: Option<Door>,
    service: Option<Service>,
    mac: MacAddr,
    capabilities: Capabilities,
    config: PortConfig,
    started: bool,
    rx_counters: Vec<Arc<RxCounters>>,
    tx_counters: Vec<Arc<TxCounters>>,
}

impl VhostPort {
    /// Opens the socket. Peers that connect are served from the first start on.
    ///
    /// # Errors
    ///
    /// When there is no socket to be had at the path, or the process lacks descriptors or threads.
    pub(crate) fn open(spec: VhostSpec) -> Result<Self, OpenError> {
        let path = spec.path.clone();
        let failed = |source| OpenError::System { path: path.clone(), source };
        let config = PortConfig { rx_queues: spec.pairs, tx_queues: spec.pairs, ..PortConfig::default() };
        let server = Server::get().map_err(failed)?;
        let door = Door::open(&spec.path, spec.server)?;
        let capabilities = capabilities(&spec);
        let device = Arc::new(Device::new(spec, server.alarm(), &config).map_err(failed)?);
        let pairs = usize::from(capabilities.max_rx_queues);
        Ok(Self {
            mac: address(&device.name),
            door: Some(door),
            service: None,
            server,
            capabilities,
            config,
            started: false,
            rx_counters: (0..pairs).map(|_| Arc::default()).collect(),
            tx_counters: (0..pairs).map(|_| Arc::default()).collect(),
            device,
        })
    }

    /// Queues that were handed out and not dropped.
    fn alive(&self) -> usize {
        self.device.slots.iter().map(|slot| Arc::strong_count(slot) - 1).sum()
    }
}

impl Port for VhostPort {
    fn name(&self) -> &str {
        &self.device.name
    }

    fn driver(&self) -> &'static str {
        "vhost"
    }

    /// Not known: the memory is the peer's.
    fn node(&self) -> Option<usize> {
        None
    }

    /// Made from the path: the same whenever it is opened, and another than the peer's, which has its own.
    fn mac(&self) -> MacAddr {
        self.mac
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn config(&self) -> &PortConfig {
        &self.config
    }

    /// A peer that is connected, and was offered anything else than it would be now, is disconnected, so that it comes
    /// again.
    fn configure(&mut self, config: PortConfig) -> Result<(), ConfigError> {
        if self.started {
            return Err(ConfigError::Started { port: self.name().into() });
        }
        config.check(self.name(), &self.capabilities)?;
        if self.device.set_offer(&config)
            && let Some(service) = &self.service
        {
            service.hang_up();
        }
        self.config = config;
        Ok(())
    }

    fn start(&mut self) -> Result<Queues, PortError> {
        if self.started {
            return Err(PortError::Started { port: self.name().into() });
        }
        let alive = self.alive();
        if alive > 0 {
            return Err(PortError::QueuesAlive { port: self.name().into(), alive });
        }
        let ordinary = usize::from(self.config.mtu) + FRAME_OVERHEAD;
        let Offloads { large_receive, tcp_segmentation, udp_segmentation, .. } = self.config.offloads;
        let longest = |large: bool| if large { LARGE_FRAME } else { ordinary };
        let (rx_max, tx_max) = (longest(large_receive), longest(tcp_segmentation || udp_segmentation));
        let slot = |index: usize| self.device.slots[index].clone();
        let label = |side, queue| format!("{} {side} {queue}", self.device.name);
        // What the peer sends (its odd rings) we receive.
        let rx = (0..usize::from(self.config.rx_queues)).map(|queue| -> Box<dyn RxQueue> {
            let counters = self.rx_counters[queue].clone();
            Box::new(VhostRx::new(label("rx", queue), slot(2 * queue + 1), rx_max, counters))
        });
        let tx = (0..usize::from(self.config.tx_queues)).map(|queue| -> Box<dyn TxQueue> {
            let counters = self.tx_counters[queue].clone();
            Box::new(VhostTx::new(label("tx", queue), slot(2 * queue), tx_max, counters))
        });
        let queues = Queues { rx: rx.collect(), tx: tx.collect() };
        if let Some(door) = self.door.take() {
            self.service = Some(self.server.serve(self.device.clone(), door));
        }
        self.started = true;
        Ok(queues)
    }

    /// A peer stays connected: its rings wait, as they are, for the next start.
    fn stop(&mut self) -> Result<(), PortError> {
        let alive = self.alive();
        if alive > 0 {
            return Err(PortError::QueuesAlive { port: self.name().into(), alive });
        }
        self.started = false;
        Ok(())
    }

    /// Up while a peer has rings that are enabled.
    fn link(&self) -> Link {
        if self.device.is_up() { Link::Up { mbps: MBPS, full_duplex: true } } else { Link::Down }
    }

    fn link_vector(&self) -> Option<Arc<Vector>> {
        Some(self.device.link_vector.clone())
    }

    /// None that a PCI device has: its queues are woken by the peer's eventfds.
    fn irq_kind(&self) -> Option<IrqKind> {
        None
    }

    /// A back end receives all that its peer sends, always.
    fn set_promiscuous(&mut self, on: bool) {
        self.config.promiscuous = on;
    }

    /// As for [`set_promiscuous`](Self::set_promiscuous).
    fn set_multicast(&mut self, _groups: &[MacAddr]) {}

    /// As for [`set_promiscuous`](Self::set_promiscuous).
    fn set_vlan_filter(&mut self, _ids: Option<&[u16]>) {}

    fn stats(&self) -> PortStats {
        let queues = usize::from(self.config.rx_queues.max(self.config.tx_queues));
        let counters = self.rx_counters.iter().zip(&self.tx_counters).take(queues);
        let queues: Vec<QueueStats> = counters.map(|(rx, tx)| QueueStats::read(rx, tx)).collect();
        let sum = |of: fn(&QueueStats) -> u64| queues.iter().map(of).sum();
        PortStats {
            rx_frames: sum(|queue| queue.rx_frames),
            rx_bytes: sum(|queue| queue.rx_bytes),
            rx_errors: sum(|queue| queue.rx_errors + queue.rx_lies),
            tx_frames: sum(|queue| queue.tx_frames),
            tx_bytes: sum(|queue| queue.tx_bytes),
            queues,
            extra: self.device.counts.named(),
            ..PortStats::default()
        }
    }
}

/// What a back end with this spec can do.
pub(crate) fn capabilities(spec: &VhostSpec) -> Capabilities {
    Capabilities {
        max_rx_queues: spec.pairs,
        max_tx_queues: spec.pairs,
        // The peer decides how long its rings are.
        rx_ring_len: 1..=32768,
        tx_ring_len: 1..=32768,
        max_mtu: MTU_MAX,
        offloads: OFFLOADS,
        exact_multicast: 0,
    }
}

/// A locally administered address that follows from the name (FNV-1a).
fn address(name: &str) -> MacAddr {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    MacAddr([0x02, a, b, c, d, e])
}
