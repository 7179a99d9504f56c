//! Why a device does not change hands.

use std::io;

use spinwake::pci::{Bdf, PciDevice};

use super::processes::Process;
use super::uses::Lines;
use crate::effects::{CallError, hint};

/// A device could not change hands.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No such device.
    #[error("there is no PCI device {bdf}; `spinwake-tune devices --all` lists them")]
    Missing {
        /// The address.
        bdf: Bdf,
    },
    /// A bridge leads to other devices.
    #[error("{bdf} is a bridge: devices behind it depend on it, and no program could drive it; it stays where it is")]
    Bridge {
        /// The address.
        bdf: Bdf,
    },
    /// VFIO takes no device without an IOMMU.
    #[error(
        "{bdf} is in no IOMMU group: this machine has no IOMMU, or it is off; enable it in the firmware (VT-d, AMD-Vi) and \
         with intel_iommu=on or amd_iommu=on on the kernel's command line"
    )]
    NoIommu {
        /// The address.
        bdf: Bdf,
    },
    /// Somebody would miss it.
    #[error("{bdf} is in use, so it stays where it is. Each of these ends like this, or say --force:{uses}")]
    InUse {
        /// The address.
        bdf: Bdf,
        /// By whom.
        uses: Lines,
    },
    /// Somebody would miss it sorely.
    #[error("{bdf} is in use, and saying --force once is not enough. Say --force --force, and this is lost:{uses}")]
    WouldLose {
        /// The address.
        bdf: Bdf,
        /// What it is used for.
        uses: Lines,
    },
    /// The kernel does not have the driver.
    #[error("the kernel has no driver vfio-pci, and it cannot be loaded: {source}; nothing was changed")]
    NoVfio {
        /// What was tried.
        source: CallError,
    },
    /// The driver was loaded and does not show.
    #[error("vfio-pci was loaded, and still there is no {folder}; the kernel log says why (`dmesg`)")]
    NotThere {
        /// Where it should be.
        folder: String,
    },
    /// A program drives it now.
    #[error(
        "{bdf} is driven by {}: the kernel would wait for its end; end it first (`kill {}`)",
        holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        holders.iter().map(|holder| holder.pid.to_string()).collect::<Vec<_>>().join(" ")
    )]
    Held {
        /// The address.
        bdf: Bdf,
        /// Who has its group open.
        holders: Vec<Process>,
    },
    /// A file could not be written.
    #[error("{bdf}: {path}: {source}{}", hint(source))]
    Write {
        /// The address.
        bdf: Bdf,
        /// The file.
        path: String,
        /// The meaning of errno.
        source: io::Error,
    },
    /// Everything was written, and the driver did not take it.
    #[error("{bdf}: {wanted} did not take it{why}; it is with {now} again; the kernel log says more (`dmesg`)")]
    NotTaken {
        /// The address.
        bdf: Bdf,
        /// Who should have it.
        wanted: String,
        /// What the kernel answered, after a colon; may be empty.
        why: String,
        /// Who has it.
        now: String,
    },
    /// A rule must name its device.
    #[error("{bdf} is bound, but does not say who made it and what it is: no rule can be written for it")]
    NoId {
        /// The address.
        bdf: Bdf,
    },
    /// udev does not know the changed rule yet.
    #[error("{path} is changed, and udev could not be told: {source}; it counts from the next start on")]
    Udev {
        /// The rule.
        path: String,
        /// What was tried.
        source: CallError,
    },
    /// Some were bound before one failed.
    #[error("{source}; bound before that: {done} (`spinwake-tune unbind {done}` gives back)")]
    After {
        /// What went wrong.
        source: Box<BindError>,
        /// Addresses.
        done: String,
    },
}

impl BindError {
    /// The same, with what had been done before it.
    pub(super) fn after<'a>(self, done: impl Iterator<Item = &'a PciDevice>) -> Self {
        let done: Vec<_> = done.map(|device| device.bdf().to_string()).collect();
        if done.is_empty() { self } else { Self::After { source: Box::new(self), done: done.join(" ") } }
    }
}
