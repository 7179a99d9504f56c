//! The soft NIC on its bus: configuration space, BAR 0, interrupts, and what closing it does.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spinwake::device::{Device, DeviceError, DeviceId, Iommu, Notices};
use spinwake::irq::IrqKind;
use spinwake::mmio::Bar;

use super::fabric;
use super::layout as at;
use super::nic::{Nic, Order, pending};

/// Intel, 82576 (copper).
pub(super) const ID: DeviceId = DeviceId { vendor: 0x8086, device: 0x10C9 };
/// The command register, and its bus-master bit.
const COMMAND: usize = 0x04;
const BUS_MASTER: u8 = 1 << 2;
const RESET_LIMIT: Duration = Duration::from_secs(5);

/// A soft NIC as its driver holds it. Dropping it unplugs the NIC.
#[derive(Debug)]
pub(super) struct SoftDevice {
    nic: Arc<Nic>,
    config: Mutex<[u8; 256]>,
}

impl SoftDevice {
    pub(super) fn new(nic: Arc<Nic>) -> Self {
        Self { nic, config: Mutex::new(power_on_config()) }
    }

    fn config(&self) -> MutexGuard<'_, [u8; 256]> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn missing(&self, what: impl Into<String>) -> DeviceError {
        DeviceError::Missing { device: self.nic.name.clone(), what: what.into() }
    }

    fn failed(&self, call: &'static str, source: io::Error, hint: &str) -> DeviceError {
        DeviceError::Call { device: self.nic.name.clone(), call, source, hint: hint.into() }
    }

    fn range(&self, offset: u16, len: usize) -> Result<std::ops::Range<usize>, DeviceError> {
        let start = usize::from(offset);
        let end = start + len;
        if end > 256 {
            return Err(self.missing(format!("configuration space at {start:#x}..{end:#x}")));
        }
        Ok(start..end)
    }
}

impl Drop for SoftDevice {
    fn drop(&mut self) {
        self.nic.memory.set_mastering(false);
        self.nic.irq.set_host(None, Vec::new(), &self.nic.faults);
        fabric::unplug(&self.nic);
    }
}

impl Device for SoftDevice {
    fn name(&self) -> &str {
        &self.nic.name
    }

    fn id(&self) -> DeviceId {
        ID
    }

    fn numa_node(&self) -> Option<usize> {
        None
    }

    fn bar(&self, index: usize) -> Result<Bar, DeviceError> {
        if index != 0 {
            return Err(self.missing(format!("BAR {index}")));
        }
        Ok(Bar::trapped(at::BAR_LEN, self.nic.clone()))
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), DeviceError> {
        let range = self.range(offset, buf.len())?;
        buf.copy_from_slice(&self.config()[range]);
        Ok(())
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), DeviceError> {
        let range = self.range(offset, data.len())?;
        let on = {
            let mut config = self.config();
            for (at, byte) in range.zip(data) {
                // Of the rest nothing is writable: there is no bus to configure.
                if matches!(at, COMMAND | 0x05) {
                    config[at] = *byte;
                }
            }
            config[COMMAND] & BUS_MASTER != 0
        };
        self.nic.memory.set_mastering(on);
        self.nic.notify(pending::CONFIG);
        Ok(())
    }

    fn reset(&self) -> Result<(), DeviceError> {
        let ticket = self.nic.order(Order::Reset);
        if self.nic.await_order(ticket, RESET_LIMIT) && self.nic.answers() {
            return Ok(());
        }
        Err(self.failed("reset", io::ErrorKind::TimedOut.into(), "; the device does not answer"))
    }

    fn set_bus_master(&self, on: bool) -> Result<(), DeviceError> {
        let mut command = [0; 2];
        self.config_read(COMMAND as u16, &mut command)?;
        command[0] = command[0] & !BUS_MASTER | if on { BUS_MASTER } else { 0 };
        self.config_write(COMMAND as u16, &command)
    }

    fn iommu(&self) -> Arc<dyn Iommu> {
        self.nic.memory.clone()
    }

    fn irq_count(&self, kind: IrqKind) -> usize {
        match kind {
            _ if kind > self.nic.spec.irq => 0,
            IrqKind::Intx | IrqKind::Msi => 1,
            IrqKind::Msix => at::MSIX_VECTORS,
        }
    }

    fn irq_enable(&self, kind: IrqKind, vectors: &[BorrowedFd<'_>]) -> Result<(), DeviceError> {
        let count = self.irq_count(kind);
        if vectors.is_empty() || vectors.len() > count {
            return Err(self.missing(format!("{} {kind} vectors; it has {count}", vectors.len())));
        }
        let files: io::Result<Vec<File>> = vectors.iter().map(|fd| fd.try_clone_to_owned().map(File::from)).collect();
        let files = files.map_err(|e| self.failed("dup", e, "; raise the limit with `ulimit -n`"))?;
        self.nic.irq.set_host(Some(kind), files, &self.nic.faults);
        Ok(())
    }

    fn irq_disable(&self) -> Result<(), DeviceError> {
        self.nic.irq.set_host(None, Vec::new(), &self.nic.faults);
        Ok(())
    }

    fn irq_unmask(&self) -> Result<(), DeviceError> {
        let due_ns = self.nic.irq.due_ns();
        let on = self.nic.irq.unmask(&self.nic.faults);
        self.nic.keep_time(due_ns);
        if on { Ok(()) } else { Err(self.missing("INTx turned on")) }
    }

    fn notices(&self) -> Option<&Notices> {
        None
    }
}

/// Type 0 header, then MSI at 0x50, MSI-X at 0x70 and PCI Express at 0xA0, as the 82576 has them (9.5).
fn power_on_config() -> [u8; 256] {
    let mut config = [0; 256];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &ID.vendor.to_le_bytes());
    put(0x02, &ID.device.to_le_bytes());
    // Memory space on; a capability list; revision 1; Ethernet controller.
    put(0x04, &[0x02, 0x00, 0x10, 0x00]);
    put(0x08, &[0x01, 0x00, 0x00, 0x02]);
    put(0x2C, &[0x86, 0x80, 0x3C, 0xA0]);
    put(0x34, &[0x50]);
    put(0x3D, &[0x01]);
    put(0x50, &[0x05, 0x70, 0x80, 0x01]);
    put(0x70, &[0x11, 0xA0, at::MSIX_VECTORS as u8 - 1, 0x00, 0x03, 0x00, 0x00, 0x00, 0x03, 0x20, 0x00, 0x00]);
    // Endpoint; function-level reset (device capabilities, bit 28).
    put(0xA0, &[0x10, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x10]);
    config
}
