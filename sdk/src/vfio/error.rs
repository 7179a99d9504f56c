//! Why a device could not be opened, and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Holder;
use crate::pci::{Bdf, GroupMember};

/// Why a device could not be opened. Nothing has changed, and nothing is left open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The machine has no such device.
    #[error("there is no PCI device {bdf} on this machine; {}", Candidates(candidates))]
    NotFound {
        /// Which device.
        bdf: Bdf,
        /// The network devices that there are, each with its driver.
        candidates: Vec<GroupMember>,
    },

    /// No IOMMU stands between the device and memory.
    #[error(
        "{bdf} is in no IOMMU group: this machine's IOMMU is absent or off, and without it {bdf} could write anywhere \
         in memory; switch it on in the firmware's setup (VT-d, AMD-Vi or IOMMU) and boot the kernel with \
         intel_iommu=on (Intel) or amd_iommu=on (AMD)"
    )]
    NoIommu {
        /// Which device.
        bdf: Bdf,
    },

    /// No driver has the device, so VFIO has not either.
    #[error("{bdf} is not bound to any driver; give it to VFIO{}", Rebind { bdf: *bdf, bound: false })]
    NoDriver {
        /// Which device.
        bdf: Bdf,
    },

    /// A kernel driver has the device.
    #[error("{bdf} is bound to the kernel driver {driver}{}; take it over{}", Interfaces(interfaces),
        Rebind { bdf: *bdf, bound: true })]
    BoundElsewhere {
        /// Which device.
        bdf: Bdf,
        /// The driver that has it.
        driver: String,
        /// Its network interfaces, each with whether it is in use.
        interfaces: Vec<(String, bool)>,
    },

    /// The kernel still uses a part of the device's IOMMU group.
    #[error(
        "{bdf} shares IOMMU group {group} with devices that the kernel uses, so it cannot be handed out (the group is \
         not viable); the others in it: {}; unbind or give to vfio-pci: {}",
        List(others),
        Blocking(others)
    )]
    NotViable {
        /// Which device.
        bdf: Bdf,
        /// Its group.
        group: u32,
        /// The other devices in it.
        others: Vec<GroupMember>,
    },

    /// The kernel offers no VFIO.
    #[error("{bdf}: {} does not exist; load VFIO with `modprobe vfio-pci` (in a container, pass the node in)", path.display())]
    NoVfio {
        /// Which device.
        bdf: Bdf,
        /// The node that should exist.
        path: PathBuf,
    },

    /// The group has no node, though VFIO has the device.
    #[error("{bdf}: {} does not exist although {bdf} is bound to VFIO; in a container, pass the node in", path.display())]
    NoGroupNode {
        /// Which device.
        bdf: Bdf,
        /// The node that should exist.
        path: PathBuf,
    },

    /// This process may not open a node of VFIO.
    #[error(
        "{bdf}: no permission to open {0}, which is owned by user {owner} and group {group} with mode {mode:04o}, as user \
         {user}; as root, run `chown {user} {0}` (until the next boot), or `chgrp GROUP {0} && chmod 0660 {0}`, or add the \
         udev rule SUBSYSTEM==\"vfio\", GROUP=\"GROUP\", MODE=\"0660\"",
        path.display()
    )]
    Permission {
        /// Which device.
        bdf: Bdf,
        /// The node.
        path: PathBuf,
        /// User that owns it.
        owner: u32,
        /// Group that owns it.
        group: u32,
        /// Its permission bits.
        mode: u32,
        /// The user of this process.
        user: u32,
    },

    /// Another process has the group.
    #[error("{bdf}: IOMMU group {group} is in use by {}; stop it first", Whom(holder))]
    Busy {
        /// Which device.
        bdf: Bdf,
        /// Its group.
        group: u32,
        /// Who has it, where that can be seen.
        holder: Option<Holder>,
    },

    /// This process has the device already.
    #[error(
        "{bdf} is already open in this process; a device has one owner (it stays open while one of its BARs is kept)"
    )]
    AlreadyOpen {
        /// Which device.
        bdf: Bdf,
    },

    /// The kernel's VFIO has no IOMMU interface that we speak.
    #[error(
        "{bdf}: the kernel's VFIO does not offer its type 1 IOMMU interface, version 2; run `modprobe vfio_iommu_type1`"
    )]
    NoType1v2 {
        /// Which device.
        bdf: Bdf,
    },

    /// A call failed for a reason of its own.
    #[error("{bdf}: {call} failed: {source}{hint}")]
    Call {
        /// Which device.
        bdf: Bdf,
        /// Which call, as the kernel names it.
        call: &'static str,
        /// The meaning of errno.
        source: io::Error,
        /// What to do about it: empty, or `"; "` and a sentence.
        hint: &'static str,
    },

    /// The kernel described the device in a way that makes no sense.
    #[error("{bdf} cannot be used: {what}")]
    Nonsense {
        /// Which device.
        bdf: Bdf,
        /// What is wrong.
        what: String,
    },
}

/// How to give a device to VFIO.
struct Rebind {
    bdf: Bdf,
    bound: bool,
}

impl fmt::Display for Rebind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bdf = self.bdf;
        let device = format!("/sys/bus/pci/devices/{bdf}");
        write!(f, " with `spinwake-tune bind {bdf}`, or as root by hand:")?;
        write!(f, "\n  modprobe vfio-pci")?;
        write!(f, "\n  echo vfio-pci > {device}/driver_override")?;
        if self.bound {
            write!(f, "\n  echo {bdf} > {device}/driver/unbind")?;
        }
        write!(f, "\n  echo {bdf} > /sys/bus/pci/drivers_probe")
    }
}

struct Interfaces<'a>(&'a [(String, bool)]);

impl fmt::Display for Interfaces<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, in_use)) in self.0.iter().enumerate() {
            let lead = if i == 0 { " as network interface " } else { ", " };
            let state = if *in_use { " (in use: its traffic will stop)" } else { " (not in use)" };
            write!(f, "{lead}{name}{state}")?;
        }
        Ok(())
    }
}

struct Candidates<'a>(&'a [GroupMember]);

impl fmt::Display for Candidates<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_vfio = |m: &&GroupMember| m.driver.as_deref().is_some_and(|d| d.contains("vfio"));
        let (ready, rest): (Vec<_>, Vec<_>) = self.0.iter().partition(of_vfio);
        match ready[..] {
            [] => write!(f, "no network device is bound to vfio-pci")?,
            _ => write!(f, "network devices bound to vfio-pci: {}", Joined(&ready))?,
        }
        if rest.is_empty() { Ok(()) } else { write!(f, "; other network devices: {}", Joined(&rest)) }
    }
}

struct List<'a>(&'a [GroupMember]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("none that can be seen"),
            members => Joined(&members.iter().collect::<Vec<_>>()).fmt(f),
        }
    }
}

struct Blocking<'a>(&'a [GroupMember]);

impl fmt::Display for Blocking<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().filter(|m| m.blocks()).map(|m| m.name.as_str()).collect();
        if names.is_empty() { f.write_str("those with a driver") } else { f.write_str(&names.join(", ")) }
    }
}

struct Joined<'a>(&'a [&'a GroupMember]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(", "))
    }
}

struct Whom<'a>(&'a Option<Holder>);

impl fmt::Display for Whom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(holder) => holder.fmt(f),
            None => f.write_str("another process (root can see which: `fuser -v /dev/vfio/*`)"),
        }
    }
}
