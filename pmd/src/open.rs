//! From a port spec to a port.

use std::sync::Arc;

use spinwake::device::Device;
use spinwake::dma::Domain;
use spinwake::irq::IrqKind;
use spinwake::pci::Bdf;
use spinwake::port::{ConfigError, Port, PortConfig, PortError, PortSpec, SpecError};
use spinwake::vfio::{self, VfioDevice};

use crate::igb::{self, IgbPort};
use crate::soft;

/// A port could not be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The spec is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The device cannot be had.
    #[error(transparent)]
    Vfio(#[from] vfio::OpenError),
    /// The software NIC cannot be made.
    #[error(transparent)]
    Soft(#[from] soft::OpenError),
    /// The driver failed.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The port cannot do what the spec's keys ask.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// The kinds of port there are.
const KINDS: &str = "pci (a NIC through VFIO) and soft (the embedded NIC)";

/// Keys that configure any port.
const CONFIG_KEYS: [&str; 4] = ["queues", "mtu", "rx_ring", "tx_ring"];

/// Opens the port that `spec` names, in the program's global DMA domain, configured as its keys say.
///
/// # Errors
///
/// When the spec is wrong, the device cannot be had, or it cannot do what is asked: each says what to do.
pub fn open(spec: &str) -> Result<Box<dyn Port>, OpenError> {
    open_in(Domain::global(), spec)
}

/// Opens the port that `spec` names in `domain`.
///
/// # Errors
///
/// As [`open`].
pub fn open_in(domain: &Domain, spec: &str) -> Result<Box<dyn Port>, OpenError> {
    let spec: PortSpec = spec.parse()?;
    match spec.kind() {
        "pci" => open_pci(domain, &spec),
        "soft" => open_soft(domain, &spec),
        kind => Err(SpecError::Kind { spec: spec.to_string(), kind: kind.into(), known: KINDS.into() }.into()),
    }
}

fn open_pci(domain: &Domain, spec: &PortSpec) -> Result<Box<dyn Port>, OpenError> {
    spec.only_keys(&known_keys(&["irq"]))?;
    if spec.address().is_empty() {
        return Err(spec.bad_address("an address is missing; write pci:DOMAIN:BUS:DEVICE.FUNCTION").into());
    }
    let bdf: Bdf = spec.address().parse().map_err(|error| spec.bad_address(error))?;
    let config = config(spec)?;
    let options = igb::Options { irq: irq(spec)?, max_queues: None };
    let device: Arc<dyn Device> = Arc::new(VfioDevice::open(bdf)?);
    let mut port = IgbPort::open(device, domain, options)?;
    port.configure(config)?;
    Ok(Box::new(port))
}

fn open_soft(domain: &Domain, spec: &PortSpec) -> Result<Box<dyn Port>, OpenError> {
    spec.only_keys(&known_keys(&soft::KEYS))?;
    let config = config(spec)?;
    let nic = soft::open(&spec.without(&["mtu", "rx_ring", "tx_ring"]))?;
    let options = igb::Options { irq: irq(spec)?, max_queues: Some(nic.queues()) };
    let mut port = IgbPort::open(nic.device(), domain, options)?;
    if let Some(reporter) = nic.reporter() {
        port = port.with_generator(Box::new(move || reporter.report()));
    }
    port.configure(config)?;
    Ok(Box::new(port))
}

/// The keys of a kind: those of every port, then its own.
fn known_keys(own: &[&'static str]) -> Vec<&'static str> {
    let own = own.iter().filter(|key| !CONFIG_KEYS.contains(key));
    CONFIG_KEYS.iter().chain(own).copied().collect()
}

/// The configuration that the keys ask for.
fn config(spec: &PortSpec) -> Result<PortConfig, SpecError> {
    let mut config = PortConfig::default();
    if let Some(queues) = spec.key("queues", "a number of queues, 1 or more")? {
        (config.rx_queues, config.tx_queues) = (queues, queues);
    }
    if let Some(mtu) = spec.key("mtu", "a number of bytes, 68 or more")? {
        config.mtu = mtu;
    }
    if let Some(len) = spec.key("rx_ring", "a number of descriptors, a power of two")? {
        config.rx_ring_len = len;
    }
    if let Some(len) = spec.key("tx_ring", "a number of descriptors, a power of two")? {
        config.tx_ring_len = len;
    }
    Ok(config)
}

fn irq(spec: &PortSpec) -> Result<Option<IrqKind>, SpecError> {
    match spec.text("irq") {
        None => Ok(None),
        Some("msix") => Ok(Some(IrqKind::Msix)),
        Some("msi") => Ok(Some(IrqKind::Msi)),
        Some("intx") => Ok(Some(IrqKind::Intx)),
        Some(_) => Err(spec.bad_value("irq", "msix, msi or intx")),
    }
}
