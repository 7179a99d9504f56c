//! `devices` and `vfs`: the machine's PCI devices, who has them, and their virtual functions.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;

use serde::Serialize;
use spinwake::pci::{FindError, PciDevice};

use crate::bind::{Group, Use, group_node, uses};
use crate::host::Host;
use crate::output::Report;

mod kind;
pub mod vfs;

/// Lists the network devices: who drives them, what they are used for, their IOMMU groups
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Devices of every kind
    #[arg(long)]
    pub all: bool,
}

/// The machine's PCI devices.
#[derive(Debug, Serialize)]
pub struct Devices {
    /// In the order of their addresses.
    pub devices: Vec<Device>,
    /// How many more there are of other kinds.
    pub hidden: usize,
}

/// One PCI device.
#[derive(Debug, Serialize)]
pub struct Device {
    /// Its address.
    pub bdf: String,
    /// Vendor and device number, as in 8086:10c9.
    pub id: Option<String>,
    /// What it is.
    pub kind: &'static str,
    /// Who drives it.
    pub driver: Option<String>,
    /// The only driver that may, where somebody said so.
    pub driver_override: Option<String>,
    /// The driver of Spinwake that knows it.
    pub known_to: Option<&'static str>,
    /// Its IOMMU group.
    pub group: Option<Group>,
    /// The NUMA node it is attached to.
    pub node: Option<usize>,
    /// Its network interfaces.
    pub interfaces: Vec<String>,
    /// Its disks and their partitions.
    pub disks: Vec<String>,
    /// What it is used for now.
    pub uses: Vec<Use>,
    /// How many virtual functions it has and may have.
    pub virtual_functions: Option<vfs::Count>,
    /// The device that it is a virtual function of.
    pub physical_function: Option<String>,
    /// Number of the user who owns the file that programs open.
    pub owner: Option<u32>,
}

/// Lists PCI devices.
///
/// # Errors
///
/// When the machine shows no PCI bus.
pub fn run(args: &Args, host: &Host) -> Result<Devices, FindError> {
    let mut devices = host.sysfs().devices()?;
    let there = devices.len();
    devices.retain(|device| args.all || device.class().is_some_and(|class| class.is_network()));
    let hidden = there - devices.len();
    Ok(Devices { devices: devices.iter().map(|device| Device::read(host, device)).collect(), hidden })
}

impl Device {
    /// All that is known of a device.
    pub fn read(host: &Host, device: &PciDevice) -> Self {
        let group = Group::of(device);
        let node = group.as_ref().and_then(|group| fs::metadata(host.path(group_node(group.number))).ok());
        let is_bridge = device.class().is_some_and(|class| class.base() == 0x06);
        Self {
            bdf: device.bdf().to_string(),
            id: device.id().map(|id| id.to_string()),
            kind: device.class().map_or("unknown", kind::kind),
            driver: device.driver(),
            driver_override: device.driver_override(),
            known_to: device.id().and_then(spinwake_pmd::driver_name),
            group,
            node: device.numa_node(),
            interfaces: device.net_interfaces().into_iter().map(|interface| interface.name).collect(),
            // What stands below a bridge is other devices'.
            disks: if is_bridge { Vec::new() } else { crate::bind::disks(host, device) },
            uses: if is_bridge { Vec::new() } else { uses(host, device) },
            virtual_functions: vfs::Count::read(device),
            physical_function: fs::read_link(device.path().join("physfn"))
                .ok()
                .and_then(|target| Some(target.file_name()?.to_str()?.to_owned())),
            owner: node.map(|node| node.uid()),
        }
    }

    /// What it is used for, or what it is there for.
    fn remarks(&self) -> String {
        let mut remarks: Vec<_> = self.uses.iter().map(ToString::to_string).collect();
        if remarks.is_empty() {
            // What is in use has its interfaces and disks named by that.
            remarks.extend(self.interfaces.iter().map(|name| format!("{name} is down")));
            remarks.extend(self.disks.iter().map(|name| format!("{name} is not used")));
        }
        if let Some(count) = self.virtual_functions.filter(|count| count.total > 0) {
            remarks.push(format!("{} of {} virtual functions", count.now, count.total));
        }
        remarks.extend(self.physical_function.iter().map(|parent| format!("virtual function of {parent}")));
        if self.driver.as_deref() == Some(crate::bind::VFIO) {
            let owner = self.owner.filter(|&owner| owner != 0);
            remarks.extend(owner.map(|owner| format!("user {owner} may drive it")));
            if self.group.as_ref().is_some_and(|group| !group.viable) {
                remarks.push("not usable: the kernel drives others of its group".into());
            }
        }
        remarks.join("; ")
    }
}

impl Report for Devices {}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = || "-".to_owned();
        let head = ["ADDRESS", "ID", "KIND", "DRIVER", "SPINWAKE", "GROUP", "NODE", "USE"].map(str::to_owned);
        let rows = self.devices.iter().map(|device| {
            [
                device.bdf.clone(),
                device.id.clone().unwrap_or_else(none),
                device.kind.to_owned(),
                device.driver.clone().unwrap_or_else(none),
                device.known_to.map_or_else(none, str::to_owned),
                device.group.as_ref().map_or_else(none, |group| group.number.to_string()),
                device.node.map_or_else(none, |node| node.to_string()),
                device.remarks(),
            ]
        });
        let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
        let mut widths = [0; 8];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for (number, row) in rows.iter().enumerate() {
            let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            let line = cells.join("  ");
            write!(f, "{}{}", if number > 0 { "\n" } else { "" }, line.trim_end())?;
        }
        if self.devices.iter().all(|device| device.group.is_none()) && !self.devices.is_empty() {
            write!(
                f,
                "\nNo device is in an IOMMU group: there is no IOMMU, or it is off (intel_iommu=on, amd_iommu=on)."
            )?;
        }
        if self.hidden > 0 {
            write!(f, "\n{} more of other kinds: --all", self.hidden)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::fake::Fake;

    fn machine() -> Fake {
        let fake = Fake::new();
        fake.device("0000:01:00.0", "0x020000", Some("igb"), Some(7));
        fake.device("0000:02:00.0", "0x010802", Some("nvme"), None);
        fake.put("/sys/bus/pci/devices/0000:01:00.0/net/eth0/flags", "0x1003");
        fake.put("/sys/bus/pci/devices/0000:01:00.0/numa_node", "1");
        fake.put("/sys/bus/pci/devices/0000:01:00.0/sriov_totalvfs", "7");
        fake.put("/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs", "0");
        fake.put("/proc/net/route", "");
        fake.put("/proc/net/fib_trie", "");
        fake
    }

    #[test]
    fn network_devices_are_shown_and_the_others_counted() {
        let report = run(&Args { all: false }, machine().host()).unwrap();
        let text = report.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "ADDRESS       ID         KIND      DRIVER  SPINWAKE  GROUP  NODE  USE",
                "0000:01:00.0  8086:10c9  Ethernet  igb     igb       7      1     eth0 is up; 0 of 7 virtual functions",
                "1 more of other kinds: --all",
            ]
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["devices"][0]["uses"][0], serde_json::json!({ "kind": "up", "interface": "eth0" }));
        assert_eq!(json["hidden"], 1);
    }

    #[test]
    fn all_are_shown_when_asked_for() {
        let text = run(&Args { all: true }, machine().host()).unwrap().to_string();
        assert!(text.contains("0000:02:00.0  8086:10c9  NVMe disk  nvme"), "{text}");
    }

    #[test]
    fn a_device_of_which_nothing_is_known_is_shown() {
        let fake = Fake::new();
        fake.put("/sys/bus/pci/devices/0000:03:00.0/vendor", "\u{0}garbage");
        let text = run(&Args { all: true }, fake.host()).unwrap().to_string();
        assert!(text.contains("0000:03:00.0  -   unknown  -"), "{text}");
        assert!(text.contains("No device is in an IOMMU group"), "{text}");
        assert!(run(&Args { all: true }, &Host::at("/nowhere")).is_err());
    }
}
