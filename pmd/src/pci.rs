//! Drivers of PCI devices, and which device is whose.

use std::sync::Arc;

use spinwake::device::Device;
use spinwake::dma::Domain;
use spinwake::irq::IrqKind;
use spinwake::pci::DeviceId;
use spinwake::port::{Capabilities, Port, PortError};

use crate::igb::{self, IgbPort};
use crate::virtio::pci::{self as virtio, VirtioPort};

/// What a spec may ask of any of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    /// Interrupt this way or refuse to start.
    pub(crate) irq: Option<IrqKind>,
    /// Use packed rings, or do not; for drivers that know both.
    pub(crate) packed: Option<bool>,
}

/// How a driver opens a device.
type Open = fn(Arc<dyn Device>, &Domain, &Wishes) -> Result<Box<dyn Port>, PortError>;

/// One driver.
pub(crate) struct Driver {
    pub(crate) name: &'static str,
    /// Keys of a spec that it knows besides those of every port.
    pub(crate) keys: &'static [&'static str],
    knows: fn(DeviceId) -> bool,
    /// The devices that it drives, in words.
    devices: fn() -> String,
    /// What a device with this name and id can do, where that can be told without opening it.
    pub(crate) capabilities: fn(&str, DeviceId, &Wishes) -> Result<Option<Capabilities>, PortError>,
    pub(crate) open: Open,
}

const DRIVERS: &[Driver] = &[
    Driver {
        name: "igb",
        keys: &["irq"],
        knows: |id| igb::IDS.iter().any(|row| (row.vendor, row.device) == (id.vendor, id.device)),
        devices: || igb::IDS.iter().map(|row| row.name).collect::<Vec<_>>().join(", "),
        capabilities: |name, id, wishes| igb::capabilities(name, id, &igb_options(wishes)).map(Some),
        open: |device, domain, wishes| Ok(Box::new(IgbPort::open(device, domain, igb_options(wishes))?)),
    },
    Driver {
        name: "virtio",
        keys: &["irq", "packed"],
        knows: virtio::knows,
        devices: || "virtio network devices".into(),
        capabilities: |_, _, _| Ok(None),
        open: |device, domain, wishes| {
            let options = virtio::Options { irq: wishes.irq, packed: wishes.packed.unwrap_or(true) };
            Ok(Box::new(VirtioPort::open(device, domain, options)?))
        },
    },
];

fn igb_options(wishes: &Wishes) -> igb::Options {
    igb::Options { irq: wishes.irq, max_queues: None }
}

/// The driver of the device with this `id`; `port` is its name.
///
/// # Errors
///
/// When there is none, naming what there is.
pub(crate) fn driver(port: &str, id: DeviceId) -> Result<&'static Driver, PortError> {
    DRIVERS.iter().find(|driver| (driver.knows)(id)).ok_or_else(|| {
        let known: Vec<_> = DRIVERS.iter().map(|driver| format!("{} ({})", driver.name, (driver.devices)())).collect();
        let why = format!("no driver knows device {id}; there are {}", known.join(" and "));
        PortError::Unsupported { port: port.into(), why }
    })
}

/// The name of the driver of PCI devices with this `id`; `None` when there is none here.
pub fn driver_name(id: DeviceId) -> Option<&'static str> {
    DRIVERS.iter().find(|driver| (driver.knows)(id)).map(|driver| driver.name)
}

/// The keys that some driver knows besides those of every port.
pub(crate) fn keys() -> Vec<&'static str> {
    let mut keys: Vec<_> = DRIVERS.iter().flat_map(|driver| driver.keys).copied().collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_driver_or_a_clear_refusal() {
        let name = |vendor, device| driver("p", DeviceId { vendor, device }).map(|driver| driver.name);
        assert_eq!(name(0x8086, 0x10c9).unwrap(), "igb");
        assert_eq!(name(0x1af4, 0x1041).unwrap(), "virtio");
        assert_eq!(name(0x1af4, 0x1000).unwrap(), "virtio");
        let text = name(0x1af4, 0x1042).unwrap_err().to_string();
        for part in ["p: no driver knows device 1af4:1042", "igb (82576, ", "virtio (virtio network devices)"] {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
        for id in igb::IDS.iter().map(|row| DeviceId { vendor: row.vendor, device: row.device }) {
            assert_eq!(DRIVERS.iter().filter(|driver| (driver.knows)(id)).count(), 1);
        }
        assert_eq!(keys(), ["irq", "packed"]);
    }
}
