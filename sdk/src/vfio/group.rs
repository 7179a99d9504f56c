//! An opened IOMMU group in its container.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::OpenError;
use super::check::Candidate;
use super::container::Container;
use crate::sys::vfio;

/// An opened group. The kernel lets one process open it, once.
///
/// Dropped, it leaves its container and is closed; its devices' files must be closed before.
#[derive(Debug)]
pub(super) struct Group {
    number: u32,
    fd: OwnedFd,
    container: Arc<Container>,
}

impl Group {
    /// Opens the candidate's group and puts it into the first of `containers` that takes it, or into a new one.
    pub(super) fn open(candidate: &Candidate<'_>, containers: &[Arc<Container>]) -> Result<Self, OpenError> {
        let path = candidate.group_path();
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|e| candidate.not_opened(&path, e))?;
        let fd = OwnedFd::from(file);
        let viable = vfio::group_is_viable(fd.as_fd()).map_err(|e| candidate.call("VFIO_GROUP_GET_STATUS", e, ""))?;
        if !viable {
            return Err(candidate.not_viable());
        }
        let number = candidate.group.number;
        for container in containers {
            match container.attach(candidate, fd.as_fd()) {
                Ok(()) => return Ok(Self { number, fd, container: container.clone() }),
                Err(error) => log::debug!("{error}"),
            }
        }
        let container = Container::open(candidate)?;
        container.attach(candidate, fd.as_fd())?;
        Ok(Self { number, fd, container: Arc::new(container) })
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn container(&self) -> &Arc<Container> {
        &self.container
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.container.detach(self.number, self.fd.as_fd());
    }
}
