//! Driver for virtio network devices on PCI: modern ones (0x1041), and transitional ones (0x1000) by their modern interface.
//!
//! ```text
//! VirtioPort ── control plane: configure, start, stop, filters, link, statistics
//!    ├── Running ── what was agreed on, interrupts, the control queue
//!    └── Arc<Nic> ── registers, reset, queues that the device has yet to let go of
//!           ├── PciRx ── one receive queue, one worker
//!           └── PciTx ── one transmit queue, one worker
//! ```
//!
//! Written after "Virtual I/O Device (VIRTIO) Version 1.2", 4.1 and 5.1. Absent on purpose: the legacy interface, devices
//! that go round the IOMMU, the hash of each received frame, and moderation of interrupts (devices that take it are rare, and the
//! rings suppress what nobody waits for).

mod capability;
mod config;
mod ctrl;
mod filters;
mod irq;
#[cfg(test)]
mod model;
mod nic;
mod queue;
mod start;
#[cfg(test)]
mod tests;
mod transport;

use std::fmt;
use std::sync::Arc;

use spinwake::device::Device;
use spinwake::dma::Domain;
use spinwake::frame::DATA_ROOM;
use spinwake::irq::{IrqKind, Vector};
use spinwake::pci::DeviceId;
use spinwake::port::{
    Capabilities, ConfigError, Link, MacAddr, Offloads, Port, PortConfig, PortError, PortStats, QueueStats, Queues,
    RxCounters, TxCounters,
};

use super::features::Features;
use config::NetConfig;
use ctrl::CommandError;
use filters::{EXACT_GROUPS, Filters};
use irq::Interrupts;
use nic::{Nic, Retired};
use start::{Running, Setup};
use transport::status;

/// Red Hat's vendor number, under which virtio devices go, and the numbers of network devices (4.1.2.1).
const VENDOR: u16 = 0x1af4;
const MODERN: u16 = 0x1041;
const TRANSITIONAL: u16 = 0x1000;
/// Ethernet header and one VLAN tag.
const HEADERS: u16 = 14 + 4;
/// The MTU that every port receives, whatever it is configured to.
const STANDARD_MTU: u16 = 1500;
/// The largest MTU, where the device does not say: that of most NICs with jumbo frames.
const MAX_MTU: u16 = 9216;
/// Queue pairs that the driver uses at most; what a device says beyond that would only cost memory.
const MOST_PAIRS: u16 = 128;
/// The fewest and most descriptors of a ring.
const RING_LEN: std::ops::RangeInclusive<u16> = 32..=4096;

/// How a port shall be opened.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Interrupt this way or refuse to start; `None` takes the best way that works.
    pub(crate) irq: Option<IrqKind>,
    /// Use packed rings, where the device offers them.
    pub(crate) packed: bool,
}

/// Whether the device with this `id` is for this driver.
pub(crate) fn knows(id: DeviceId) -> bool {
    id.vendor == VENDOR && (id.device == MODERN || id.device == TRANSITIONAL)
}

/// An opened device: its control plane.
pub(crate) struct VirtioPort {
    mac: MacAddr,
    capabilities: Capabilities,
    config: PortConfig,
    filters: Filters,
    options: Options,
    /// What it offered when it was opened.
    offered: Features,
    running: Option<Running>,
    counters: Vec<(Arc<RxCounters>, Arc<TxCounters>)>,
    nic: Arc<Nic>,
}

impl fmt::Debug for VirtioPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPort").field("nic", &self.nic).field("config", &self.config).finish_non_exhaustive()
    }
}

impl VirtioPort {
    /// Opens `device`, whatever state it is in: resets it, makes the memory of `domain` visible to it, and asks what it
    /// can do. It receives and sends nothing until it is started.
    ///
    /// # Errors
    ///
    /// When the device has no modern interface, does not answer, does not come out of reset, lacks what the driver needs,
    /// or cannot reach the domain's memory.
    pub(crate) fn open(device: Arc<dyn Device>, domain: &Domain, options: Options) -> Result<Self, PortError> {
        let nic = Arc::new(Nic::open(device, domain)?);
        let offered = start::greet(&nic);
        // A device may have its further queues only once they are agreed on.
        let agreement = start::negotiate(&nic, offered, Features::MQ.with(Features::CTRL_VQ))?;
        nic.transport.accept(agreement.features.bits())?;
        let said = NetConfig::read(&nic.transport);
        let lens = [nic.transport.queue_len(0), nic.transport.queue_len(1)];
        let queues = nic.transport.queues();
        nic.transport.reset()?;
        let mac = if !offered.has(Features::MAC) {
            config::random_mac()
        } else if said.mac.is_unicast() {
            said.mac
        } else {
            return Err(nic
                .transport
                .unsupported(format!("it says its address is {}, which is no station's", said.mac)));
        };
        let capabilities = capabilities(offered, &said, lens, queues).map_err(|why| nic.transport.unsupported(why))?;
        let default = PortConfig::default();
        let config = PortConfig {
            rx_ring_len: default.rx_ring_len.min(*capabilities.rx_ring_len.end()),
            tx_ring_len: default.tx_ring_len.min(*capabilities.tx_ring_len.end()),
            mtu: default.mtu.min(capabilities.max_mtu),
            ..default
        };
        let counters = (0..capabilities.max_rx_queues).map(|_| Default::default()).collect();
        let filters = Filters::default();
        Ok(Self { mac, capabilities, config, filters, options, offered, running: None, counters, nic })
    }

    /// Makes the device quiet, and gives up what a start made. Returns whether that worked.
    fn quiesce(&mut self) -> bool {
        let quiet = self.nic.quiesce();
        if let Some((index, control)) = self.running.take().and_then(|running| running.control) {
            self.nic.retire(index, Retired::Control(control));
        }
        quiet
    }

    fn lost(&self) -> PortError {
        let why = "it could not be stopped and cannot be used any more; end the program, and look at the kernel log";
        self.nic.transport.unsupported(why.into())
    }

    /// What the device did not take, which a caller cannot be told otherwise.
    fn report(&self, result: Result<(), CommandError>) {
        match result {
            Ok(()) => {}
            Err(error @ CommandError::Missing { .. }) => log::debug!("{}: {error}", self.name()),
            Err(error) => log::warn!("{}: {error}", self.name()),
        }
    }
}

impl Port for VirtioPort {
    fn name(&self) -> &str {
        self.nic.name()
    }

    fn driver(&self) -> &'static str {
        "virtio"
    }

    fn node(&self) -> Option<usize> {
        self.nic.device.numa_node()
    }

    fn mac(&self) -> MacAddr {
        self.mac
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn config(&self) -> &PortConfig {
        &self.config
    }

    fn configure(&mut self, config: PortConfig) -> Result<(), ConfigError> {
        if self.running.is_some() {
            return Err(ConfigError::Started { port: self.name().into() });
        }
        config.check(self.name(), &self.capabilities)?;
        // 5.1.6.5.5: queues go in pairs.
        if config.tx_queues != config.rx_queues {
            return Err(ConfigError::Value {
                port: self.name().into(),
                key: "tx_queues",
                value: config.tx_queues.to_string(),
                possible: format!("as many as there are rx_queues, {}", config.rx_queues),
            });
        }
        self.filters.promiscuous = config.promiscuous;
        self.config = config;
        Ok(())
    }

    fn start(&mut self) -> Result<Queues, PortError> {
        if self.running.is_some() {
            return Err(PortError::Started { port: self.name().into() });
        }
        let alive = self.nic.alive();
        if alive > 0 {
            return Err(PortError::QueuesAlive { port: self.name().into(), alive });
        }
        if self.nic.is_lost() || self.nic.transport.status().is_none() {
            return Err(self.lost());
        }
        let setup = Setup {
            nic: &self.nic,
            options: &self.options,
            config: &self.config,
            filters: &self.filters,
            mac: self.mac,
            counters: &self.counters,
        };
        match setup.start() {
            Ok((queues, running)) => {
                self.running = Some(running);
                Ok(queues)
            }
            Err(error) => {
                self.quiesce();
                Err(error)
            }
        }
    }

    fn stop(&mut self) -> Result<(), PortError> {
        let alive = self.nic.alive();
        if alive > 0 {
            return Err(PortError::QueuesAlive { port: self.name().into(), alive });
        }
        if self.running.is_some() && !self.quiesce() {
            return Err(self.lost());
        }
        Ok(())
    }

    /// A device that needs a reset, or does not answer, or has wrecked a ring, has no link. The speed is zero where the device does not tell it.
    fn link(&self) -> Link {
        let broken = self.running.as_ref().is_some_and(Running::is_broken);
        match self.nic.status() {
            Some(now) if now & status::NEEDS_RESET == 0 && !broken => {
                let has = |feature| self.offered.has(feature);
                config::link(&self.nic.transport, has(Features::STATUS), has(Features::SPEED_DUPLEX))
            }
            _ => Link::Down,
        }
    }

    /// There from the start on, with MSI-X and a vector to spare.
    fn link_vector(&self) -> Option<Arc<Vector>> {
        self.running.as_ref()?.interrupts.config.clone()
    }

    fn irq_kind(&self) -> Option<IrqKind> {
        match &self.running {
            Some(running) => running.interrupts.kind,
            None => Interrupts::preferred(&self.nic, self.options.irq),
        }
    }

    fn set_promiscuous(&mut self, on: bool) {
        self.filters.promiscuous = on;
        self.config.promiscuous = on;
        let result = self.running.as_mut().map(|running| self.filters.write_promiscuous(&mut running.told()));
        self.report(result.unwrap_or(Ok(())));
    }

    fn set_multicast(&mut self, groups: &[MacAddr]) {
        self.filters.groups = groups.to_vec();
        let result = self.running.as_mut().map(|running| self.filters.write_groups(&mut running.told()));
        self.report(result.unwrap_or(Ok(())));
    }

    /// A device that was started without a filter takes one only from the next start on, which the log then says: one that
    /// may be told of VLANs lets none in until it is.
    fn set_vlan_filter(&mut self, ids: Option<&[u16]>) {
        self.filters.vlans = ids.map(<[u16]>::to_vec);
        let Some(running) = &mut self.running else { return };
        let filters = running.agreement.features.has(Features::CTRL_VLAN);
        if let (true, Some(ids)) = (filters, ids) {
            let before = std::mem::replace(&mut running.vlans, ids.to_vec());
            let result = self.filters.write_vlans(&before, &mut running.told());
            self.report(result);
        } else if filters || ids.is_some() {
            log::warn!("{}: the VLAN filter takes effect when the port is stopped and started", self.name());
        }
    }

    /// The device counts nothing: what its queues have counted.
    fn stats(&self) -> PortStats {
        let mut stats = PortStats::default();
        for (rx, tx) in &self.counters {
            stats.rx_frames += rx.frames.get();
            stats.rx_bytes += rx.bytes.get();
            stats.rx_errors += rx.errors.get();
            stats.tx_frames += tx.frames.get();
            stats.tx_bytes += tx.bytes.get();
        }
        let used = self.counters.iter().take(self.config.rx_queues.into());
        stats.queues = used.map(|(rx, tx)| QueueStats::read(rx, tx)).collect();
        stats
    }
}

impl Drop for VirtioPort {
    fn drop(&mut self) {
        // Queues may live on; they find the device silent from now on.
        self.quiesce();
    }
}

/// What a device can do that offers this, says this, and has queues of these lengths.
fn capabilities(offered: Features, said: &NetConfig, lens: [u16; 2], queues: u16) -> Result<Capabilities, String> {
    let offered = offered.consistent();
    let chains = offered.has(Features::MRG_RXBUF);
    let several = offered.has(Features::MQ);
    // The control queue comes after all pairs.
    let pairs = if several { said.device_pairs.min(queues.saturating_sub(1) / 2).clamp(1, MOST_PAIRS) } else { 1 };
    let [rx_len, tx_len] = lens.map(|len| if len == 0 { 0 } else { (1 << len.ilog2()).min(*RING_LEN.end()) });
    if rx_len.min(tx_len) < *RING_LEN.start() {
        return Err(format!(
            "its queues have {} and {} descriptors, and the driver needs {} at least",
            lens[0],
            lens[1],
            RING_LEN.start()
        ));
    }
    // Without chains a frame must fit one buffer.
    let most = if chains { MAX_MTU } else { DATA_ROOM as u16 - HEADERS };
    let max_mtu = if offered.has(Features::MTU) { said.mtu.min(most) } else { most };
    if max_mtu < 68 {
        return Err(format!("it says that its MTU is {max_mtu}, and 68 is the least of IPv4"));
    }
    let sums = offered.has(Features::CSUM);
    let large = Features::GUEST_TSO4.with(Features::GUEST_TSO6);
    let tcp = Features::HOST_TSO4.with(Features::HOST_TSO6);
    Ok(Capabilities {
        max_rx_queues: pairs,
        max_tx_queues: pairs,
        rx_ring_len: *RING_LEN.start()..=rx_len,
        tx_ring_len: *RING_LEN.start()..=tx_len,
        max_mtu,
        offloads: Offloads {
            rx_checksum: offered.has(Features::GUEST_CSUM),
            tx_checksum: sums,
            tcp_segmentation: offered.has(tcp),
            udp_segmentation: offered.has(Features::HOST_USO),
            large_receive: chains && offered.has(large),
            ..Offloads::default()
        },
        exact_multicast: if offered.has(Features::CTRL_RX) { EXACT_GROUPS } else { 0 },
    })
}
