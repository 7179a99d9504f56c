//! `bind`, `unbind` and `permit`: hands PCI devices to programs and back to the kernel, and says who may use them.
//!
//! ```text
//! bind:   look at all ── in use? no IOMMU? ──▶ refuse, nothing written
//!             └──▶ load vfio-pci ──▶ remember the driver ──▶ override, unbind, probe ──▶ taken? else give it back
//! unbind: held by a program? refuse ──▶ no override, unbind ──▶ the remembered driver, or the kernel's choice
//! ```
//!
//! It refuses bridges, devices without an IOMMU, and devices that somebody would miss, unless told to twice.

use std::path::PathBuf;

use clap::ArgAction;
use spinwake::pci::{Bdf, PciDevice};

use crate::effects::Effects;
use crate::host::Host;

mod account;
mod disks;
mod error;
mod group;
mod hand_over;
mod interfaces;
mod memlock;
mod nodes;
pub mod permit;
pub(crate) mod processes;
mod report;
mod rule;
mod shares;
pub mod unbind;
mod uses;

pub(crate) use disks::{disks, unescape};
pub use error::BindError;
pub use group::{Group, Other};
pub use processes::Process;
pub(crate) use processes::openers;
pub use report::{BindReport, Bound};
pub use uses::{Lines, Use, uses};

/// The driver that hands devices to user space.
pub(crate) const VFIO: &str = "vfio-pci";

/// Binds devices to vfio-pci, so that programs can drive them
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Their addresses, as in 0000:01:00.0
    #[arg(value_name = "BDF", required = true)]
    pub devices: Vec<Bdf>,

    /// Even if a network interface of theirs is up; given twice, even if they have addresses, routes, mounted disks: what
    /// is lost then is told before
    #[arg(long, action = ArgAction::Count)]
    pub force: u8,

    /// Also after the next start: by an udev rule for each, which `unbind` removes
    #[arg(long)]
    pub persist: bool,
}

/// Binds devices to vfio-pci. Nothing is written unless every one of them may be bound.
///
/// # Errors
///
/// When one is missing, in use, or not for user space, or the kernel will not do it.
pub fn run(args: &Args, host: &Host) -> Result<BindReport, BindError> {
    bind(args, host, host)
}

pub(crate) fn bind(args: &Args, host: &Host, effects: &dyn Effects) -> Result<BindReport, BindError> {
    let mut devices = args.devices.clone();
    devices.sort_unstable();
    devices.dedup();
    let mut plan = Vec::new();
    for bdf in devices {
        plan.push(examine(host, bdf, args.force)?);
    }
    let module = match plan.iter().all(|(device, _)| device.driver().as_deref() == Some(VFIO)) {
        true => false,
        false => load_vfio(host, effects)?,
    };
    let mut moved: Vec<(PciDevice, Option<String>, Vec<Use>)> = Vec::new();
    for (device, lost) in plan {
        let was = device.driver();
        let done = hand_over::to_vfio(host, effects, &device);
        let done = done.and_then(|()| if args.persist { rule::write(host, effects, &device) } else { Ok(()) });
        done.map_err(|error| error.after(moved.iter().map(|(device, _, _)| device)))?;
        moved.push((device, was, lost));
    }
    let bound = moved.into_iter().map(|(device, was, lost)| Bound::read(host, &device, was, &lost)).collect();
    Ok(BindReport { module_loaded: module, devices: bound })
}

/// The device, if it may be bound, and what is lost by it.
fn examine(host: &Host, bdf: Bdf, force: u8) -> Result<(PciDevice, Vec<Use>), BindError> {
    let device = host.sysfs().device(bdf).ok_or(BindError::Missing { bdf })?;
    if device.driver().as_deref() == Some(VFIO) {
        return Ok((device, Vec::new()));
    }
    // PCI Code and ID Assignment Specification: base class 0x06 is a bridge.
    if device.class().is_some_and(|class| class.base() == 0x06) {
        return Err(BindError::Bridge { bdf });
    }
    if !device.iommu_group().is_some_and(|group| group.isolated) {
        return Err(BindError::NoIommu { bdf });
    }
    let found = uses(host, &device);
    let serious = found.iter().any(Use::is_serious);
    match force {
        0 if !found.is_empty() => Err(BindError::InUse { bdf, uses: Lines::ways_out(found) }),
        1 if serious => Err(BindError::WouldLose { bdf, uses: Lines::losses(found) }),
        _ => Ok((device, found)),
    }
}

/// Sees to it that the kernel has the driver, and says whether it had to be loaded.
fn load_vfio(host: &Host, effects: &dyn Effects) -> Result<bool, BindError> {
    let folder = format!("/sys/bus/pci/drivers/{VFIO}");
    if host.has(&folder) {
        return Ok(false);
    }
    effects.call("modprobe", &[VFIO]).map_err(|source| BindError::NoVfio { source })?;
    match host.has(&folder) {
        true => Ok(true),
        false => Err(BindError::NotThere { folder }),
    }
}

/// Whether a driver exists to hand devices to programs, or to keep them from the kernel.
pub(crate) fn is_user_space(driver: &str) -> bool {
    driver.contains("vfio") || ["uio_pci_generic", "igb_uio", "pci-stub", "pciback"].contains(&driver)
}

/// The virtual functions of a device, in the order of their numbers.
pub(crate) fn virtual_functions(device: &PciDevice) -> Vec<Bdf> {
    // SR-IOV has 65535 of them at most; the links are numbered without a gap.
    (0..u32::from(u16::MAX))
        .map_while(|number| std::fs::read_link(device.path().join(format!("virtfn{number}"))).ok())
        .filter_map(|target: PathBuf| target.file_name()?.to_str()?.parse().ok())
        .collect()
}

/// The node in `/dev` through which programs get at the devices of a group.
pub(crate) fn group_node(number: u32) -> String {
    format!("/dev/vfio/{number}")
}

#[cfg(test)]
mod tests;
