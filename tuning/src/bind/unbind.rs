//! `unbind`: gives devices back to the kernel.

use std::fmt;

use serde::Serialize;
use spinwake::pci::{Bdf, PciDevice};

use super::{BindError, Process, group_node, hand_over, nodes, openers, rule};
use crate::effects::Effects;
use crate::host::Host;
use crate::output::Report;

/// Gives devices back to the kernel's own drivers
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Their addresses, as in 0000:01:00.0
    #[arg(value_name = "BDF", required = true)]
    pub devices: Vec<Bdf>,
}

/// Where devices are after `unbind`.
#[derive(Debug, Serialize)]
pub struct UnbindReport {
    /// The devices.
    pub devices: Vec<Unbound>,
}

/// A device that was given back.
#[derive(Debug, Serialize)]
pub struct Unbound {
    /// Its address.
    pub bdf: String,
    /// Who had it.
    pub was: Option<String>,
    /// Who had it before that, as far as is known.
    pub remembered: Option<String>,
    /// Who has it now.
    pub driver: Option<String>,
    /// Its network interfaces.
    pub interfaces: Vec<String>,
    /// The udev rule that was removed.
    pub removed: Option<String>,
}

/// Gives devices back: to the driver that they were taken from, else to the one that the kernel chooses. Nothing is written
/// unless every one of them may be moved.
///
/// # Errors
///
/// When one is missing or held by a program, or the kernel will not do it.
pub fn run(args: &Args, host: &Host) -> Result<UnbindReport, BindError> {
    unbind(args, host, host)
}

pub(super) fn unbind(args: &Args, host: &Host, effects: &dyn Effects) -> Result<UnbindReport, BindError> {
    let mut bdfs = args.devices.clone();
    bdfs.sort_unstable();
    bdfs.dedup();
    let mut devices = Vec::new();
    for bdf in bdfs {
        let device = host.sysfs().device(bdf).ok_or(BindError::Missing { bdf })?;
        let holders = holders(host, &device);
        if !holders.is_empty() {
            return Err(BindError::Held { bdf, holders });
        }
        devices.push(device);
    }
    let mut done = Vec::new();
    for device in devices {
        let was = device.driver();
        let remembered = hand_over::remembered(host, device.bdf());
        hand_over::to_kernel(host, effects, &device)?;
        // Whether or not udev can be told of it, the device is back.
        let removed = rule::remove(host, effects, device.bdf())?;
        done.push(Unbound {
            bdf: device.bdf().to_string(),
            was,
            remembered,
            driver: device.driver(),
            interfaces: device.net_interfaces().into_iter().map(|interface| interface.name).collect(),
            removed,
        });
    }
    Ok(UnbindReport { devices: done })
}

/// Programs that drive the device, or another one of its group: VFIO waits for their end, and an older kernel dies when a
/// group in use gets a driver of its own.
pub(crate) fn holders(host: &Host, device: &PciDevice) -> Vec<Process> {
    if !device.driver().is_some_and(|driver| super::is_user_space(&driver)) {
        return Vec::new();
    }
    let mut files = nodes::nodes(host, device);
    files.extend(device.iommu_group().map(|group| group_node(group.number)));
    let mut found: Vec<_> = openers(host, &files).into_values().flatten().collect();
    found.sort_unstable();
    found.dedup();
    found
}

impl Report for UnbindReport {}

impl fmt::Display for UnbindReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, device) in self.devices.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{device}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Unbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bdf = &self.bdf;
        match (&self.was, &self.driver) {
            (Some(was), Some(now)) if was == now => write!(f, "{bdf} stays with {now}")?,
            (Some(was), Some(now)) => write!(f, "{bdf} is with {now} again (was with {was})")?,
            (None, Some(now)) => write!(f, "{bdf} is with {now} now (had no driver)")?,
            (_, None) => {
                write!(f, "{bdf} has no driver: the kernel has none for it, or it needs a module that is not loaded")?
            }
        }
        if let (Some(remembered), now) = (&self.remembered, &self.driver)
            && now.as_ref() != Some(remembered)
        {
            write!(f, "; it was taken from {remembered}, which did not take it back (`dmesg` says why)")?;
        }
        if !self.interfaces.is_empty() {
            write!(f, "; interface {}", self.interfaces.join(", "))?;
        }
        if let Some(path) = &self.removed {
            write!(f, "\n  removed: {path}")?;
        }
        Ok(())
    }
}
