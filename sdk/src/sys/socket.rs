//! Unix sockets that carry file descriptors, without ever blocking.
#![expect(unsafe_code, reason = "system calls")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The most file descriptors that one message carries here.
pub const FDS_MAX: usize = 32;

/// Room for the ancillary data of one message with [`FDS_MAX`] descriptors, aligned as `cmsghdr` is.
#[repr(align(8))]
struct Control([MaybeUninit<u8>; Self::LEN]);

impl Control {
    /// `CMSG_SPACE` of that many descriptors: the header, 16 bytes on the machines that we run on, and four bytes each.
    const LEN: usize = size_of::<libc::cmsghdr>() + FDS_MAX * size_of::<RawFd>();
}

/// What one receive brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes; zero when the peer has closed.
    pub bytes: usize,
    /// There were descriptors beyond [`FDS_MAX`], which the kernel has closed.
    pub lost_fds: bool,
}

/// Receives what is there now, as much as `buffer` holds, and appends the descriptors that came with it to `fds`: owned,
/// closed on exec.
///
/// # Errors
///
/// `WouldBlock` when there is nothing.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<Received> {
    let mut control = Control([MaybeUninit::uninit(); Control::LEN]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = message(&mut part);
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = Control::LEN as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message's parts (buffer, control) live through the call, with the lengths told.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let bytes = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled in the control data of `message`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: a header that the kernel wrote, aligned as the buffer is.
        let about = unsafe { header.read() };
        if about.cmsg_level == libc::SOL_SOCKET && about.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: the data follows the header.
            let data = unsafe { libc::CMSG_DATA(header) };
            let count = (about.cmsg_len as usize).saturating_sub(data.addr() - header.addr()) / size_of::<RawFd>();
            for at in 0..count {
                // SAFETY: descriptor `at` lies in the data.
                let from = unsafe { data.add(at * size_of::<RawFd>()) };
                // SAFETY: as above.
                let bytes = unsafe { from.cast::<[u8; size_of::<RawFd>()]>().read() };
                // SAFETY: the kernel has just made it for us.
                fds.push(unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(bytes)) });
            }
        }
        // SAFETY: both are what the kernel filled in.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Received { bytes, lost_fds: message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Sends `bytes`, as many as there is room for, and copies of `fds` with the first of them. Returns how many bytes went.
///
/// # Errors
///
/// `WouldBlock` when there is no room, `InvalidInput` above [`FDS_MAX`] descriptors, EPIPE when the peer has closed (no
/// signal is raised), ETOOMANYREFS when too many descriptors are under way.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
    if fds.len() > FDS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = Control([MaybeUninit::zeroed(); Control::LEN]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut message = message(&mut part);
    if !fds.is_empty() {
        let data_bytes = size_of_val(fds) as u32;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: arithmetic.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(data_bytes) } as _;
        // SAFETY: the control data has room for a header (`Control::LEN`).
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: arithmetic.
        let len = unsafe { libc::CMSG_LEN(data_bytes) };
        let about = libc::cmsghdr { cmsg_len: len as _, cmsg_level: libc::SOL_SOCKET, cmsg_type: libc::SCM_RIGHTS };
        // SAFETY: room for it, aligned as the buffer is.
        unsafe { header.write(about) };
        // SAFETY: the data follows the header.
        let data = unsafe { libc::CMSG_DATA(header) };
        for (at, fd) in fds.iter().enumerate() {
            // SAFETY: at most `FDS_MAX`, for which there is room.
            let to = unsafe { data.add(at * size_of::<RawFd>()) };
            // SAFETY: as above.
            unsafe { to.cast::<[u8; size_of::<RawFd>()]>().write(fd.as_raw_fd().to_ne_bytes()) };
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message's parts live through the call, with the lengths told; the kernel only reads them.
    let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Connects to the socket at `path` at once or not at all; the stream does not block.
///
/// # Errors
///
/// NotFound or ConnectionRefused when nobody listens there, `WouldBlock` when whoever listens has too many callers
/// waiting, `InvalidInput` when the path is longer than a socket's may be (107 bytes).
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just created and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() || bytes.is_empty() || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // SAFETY: a whole address, whose length is told.
    let rc =
        unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t) };
    if rc == 0 { Ok(UnixStream::from(fd)) } else { Err(io::Error::last_os_error()) }
}

fn message(part: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: numbers and pointers, for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn files(n: usize) -> Vec<OwnedFd> {
        (0..n).map(|_| File::open("/dev/null").unwrap().into()).collect()
    }

    #[test]
    fn descriptors_come_with_the_bytes_that_they_were_sent_with() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut got, mut buffer) = (Vec::new(), [0; 8]);
        let nothing = receive(b.as_fd(), &mut buffer, &mut got).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        let (mut reader, writer) = std::io::pipe().unwrap();
        assert_eq!(send(a.as_fd(), b"with", &[writer.into()]).unwrap(), 4);
        assert_eq!(send(a.as_fd(), b"out", &[]).unwrap(), 3);
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut got).unwrap(), Received { bytes: 4, lost_fds: false });
        File::from(got.pop().unwrap()).write_all(b"!").unwrap();
        assert!(got.is_empty());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), &buffer[..4]), ("!", &b"with"[..]));
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut got).unwrap().bytes, 3);
        drop(a);
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut got).unwrap().bytes, 0);
    }

    #[test]
    fn as_many_as_allowed_come_and_more_are_said_to_be_lost() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut got = Vec::new();
        send(a.as_fd(), b"x", &files(FDS_MAX)).unwrap();
        assert!(!receive(b.as_fd(), &mut [0; 1], &mut got).unwrap().lost_fds);
        assert_eq!(got.len(), FDS_MAX);
        let too_many = send(a.as_fd(), b"x", &files(FDS_MAX + 1)).unwrap_err();
        assert_eq!(too_many.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn connecting_never_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        connect(&path).unwrap();
        drop(listener);
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let long = dir.path().join("x".repeat(108));
        assert_eq!(connect(&long).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
