//! A table of the machine's network devices.

use std::fmt;

use spinwake::pci::{FindError, PciDevice, Sysfs};

/// One network device, as a row of the table.
#[derive(Debug, Clone)]
pub struct Row {
    device: PciDevice,
}

/// Every PCI network device, in the order of addresses.
///
/// # Errors
///
/// When the machine shows no PCI bus.
pub fn network_devices(sysfs: &Sysfs) -> Result<Vec<Row>, FindError> {
    let mut devices = sysfs.devices()?;
    devices.retain(|device| device.class().is_some_and(spinwake::pci::Class::is_network));
    Ok(devices.into_iter().map(|device| Row { device }).collect())
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.device;
        let unknown = || "-".to_owned();
        let id = device.id().map_or_else(unknown, |id| id.to_string());
        let driver = device.driver().unwrap_or_else(unknown);
        let group = device.iommu_group().map_or_else(|| "none".into(), |group| group.number.to_string());
        let node = device.numa_node().map_or_else(unknown, |node| node.to_string());
        write!(f, "{}  {id:<10} driver {driver:<12} IOMMU group {group:<5} NUMA node {node:<3}", device.bdf())?;
        for interface in device.net_interfaces() {
            write!(f, " {}{}", interface.name, if interface.in_use() { " (in use)" } else { "" })?;
        }
        Ok(())
    }
}
