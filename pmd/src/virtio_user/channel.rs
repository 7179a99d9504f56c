//! The socket to a back end: requests out, answers in, each within a deadline.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use spinwake::sys::{event, socket};

use super::message::{HEADER_LEN, Message, NEED_REPLY, REPLY, Request, VERSION, VERSION_MASK};
use crate::virtio::ring::Fault;

/// What ended a connection. All are said in one line after the port's name and "the back end".
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It closed the socket.
    #[error("has gone")]
    Gone,
    /// The socket failed.
    #[error("cannot be reached any longer: {0}")]
    Socket(#[from] io::Error),
    /// It did not answer.
    #[error("did not answer {0} in time")]
    Silent(Request),
    /// It answered what cannot be.
    #[error("answered {request} with {what}")]
    Nonsense { request: Request, what: String },
    /// It spoke without being asked.
    #[error("sent something that it was not asked for")]
    Unasked,
    /// It refused a request.
    #[error("refused {request} (it says {code})")]
    Refused { request: Request, code: u64 },
    /// It wrote to a ring what cannot be.
    #[error("spoilt the ring of {ring}: {fault}")]
    Ring { ring: String, fault: Fault },
    /// It is not what this port needs.
    #[error("{0}")]
    Unfit(String),
}

impl Failure {
    /// Whether the back end broke the protocol, rather than just went away or cannot do what is needed.
    pub(super) fn is_offence(&self) -> bool {
        matches!(self, Self::Silent(_) | Self::Nonsense { .. } | Self::Unasked | Self::Ring { .. })
    }
}

/// A connection. Dropping it closes it, whoever has a copy of the socket.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    deadline: Instant,
    /// Every request asks for an answer (REPLY_ACK).
    pub(super) acknowledged: bool,
}

impl Drop for Channel {
    fn drop(&mut self) {
        // Fails only when the peer has closed it already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Channel {
    /// Over `stream`, which must not block.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, deadline: Instant::now(), acknowledged: false }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// All that is said from now on must be over after `limit`.
    pub(super) fn give(&mut self, limit: Duration) {
        self.deadline = Instant::now() + limit;
    }

    /// Sends `message`, and waits until the back end has done it where it says so.
    pub(super) fn tell(&mut self, message: &Message) -> Result<(), Failure> {
        self.send(message, if self.acknowledged { NEED_REPLY } else { 0 })?;
        if !self.acknowledged {
            return Ok(());
        }
        match self.number(message.request)? {
            0 => Ok(()),
            code => Err(Failure::Refused { request: message.request, code }),
        }
    }

    /// Sends `message`, whose answer is a number.
    pub(super) fn ask(&mut self, request: Request) -> Result<u64, Failure> {
        self.send(&Message::empty(request), 0)?;
        self.number(request)
    }

    /// Sends `message` about ring `index`; the answer's value.
    pub(super) fn ask_ring(&mut self, request: Request, index: u32) -> Result<u32, Failure> {
        self.send(&Message::ring(request, index, 0), 0)?;
        let answer = self.number(request)?;
        if answer as u32 == index {
            return Ok((answer >> 32) as u32);
        }
        Err(Failure::Nonsense { request, what: format!("ring {} instead of {index}", answer as u32) })
    }

    /// Looks what the socket has, when nothing has been asked: an error unless it has nothing.
    pub(super) fn look(&self) -> Result<(), Failure> {
        match socket::receive(self.stream.as_fd(), &mut [0; 1], &mut Vec::new()) {
            Ok(got) if got.bytes == 0 => Err(Failure::Gone),
            Ok(_) => Err(Failure::Unasked),
            Err(error) if is_nothing(&error) => Ok(()),
            Err(error) => Err(closed(error)),
        }
    }

    fn send(&mut self, message: &Message, flags: u32) -> Result<(), Failure> {
        let bytes = message.bytes(flags);
        let (mut sent, mut fds) = (0, &message.fds[..]);
        while sent < bytes.len() {
            match socket::send(self.stream.as_fd(), &bytes[sent..], fds) {
                Ok(n) => (sent, fds) = (sent + n, &[]),
                // Requests are few and short: a socket without room belongs to a back end that does not read.
                Err(error) if is_nothing(&error) && Instant::now() < self.deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) if is_nothing(&error) => return Err(Failure::Silent(message.request)),
                Err(error) => return Err(closed(error)),
            }
        }
        Ok(())
    }

    /// The answer to `request`, which has eight bytes.
    fn number(&mut self, request: Request) -> Result<u64, Failure> {
        let mut header = [0; HEADER_LEN];
        self.fill(request, &mut header)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (answered, flags, bytes) = (word(0), word(4), word(8));
        let nonsense = |what| Err(Failure::Nonsense { request, what });
        if answered != request as u32 {
            return nonsense(format!("an answer to request {answered}"));
        }
        if flags & (VERSION_MASK | REPLY) != VERSION | REPLY {
            return nonsense(format!("flags {flags:#x}"));
        }
        if bytes != 8 {
            return nonsense(format!("{bytes} bytes instead of 8"));
        }
        let mut body = [0; 8];
        self.fill(request, &mut body)?;
        Ok(u64::from_le_bytes(body))
    }

    fn fill(&mut self, request: Request, mut buffer: &mut [u8]) -> Result<(), Failure> {
        while !buffer.is_empty() {
            // Descriptors are no part of any answer to us: what comes is closed at once.
            match socket::receive(self.stream.as_fd(), buffer, &mut Vec::new()) {
                Ok(got) if got.bytes == 0 => return Err(Failure::Gone),
                Ok(got) => buffer = &mut buffer[got.bytes..],
                Err(error) if is_nothing(&error) => {
                    let left = self.deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Failure::Silent(request));
                    }
                    event::wait_readable(self.stream.as_fd(), left)?;
                }
                Err(error) => return Err(closed(error)),
            }
        }
        Ok(())
    }
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A peer that is gone shows in several ways.
fn closed(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => Failure::Gone,
        _ => Failure::Socket(error),
    }
}
