//! Any file descriptor as a source, so that a worker can own an event loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Source, Wake};

/// A file descriptor that a program brings: a listening socket, a pipe, a netlink socket, a `timerfd`, another event
/// loop.
///
/// Whether it is readable is known to the kernel only. So it is looked at when its worker goes to sleep, and while the
/// worker polls every 20 µs, all descriptors of the worker in one system call; a worker without any makes none.
#[derive(Debug)]
pub struct FdSource {
    label: String,
    fd: Arc<OwnedFd>,
    readable: bool,
}

impl FdSource {
    /// A source over a duplicate of `fd`, by this name in reports. The caller reads from its own.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors.
    pub fn new(label: impl Into<String>, fd: &impl AsFd) -> io::Result<Self> {
        Ok(Self { label: label.into(), fd: Arc::new(fd.as_fd().try_clone_to_owned()?), readable: false })
    }

    /// Whether it was found readable since the last call. What is not read then is found again.
    pub fn take_readable(&mut self) -> bool {
        std::mem::take(&mut self.readable)
    }
}

impl AsFd for FdSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Source for FdSource {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn pending(&self) -> bool {
        self.readable
    }

    fn wake(&self) -> Wake {
        Wake::Fd(self.fd.clone())
    }

    fn fired(&mut self) {
        self.readable = true;
    }
}
