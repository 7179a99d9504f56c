//! A PCI device opened through VFIO.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::check::Candidate;
use super::file::DeviceFile;
use super::irq::{self, Interrupts};
use super::region::Region;
use super::registry::Lease;
use super::{Host, OpenError};
use crate::device::{Device, DeviceError, Iommu, Notices};
use crate::irq::IrqKind;
use crate::mmio::Bar;
use crate::pci::{Bdf, CapabilityKind, ConfigSpace, DeviceId, cap, command};
use crate::sys::vfio::{self, IrqIndex, flag};

/// A PCI device opened through VFIO.
///
/// Dropped, it is made quiet at once: interrupts off, bus mastering off, reset where the device can be reset alone. Its
/// file is closed then too, or with the last of its BARs where one is kept longer.
#[derive(Debug)]
pub struct VfioDevice {
    bdf: Bdf,
    id: DeviceId,
    numa_node: Option<usize>,
    can_reset: bool,
    config: Region,
    /// BAR and place of the MSI-X table.
    msix_table: Option<(usize, Range<u64>)>,
    interrupts: Interrupts,
    notices: Option<Notices>,
    /// Held while the command register is read, changed and written.
    command: Mutex<()>,
    file: Arc<DeviceFile>,
}

impl VfioDevice {
    /// Opens the device at `bdf`: DMA and interrupts off.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what stands in the way and what to do. Everything that was opened is closed again.
    pub fn open(bdf: Bdf) -> Result<Self, OpenError> {
        let host = Host::default();
        let candidate = Candidate::find(&host, bdf)?;
        let lease = Lease::take(&candidate)?;
        let file = open_file(&candidate, lease)?;
        Self::with(&candidate, file)
    }

    /// Looks whether the device at `bdf` could be opened, as far as can be told without opening anything.
    ///
    /// # Errors
    ///
    /// What stands in the way.
    pub fn check(host: &Host, bdf: Bdf) -> Result<(), OpenError> {
        Candidate::find(host, bdf).map(drop)
    }

    /// Its address.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// Lets the kernel signal vector `vector` of those that are on, as if the device had interrupted: the way of an
    /// interrupt from VFIO on, without the device and the interrupt controller. For tests and measurements.
    ///
    /// # Errors
    ///
    /// When no interrupt is on, the kind that is on has no such vector, or the kernel refuses.
    pub fn irq_trigger(&self, vector: usize) -> Result<(), DeviceError> {
        self.interrupts.trigger(&self.file, vector)
    }

    fn with(candidate: &Candidate<'_>, file: DeviceFile) -> Result<Self, OpenError> {
        let bdf = candidate.bdf();
        let nonsense = |what: &str| OpenError::Nonsense { bdf, what: what.into() };
        let flags = vfio::device_flags(file.fd()).map_err(|e| candidate.call("VFIO_DEVICE_GET_INFO", e, ""))?;
        if flags & flag::DEVICE_PCI == 0 {
            return Err(nonsense("VFIO does not call it a PCI device"));
        }
        let config = Region::of(&file, vfio::CONFIG_REGION_INDEX)
            .map_err(|e| candidate.call("VFIO_DEVICE_GET_REGION_INFO", e, ""))?
            .ok_or_else(|| nonsense("it has no configuration space"))?;
        // PCI Express has 4096 bytes; no space has more.
        let mut bytes = vec![0; config.len().min(4096)];
        config.read(&file, 0, &mut bytes).map_err(|e| candidate.call("read of configuration space", e, ""))?;
        let space = ConfigSpace::new(bytes);
        let id = space.id().ok_or_else(|| nonsense("it does not answer: its configuration space reads as all ones"))?;
        let notices = irq::notices(&file).map_err(|e| candidate.call("VFIO_DEVICE_SET_IRQS", e, ""))?;
        let device = Self {
            bdf,
            id,
            numa_node: candidate.pci.numa_node(),
            can_reset: flags & flag::DEVICE_RESET != 0,
            config,
            msix_table: msix_table(&space),
            interrupts: Interrupts::of(&file, candidate.pci.irq()),
            notices,
            command: Mutex::new(()),
            file: Arc::new(file),
        };
        // BARs of a device that an earlier driver left with memory access off would read as all ones.
        device
            .change_command(command::BUS_MASTER, command::MEMORY)
            .map_err(|e| OpenError::Nonsense { bdf, what: e.to_string() })?;
        Ok(device)
    }

    /// Clears and sets bits of the command register.
    fn change_command(&self, clear: u16, set: u16) -> Result<(), DeviceError> {
        let _held = self.command.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; 2];
        self.config_read(command::OFFSET, &mut bytes)?;
        let old = u16::from_le_bytes(bytes);
        let new = (old & !clear) | set;
        if new == old { Ok(()) } else { self.config_write(command::OFFSET, &new.to_le_bytes()) }
    }

    /// No interrupt and no DMA from here on.
    fn quiesce(&self) -> Result<(), DeviceError> {
        let irqs = self.interrupts.disable(&self.file);
        // Also when the first step failed: each makes the device quieter.
        let dma = self.set_bus_master(false);
        irqs.and(dma)
    }
}

impl Device for VfioDevice {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn id(&self) -> DeviceId {
        self.id
    }

    fn numa_node(&self) -> Option<usize> {
        self.numa_node
    }

    fn bar(&self, index: usize) -> Result<Bar, DeviceError> {
        let missing = || self.file.missing(format!("BAR {index}"));
        if index > 5 {
            return Err(missing());
        }
        let region = Region::of(&self.file, index as u32)
            .map_err(|e| self.file.failed("VFIO_DEVICE_GET_REGION_INFO", e, format!("; asked for BAR {index}")))?
            .ok_or_else(missing)?;
        let table = self.msix_table.as_ref().filter(|(bar, _)| *bar == index).map(|(_, range)| range.clone());
        Ok(region.bar(&self.file, index, table))
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.config
            .read(&self.file, offset.into(), buf)
            .map_err(|e| self.file.failed("read of configuration space", e, format!("; at {offset:#x}")))
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), DeviceError> {
        self.config
            .write(&self.file, offset.into(), data)
            .map_err(|e| self.file.failed("write of configuration space", e, format!("; at {offset:#x}")))
    }

    fn reset(&self) -> Result<(), DeviceError> {
        // The kernel answers "try again" while somebody else holds the device's lock, for sysfs or power management.
        const PATIENCE: Duration = Duration::from_secs(2);
        if !self.can_reset {
            return Err(self.file.missing("way to be reset alone"));
        }
        // The kernel restores the command register and interrupts after a reset, so they are to be off before it.
        self.quiesce()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match vfio::reset(self.file.fd()) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) => return Err(self.file.failed("VFIO_DEVICE_RESET", e, "")),
            }
        }
    }

    fn set_bus_master(&self, on: bool) -> Result<(), DeviceError> {
        match on {
            true => self.change_command(0, command::BUS_MASTER),
            false => self.change_command(command::BUS_MASTER, 0),
        }
    }

    fn iommu(&self) -> Arc<dyn Iommu> {
        self.file.container().clone()
    }

    fn irq_count(&self, kind: IrqKind) -> usize {
        self.interrupts.count(kind)
    }

    fn irq_enable(&self, kind: IrqKind, vectors: &[BorrowedFd<'_>]) -> Result<(), DeviceError> {
        if kind == IrqKind::Intx {
            self.change_command(command::INTX_DISABLE, 0)?;
        }
        self.interrupts.enable(&self.file, kind, vectors)
    }

    fn irq_disable(&self) -> Result<(), DeviceError> {
        self.interrupts.disable(&self.file)
    }

    fn irq_unmask(&self) -> Result<(), DeviceError> {
        self.interrupts.unmask(&self.file)
    }

    fn notices(&self) -> Option<&Notices> {
        self.notices.as_ref()
    }
}

impl Drop for VfioDevice {
    fn drop(&mut self) {
        let quiet = if self.can_reset { self.reset() } else { self.quiesce() };
        if let Err(error) = quiet {
            log::warn!("{error}; the kernel makes the device quiet when its file is closed");
        }
        // A BAR may keep the file open; nobody hears the notices any longer.
        for index in [IrqIndex::Req, IrqIndex::Err] {
            let _ = vfio::irqs_off(self.file.fd(), index);
        }
    }
}

/// Opens the file of the candidate, whose group is leased.
fn open_file(candidate: &Candidate<'_>, lease: Lease) -> Result<DeviceFile, OpenError> {
    const CALL: &str = "VFIO_GROUP_GET_DEVICE_FD";
    let name = candidate.bdf().to_string();
    let fail = |e| candidate.call(CALL, e, "; the kernel log may say more");
    let text = CString::new(name.clone()).map_err(|_| fail(io::ErrorKind::InvalidInput.into()))?;
    let group = lease.group().ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
    let fd = vfio::group_device(group.fd(), &text).map_err(fail)?;
    Ok(DeviceFile::new(name, File::from(fd), lease))
}

/// Where the MSI-X table is (PCI Local Bus 3.0 section 6.8.2): BAR, and bytes in it.
fn msix_table(space: &ConfigSpace) -> Option<(usize, Range<u64>)> {
    let at = usize::from(space.capability(CapabilityKind::Standard, cap::MSIX)?.offset);
    let entries = u64::from(space.u16(at + 2)? & 0x7ff) + 1;
    let place = space.u32(at + 4)?;
    let start = u64::from(place & !7);
    Some(((place & 7) as usize, start..start + 16 * entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_msix_table_is_found() {
        let mut bytes = vec![0; 256];
        bytes[6] = 0x10;
        bytes[0x34] = 0x70;
        bytes[0x70..0x78].copy_from_slice(&[0x11, 0, 0x09, 0x00, 0x03, 0x20, 0, 0]);
        assert_eq!(msix_table(&ConfigSpace::new(bytes)), Some((3, 0x2000..0x20a0)));
        assert_eq!(msix_table(&ConfigSpace::new(vec![0; 64])), None);
    }

    #[test]
    fn a_machine_without_the_device_says_so() {
        let bdf = Bdf::new(0xfffe, 0xff, 0x1f, 7);
        assert!(matches!(VfioDevice::open(bdf), Err(OpenError::NotFound { .. })));
    }
}
