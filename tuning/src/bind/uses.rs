//! Who would miss a device.

use std::fmt;

use serde::Serialize;
use spinwake::pci::PciDevice;

use super::processes::Process;
use super::{disks, interfaces, nodes, shares};
use crate::host::Host;
use crate::output::{quoted, shown};

/// One way in which the machine uses a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Use {
    /// What this machine has no better way to goes through it.
    DefaultRoute {
        /// The network interface.
        interface: String,
    },
    /// Packets to some place go through it.
    Route {
        /// The network interface.
        interface: String,
        /// The place, as in 10.0.0.0/8.
        destination: String,
    },
    /// This machine is known by an address there.
    Address {
        /// The network interface.
        interface: String,
        /// The address with its prefix length.
        address: String,
    },
    /// It is a port of a bridge, bond or team.
    Port {
        /// The network interface.
        interface: String,
        /// Whose port it is.
        master: String,
    },
    /// It is up, and nothing else is known of it.
    Up {
        /// The network interface.
        interface: String,
    },
    /// Its interface is in another network namespace.
    Elsewhere {
        /// The driver that made the interface.
        driver: String,
    },
    /// A file system on it, or on what is built on it, is mounted.
    Mounted {
        /// The block device.
        disk: String,
        /// Where.
        at: String,
    },
    /// Memory is swapped to it.
    Swap {
        /// The block device.
        disk: String,
    },
    /// Another block device is made of it: LVM, RAID, encryption.
    Built {
        /// The block device.
        disk: String,
        /// The other one.
        on_it: String,
    },
    /// The kernel, or a program, has opened it for exclusive use.
    Claimed {
        /// The block device.
        disk: String,
    },
    /// A program has a file of it open.
    Opened {
        /// The file in `/dev`.
        node: String,
        /// The program.
        by: Process,
    },
    /// Its virtual functions would end with it.
    VirtualFunctions {
        /// How many.
        count: usize,
    },
    /// Something could not be found out.
    Unknown {
        /// What.
        what: String,
    },
}

impl Use {
    /// Whether taking the device needs to be asked for twice. Once is enough for an interface that is up and nothing
    /// else: distributions bring up what nobody uses.
    pub fn is_serious(&self) -> bool {
        !matches!(self, Self::Up { .. })
    }

    /// What would be lost with the device.
    pub fn loss(&self) -> String {
        match self {
            Self::DefaultRoute { interface } => {
                format!(
                    "this machine's way to the world (the default route through {interface}), and your session if it \
                     comes that way"
                )
            }
            Self::Route { interface, destination } => format!("the route to {destination} through {interface}"),
            Self::Address { interface, address } => {
                format!("the address {address} of {interface}, and every connection to it")
            }
            Self::Port { interface, master } => format!("{interface} as a port of {master}"),
            Self::Up { interface } => format!("the interface {interface}"),
            Self::Elsewhere { .. } => {
                "an interface that another network namespace, a container perhaps, has now".into()
            }
            Self::Mounted { disk, at } => {
                format!("the file system at {at} (on {disk}), with what was not yet written to it")
            }
            Self::Swap { disk } => format!("the memory that is swapped to {disk}: programs will crash"),
            Self::Built { disk, on_it } => format!("{on_it}, which is made of {disk}"),
            Self::Claimed { disk } => format!("{disk}, which somebody has opened for exclusive use"),
            Self::Opened { node, by } => format!("{node}, which {by} has open"),
            Self::VirtualFunctions { count } => format!("its {count} virtual functions, whoever has them"),
            Self::Unknown { what } => format!("unknown: {what}"),
        }
    }

    /// How to end it in good order.
    fn way_out(&self) -> String {
        match self {
            Self::DefaultRoute { interface } => {
                format!("lead the default route elsewhere first, then `ip route delete default dev {interface}`")
            }
            Self::Route { interface, destination } => format!("`ip route delete {destination} dev {interface}`"),
            Self::Address { interface, address } => format!("`ip address delete {address} dev {interface}`"),
            Self::Port { interface, .. } => format!("`ip link set {interface} nomaster`"),
            Self::Up { interface } => format!("`ip link set {interface} down`"),
            Self::Elsewhere { .. } => "`lsns -t net` lists the namespaces; give the interface back there".into(),
            Self::Mounted { at, .. } => format!("`umount {}`", shown(&quoted(at))),
            Self::Swap { disk } => format!("`swapoff {disk}`"),
            Self::Built { on_it, .. } => format!("take {on_it} apart (`lsblk` shows what it is)"),
            Self::Claimed { disk } => format!("`lsblk {disk}` and `fuser -v {disk}` may show who"),
            Self::Opened { by, .. } => format!("end it (`kill {}`)", by.pid),
            Self::VirtualFunctions { .. } => "`spinwake-tune vfs BDF 0` removes them".into(),
            Self::Unknown { .. } => "run this as root, where /proc and /sys are whole".into(),
        }
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRoute { interface } => write!(f, "{interface} has the default route"),
            Self::Route { interface, destination } => write!(f, "{interface} has a route to {destination}"),
            Self::Address { interface, address } => write!(f, "{interface} has the address {address}"),
            Self::Port { interface, master } => write!(f, "{interface} is a port of {master}"),
            Self::Up { interface } => write!(f, "{interface} is up"),
            Self::Elsewhere { driver } => write!(f, "{driver}'s interface is in another network namespace"),
            Self::Mounted { disk, at } => write!(f, "{disk} is mounted at {at}"),
            Self::Swap { disk } => write!(f, "{disk} is swap space"),
            Self::Built { disk, on_it } => write!(f, "{on_it} is made of {disk}"),
            Self::Claimed { disk } => write!(f, "{disk} is claimed by the kernel or a program"),
            Self::Opened { node, by } => write!(f, "{by} has {node} open"),
            Self::VirtualFunctions { count: 1 } => write!(f, "it has a virtual function"),
            Self::VirtualFunctions { count } => write!(f, "it has {count} virtual functions"),
            Self::Unknown { what } => write!(f, "unknown: {what}"),
        }
    }
}

/// Every use of a device, the ones that hurt most first.
pub fn uses(host: &Host, device: &PciDevice) -> Vec<Use> {
    let mut found = interfaces::uses(host, device);
    found.extend(disks::uses(host, device));
    found.extend(shares::uses(host, device));
    found.extend(nodes::uses(host, device));
    let virtual_functions = super::virtual_functions(device);
    if !virtual_functions.is_empty() {
        found.push(Use::VirtualFunctions { count: virtual_functions.len() });
        let sysfs = host.sysfs();
        for device in virtual_functions.into_iter().filter_map(|bdf| sysfs.device(bdf)) {
            // One level is all there is: a virtual function has none of its own.
            found.extend(interfaces::uses(host, &device));
            found.extend(disks::uses(host, &device));
            found.extend(nodes::uses(host, &device));
        }
    }
    found
}

/// Uses as lines of an error: what each is and how to end it, or what would be lost.
#[derive(Debug, Clone)]
pub struct Lines {
    uses: Vec<Use>,
    as_loss: bool,
}

impl Lines {
    /// With the way out of each.
    pub(crate) fn ways_out(uses: Vec<Use>) -> Self {
        Self { uses, as_loss: false }
    }

    /// With what would be lost.
    pub(crate) fn losses(uses: Vec<Use>) -> Self {
        Self { uses, as_loss: true }
    }
}

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for found in &self.uses {
            match self.as_loss {
                true => write!(f, "\n  {}", found.loss())?,
                false => write!(f, "\n  {found}: {}", found.way_out())?,
            }
        }
        Ok(())
    }
}
