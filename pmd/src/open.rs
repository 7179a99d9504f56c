//! From a port spec to a port.

use std::sync::Arc;

use spinwake::device::Device;
use spinwake::dma::Domain;
use spinwake::irq::IrqKind;
use spinwake::pci::{Bdf, DeviceId};
use spinwake::port::{Capabilities, ConfigError, Port, PortConfig, PortError, PortSpec, SpecError};
use spinwake::vfio::{self, Host, VfioDevice};

use crate::igb::{self, IgbPort};
use crate::pci;
use crate::soft;
use crate::vhost::{self, VhostPort, VhostSpec};
use crate::virtio_user::{self, UserPort, UserSpec};

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
    /// The vhost-user socket cannot be had.
    #[error(transparent)]
    Vhost(#[from] vhost::OpenError),
    /// The driver failed.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The port cannot do what the spec's keys ask.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Two specs name one device.
    #[error("\"{first}\" and \"{second}\" are the same port, {name}; name two different ones")]
    Twice {
        /// The spec that came first.
        first: String,
        /// The other one.
        second: String,
        /// What both name.
        name: String,
    },
}

/// The kinds of port there are.
const KINDS: &str = "pci (a NIC through VFIO), soft (the embedded NIC), virtio-user (the front end of a vhost-user socket) and \
                     vhost (its back end)";

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
    let request = Request::read(spec)?;
    request.look(&Host::default())?;
    request.open(domain)
}

/// Looks whether the ports that `specs` name could all be opened, as far as can be told without opening any: so that a
/// program refuses what it is asked before it resets the first device.
///
/// # Errors
///
/// As [`open`], and when two specs name the same device.
pub fn check(specs: &[impl AsRef<str>]) -> Result<(), OpenError> {
    let requests = specs.iter().map(|spec| Request::read(spec.as_ref())).collect::<Result<Vec<_>, _>>()?;
    for (i, second) in requests.iter().enumerate() {
        let name = second.name();
        if let Some(first) = requests[..i].iter().find(|first| name.is_some() && first.name() == name) {
            return Err(OpenError::Twice {
                first: first.spec.to_string(),
                second: second.spec.to_string(),
                name: name.unwrap_or_default(),
            });
        }
    }
    requests.iter().try_for_each(|request| request.look(&Host::default()))
}

/// A spec that has been read: all that its text alone can tell is right.
#[derive(Debug)]
struct Request {
    spec: PortSpec,
    what: What,
    config: PortConfig,
    wishes: pci::Wishes,
}

#[derive(Debug)]
enum What {
    Pci(Bdf),
    Soft { id: DeviceId, queues: u16 },
    User(UserSpec),
    Vhost(VhostSpec),
}

impl Request {
    fn read(spec: &str) -> Result<Self, OpenError> {
        let spec: PortSpec = spec.parse()?;
        let what = match spec.kind() {
            "pci" => read_pci(&spec)?,
            "soft" => read_soft(&spec)?,
            "virtio-user" => read_user(&spec)?,
            "vhost" => read_vhost(&spec)?,
            kind => {
                // The beginning of an address looks like a kind.
                let text = spec.to_string();
                let bare = text.split(',').next().is_some_and(|head| head.parse::<Bdf>().is_ok());
                let known = if bare { format!("{KINDS}; did you mean pci:{text}?") } else { KINDS.into() };
                return Err(SpecError::Kind { spec: text, kind: kind.into(), known }.into());
            }
        };
        let config = config(&spec, PortConfig::default())?;
        let wishes = pci::Wishes { irq: irq(&spec)?, packed: spec.switch("packed")? };
        Ok(Self { spec, what, config, wishes })
    }

    /// What no two ports can have in common; `None` for a soft NIC whose name is left to us.
    fn name(&self) -> Option<String> {
        match &self.what {
            What::Vhost(vhost) => Some(vhost.name()),
            What::Pci(bdf) => Some(bdf.to_string()),
            What::User(user) => Some(user.name()),
            What::Soft { .. } => {
                Some(format!("soft:{}", self.spec.address())).filter(|_| !self.spec.address().is_empty())
            }
        }
    }

    /// Whether the device is there, can be had, and can do what the keys ask. Touches nothing.
    fn look(&self, host: &Host) -> Result<(), OpenError> {
        let (name, can) = match &self.what {
            What::Vhost(vhost) => (self.spec.to_string(), Some(vhost::capabilities(vhost))),
            What::Soft { id, queues } => {
                let name = format!("soft:{}", self.spec.address());
                let can = igb::capabilities(&name, *id, &self.soft_options(*queues))?;
                (name, Some(can))
            }
            What::Pci(bdf) => {
                VfioDevice::check(host, *bdf)?;
                // A device that hides its numbers is asked once it is open.
                let id = host.sysfs().device(*bdf).and_then(|device| device.id());
                let name = bdf.to_string();
                let can = id.map(|id| self.pci_capabilities(&name, id)).transpose()?;
                (name, can.flatten())
            }
            What::User(user) => {
                user.look(&self.spec)?;
                let can = virtio_user::capabilities(virtio_user::PAIRS_MAX, virtio_user::best_offloads());
                (format!("virtio-user:{}", self.spec.address()), Some(can))
            }
        };
        // So is one that tells only then what it can do.
        let Some(can) = can else { return Ok(()) };
        self.config.check(&name, &can).map_err(|error| self.in_words_of_the_spec(error))
    }

    fn soft_options(&self, queues: u16) -> igb::Options {
        igb::Options { irq: self.wishes.irq, max_queues: Some(queues) }
    }

    fn pci_capabilities(&self, name: &str, id: DeviceId) -> Result<Option<Capabilities>, OpenError> {
        let driver = self.pci_driver(name, id)?;
        Ok((driver.capabilities)(name, id, &self.wishes)?)
    }

    /// The device's driver, which must know the keys.
    fn pci_driver(&self, name: &str, id: DeviceId) -> Result<&'static pci::Driver, OpenError> {
        let driver = pci::driver(name, id)?;
        let foreign = pci::keys().into_iter().find(|key| !driver.keys.contains(key) && self.spec.text(key).is_some());
        match foreign {
            Some(key) => {
                Err(self.spec.bad_value(key, &format!("nothing: driver {} has no such key", driver.name)).into())
            }
            None => Ok(driver),
        }
    }

    /// A setting that a key of the spec asked for is refused by the key's name.
    fn in_words_of_the_spec(&self, error: ConfigError) -> OpenError {
        let key = match &error {
            ConfigError::Value { key: "rx_queues" | "tx_queues", .. } => "queues",
            ConfigError::Value { key: "rx_ring_len", .. } => "rx_ring",
            ConfigError::Value { key: "tx_ring_len", .. } => "tx_ring",
            ConfigError::Value { key, .. } => key,
            _ => return error.into(),
        };
        match &error {
            ConfigError::Value { possible, .. } if self.spec.text(key).is_some() => {
                self.spec.bad_value(key, &format!("{possible} on this device")).into()
            }
            _ => error.into(),
        }
    }

    fn open(self, domain: &Domain) -> Result<Box<dyn Port>, OpenError> {
        let mut port: Box<dyn Port> = match &self.what {
            What::User(user) => Box::new(UserPort::open(user.clone(), domain)?),
            What::Vhost(vhost) => Box::new(VhostPort::open(vhost.clone())?),
            What::Pci(bdf) => {
                let device = Arc::new(VfioDevice::open(*bdf)?);
                let driver = self.pci_driver(device.name(), device.id())?;
                (driver.open)(device, domain, &self.wishes)?
            }
            What::Soft { queues, .. } => {
                let nic = soft::open(&self.spec.without(&["mtu", "rx_ring", "tx_ring"]))?;
                let mut port = IgbPort::open(nic.device(), domain, self.soft_options(*queues))?;
                if let Some(reporter) = nic.reporter() {
                    port = port.with_generator(Box::new(move || reporter.report()));
                }
                Box::new(port)
            }
        };
        // What no key asks for is as the port would have it.
        let config = config(&self.spec, port.config().clone())?;
        port.configure(config).map_err(|error| self.in_words_of_the_spec(error))?;
        Ok(port)
    }
}

fn read_pci(spec: &PortSpec) -> Result<What, SpecError> {
    spec.only_keys(&known_keys(&pci::keys()))?;
    if spec.address().is_empty() {
        return Err(spec.bad_address("an address is missing; write pci:DOMAIN:BUS:DEVICE.FUNCTION"));
    }
    let bdf = spec.address().parse().map_err(|error| spec.bad_address(error))?;
    Ok(What::Pci(bdf))
}

fn read_soft(spec: &PortSpec) -> Result<What, SpecError> {
    spec.only_keys(&known_keys(&soft::KEYS))?;
    let (id, queues) = soft::check(&spec.without(&["mtu", "rx_ring", "tx_ring"]))?;
    Ok(What::Soft { id, queues })
}

fn read_user(spec: &PortSpec) -> Result<What, SpecError> {
    spec.only_keys(&known_keys(&virtio_user::KEYS))?;
    UserSpec::parse(spec).map(What::User)
}

fn read_vhost(spec: &PortSpec) -> Result<What, SpecError> {
    spec.only_keys(&known_keys(&vhost::KEYS))?;
    VhostSpec::parse(spec).map(What::Vhost)
}

/// The keys of a kind: those of every port, then its own.
fn known_keys(own: &[&'static str]) -> Vec<&'static str> {
    let own = own.iter().filter(|key| !CONFIG_KEYS.contains(key));
    CONFIG_KEYS.iter().chain(own).copied().collect()
}

/// `config`, with what the keys ask for.
fn config(spec: &PortSpec, mut config: PortConfig) -> Result<PortConfig, SpecError> {
    if let Some(queues) = spec.key("queues", "a number of queues, 1 or more")? {
        (config.rx_queues, config.tx_queues) = (queues, queues);
    }
    if let Some(mtu) = spec.key("mtu", "a number of bytes, 68 to 65535")? {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(specs: &[&str]) -> String {
        check(specs).unwrap_err().to_string()
    }

    #[test]
    fn ports_that_could_be_opened_pass() {
        check(&["soft:", "soft:"]).unwrap();
        check(&["soft:left,wire=w", "soft:right,wire=w,queues=2"]).unwrap();
    }

    #[test]
    fn one_device_in_two_spellings_is_one_device() {
        let text = refusal(&["pci:0000:fe:1f.7", "pci:fe:1F.7,queues=2"]);
        assert!(text.contains("\"pci:0000:fe:1f.7\"") && text.contains("\"pci:fe:1F.7,queues=2\""), "{text}");
        assert!(text.contains("same port, 0000:fe:1f.7"), "{text}");
        assert!(refusal(&["virtio-user:/tmp/s", "virtio-user:/tmp/./s"]).contains("same port, /tmp/s"));
        assert!(refusal(&["vhost:/tmp/s", "vhost:/tmp/../tmp/s"]).contains("same port, vhost:/tmp/s"));
        assert!(refusal(&["soft:x", "soft:y", "soft:x,rate=0"]).contains("same port, soft:x"));
    }

    #[test]
    fn what_a_key_asks_and_the_device_cannot_do_is_refused_by_the_keys_name() {
        for (spec, parts) in [
            ("soft:,queues=17", ["queues=17", "1 to 16"]),
            ("soft:,mtu=67", ["mtu=67", "68 to 9216"]),
            ("soft:,rx_ring=500", ["rx_ring=500", "powers of two from 32 to 4096"]),
            ("soft:,tx_ring=8192", ["tx_ring=8192", "powers of two from 32 to 4096"]),
            ("soft:,quues=1", ["\"quues\"", "queues, mtu, rx_ring, tx_ring, rate"]),
            ("pci:", ["address is missing", "pci:DOMAIN:BUS:DEVICE.FUNCTION"]),
            ("pci:eth0", ["`eth0` is not a PCI address", "0000:01:00.0"]),
            ("01:00.0,queues=2", ["no kind \"01\"", "did you mean pci:01:00.0,queues=2?"]),
            ("dpdk:0", ["no kind \"dpdk\"", "pci (a NIC through VFIO), soft"]),
            ("virtio-user:", ["path is missing", "virtio-user:/run/NAME.sock"]),
            ("virtio-user:/s,irq=msi", ["no key \"irq\"", "queues, mtu, rx_ring, tx_ring, packed, server, mac, mrg"]),
            ("virtio-user:/s,rx_ring=8192", ["rx_ring=8192", "powers of two from 32 to 4096"]),
            ("virtio-user:/none/s", ["virtio-user:/none/s", "no folder /none"]),
            ("vhost:", ["path is missing", "vhost:/run/NAME.sock"]),
            ("vhost:/run/a,queues=65", ["queues=65", "1 to 64"]),
            ("vhost:/run/a,mtu=67", ["mtu=67", "68 to 65521"]),
            ("vhost:/run/a,mtu=99999", ["mtu=99999", "68 to 65535"]),
            ("vhost:/run/a,packet=on", ["\"packet\"", "tx_ring, server, client, packed"]),
        ] {
            let text = refusal(&["soft:", spec]);
            for part in parts {
                assert!(text.contains(part), "no `{part}` in: {text}");
            }
        }
    }

    #[test]
    fn two_queues_of_a_device_with_one_are_refused() {
        let mut port = open("soft:,queues=1,rate=0").unwrap();
        let error = port.configure(PortConfig { rx_queues: 2, ..PortConfig::default() }).unwrap_err().to_string();
        assert!(error.contains("rx_queues=2 is not possible; it takes only 1"), "{error}");
        assert_eq!(port.config().rx_queues, 1);
    }
}
