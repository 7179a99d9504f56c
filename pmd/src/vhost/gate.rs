//! Puts a peer's bytes together to messages, without ever waiting for one.
//!
//! The `vhost` crate reads from a socket that blocks, and goes on reading when it should give up (descriptors beyond 32,
//! EAGAIN). So it sees a peer's messages only once they are whole, through a socket pair of our own.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use spinwake::sys::socket::{self, FDS_MAX};

use super::session::Offence;

/// Bytes of a header: request, flags, size of the body, 32 bits each.
pub(super) const HEADER: usize = 12;
/// The longest body; that of 32 memory regions has 1,032.
const BODY_MAX: usize = 4096;
/// The protocol's version, in the low bits of the flags.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// One message, whole.
#[derive(Debug)]
pub(super) struct Message {
    /// Header and body.
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Message {
    pub(super) fn request(&self) -> u32 {
        word(&self.bytes, 0)
    }

    pub(super) fn wants_reply(&self) -> bool {
        word(&self.bytes, 4) & NEED_REPLY != 0
    }

    /// The body, if it is one 64-bit number.
    pub(super) fn number(&self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes[HEADER..].try_into().ok()?))
    }

    /// The body, if it is a ring's index and a number.
    pub(super) fn ring_state(&self) -> Option<(u32, u32)> {
        (self.bytes.len() == HEADER + 8).then(|| (word(&self.bytes, HEADER), word(&self.bytes, HEADER + 4)))
    }

    /// The answer to it that is one 64-bit number.
    pub(super) fn answer(&self, number: u64) -> Vec<u8> {
        let words = [self.request(), VERSION | REPLY, 8].into_iter().flat_map(u32::to_le_bytes);
        words.chain(number.to_le_bytes()).collect()
    }
}

/// A message that is coming in.
#[derive(Debug, Default)]
pub(super) struct Gate {
    bytes: Vec<u8>,
    have: usize,
    fds: Vec<OwnedFd>,
}

/// What a look at the socket brought.
#[derive(Debug)]
pub(super) enum Arrival {
    Message(Message),
    /// Not all of it is here.
    Later,
    /// The peer has closed, between two messages.
    Closed,
}

impl Gate {
    /// Whether a message has begun.
    pub(super) fn is_underway(&self) -> bool {
        self.have > 0
    }

    /// Takes what is there, up to the end of one message.
    pub(super) fn take(&mut self, socket: BorrowedFd<'_>) -> Result<Arrival, Offence> {
        loop {
            let whole = if self.have < HEADER { HEADER } else { HEADER + word(&self.bytes, 8) as usize };
            if self.have == whole && self.have >= HEADER {
                let Self { mut bytes, fds, .. } = std::mem::take(self);
                bytes.truncate(whole);
                return Ok(Arrival::Message(Message { bytes, fds }));
            }
            self.bytes.resize(whole, 0);
            let received = match socket::receive(socket, &mut self.bytes[self.have..], &mut self.fds) {
                Ok(received) => received,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(Arrival::Later),
                    io::ErrorKind::Interrupted => continue,
                    // Whatever it is, the peer is there no longer.
                    _ => return Ok(Arrival::Closed),
                },
            };
            if received.lost_fds || self.fds.len() > FDS_MAX {
                return Err(Offence::new(format_args!("a message with more than {FDS_MAX} descriptors")));
            }
            if received.bytes == 0 {
                return match self.have {
                    0 => Ok(Arrival::Closed),
                    have => Err(Offence::new(format_args!("a message that ends after {have} bytes"))),
                };
            }
            let had = self.have;
            self.have += received.bytes;
            if had < HEADER && self.have == HEADER {
                self.check_header()?;
            }
        }
    }

    fn check_header(&self) -> Result<(), Offence> {
        let [request, flags, size] = [0, 4, 8].map(|at| word(&self.bytes, at));
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 {
            return Err(Offence::new(format_args!("{} with flags {flags:#x}, which mean nothing", Name(request))));
        }
        if size as usize > BODY_MAX {
            return Err(Offence::new(format_args!("{} of {size} bytes; {BODY_MAX} are possible", Name(request))));
        }
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    // Every caller has looked at the length; a word beyond it would be zero.
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// A request by the name that its specification gives it (vhost-user.rst, "Front-end message types").
#[derive(Debug, Clone, Copy)]
pub(super) struct Name(pub(super) u32);

const NAMES: [&str; 40] = [
    "GET_FEATURES",
    "SET_FEATURES",
    "SET_OWNER",
    "RESET_OWNER",
    "SET_MEM_TABLE",
    "SET_LOG_BASE",
    "SET_LOG_FD",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "GET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ERR",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "GET_QUEUE_NUM",
    "SET_VRING_ENABLE",
    "SEND_RARP",
    "NET_SET_MTU",
    "SET_BACKEND_REQ_FD",
    "IOTLB_MSG",
    "SET_VRING_ENDIAN",
    "GET_CONFIG",
    "SET_CONFIG",
    "CREATE_CRYPTO_SESSION",
    "CLOSE_CRYPTO_SESSION",
    "POSTCOPY_ADVISE",
    "POSTCOPY_LISTEN",
    "POSTCOPY_END",
    "GET_INFLIGHT_FD",
    "SET_INFLIGHT_FD",
    "GPU_SET_SOCKET",
    "RESET_DEVICE",
    "VRING_KICK",
    "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG",
    "REM_MEM_REG",
    "SET_STATUS",
    "GET_STATUS",
];

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match usize::try_from(self.0).ok().and_then(|request| NAMES.get(request.checked_sub(1)?)) {
            Some(name) => f.write_str(name),
            None => write!(f, "request {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let header = [request, flags, body.len() as u32].into_iter().flat_map(u32::to_le_bytes);
        header.chain(body.iter().copied()).collect()
    }

    #[test]
    fn messages_come_out_whole_however_they_come_in() {
        let (mut peer, here) = UnixStream::pair().unwrap();
        let two = [message(2, 9, &7u64.to_le_bytes()), message(1, 1, &[])].concat();
        let mut gate = Gate::default();
        let mut out = Vec::new();
        for (at, byte) in two.iter().enumerate() {
            peer.write_all(&[*byte]).unwrap();
            match gate.take(here.as_fd()).unwrap() {
                Arrival::Message(message) => out.push((at, message)),
                Arrival::Later => assert!(gate.is_underway()),
                Arrival::Closed => panic!(),
            }
        }
        assert_eq!(out.iter().map(|(at, message)| (*at, message.request())).collect::<Vec<_>>(), [(19, 2), (31, 1)]);
        assert_eq!((out[0].1.number(), out[0].1.wants_reply()), (Some(7), true));
        peer.write_all(&two).unwrap();
        drop(peer);
        assert!(matches!(gate.take(here.as_fd()), Ok(Arrival::Message(_))));
        assert!(matches!(gate.take(here.as_fd()), Ok(Arrival::Message(_))));
        assert!(matches!(gate.take(here.as_fd()), Ok(Arrival::Closed)));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (bytes, why) in [
            (message(1, 2, &[]), "GET_FEATURES with flags 0x2, which mean nothing"),
            (message(77, 5, &[]), "request 77 with flags 0x5, which mean nothing"),
            (
                [1u32, 1, 4097].into_iter().flat_map(u32::to_le_bytes).collect(),
                "GET_FEATURES of 4097 bytes; 4096 are possible",
            ),
            (vec![1, 0, 0], "a message that ends after 3 bytes"),
        ] {
            let (mut peer, here) = UnixStream::pair().unwrap();
            peer.write_all(&bytes).unwrap();
            drop(peer);
            assert_eq!(Gate::default().take(here.as_fd()).unwrap_err().to_string(), why);
        }
    }
}
