//! PCI devices as sysfs shows them: find, name, and read what the kernel knows, without opening anything.
//!
//! ```text
//! Sysfs ── find(id) / device(bdf) ──▶ PciDevice ──▶ driver, IOMMU group, NUMA node, network interfaces
//!                                         └──▶ ConfigSpace ──▶ capabilities
//! ```
//!
//! Everything here only reads. What is missing is `None`; what makes no sense is treated as missing: a file in sysfs
//! is never worth a panic.

mod bdf;
mod config;
mod device;
mod group;
mod id;
mod sysfs;

pub use bdf::{Bdf, ParseBdfError};
pub(crate) use config::command;
pub use config::{Capability, CapabilityKind, ConfigSpace, cap};
pub use device::{NetInterface, PciDevice};
pub use group::{GroupMember, IommuGroup};
pub use id::{Class, DeviceId};
pub use sysfs::{FindError, Sysfs};
