//! What a bus hands to a driver: BARs, configuration space, DMA mapping, interrupt vectors, reset.
//!
//! A driver is written against [`Device`] and never knows which bus it is on. Kernel VFIO implements it for hardware
//! ([`crate::vfio`]), the embedded NIC of the driver crate implements it in software.

#![expect(unsafe_code, reason = "declares the one unsafe method of a bus; contains no unsafe operation")]

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::irq::{IrqKind, Vector};
use crate::mmio::Bar;
pub use crate::pci::DeviceId;
use crate::pci::command;

/// A call on a device failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A system call failed.
    #[error("{device}: {call} failed: {source}{hint}")]
    Call {
        /// Which device.
        device: String,
        /// Which call, as the kernel names it (`VFIO_DEVICE_SET_IRQS`).
        call: &'static str,
        /// The meaning of errno.
        source: io::Error,
        /// What to do about it: empty, or `"; "` and a sentence.
        hint: String,
    },
    /// The device does not have what was asked for.
    #[error("{device} has no {what}")]
    Missing {
        /// Which device.
        device: String,
        /// What it lacks.
        what: String,
    },
}

/// The address space in which one or more devices see memory: an IOMMU domain, or its model in software.
///
/// This is mechanism only. [`crate::dma`] decides addresses and keeps the account; nobody else calls `map`.
///
/// [`crate::dma`] calls it with its domain's lock held. So an implementation, and whatever other thread it waits for, must
/// neither call the domain nor drop a frame or a region meanwhile: the last frame of a pool frees the pool's memory.
pub trait Iommu: Send + Sync + fmt::Debug {
    /// I/O virtual addresses that devices may be given, inclusive, ascending, without overlap.
    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>>;

    /// How many more mappings it takes; `None` when it sets no limit.
    fn entries_left(&self) -> Option<usize>;

    /// Whether its devices reach memory through its file descriptor only, being another process.
    fn needs_shared(&self) -> bool {
        false
    }

    /// Makes `memory` visible to the devices, readable and writable.
    ///
    /// # Errors
    ///
    /// When the kernel refuses (memlock limit, no entries left, an address outside the permitted ranges), or memory has no
    /// descriptor where that is needed.
    ///
    /// # Safety
    ///
    /// `va .. va + len` stays mapped memory of this process until `unmap` of the same range has succeeded, and nothing
    /// but raw-pointer and atomic accesses is made to what a device owns of it.
    unsafe fn map(&self, memory: Mapping<'_>) -> Result<(), DeviceError>;

    /// Takes away what [`map`](Self::map) gave.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the memory must then be treated as still in the devices' hands.
    fn unmap(&self, iova: u64, len: usize) -> Result<(), DeviceError>;
}

/// Memory to be made visible to devices.
#[derive(Debug, Clone, Copy)]
pub struct Mapping<'a> {
    /// Where this process sees it.
    pub va: *mut u8,
    /// Bytes, whole pages.
    pub len: usize,
    /// Where devices shall see it.
    pub iova: u64,
    /// What another process maps to see the same memory, from offset 0; `None` for memory private to this one.
    pub fd: Option<BorrowedFd<'a>>,
}

/// What a device's bus tells us unasked.
#[derive(Debug)]
pub struct Notices {
    /// Fires when the kernel wants the device back (VFIO's `REQ`): stop using it and drop it.
    pub removal: Vector,
    /// Fires when the bus reported an uncorrectable error (VFIO's `ERR`): what the device says means nothing any longer.
    pub error: Vector,
}

/// An opened device on some bus, owned by one driver.
///
/// Dropping the last handle closes it: interrupts off, bus mastering off, reset where the bus can.
pub trait Device: Send + Sync + fmt::Debug {
    /// Its name for people: `0000:01:00.0`, `soft0`.
    fn name(&self) -> &str;

    /// Vendor and device number.
    fn id(&self) -> DeviceId;

    /// The NUMA node it is attached to, where the platform tells.
    fn numa_node(&self) -> Option<usize>;

    /// Memory BAR `index` (0 to 5).
    ///
    /// # Errors
    ///
    /// When the device has no such BAR or the kernel will not map it.
    fn bar(&self, index: usize) -> Result<Bar, DeviceError>;

    /// Reads `buf.len()` bytes of configuration space at `offset`.
    ///
    /// # Errors
    ///
    /// When the offset is outside the space or the kernel refuses.
    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes `data` to configuration space at `offset`.
    ///
    /// # Errors
    ///
    /// As [`config_read`](Self::config_read).
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), DeviceError>;

    /// Function-level reset: every register at its power-on value, no DMA, no interrupt.
    ///
    /// # Errors
    ///
    /// When the device has no way to be reset alone, or did not come back.
    fn reset(&self) -> Result<(), DeviceError>;

    /// Allows or forbids DMA (bit 2 of the command register).
    ///
    /// # Errors
    ///
    /// When configuration space cannot be written.
    fn set_bus_master(&self, on: bool) -> Result<(), DeviceError>;

    /// Whether configuration space itself says that it may not do DMA; not so for a device that does not answer.
    fn is_bus_master_off(&self) -> bool {
        let mut bytes = [0xff; 2];
        let read = self.config_read(command::OFFSET, &mut bytes);
        let word = u16::from_le_bytes(bytes);
        read.is_ok() && word != u16::MAX && word & command::BUS_MASTER == 0
    }

    /// The address space in which this device sees memory. Devices that share one return the same `Arc`.
    fn iommu(&self) -> Arc<dyn Iommu>;

    /// How many vectors of `kind` it has; zero when it cannot interrupt that way.
    fn irq_count(&self, kind: IrqKind) -> usize;

    /// Turns interrupts of `kind` on, vector `i` signalling `vectors[i]`. Replaces what was on before.
    ///
    /// # Errors
    ///
    /// When there are more `vectors` than [`irq_count`](Self::irq_count), or the kernel refuses (for INTx: the line is
    /// shared with another device and cannot be masked).
    fn irq_enable(&self, kind: IrqKind, vectors: &[BorrowedFd<'_>]) -> Result<(), DeviceError>;

    /// Turns all its interrupts off.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    fn irq_disable(&self) -> Result<(), DeviceError>;

    /// Lets INTx fire again: the kernel masks the line each time before user space sees it. Nothing to do for the others.
    ///
    /// # Errors
    ///
    /// When INTx is not on.
    fn irq_unmask(&self) -> Result<(), DeviceError>;

    /// The bus's own notices, where it has them.
    fn notices(&self) -> Option<&Notices>;
}
