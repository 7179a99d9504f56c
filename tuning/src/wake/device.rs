//! Interrupts of a device that is bound to vfio-pci, without its driver.
//!
//! QEMU's edu device interrupts when a register is written (docs/specs/edu.rst), so its interrupts are measured whole. Of any
//! other, the kernel is asked to signal a vector as if it had fired: the way from VFIO on, without the device, the IOMMU's
//! interrupt remapping and the interrupt controller.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spinwake::device::{self, Device};
use spinwake::irq::{IrqKind, Vector};
use spinwake::mmio::{Bar, Reg, Wo};
use spinwake::pci::{Bdf, DeviceId};
use spinwake::vfio::{OpenError, VfioDevice};

use super::ways::{eventfd, plan};
use super::{Cell, IDLE, Way};

/// What a device's interrupts cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceWake {
    /// Its address.
    pub bdf: String,
    /// Of which kind its interrupts are.
    pub kind: String,
    /// Whether the device itself interrupted; otherwise the kernel did in its place.
    pub by_device: bool,
    /// For each length of sleep.
    pub cells: Vec<Cell>,
}

/// A device's interrupts could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It did not do what was asked.
    #[error(transparent)]
    Call(#[from] device::DeviceError),
    /// It has no interrupts at all.
    #[error("{0} has no interrupts that VFIO can hand on; choose another device")]
    None(Bdf),
    /// None came.
    #[error("{0}: not one interrupt arrived; is interrupt remapping on (`dmesg | grep -i remap`)?")]
    Silent(Bdf),
    /// A system call failed.
    #[error("{bdf}: measuring its interrupts failed: {source}")]
    Os {
        /// The device.
        bdf: Bdf,
        /// The meaning of errno.
        source: io::Error,
    },
}

/// QEMU's edu device.
const EDU: DeviceId = DeviceId { vendor: 0x1234, device: 0x11e8 };
/// Writing it raises an interrupt.
const EDU_RAISE: Reg<Wo> = Reg::at(0x60);
/// Writing it takes that back.
const EDU_ACK: Reg<Wo> = Reg::at(0x64);

/// A device that is open and may interrupt.
#[derive(Debug)]
pub(super) struct Interrupting {
    device: VfioDevice,
    kind: IrqKind,
    vector: Vector,
    /// Registers of one that can interrupt by itself.
    edu: Option<Bar>,
}

impl Interrupting {
    /// Opens it and turns one of its vectors on: MSI-X if it has that, else MSI, else INTx.
    pub(super) fn open(bdf: Bdf) -> Result<Self, DeviceError> {
        let device = VfioDevice::open(bdf)?;
        let kinds = [IrqKind::Msix, IrqKind::Msi, IrqKind::Intx];
        let kind = kinds.into_iter().find(|&kind| device.irq_count(kind) > 0).ok_or(DeviceError::None(bdf))?;
        let vector = Vector::new().map_err(|source| DeviceError::Os { bdf, source })?;
        device.irq_enable(kind, &[vector.as_fd()])?;
        let edu = if device.id() == EDU && kind == IrqKind::Msi {
            // A message is a write.
            device.set_bus_master(true)?;
            Some(device.bar(0)?)
        } else {
            None
        };
        Ok(Self { device, kind, vector, edu })
    }

    /// Measures sleeps that its interrupts end; `part` is the least of the shares of time.
    pub(super) fn measure(&mut self, part: Duration) -> Result<DeviceWake, DeviceError> {
        let bdf = self.device.bdf();
        let mut cells = Vec::new();
        for (idle, parts) in IDLE {
            let asleep = [idle];
            let plan = plan(&asleep, part * parts);
            let sleeps = eventfd(&plan, &self.vector, || self.fire());
            let sleeps = sleeps.map_err(|source| DeviceError::Os { bdf, source })?;
            cells.extend(Cell::new(Way::Eventfd, idle, &sleeps));
        }
        if cells.is_empty() {
            return Err(DeviceError::Silent(bdf));
        }
        let by_device = self.edu.is_some();
        Ok(DeviceWake { bdf: bdf.to_string(), kind: self.kind.to_string(), by_device, cells })
    }

    fn fire(&self) {
        match &self.edu {
            Some(bar) => {
                // A message goes out with each write; its cause is taken back first, so that none is left in the end.
                bar.write(EDU_ACK, 1);
                bar.write(EDU_RAISE, 1);
            }
            // One that is not triggered ends no sleep, and if none is, that is told.
            None => drop(self.device.irq_trigger(0)),
        }
    }
}

impl Drop for Interrupting {
    fn drop(&mut self) {
        if let Some(bar) = &self.edu {
            bar.write(EDU_ACK, 1);
        }
    }
}
