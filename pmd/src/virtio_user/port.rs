//! The port: its control plane.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use spinwake::device::DeviceError;
use spinwake::dma::{Attachment, DmaCells, Domain, MemoryTable};
use spinwake::irq::{IrqKind, Vector};
use spinwake::mem::{MemRequest, PageSize};
use spinwake::port::{
    Capabilities, ConfigError, Link, MacAddr, Offloads, Port, PortConfig, PortError, PortStats, QueueStats, Queues,
    RxCounters, TxCounters,
};

use super::follower::Follower;
use super::remote::Remote;
use super::ring::Ring;
use super::run::{Run, offloads_of, ring_bytes};
use super::rx::UserRx;
use super::spec::{PAIRS_MAX, UserSpec};
use super::thread;
use super::tx::UserTx;

/// For the first back end to answer: less than a silent one is given, so that it is told from one that is not there.
const FIRST: Duration = Duration::from_millis(2500);
/// Largest payload of a frame: what other drivers take, too.
const MTU_MAX: u16 = 9216;
/// A socket has no speed. Programs that ask want a number that a card could have.
const SPEED_MBPS: u32 = 10_000;

/// The front end of a vhost-user socket.
#[derive(Debug)]
pub(crate) struct UserPort {
    spec: UserSpec,
    remote: Arc<Remote>,
    thread: Option<JoinHandle<()>>,
    capabilities: Capabilities,
    config: PortConfig,
    /// The rings of the last start.
    rings: Vec<Arc<Ring>>,
    is_started: bool,
    rx_counters: Vec<Arc<RxCounters>>,
    tx_counters: Vec<Arc<TxCounters>>,
    attachment: Attachment,
}

/// What a port of `pairs` of queues can do, if its back end can do `offloads`.
pub(crate) fn capabilities(pairs: u16, offloads: Offloads) -> Capabilities {
    Capabilities {
        max_rx_queues: pairs,
        max_tx_queues: pairs,
        rx_ring_len: 32..=4096,
        tx_ring_len: 32..=4096,
        max_mtu: MTU_MAX,
        offloads,
        exact_multicast: 0,
    }
}

/// What the best back end can do.
pub(crate) fn best_offloads() -> Offloads {
    offloads_of(crate::virtio::features::Features::from_bits(u64::MAX))
}

impl UserPort {
    /// Opens the port, in `domain`. Waits a few seconds for the back end, unless that is who connects.
    pub(crate) fn open(spec: UserSpec, domain: &Domain) -> Result<Self, PortError> {
        let name = format!("virtio-user:{}", spec.path.display());
        let remote = Arc::new(Remote::new(&name, !spec.server).map_err(|error| failed(&name, "eventfd", error))?);
        let table = Arc::new(MemoryTable::new(&name, remote.clone()));
        let attachment =
            domain.attach_space(&name, table, 64).map_err(|source| PortError::Dma { port: name.clone(), source })?;
        let thread = thread::start(&remote, &spec).map_err(|(call, error)| failed(&name, call, error))?;
        let mut port = Self {
            capabilities: capabilities(PAIRS_MAX, best_offloads()),
            config: PortConfig::default(),
            rings: Vec::new(),
            is_started: false,
            rx_counters: (0..PAIRS_MAX).map(|_| Arc::default()).collect(),
            tx_counters: (0..PAIRS_MAX).map(|_| Arc::default()).collect(),
            thread: Some(thread),
            attachment,
            remote,
            spec,
        };
        if !port.spec.server {
            port.meet()?;
        }
        Ok(port)
    }

    /// Waits for the first back end, and learns what it can do.
    fn meet(&mut self) -> Result<(), PortError> {
        let (offered, pairs) = self.remote.wait(FIRST).map_err(|why| PortError::Unsupported {
            port: self.name().into(),
            why: format!(
                "{why}; a back end would be `l2fwd --port vhost:{0}`, or `dpdk-testpmd --vdev net_vhost0,iface={0} ...`; \
                 server=on listens for one",
                self.spec.path.display()
            ),
        })?;
        self.capabilities = capabilities(pairs.min(PAIRS_MAX), offloads_of(offered));
        Ok(())
    }

    fn alive(&self) -> usize {
        self.rings.iter().filter(|ring| !ring.is_gone()).count()
    }

    /// Memory for all rings: one region, as a back end's table of them is short. A ring is a few KiB, a hugepage would be
    /// wasted on it.
    fn ring_memory(&self) -> Result<Arc<DmaCells>, PortError> {
        let request = MemRequest::new(ring_bytes(&self.spec, &self.config)).page(PageSize::Ordinary);
        match self.attachment.alloc(&request) {
            Ok(region) => Ok(Arc::new(DmaCells::new(region))),
            Err(source) => Err(PortError::Dma { port: self.name().into(), source }),
        }
    }
}

fn failed(name: &str, call: &'static str, source: io::Error) -> PortError {
    DeviceError::Call { device: name.into(), call, source, hint: String::new() }.into()
}

impl Port for UserPort {
    fn name(&self) -> &str {
        &self.remote.name
    }

    fn driver(&self) -> &'static str {
        "virtio-user"
    }

    fn node(&self) -> Option<usize> {
        None
    }

    fn mac(&self) -> MacAddr {
        self.spec.mac
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn config(&self) -> &PortConfig {
        &self.config
    }

    fn configure(&mut self, config: PortConfig) -> Result<(), ConfigError> {
        if self.is_started {
            return Err(ConfigError::Started { port: self.name().into() });
        }
        config.check(self.name(), &self.capabilities)?;
        self.config = config;
        Ok(())
    }

    /// Without a back end, which may come and go at any time, queues idle.
    fn start(&mut self) -> Result<Queues, PortError> {
        if self.is_started {
            return Err(PortError::Started { port: self.name().into() });
        }
        let alive = self.alive();
        if alive > 0 {
            return Err(PortError::QueuesAlive { port: self.name().into(), alive });
        }
        let cells = self.ring_memory()?;
        let generation = self.remote.generation();
        let run = Run::new(&self.remote.name, &self.spec, &self.config, &cells, generation)
            .map_err(|error| failed(&self.remote.name, "eventfd", error))?
            .counting(&self.rx_counters, &self.tx_counters);
        let (rx, tx) = (run.rx.clone(), run.tx.clone());
        self.remote.start(run).map_err(|failure| PortError::Unsupported {
            port: self.name().into(),
            why: format!("the back end {failure}"),
        })?;
        self.is_started = true;
        self.rings = rx.iter().map(|seat| seat.ring.clone()).chain(tx.iter().map(|seat| seat.ring.clone())).collect();
        let mut queues = Queues { rx: Vec::new(), tx: Vec::new() };
        for (seat, counters) in rx.into_iter().zip(&self.rx_counters) {
            let follower = Follower::new(self.remote.clone(), seat, generation);
            queues.rx.push(Box::new(UserRx { follower, counters: counters.clone() }));
        }
        for (seat, counters) in tx.into_iter().zip(&self.tx_counters) {
            let follower = Follower::new(self.remote.clone(), seat, generation);
            queues.tx.push(Box::new(UserTx { follower, counters: counters.clone() }));
        }
        Ok(queues)
    }

    fn stop(&mut self) -> Result<(), PortError> {
        let alive = self.alive();
        if alive > 0 {
            return Err(PortError::QueuesAlive { port: self.name().into(), alive });
        }
        drop(self.remote.stop());
        self.rings.clear();
        self.is_started = false;
        Ok(())
    }

    /// Up while a back end runs the rings.
    fn link(&self) -> Link {
        if self.remote.is_up() { Link::Up { mbps: SPEED_MBPS, full_duplex: true } } else { Link::Down }
    }

    fn link_vector(&self) -> Option<Arc<Vector>> {
        Some(self.remote.link.clone())
    }

    /// None that a PCI device has: its queues are woken by the back end's eventfds.
    fn irq_kind(&self) -> Option<IrqKind> {
        None
    }

    /// It always does: what the back end sends is for us.
    fn set_promiscuous(&mut self, on: bool) {
        self.config.promiscuous = on;
    }

    /// Changes nothing: there is no filter, as [`Capabilities::exact_multicast`] says.
    fn set_multicast(&mut self, _: &[MacAddr]) {}

    /// Changes nothing: all frames arrive.
    fn set_vlan_filter(&mut self, _: Option<&[u16]>) {}

    fn stats(&self) -> PortStats {
        let queues = usize::from(self.config.rx_queues.max(self.config.tx_queues));
        let counters = self.rx_counters.iter().zip(&self.tx_counters).take(queues);
        let queues: Vec<_> = counters.map(|(rx, tx)| QueueStats::read(rx, tx)).collect();
        let sum = |of: fn(&QueueStats) -> u64| queues.iter().map(of).sum();
        let counts = &self.remote.counts;
        PortStats {
            rx_frames: sum(|queue| queue.rx_frames),
            rx_bytes: sum(|queue| queue.rx_bytes),
            rx_missed: 0,
            rx_errors: sum(|queue| queue.rx_errors),
            tx_frames: sum(|queue| queue.tx_frames),
            tx_bytes: sum(|queue| queue.tx_bytes),
            queues,
            extra: vec![
                ("outages", counts.outages.load(Ordering::Relaxed)),
                ("offences", counts.offences.load(Ordering::Relaxed)),
                ("lost", counts.lost.load(Ordering::Relaxed)),
            ],
        }
    }
}

impl Drop for UserPort {
    fn drop(&mut self) {
        self.remote.end();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the thread itself.
            let _ = thread.join();
        }
        drop(self.remote.stop());
    }
}
