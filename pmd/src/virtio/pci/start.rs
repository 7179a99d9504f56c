//! From a device that was reset to one whose queues run (virtio 1.2, 3.1.1): features, interrupts, queues, filters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spinwake::dma::DmaCells;
use spinwake::mem::{MemRequest, PageSize};
use spinwake::port::{MacAddr, PortConfig, PortError, Queues, RxCounters, TxCounters};

use super::config::NetConfig;
use super::ctrl::{self, Command, Control, Rss};
use super::filters::{Filters, Told};
use super::irq::Interrupts;
use super::nic::{Nic, Retired};
use super::queue::{Hold, PciRx, PciTx};
use super::transport::{NO_VECTOR, PciDoorbell, status};
use super::{HEADERS, Options, STANDARD_MTU};
use crate::vectors::Side;
use crate::virtio::features::{Agreement, Features, agree};
use crate::virtio::queue::{QueueSetup, RingHealth};
use crate::virtio::ring::{RingKind, RingMemory};
use crate::virtio::rx::rx_queue;
use crate::virtio::tx::tx_queue;

/// Bytes of the largest frame, headers and all, that is cut into segments.
const LARGE_FRAME: usize = 65535 + HEADERS as usize;
/// Without these no device is driven. VFIO's devices are behind an IOMMU, and one that does not know of it would go round it.
const NEEDED: Features = Features::VERSION_1.with(Features::ACCESS_PLATFORM);
/// Taken wherever they are offered.
const ALWAYS: Features = Features::MAC
    .with(Features::STATUS)
    .with(Features::MTU)
    .with(Features::SPEED_DUPLEX)
    .with(Features::MRG_RXBUF)
    .with(Features::CTRL_VQ)
    .with(Features::CTRL_MAC_ADDR)
    .with(Features::MQ)
    .with(Features::INDIRECT_DESC)
    .with(Features::EVENT_IDX)
    .with(Features::IN_ORDER)
    // Our fences order memory between cores. Only where devices take part in that order is it what such a device asks for.
    .with(Features::ORDER_PLATFORM.when(cfg!(target_arch = "x86_64")))
    .with(Features::RING_RESET);

/// The name of each queue, and whether it still works.
type Healths = Vec<(String, Arc<RingHealth>)>;

/// What a start needs to know.
#[derive(Debug)]
pub(super) struct Setup<'a> {
    pub(super) nic: &'a Arc<Nic>,
    pub(super) options: &'a Options,
    pub(super) config: &'a PortConfig,
    pub(super) filters: &'a Filters,
    pub(super) mac: MacAddr,
    pub(super) counters: &'a [(Arc<RxCounters>, Arc<TxCounters>)],
}

/// What a started port keeps besides its queues.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) interrupts: Interrupts,
    pub(super) agreement: Agreement,
    pub(super) control: Option<(u16, Control)>,
    /// VLANs that the device was told of. Not those that are wanted, where a filter was taken off since the start.
    pub(super) vlans: Vec<u16>,
    healths: Healths,
    /// Whether a broken queue was reported.
    told: AtomicBool,
}

impl Running {
    /// Whether a queue found its ring beyond sense, which is reported once.
    pub(super) fn is_broken(&self) -> bool {
        let fault = self.healths.iter().find_map(|(label, health)| Some((label, health.fault()?)));
        if let Some((label, fault)) = fault
            && !self.told.swap(true, Ordering::Relaxed)
        {
            log::error!("{label}: {fault}; the queue does nothing until the port is stopped and started");
        }
        fault.is_some()
    }

    pub(super) fn told(&mut self) -> Told<'_> {
        Told { features: self.agreement.features, control: self.control.as_mut().map(|(_, control)| control) }
    }
}

/// Says hello to a device that was reset: it may be asked what it offers, and what its configuration is.
pub(super) fn greet(nic: &Nic) -> Features {
    nic.transport.add_status(status::ACKNOWLEDGE);
    nic.transport.add_status(status::DRIVER);
    Features::from_bits(nic.transport.offered())
}

/// Agrees on `wanted` and what the driver cannot do without.
pub(super) fn negotiate(nic: &Nic, offered: Features, wanted: Features) -> Result<Agreement, PortError> {
    agree(offered, wanted, NEEDED).map_err(|lacking| {
        let hint = if offered.has(Features::ACCESS_PLATFORM) {
            ""
        } else {
            "; without ACCESS_PLATFORM it does not know of the IOMMU that it is behind (QEMU: iommu_platform=on)"
        };
        nic.transport.unsupported(format!("{lacking}{hint}"))
    })
}

impl Setup<'_> {
    /// Starts the device. On failure it is in any state: to be made quiet by the caller, after the queues that were made.
    pub(super) fn start(&self) -> Result<(Queues, Running), PortError> {
        let nic = self.nic;
        nic.transport.reset()?;
        let offered = greet(nic);
        let agreement = negotiate(nic, offered, self.wanted())?;
        nic.transport.accept(agreement.features.bits())?;
        log::info!("{}: {agreement}", nic.name());
        let features = agreement.features;
        let said = NetConfig::read(&nic.transport);
        let mut interrupts = Interrupts::turn_on(nic, self.options.irq, self.pairs())?;
        interrupts.route_config(nic);
        // Whatever fails from here on, a reset of the device is what follows.
        nic.give_queues(false);
        let (queues, healths) = self.start_queues(features, &interrupts)?;
        let control = self.start_control(features, &said)?;
        nic.device.set_bus_master(true)?;
        nic.transport.add_status(status::DRIVER_OK);
        let vlans = self.filters.vlans.clone().unwrap_or_default();
        let mut running = Running { interrupts, agreement, control, vlans, healths, told: AtomicBool::new(false) };
        if let Err(error) = self.tell(&mut running, &said) {
            // The control queue's memory is still the device's.
            if let Some((index, control)) = running.control.take() {
                nic.retire(index, Retired::Control(control));
            }
            return Err(error);
        }
        nic.give_queues(features.has(Features::RING_RESET));
        Ok((queues, running))
    }

    fn pairs(&self) -> usize {
        self.config.rx_queues.into()
    }

    fn wanted(&self) -> Features {
        let several = self.config.rx_queues > 1;
        ALWAYS
            .with(Features::for_driver(self.config.offloads))
            .with(self.filters.features())
            .with(Features::RING_PACKED.when(self.options.packed))
            .with(Features::RSS.when(several))
    }

    /// Memory for a queue of `len` descriptors and `more` bytes; the latter begin where the ring ends.
    fn memory(&self, kind: RingKind, len: u16, more: usize) -> Result<(RingMemory, usize), PortError> {
        let (nic, end) = (self.nic, RingMemory::bytes(kind, len));
        let request = MemRequest::new(end + more).page(PageSize::Ordinary).node(nic.device.numa_node());
        let region =
            nic.attachment().alloc(&request).map_err(|source| PortError::Dma { port: nic.name().into(), source })?;
        Ok((RingMemory::new(kind, len, Arc::new(DmaCells::new(region)), 0), end))
    }

    fn start_queues(&self, features: Features, interrupts: &Interrupts) -> Result<(Queues, Healths), PortError> {
        let mut queues = Queues { rx: Vec::new(), tx: Vec::new() };
        let mut healths = Vec::new();
        for (pair, (rx, tx)) in self.counters.iter().take(self.pairs()).enumerate() {
            let (setup, hold) = self.queue(features, interrupts, Side::Rx, pair)?;
            let queue = rx_queue(setup, rx.clone())?;
            healths.push((queue.label(), queue.health().clone()));
            queues.rx.push(Box::new(PciRx::new(queue, hold)));
            let (setup, hold) = self.queue(features, interrupts, Side::Tx, pair)?;
            let queue = tx_queue(setup, tx.clone())?;
            healths.push((queue.label(), queue.health().clone()));
            queues.tx.push(Box::new(PciTx::new(queue, hold)));
        }
        Ok((queues, healths))
    }

    /// Enables queue `pair` of a side in the device; what becomes its driver's half.
    fn queue(
        &self,
        features: Features,
        interrupts: &Interrupts,
        side: Side,
        pair: usize,
    ) -> Result<(QueueSetup, Hold), PortError> {
        let config = self.config;
        let (name, offset, len, mtu, large) = match side {
            Side::Rx => ("rx", 0, config.rx_ring_len, config.mtu.max(STANDARD_MTU), config.offloads.large_receive),
            // 5.1.4.2: what is not to be cut is no longer than the MTU, whatever the device could cut.
            Side::Tx => ("tx", 1, config.tx_ring_len, config.mtu, false),
        };
        let index = 2 * pair as u16 + offset;
        let (memory, _) = self.memory(kind(features), len, 0)?;
        let doorbell = self.enable(index, &memory, interrupts.number(side, pair))?;
        let line = interrupts.line(side, pair).cloned();
        let setup = QueueSetup {
            label: format!("{} {name} {pair}", self.nic.name()),
            memory,
            features,
            doorbell: Arc::new(doorbell),
            irq: line.as_ref().map(|line| (line.vector.clone(), line.kind)),
            domain: self.nic.domain().clone(),
            max_frame: if large { LARGE_FRAME } else { usize::from(mtu + HEADERS) },
        };
        Ok((setup, Hold::new(self.nic.clone(), index, line)))
    }

    fn enable(&self, index: u16, memory: &RingMemory, vector: u16) -> Result<PciDoorbell, PortError> {
        let (len, most) = (memory.len(), self.nic.transport.queue_len(index));
        if len > most {
            let why = format!("its queue {index} takes {most} descriptors, and {len} are wanted; the device is broken");
            return Err(self.nic.transport.unsupported(why));
        }
        self.nic.transport.enable_queue(index, memory, vector)
    }

    fn start_control(&self, features: Features, said: &NetConfig) -> Result<Option<(u16, Control)>, PortError> {
        if !features.has(Features::CTRL_VQ) {
            return Ok(None);
        }
        // 5.1.2: behind all pairs that the device has, used or not.
        let several = !features.common(Features::MQ.with(Features::RSS)).is_empty();
        let index = if several { 2 * said.device_pairs } else { 2 };
        let (memory, end) = self.memory(kind(features), ctrl::RING_LEN, ctrl::COMMAND_BYTES)?;
        let doorbell = self.enable(index, &memory, NO_VECTOR)?;
        Ok(Some((index, Control::new(kind(features), memory, end, Arc::new(doorbell)))))
    }

    /// Tells a device that runs what only the control queue can tell it.
    fn tell(&self, running: &mut Running, said: &NetConfig) -> Result<(), PortError> {
        let features = running.agreement.features;
        let pairs = self.config.rx_queues;
        let result = (|| {
            if let Some((_, control)) = &mut running.control {
                if features.has(Features::RSS) && pairs > 1 {
                    control.run(&Command::Rss(&self.rss(said)))?;
                } else if features.has(Features::MQ) {
                    control.run(&Command::Pairs(pairs))?;
                }
                if features.has(Features::CTRL_MAC_ADDR) && !features.has(Features::MAC) {
                    control.run(&Command::Address(self.mac))?;
                }
            }
            self.filters.write(&mut running.told())
        })();
        result.map_err(|error| self.nic.transport.unsupported(error.to_string()))
    }

    fn rss(&self, said: &NetConfig) -> Rss {
        let pairs = self.config.rx_queues;
        let len = said.rss_table_len.clamp(1, 128);
        // A power of two (5.1.6.5.7.1).
        let len = 1 << len.ilog2();
        let key = &self.config.rss_key[..usize::from(said.rss_key_len).min(self.config.rss_key.len())];
        Rss {
            // IPv4, TCPv4, UDPv4, and the same over IPv6 (5.1.6.4.3.1).
            hash_types: said.hash_types & 0x3f,
            table: (0..len).map(|n| n % pairs).collect(),
            pairs,
            key: key.to_vec(),
        }
    }
}

fn kind(features: Features) -> RingKind {
    if features.has(Features::RING_PACKED) { RingKind::Packed } else { RingKind::Split }
}
