//! A device's membership in a domain, and the memory that its devices see.

use std::ptr::NonNull;
use std::sync::Arc;

use super::space::Entry;
use super::{DmaError, Domain, Iova, State};
use crate::device::Iommu;
use crate::mem::{MemRequest, Memory, PageSize};

/// A device's membership in a [`Domain`]. Dropping the last one of an IOMMU takes the domain's memory from it.
#[derive(Debug)]
pub struct Attachment {
    pub(super) domain: Domain,
    pub(super) iommu: Arc<dyn Iommu>,
    pub(super) limit: u64,
}

impl Attachment {
    /// The domain it belongs to.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Allocates memory that this device sees and no other does, unless it shares its IOMMU. Its address is taken in the
    /// whole domain.
    ///
    /// # Errors
    ///
    /// As [`Domain::alloc`].
    pub fn alloc(&self, request: &MemRequest) -> Result<DmaRegion, DmaError> {
        self.domain.alloc_for(request, Some(&self.iommu))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut guard = self.domain.lock();
        let State { spaces, regions } = &mut *guard;
        let Some(space) = spaces.iter_mut().find(|s| Arc::ptr_eq(&s.iommu, &self.iommu)) else { return };
        if let Some(mine) = space.limits.iter().position(|l| *l == self.limit) {
            space.limits.swap_remove(mine);
        }
        if space.limits.is_empty() {
            for (&iova, Entry { memory, .. }) in &*regions {
                space.unmap(iova, memory.len());
            }
        }
        // A space that would not let go stays listed, so that its regions try again, and leak, when they are dropped.
        let unused = guard.take_unused();
        drop(guard);
        drop(unused);
    }
}

/// Memory that the devices of a domain, or one of them, see at one address.
///
/// # Invariant
///
/// `memory` is mapped at `iova`, page-aligned, in every space of `domain` that a device uses and that may see it. The domain's
/// account holds it too, until all of them gave it up: so it outlives every device's access.
#[derive(Debug)]
pub struct DmaRegion {
    pub(super) memory: Arc<Memory>,
    pub(super) iova: Iova,
    pub(super) domain: Domain,
}

impl DmaRegion {
    /// Where the process sees it.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.memory.as_ptr()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// How big its pages are.
    pub fn page_size(&self) -> PageSize {
        self.memory.page_size()
    }

    /// Whether another process can be given it.
    pub fn is_shared(&self) -> bool {
        self.memory.fd().is_some()
    }

    /// Where devices see byte `offset`.
    ///
    /// # Panics
    ///
    /// If `offset` is not inside.
    pub fn iova(&self, offset: usize) -> Iova {
        assert!(offset < self.len(), "byte {offset} of a region of {} bytes", self.len());
        Iova(self.iova.0 + offset as u64)
    }

    /// The address space that its [`iova`](Self::iova) belongs to. In another one that address is nothing, or other memory.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// What must be added to an address in this process to get what a device sees.
    pub(crate) fn distance(&self) -> u64 {
        self.iova.0.wrapping_sub(self.memory.as_ptr().as_ptr() as u64)
    }

    /// Gives the memory up for good: for a device that would not stop.
    pub fn leak(self) {
        std::mem::forget(self);
    }
}

impl Drop for DmaRegion {
    fn drop(&mut self) {
        let mut state = self.domain.lock();
        // What is not released stays in the account: the address stays taken and the memory allocated, because a device may
        // still write to it.
        let released = state.release(self.iova.0);
        let unused = state.take_unused();
        drop(state);
        drop(unused);
        drop(released);
    }
}
