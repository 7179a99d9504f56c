//! PCI devices through the kernel's VFIO: registers mapped, DMA fenced in by the IOMMU, interrupts as eventfds.
//!
//! ```text
//! VfioDevice ──▶ Group ──▶ Container (the IOMMU's address space; one for all groups where the kernel allows)
//!   │  └─ Bars        one per IOMMU group and process, shared by its devices
//!   └─ vectors
//! ```
//!
//! [`VfioDevice::open`] looks before it touches: what stands in the way is told as an [`OpenError`] that says what to
//! do, and whatever was opened on the way is closed again. Closing is a matter of dropping: the device first, then its
//! last [`Bar`](crate::mmio::Bar), then its group when no other device of the process is in it.
//!
//! What this module refuses: a device without an IOMMU behind it, a device twice in one process, and groups of which
//! the kernel still uses a part. IOVAs are not chosen here ([`crate::dma`] does).

mod check;
mod container;
mod device;
mod error;
mod file;
mod group;
mod holder;
mod host;
mod irq;
mod memlock;
mod region;
mod registry;

pub use device::VfioDevice;
pub use error::OpenError;
pub use holder::Holder;
pub use host::Host;
