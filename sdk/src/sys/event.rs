//! eventfd and poll: what an interrupt looks like from user space.
#![expect(unsafe_code, reason = "system calls")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A new eventfd with count zero: non-blocking, closed on exec.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just created and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `fd`, an eventfd that another process made, non-blocking: for all who share it, as that is a property of the
/// open file.
///
/// # Errors
///
/// `InvalidInput` when it is no eventfd: whatever else it is, reading, writing or waiting for it might block.
pub fn adopt_eventfd(fd: BorrowedFd<'_>) -> io::Result<()> {
    let what = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    // The kernel's name for it (fs/eventfd.c); no file in a file system has a path without a leading slash.
    if what.as_os_str() != "anon_inode:[eventfd]" {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no eventfd", what.display())));
    }
    // SAFETY: no pointers; the result is checked.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers; the result is checked.
    let rc = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads and clears the count of a non-blocking eventfd; zero when nothing was signalled.
pub fn eventfd_take(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count = 0u64;
    // SAFETY: the buffer is eight bytes, owned here.
    let n = unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
    if n == 8 {
        return Ok(count);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(0) } else { Err(error) }
}

/// Adds `n` to the count of an eventfd, which wakes whoever waits for it. A count at its maximum stays there: the
/// waiter is already due.
pub fn eventfd_add(fd: BorrowedFd<'_>, n: u64) -> io::Result<()> {
    // SAFETY: the buffer is eight bytes, owned here.
    let written = unsafe { libc::write(fd.as_raw_fd(), (&raw const n).cast(), 8) };
    if written == 8 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(()) } else { Err(error) }
}

/// Blocks until `fd` is readable or `timeout` has passed (nanosecond resolution); returns whether it is readable.
/// A signal ends the wait early, as if the time had passed.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let mut fds = [libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    match ppoll(&mut fds, timeout) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        done => done.map(|ready| ready > 0),
    }
}

/// `ppoll` without a signal mask. A signal is an error of the kind `Interrupted`.
pub(super) fn ppoll(fds: &mut [libc::pollfd], timeout: Duration) -> io::Result<usize> {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: `fds` and `timeout` live through the call and the length is theirs; no signal mask is given.
    let n = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, &raw const timeout, std::ptr::null()) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
