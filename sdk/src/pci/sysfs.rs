//! Where the kernel shows PCI devices, and how its files are read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Bdf, DeviceId, PciDevice};

/// The mount of sysfs: `/sys`, or a tree of the same shape.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/sys")
    }
}

impl Sysfs {
    /// The tree at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The device at this address, if the machine has it.
    pub fn device(&self, bdf: Bdf) -> Option<PciDevice> {
        let path = self.root.join("bus/pci/devices").join(bdf.to_string());
        path.is_dir().then(|| PciDevice::at(bdf, path))
    }

    /// Every PCI device, in the order of addresses.
    ///
    /// # Errors
    ///
    /// When the machine shows no PCI bus.
    pub fn devices(&self) -> Result<Vec<PciDevice>, FindError> {
        let path = self.root.join("bus/pci/devices");
        let entries = fs::read_dir(&path).map_err(|source| FindError { path, source })?;
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some(PciDevice::at(entry.file_name().to_str()?.parse().ok()?, entry.path())))
            .collect();
        found.sort_by_key(PciDevice::bdf);
        Ok(found)
    }

    /// Every device of this vendor and device number, in the order of addresses.
    ///
    /// # Errors
    ///
    /// When the machine shows no PCI bus.
    pub fn find(&self, id: DeviceId) -> Result<Vec<PciDevice>, FindError> {
        let mut found = self.devices()?;
        found.retain(|device| device.id() == Some(id));
        Ok(found)
    }
}

/// The PCI devices of this machine cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot list PCI devices in {}: {source}; is sysfs mounted, and does this machine have a PCI bus?", path.display())]
pub struct FindError {
    path: PathBuf,
    source: io::Error,
}

/// The content of a file without the white space around it; `None` when it cannot be read or is empty.
pub(super) fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The number in a file, hexadecimal when it starts with `0x`.
pub(super) fn number(path: &Path) -> Option<i64> {
    let text = text(path)?;
    match text.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The last part of what a symbolic link points to.
pub(super) fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_string_lossy().into_owned())
}
