//! The virtio family: what its drivers and its back end have in common.
//!
//! Written after "Virtual I/O Device (VIRTIO) Version 1.2", which comments cite by clause. Only modern devices, and
//! little-endian machines.

pub(crate) mod features;
#[cfg(any(all(test, not(loom)), fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod header;
pub(crate) mod pci;
pub(crate) mod queue;
pub(crate) mod ring;
pub(crate) mod rx;
pub(crate) mod socket;
pub(crate) mod tx;

#[cfg(test)]
mod tests;
