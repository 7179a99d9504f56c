//! The open file of a device, shared by the device and its BARs.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::container::Container;
use super::registry::Lease;
use crate::device::DeviceError;

/// The open file of a device. It is closed before the lease on its group is given back.
#[derive(Debug)]
pub(super) struct DeviceFile {
    name: String,
    file: File,
    lease: Lease,
}

impl DeviceFile {
    pub(super) fn new(name: String, file: File, lease: Lease) -> Self {
        Self { name, file, lease }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn container(&self) -> &Arc<Container> {
        self.lease.container()
    }

    /// A call on this device failed.
    pub(super) fn failed(&self, call: &'static str, source: io::Error, hint: impl Into<String>) -> DeviceError {
        DeviceError::Call { device: self.name.clone(), call, source, hint: hint.into() }
    }

    /// This device lacks something.
    pub(super) fn missing(&self, what: impl Into<String>) -> DeviceError {
        DeviceError::Missing { device: self.name.clone(), what: what.into() }
    }
}
