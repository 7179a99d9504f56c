//! Files in `/dev` through which programs use a device.

use std::fs;

use spinwake::pci::PciDevice;

use super::processes::openers;
use super::uses::Use;
use crate::host::Host;

/// Programs that have a file of the device open: character devices, be they clocks, terminals or `/dev/uio0`. Disks are
/// another matter.
pub(super) fn uses(host: &Host, device: &PciDevice) -> Vec<Use> {
    let nodes = nodes(host, device);
    let found = openers(host, &nodes).into_iter();
    found.flat_map(|(node, by)| by.into_iter().map(move |by| Use::Opened { node: node.clone(), by })).collect()
}

/// The character devices below a device in the device tree, by their names in `/dev`.
pub(super) fn nodes(host: &Host, device: &PciDevice) -> Vec<String> {
    let Ok(below) = fs::canonicalize(device.path()) else { return Vec::new() };
    let numbers = host.names("/sys/dev/char").into_iter();
    let folders = numbers.map(|number| format!("/sys/dev/char/{number}"));
    let own = folders.filter(|folder| fs::canonicalize(host.path(folder)).is_ok_and(|path| path.starts_with(&below)));
    own.filter_map(|folder| {
        let text = host.read(format!("{folder}/uevent"))?;
        let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        Some(format!("/dev/{name}"))
    })
    .collect()
}
