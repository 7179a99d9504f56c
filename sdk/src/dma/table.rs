//! An address space in another process: memory that a peer maps from file descriptors.
#![expect(unsafe_code, reason = "implements the unsafe method of an IOMMU; contains no unsafe operation")]

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::{DeviceError, Iommu, Mapping};

/// A part of a [`MemoryTable`]: memory that a peer may map from its descriptor.
#[derive(Debug, Clone)]
pub struct TableRegion {
    iova: u64,
    address: u64,
    len: u64,
    fd: Arc<OwnedFd>,
}

/// Two are equal if they are the same mapping.
impl PartialEq for TableRegion {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.fd, &other.fd)
    }
}

impl Eq for TableRegion {}

impl TableRegion {
    /// Where descriptors of a ring say that it is: what a guest would call its physical address.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Where this process sees it.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes, all of the descriptor's from offset 0.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// What to hand to the peer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Who passes a [`MemoryTable`]'s regions on to the peer. It is called with locks held, the domain's among them: see
/// [`Iommu`] for what it must not do.
pub trait TableUser: Send + Sync + fmt::Debug {
    /// Tells the peer of `added`, with which it has all of `table`. A peer that is not there is told when it comes.
    ///
    /// # Errors
    ///
    /// When the peer cannot take it. It is out of the table then.
    fn added(&self, added: &TableRegion, table: &[TableRegion]) -> Result<(), DeviceError>;

    /// Tells the peer that `removed` is gone, with `table` left.
    fn removed(&self, removed: &TableRegion, table: &[TableRegion]);
}

/// The memory that a peer in another process reaches, as vhost-user shares it: a table of regions with a file descriptor
/// each, for a [`Domain`](super::Domain) to fill.
///
/// A mapping can be taken from a peer only by asking for it. A peer that does not obey keeps seeing those pages of the file,
/// which are nobody else's from then on: they are never freed while it has them.
#[derive(Debug)]
pub struct MemoryTable {
    name: String,
    regions: Mutex<Vec<TableRegion>>,
    user: Arc<dyn TableUser>,
}

impl MemoryTable {
    /// An empty table of the port `name`, whose changes `user` passes on.
    pub fn new(name: &str, user: Arc<dyn TableUser>) -> Self {
        Self { name: name.into(), regions: Mutex::default(), user }
    }
}

/// What an address of the table can be: x86-64 processes have 47 bits, and back ends add them to their own.
const LAST_IOVA: u64 = (1 << 47) - 1;

impl Iommu for MemoryTable {
    fn iova_ranges(&self) -> Vec<RangeInclusive<u64>> {
        vec![0..=LAST_IOVA]
    }

    fn entries_left(&self) -> Option<usize> {
        None
    }

    fn needs_shared(&self) -> bool {
        true
    }

    unsafe fn map(&self, memory: Mapping<'_>) -> Result<(), DeviceError> {
        let refused = |source| DeviceError::Call {
            device: self.name.clone(),
            call: "sharing memory",
            source,
            hint: String::new(),
        };
        let Some(fd) = memory.fd else {
            return Err(refused(io::Error::other("it is private to this process")));
        };
        let fd = Arc::new(fd.try_clone_to_owned().map_err(refused)?);
        let region = TableRegion { iova: memory.iova, address: memory.va.addr() as u64, len: memory.len as u64, fd };
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        regions.push(region.clone());
        let told = self.user.added(&region, &regions);
        if told.is_err() {
            regions.pop();
        }
        told
    }

    fn unmap(&self, iova: u64, _: usize) -> Result<(), DeviceError> {
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = regions.iter().position(|region| region.iova == iova) {
            let removed = regions.remove(at);
            self.user.removed(&removed, &regions);
        }
        Ok(())
    }
}
