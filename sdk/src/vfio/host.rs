//! Where the kernel shows devices, VFIO's nodes and processes.

use std::path::{Path, PathBuf};

use crate::pci::Sysfs;

/// The places that opening a device looks at: the machine's own by default, others to see what would be said there.
#[derive(Debug, Clone)]
pub struct Host {
    sysfs: Sysfs,
    dev: PathBuf,
    proc: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self { sysfs: Sysfs::default(), dev: "/dev/vfio".into(), proc: "/proc".into() }
    }
}

impl Host {
    /// The host whose `/sys`, `/dev/vfio` and `/proc` are the directories `sys`, `vfio` and `proc` below `root`.
    pub fn at(root: &Path) -> Self {
        Self { sysfs: Sysfs::at(root.join("sys")), dev: root.join("vfio"), proc: root.join("proc") }
    }

    /// Its PCI devices.
    pub fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }

    /// The node that makes containers.
    pub fn container_path(&self) -> PathBuf {
        self.dev.join("vfio")
    }

    /// The node of an IOMMU group.
    pub fn group_path(&self, number: u32) -> PathBuf {
        self.dev.join(number.to_string())
    }

    /// Its processes.
    pub fn proc(&self) -> &Path {
        &self.proc
    }
}
