//! Moves a PCI device from one driver to another.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use spinwake::pci::{Bdf, PciDevice, Sysfs};

/// The driver that hands devices to user space.
const VFIO: &str = "vfio-pci";

/// A device could not change hands.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No such device.
    #[error("there is no PCI device {bdf}; `spinwake-tune devices` lists them")]
    Missing {
        /// The address.
        bdf: Bdf,
    },
    /// Somebody would miss it.
    #[error("{bdf} is in use as {interface}; take it down first (`ip link set {interface} down`), or say --force")]
    InUse {
        /// The address.
        bdf: Bdf,
        /// The network interface.
        interface: String,
    },
    /// Not a network device: disks and the like are not for us.
    #[error("{bdf} is no network device; nothing here drives it, so it stays where it is")]
    NotNetwork {
        /// The address.
        bdf: Bdf,
    },
    /// The kernel does not have the driver.
    #[error("the kernel has no driver {VFIO}; run `modprobe {VFIO}`")]
    NoVfio,
    /// A file in sysfs could not be written.
    #[error("{}: {source}{}", path.display(), hint(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// The meaning of errno.
        source: io::Error,
    },
    /// Everything was written, and the driver did not take it.
    #[error("{bdf} is now bound to {found}, not to {wanted}; the kernel log says why")]
    NotTaken {
        /// The address.
        bdf: Bdf,
        /// Who should have it.
        wanted: String,
        /// Who has it.
        found: String,
    },
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { "; run this as root" } else { "" }
}

/// Binds `bdf` to vfio-pci, so that programs can drive it. Does nothing when it is bound there already.
///
/// # Errors
///
/// When the device is missing, no network device, or in use (unless `force`), or the kernel will not do it.
pub fn bind(sysfs: &Sysfs, bdf: Bdf, force: bool) -> Result<(), BindError> {
    let device = network_device(sysfs, bdf)?;
    if device.driver().as_deref() == Some(VFIO) {
        return Ok(());
    }
    if let Some(interface) = device.net_interfaces().into_iter().find(|interface| interface.in_use() && !force) {
        return Err(BindError::InUse { bdf, interface: interface.name });
    }
    // The bus's directory stands two above the link that names the device.
    if !drivers(&device).join(VFIO).is_dir() {
        return Err(BindError::NoVfio);
    }
    rebind(&device, VFIO)?;
    match device.driver() {
        Some(driver) if driver == VFIO => Ok(()),
        found => Err(BindError::NotTaken { bdf, wanted: VFIO.into(), found: found.unwrap_or_else(|| "nobody".into()) }),
    }
}

/// Gives `bdf` back to the driver that the kernel would choose, and returns that driver.
///
/// # Errors
///
/// When the device is missing or no network device, or the kernel will not do it.
pub fn unbind(sysfs: &Sysfs, bdf: Bdf) -> Result<Option<String>, BindError> {
    let device = network_device(sysfs, bdf)?;
    // An empty line takes the override away.
    rebind(&device, "")?;
    Ok(device.driver())
}

fn network_device(sysfs: &Sysfs, bdf: Bdf) -> Result<PciDevice, BindError> {
    let device = sysfs.device(bdf).ok_or(BindError::Missing { bdf })?;
    if !device.class().is_some_and(spinwake::pci::Class::is_network) {
        return Err(BindError::NotNetwork { bdf });
    }
    Ok(device)
}

/// Names the only driver that may have the device, takes it from the one that has it, and lets the kernel look again.
fn rebind(device: &PciDevice, only: &str) -> Result<(), BindError> {
    let bdf = device.bdf().to_string();
    write(&device.path().join("driver_override"), &format!("{only}\n"))?;
    if device.driver().is_some() {
        write(&device.path().join("driver/unbind"), &bdf)?;
    }
    write(&drivers(device).with_file_name("drivers_probe"), &bdf)
}

/// `.../bus/pci/drivers`, from `.../bus/pci/devices/BDF`.
fn drivers(device: &PciDevice) -> PathBuf {
    device.path().parent().unwrap_or(device.path()).with_file_name("drivers")
}

fn write(path: &Path, text: &str) -> Result<(), BindError> {
    fs::write(path, text).map_err(|source| BindError::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const BDF: &str = "0000:01:00.0";

    /// A device tree of one card bound to `igb`; nothing in it moves a device, so that what was written can be read.
    fn tree(class: &str, flags: &str) -> (tempfile::TempDir, Sysfs, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let bus = root.path().join("bus/pci");
        let device = bus.join("devices").join(BDF);
        for dir in ["drivers/igb", "drivers/vfio-pci"] {
            fs::create_dir_all(bus.join(dir)).unwrap();
        }
        fs::create_dir_all(device.join("net/eth0")).unwrap();
        fs::write(device.join("class"), class).unwrap();
        fs::write(device.join("net/eth0/flags"), flags).unwrap();
        symlink(bus.join("drivers/igb"), device.join("driver")).unwrap();
        let sysfs = Sysfs::at(root.path());
        (root, sysfs, bus)
    }

    #[test]
    fn an_interface_in_use_is_refused_and_nothing_is_written() {
        let (_root, sysfs, bus) = tree("0x020000\n", "0x1003\n");
        let error = bind(&sysfs, BDF.parse().unwrap(), false).unwrap_err();
        assert!(matches!(&error, BindError::InUse { interface, .. } if interface == "eth0"), "{error}");
        assert!(!bus.join("devices").join(BDF).join("driver_override").exists());
    }

    #[test]
    fn a_disk_is_refused() {
        let (_root, sysfs, _bus) = tree("0x010802\n", "0x0\n");
        assert!(matches!(bind(&sysfs, BDF.parse().unwrap(), true), Err(BindError::NotNetwork { .. })));
    }

    #[test]
    fn a_missing_device_is_refused() {
        let (_root, sysfs, _bus) = tree("0x020000\n", "0x0\n");
        assert!(matches!(bind(&sysfs, "0000:02:00.0".parse().unwrap(), false), Err(BindError::Missing { .. })));
    }

    #[test]
    fn binding_writes_the_override_the_unbind_and_the_probe() {
        let (_root, sysfs, bus) = tree("0x020000\n", "0x1002\n");
        // The tree is no kernel, so the device stays with igb, and that is told.
        assert!(matches!(bind(&sysfs, BDF.parse().unwrap(), false), Err(BindError::NotTaken { .. })));
        let device = bus.join("devices").join(BDF);
        assert_eq!(fs::read_to_string(device.join("driver_override")).unwrap(), "vfio-pci\n");
        assert_eq!(fs::read_to_string(bus.join("drivers/igb/unbind")).unwrap(), BDF);
        assert_eq!(fs::read_to_string(bus.join("drivers_probe")).unwrap(), BDF);
    }
}
