//! IOMMU groups: the smallest sets of devices that can be kept apart from others.

use std::fmt;
use std::fs;
use std::path::Path;

use super::sysfs::{link_name, text};

/// The IOMMU group of a device: all that can reach each other's memory, and so can only be handed out together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuGroup {
    /// Its number, which is the name of its node under `/dev/vfio`.
    pub number: u32,
    /// Whether a real IOMMU stands behind it: VFIO's no-IOMMU mode makes groups too.
    pub isolated: bool,
    /// Every device in it, in the order of their names.
    pub members: Vec<GroupMember>,
}

impl IommuGroup {
    /// Reads the group that the link `iommu_group` of the device at `path` points to.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let link = path.join("iommu_group");
        let number = link_name(&link)?.parse().ok()?;
        let isolated = text(&link.join("name")).as_deref() != Some("vfio-noiommu");
        let entries = fs::read_dir(link.join("devices")).into_iter().flatten().flatten();
        let mut members: Vec<_> = entries
            .map(|entry| GroupMember {
                name: entry.file_name().to_string_lossy().into_owned(),
                driver: link_name(&entry.path().join("driver")),
            })
            .collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Some(Self { number, isolated, members })
    }

    /// Its devices but `name`.
    pub fn others(&self, name: &str) -> impl Iterator<Item = &GroupMember> {
        self.members.iter().filter(move |member| member.name != name)
    }
}

/// A device in an IOMMU group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// Its name on its bus; for a PCI device its address.
    pub name: String,
    /// The driver it is bound to.
    pub driver: Option<String>,
}

impl GroupMember {
    /// Whether its driver keeps the group from being handed to user space: any does that uses DMA on the kernel's
    /// behalf, so all but VFIO's own, `pci-stub`, and those of bridges (the kernel's `driver_managed_dma`).
    pub fn blocks(&self) -> bool {
        self.driver.as_deref().is_some_and(|d| !d.contains("vfio") && d != "pci-stub" && d != "pcieport")
    }
}

impl fmt::Display for GroupMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.driver {
            Some(driver) => write!(f, "{} ({driver})", self.name),
            None => write!(f, "{} (no driver)", self.name),
        }
    }
}
