//! Driver for the Intel 82576 Gigabit Ethernet controller and its successors with the same queues (I350, I210, I211).
//!
//! ```text
//! IgbPort ── control plane: configure, start, stop, filters, link, statistics
//!    └── Arc<Nic> ── registers, reset, the power to stop the device
//!           ├── IgbRx ── one receive ring, one worker
//!           └── IgbTx ── one transmit ring, one worker
//! ```
//!
//! Written after the "82576EB Gigabit Ethernet Controller Datasheet"; where QEMU's model (`-device igb`) does otherwise, a
//! comment at the spot says what it does. Absent on purpose: virtual functions, segmentation offload, header split, legacy
//! descriptors, flow control, wake-up, and ports other than copper.

pub mod desc;
mod filters;
mod irq;
mod line;
mod link;
mod model;
mod nic;
pub mod regs;
mod rx;
mod stats;
mod tx;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use spinwake::device::Device;
use spinwake::dma::Domain;
use spinwake::irq::{IrqKind, Vector};
use spinwake::pci::DeviceId;
use spinwake::port::{
    Capabilities, ConfigError, GeneratorReport, Link, MacAddr, Offloads, Port, PortConfig, PortError, PortStats,
    QueueStats, Queues, RxCounters, TxCounters,
};

pub use model::{IDS, IdRow, IvarLayout, Model};

use crate::vectors::Side;
use filters::Filters;
use irq::Interrupts;
use nic::{Health, Nic};
use regs::{ctrl, ctrl_ext, mrqc, rctl, rxcsum, tctl};
use rx::{IgbRx, RxSetup};
use stats::Totals;
use tx::{IgbTx, TxSetup};

/// Ethernet header and one VLAN tag.
const HEADERS: u16 = 14 + 4;
/// Frame check sequence, which the device strips and RLPML counts.
const FCS: u16 = 4;
/// The MTU that every port receives, whatever it is configured to.
const STANDARD_MTU: u16 = 1500;
/// The largest MTU; with its headers well within the 9.5 KiB that the packet buffer takes (datasheet 8.10, RLPML).
const MAX_MTU: u16 = 9216;
/// TCTL's collision threshold (datasheet 8.12): for half duplex only.
const COLLISION_THRESHOLD: u32 = 15;
/// All that hardware can do.
const OFFLOADS: Offloads = Offloads {
    rx_checksum: true,
    tx_checksum: true,
    vlan_strip: true,
    vlan_insert: true,
    rss_hash: true,
    tcp_segmentation: false,
    udp_segmentation: false,
    large_receive: false,
};

/// How a port shall be opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Interrupt this way or refuse to start; `None` takes the best way that works.
    pub irq: Option<IrqKind>,
    /// Use no more queues each way than this, though the model has more; `None` for all that it has.
    pub max_queues: Option<u16>,
}

/// What a port named `name` of the device with this `id` can do, without opening it.
pub(crate) fn capabilities(name: &str, id: DeviceId, options: &Options) -> Result<Capabilities, PortError> {
    Ok(capabilities_of(&row(name, id)?.model, options))
}

/// An opened controller: its control plane.
pub struct IgbPort {
    mac: MacAddr,
    capabilities: Capabilities,
    config: PortConfig,
    filters: Filters,
    options: Options,
    /// Whether it is started, and how it interrupts then.
    running: Option<Interrupts>,
    totals: Mutex<Totals>,
    rx_counters: Vec<Arc<RxCounters>>,
    tx_counters: Vec<Arc<TxCounters>>,
    generator: Option<Box<dyn Fn() -> GeneratorReport + Send>>,
    nic: Arc<Nic>,
}

impl fmt::Debug for IgbPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IgbPort").field("nic", &self.nic).field("config", &self.config).finish_non_exhaustive()
    }
}

impl IgbPort {
    /// Opens `device`, whatever state it is in: resets it, makes the memory of `domain` visible to it, and lets its link
    /// come up. It receives and sends nothing until it is started.
    ///
    /// # Errors
    ///
    /// When the device is none of [`IDS`], does not answer, does not come out of reset, has no address of its own, or
    /// cannot reach the domain's memory.
    pub fn open(device: Arc<dyn Device>, domain: &Domain, options: Options) -> Result<Self, PortError> {
        let row = row(device.name(), device.id())?;
        if !row.tested {
            log::warn!("{}: {} is supported from its datasheet, and not yet run on hardware", device.name(), row.name);
        }
        let nic = Arc::new(Nic::open(device, &row.model, domain)?);
        let queues = usize::from(row.model.queues);
        let port = Self {
            mac: nic.mac()?,
            capabilities: capabilities_of(&row.model, &options),
            config: PortConfig::default(),
            filters: Filters::default(),
            options,
            running: None,
            totals: Mutex::default(),
            rx_counters: (0..queues).map(|_| Arc::default()).collect(),
            tx_counters: (0..queues).map(|_| Arc::default()).collect(),
            generator: None,
            nic,
        };
        port.set_up();
        Ok(port)
    }

    /// The same port, answering [`Port::generator`] by `report`: for a device with a traffic generator behind it.
    #[must_use]
    pub fn with_generator(mut self, report: Box<dyn Fn() -> GeneratorReport + Send>) -> Self {
        self.generator = Some(report);
        self
    }

    /// Sets up what does not change with the configuration. The device has just been reset.
    fn set_up(&self) {
        let bar = &self.nic.bar;
        bar.modify(regs::CTRL_EXT, ctrl_ext::EXT_VLAN, ctrl_ext::DRV_LOAD);
        bar.write(regs::VET, 0x8100 << 16 | 0x8100);
        bar.write(regs::VT_CTL, 0);
        for queue in 0..usize::from(self.nic.model.queues) {
            // Queue 0 of each direction comes out of reset enabled.
            bar.write(regs::rxdctl(queue), 0);
            bar.write(regs::txdctl(queue), 0);
        }
        self.filters.write(bar, self.nic.model, self.mac);
        stats::clear(bar, usize::from(self.nic.model.queues));
        link::bring_up(&self.nic);
    }

    /// The whole of RCTL, from what is wanted now.
    fn write_rctl(&self, on: bool) {
        // LPE makes RLPML the only limit, whatever the MTU.
        let bits = self.filters.rctl() | rctl::LPE | rctl::SECRC | if on { rctl::RXEN } else { 0 };
        self.nic.bar.write(regs::RCTL, bits);
    }

    /// Bytes of the longest frame to send, without frame check sequence.
    fn max_frame(&self) -> u16 {
        self.config.mtu + HEADERS
    }

    /// Bytes of the longest frame to receive: a small MTU is no reason to lose what a neighbour sends.
    fn max_receive(&self) -> u16 {
        self.config.mtu.max(STANDARD_MTU) + HEADERS
    }

    /// Writes what the configuration decides, queues and interrupts aside.
    fn write_config(&self) {
        let bar = &self.nic.bar;
        let (strip, plain) = if self.config.offloads.vlan_strip { (ctrl::VME, 0) } else { (0, ctrl::VME) };
        bar.modify(regs::CTRL, plain | ctrl::GIO_MASTER_DISABLE, strip);
        // PCSD: descriptors carry the RSS hash, not the sum of fragments. QEMU's igb spreads flows only with it.
        let sums = if self.config.offloads.rx_checksum { rxcsum::IPOFLD | rxcsum::TUOFLD } else { 0 };
        bar.write(regs::RXCSUM, sums | rxcsum::PCSD);
        bar.write(regs::RLPML, u32::from(self.max_receive() + FCS));
        self.write_rss();
        self.write_rctl(false);
        bar.modify(regs::TCTL, tctl::CT_MASK, tctl::PSP | tctl::RTLC | COLLISION_THRESHOLD << tctl::CT_SHIFT);
    }

    /// Spreads flows over the receive queues by a hash of their addresses and ports.
    fn write_rss(&self) {
        let bar = &self.nic.bar;
        let queues = u32::from(self.config.rx_queues);
        for (n, word) in self.config.rss_key.chunks_exact(4).enumerate() {
            bar.write(regs::rssrk(n), u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        }
        for n in 0..32 {
            let entries = [0, 1, 2, 3].map(|i| ((n * 4 + i) % queues) as u8);
            bar.write(regs::reta(n as usize), u32::from_le_bytes(entries));
        }
        // QEMU's igb hashes TCP over IPv6 for TCP_IPV6_EX, hardware without extension headers for TCP_IPV6.
        let over = mrqc::TCP_IPV4 | mrqc::IPV4 | mrqc::TCP_IPV6 | mrqc::TCP_IPV6_EX | mrqc::IPV6;
        let wanted = queues > 1 || self.config.offloads.rss_hash;
        let on = if wanted { mrqc::ENABLE_RSS | over | mrqc::UDP_IPV4 | mrqc::UDP_IPV6 } else { 0 };
        bar.write(regs::MRQC, on);
    }

    fn start_queues(&self, interrupts: &Interrupts) -> Result<Queues, PortError> {
        let config = &self.config;
        let mut queues = Queues { rx: Vec::new(), tx: Vec::new() };
        for queue in 0..usize::from(config.rx_queues) {
            let setup = RxSetup {
                queue,
                ring_len: config.rx_ring_len.into(),
                max_frame: self.max_receive().into(),
                offloads: config.offloads,
                drop: config.rx_queues > 1,
                irq: interrupts.of_queue(Side::Rx, queue),
                counters: self.rx_counters[queue].clone(),
            };
            queues.rx.push(Box::new(IgbRx::start(self.nic.clone(), setup)?));
        }
        for queue in 0..usize::from(config.tx_queues) {
            let setup = TxSetup {
                queue,
                ring_len: config.tx_ring_len.into(),
                max_frame: self.max_frame().into(),
                offloads: config.offloads,
                irq: interrupts.of_queue(Side::Tx, queue),
                counters: self.tx_counters[queue].clone(),
            };
            queues.tx.push(Box::new(IgbTx::start(self.nic.clone(), setup)?));
        }
        Ok(queues)
    }

    fn try_start(&mut self) -> Result<Queues, PortError> {
        if self.nic.health() == Health::Reset {
            self.nic.revive()?;
            self.set_up();
        }
        self.write_config();
        self.nic.device.set_bus_master(true)?;
        let (rx, tx) = (self.config.rx_queues.into(), self.config.tx_queues.into());
        let interrupts = Interrupts::turn_on(&self.nic, self.options.irq, rx, tx)?;
        let queues = self.start_queues(&interrupts)?;
        self.nic.bar.modify(regs::TCTL, 0, tctl::EN);
        self.write_rctl(true);
        self.running = Some(interrupts);
        Ok(queues)
    }

    /// Reads the device's counters before something that clears them.
    fn save_totals(&self) -> PortStats {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        if self.nic.health() == Health::Good && self.nic.status().is_some() {
            totals.update(&self.nic.bar, self.nic.model.queues.into());
        }
        totals.sums()
    }

    fn lost(&self) -> PortError {
        let why =
            "it could not be stopped earlier and cannot be used any more; end the program, and look at the kernel log";
        PortError::Unsupported { port: self.name().into(), why: why.into() }
    }
}

impl Port for IgbPort {
    fn name(&self) -> &str {
        self.nic.name()
    }

    fn driver(&self) -> &'static str {
        "igb"
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
        if self.nic.health() == Health::Lost || self.nic.status().is_none() {
            return Err(self.lost());
        }
        let result = self.try_start();
        if result.is_err() {
            self.nic.quiesce();
        }
        result
    }

    fn stop(&mut self) -> Result<(), PortError> {
        let alive = self.nic.alive();
        if alive > 0 {
            return Err(PortError::QueuesAlive { port: self.name().into(), alive });
        }
        if self.running.take().is_some() {
            self.save_totals();
            if !self.nic.quiesce() {
                return Err(self.lost());
            }
        }
        Ok(())
    }

    fn link(&self) -> Link {
        if let Some(interrupts) = &self.running {
            interrupts.acknowledge_link(&self.nic);
        }
        link::read(&self.nic)
    }

    /// There from the start on, with MSI-X and a vector to spare. [`link`](Self::link) makes it fire again.
    fn link_vector(&self) -> Option<Arc<Vector>> {
        self.running.as_ref()?.link.clone()
    }

    fn irq_kind(&self) -> Option<IrqKind> {
        match &self.running {
            Some(interrupts) => interrupts.kind,
            None => Interrupts::preferred(&self.nic, self.options.irq),
        }
    }

    fn set_promiscuous(&mut self, on: bool) {
        self.filters.promiscuous = on;
        self.config.promiscuous = on;
        self.write_rctl(self.running.is_some());
    }

    fn set_multicast(&mut self, groups: &[MacAddr]) {
        self.filters.multicast = groups.to_vec();
        self.filters.write_multicast(&self.nic.bar, self.nic.model);
    }

    fn set_vlan_filter(&mut self, ids: Option<&[u16]>) {
        self.filters.vlans = ids.map(<[u16]>::to_vec);
        self.filters.write_vlans(&self.nic.bar);
        self.write_rctl(self.running.is_some());
    }

    fn stats(&self) -> PortStats {
        let mut stats = self.save_totals();
        let queues = usize::from(self.config.rx_queues.max(self.config.tx_queues));
        let counters = self.rx_counters.iter().zip(&self.tx_counters).take(queues);
        stats.queues = counters.map(|(rx, tx)| QueueStats::read(rx, tx)).collect();
        stats
    }

    fn generator(&self) -> Option<GeneratorReport> {
        self.generator.as_ref().map(|report| report())
    }
}

impl Drop for IgbPort {
    fn drop(&mut self) {
        // Queues may live on; they share the device, and find it silent from now on.
        self.nic.quiesce();
    }
}

/// What the driver knows of the device with this `id`.
fn row(name: &str, id: DeviceId) -> Result<&'static IdRow, PortError> {
    IDS.iter().find(|row| (row.vendor, row.device) == (id.vendor, id.device)).ok_or_else(|| {
        let names: Vec<_> = IDS.iter().map(|row| row.name).collect();
        let why = format!("the igb driver does not know device {id}; it knows {}", names.join(", "));
        PortError::Unsupported { port: name.into(), why }
    })
}

fn capabilities_of(model: &Model, options: &Options) -> Capabilities {
    let queues = model.queues.min(options.max_queues.unwrap_or(u16::MAX));
    Capabilities {
        max_rx_queues: queues,
        max_tx_queues: queues,
        // Powers of two keep RDLEN and TDLEN multiples of 128 bytes.
        rx_ring_len: 32..=4096,
        tx_ring_len: 32..=4096,
        max_mtu: MAX_MTU,
        offloads: OFFLOADS,
        exact_multicast: filters::exact_multicast(model),
    }
}
