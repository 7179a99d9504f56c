//! One IOMMU's part in a domain.
#![expect(unsafe_code, reason = "gives memory to devices")]

use std::collections::BTreeSet;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Weak};

use super::DmaError;
use crate::device::{Iommu, Mapping};
use crate::mem::Memory;

/// Memory that a domain has an address for.
#[derive(Debug)]
pub(super) struct Entry {
    /// Not to be freed by a panic or with the account: a device may have it.
    pub(super) memory: ManuallyDrop<Arc<Memory>>,
    /// The only space that sees it; `None` for all.
    pub(super) owner: Option<Weak<dyn Iommu>>,
}

/// One IOMMU. A space without devices stays listed while there is something that it would not let go.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) iommu: Arc<dyn Iommu>,
    /// The address limits of the devices that use this IOMMU, one entry a device.
    pub(super) limits: Vec<u64>,
    /// Addresses of the regions that it may have mapped.
    pub(super) mapped: BTreeSet<u64>,
}

impl Space {
    pub(super) fn new(iommu: Arc<dyn Iommu>) -> Self {
        Self { iommu, limits: Vec::new(), mapped: BTreeSet::new() }
    }

    /// Whether a region of `owner` is to be mapped here. A space that no device uses only waits to be rid of what it would
    /// not let go.
    pub(super) fn sees(&self, owner: Option<&Weak<dyn Iommu>>) -> bool {
        !self.limits.is_empty() && owner.is_none_or(|owner| is(owner, &self.iommu))
    }

    /// Maps `memory`.
    ///
    /// # Safety
    ///
    /// As [`Iommu::map`]; the memory is not freed while `mapped` has `iova`.
    pub(super) unsafe fn map(&mut self, iova: u64, memory: &Memory) -> Result<(), DmaError> {
        if self.iommu.entries_left() == Some(0) {
            return Err(DmaError::NoEntries);
        }
        self.mapped.insert(iova);
        let mapping = Mapping { va: memory.as_ptr().as_ptr(), len: memory.len(), iova, fd: memory.fd() };
        // SAFETY: the caller's promise: `mapped` has the address until `unmap` has succeeded.
        let result = unsafe { self.iommu.map(mapping) };
        if result.is_err() {
            self.mapped.remove(&iova);
        }
        Ok(result?)
    }

    /// Takes a mapping away, if it has it; returns whether it is gone.
    pub(super) fn unmap(&mut self, iova: u64, len: usize) -> bool {
        if !self.mapped.contains(&iova) {
            return true;
        }
        let result = self.iommu.unmap(iova, len);
        match &result {
            Ok(()) => _ = self.mapped.remove(&iova),
            Err(error) => {
                log::error!("{error}; {len} bytes stay allocated, because a device may still write to them");
            }
        }
        result.is_ok()
    }
}

/// Whether `owner` is `iommu`.
pub(super) fn is(owner: &Weak<dyn Iommu>, iommu: &Arc<dyn Iommu>) -> bool {
    std::ptr::addr_eq(owner.as_ptr(), Arc::as_ptr(iommu))
}
