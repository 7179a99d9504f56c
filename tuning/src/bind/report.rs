//! What `bind` tells.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;

use serde::Serialize;
use spinwake::pci::PciDevice;

use super::{Group, Use, VFIO, group_node, rule};
use crate::host::Host;
use crate::output::Report;

/// Devices that are bound to vfio-pci now.
#[derive(Debug, Serialize)]
pub struct BindReport {
    /// Whether the module vfio-pci had to be loaded.
    pub module_loaded: bool,
    /// The devices.
    pub devices: Vec<Bound>,
}

/// A device that is bound to vfio-pci.
#[derive(Debug, Serialize)]
pub struct Bound {
    /// Its address.
    pub bdf: String,
    /// Who had it before.
    pub was: Option<String>,
    /// The driver of Spinwake that knows it.
    pub known_to: Option<&'static str>,
    /// Its IOMMU group.
    pub group: Option<Group>,
    /// Whether only root may open its group.
    pub root_only: Option<bool>,
    /// What was lost.
    pub lost: Vec<String>,
    /// The udev rule that binds it at each start.
    pub rule: Option<String>,
}

impl Bound {
    pub(super) fn read(host: &Host, device: &PciDevice, was: Option<String>, lost: &[Use]) -> Self {
        let group = Group::of(device);
        let node = group.as_ref().and_then(|group| fs::metadata(host.path(group_node(group.number))).ok());
        Self {
            bdf: device.bdf().to_string(),
            was,
            known_to: device.id().and_then(spinwake_pmd::driver_name),
            group,
            // The owner alone is not root's affair when he is another one.
            root_only: node.map(|node| {
                node.uid() == 0 && (node.gid() == 0 || node.mode() & 0o060 != 0o060) && node.mode() & 0o006 != 0o006
            }),
            lost: lost.iter().map(Use::loss).collect(),
            rule: Some(rule::path(device.bdf())).filter(|path| host.has(path)),
        }
    }
}

impl Report for BindReport {}

impl fmt::Display for BindReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.module_loaded {
            writeln!(f, "the module {VFIO} was loaded (`modprobe {VFIO}`)")?;
        }
        for (number, device) in self.devices.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{device}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bdf = &self.bdf;
        match self.was.as_deref() {
            Some(VFIO) => write!(f, "{bdf} is bound to {VFIO} already")?,
            Some(was) => {
                write!(f, "{bdf} is bound to {VFIO} now; `spinwake-tune unbind {bdf}` gives it back to {was}")?
            }
            None => write!(f, "{bdf} is bound to {VFIO} now; it had no driver before")?,
        }
        self.lost.iter().try_for_each(|lost| write!(f, "\n  lost: {lost}"))?;
        match self.known_to {
            Some(driver) => write!(f, "\n  port pci:{bdf}, driver {driver}")?,
            None => write!(f, "\n  no driver of Spinwake knows this device: it takes a program of your own")?,
        }
        if let Some(group) = &self.group {
            write!(f, "\n  {group}")?;
        }
        if let Some(path) = &self.rule {
            write!(
                f,
                "\n  at each start, by {path}; where its driver is in the initial RAM disk, vfio-pci must be, too"
            )?;
        }
        if self.root_only == Some(true) {
            write!(f, "\n  only root may use it; `spinwake-tune permit {bdf} --user NAME` lets another user")?;
        }
        Ok(())
    }
}
