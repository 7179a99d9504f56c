//! One peer on one socket: its messages in, answers out, nothing waited for.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::Level;
use spinwake::sys::socket;
use vhost::vhost_user::{BackendReqHandler, VhostUserProtocolFeatures};

use super::device::Device;
use super::gate::{Arrival, Gate, Message, Name};
use super::messages::Messages;
use super::session::{Offence, Session};
use crate::virtio::features::Features;

/// A peer that has connected says something within this time, and ends each message within this time.
const SILENCE: Duration = Duration::from_secs(5);
/// Messages of one peer in a row, before other ports' peers get their turn.
const TURN: usize = 16;

/// Requests that the `vhost` crate does not know, or not at any time.
mod request {
    pub(super) const SET_LOG_FD: u32 = 7;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
    pub(super) const NET_SET_MTU: u32 = 20;
    pub(super) const SET_STATUS: u32 = 39;
    pub(super) const GET_STATUS: u32 = 40;
}

/// The device status of a driver that has given up (2.1).
const STATUS_FAILED: u8 = 128;

/// A peer that is connected.
pub(super) struct Connection {
    device: Arc<Device>,
    socket: UnixStream,
    gate: Gate,
    messages: Arc<Mutex<Messages>>,
    /// Where the crate gets the messages and leaves its answers.
    crate_side: BackendReqHandler<Mutex<Messages>>,
    near: UnixStream,
    /// When the peer must have said more.
    deadline: Option<Instant>,
}

/// A connection is over.
#[derive(Debug)]
pub(super) enum End {
    /// The peer has left.
    Left,
    Offence(Offence),
}

impl From<Offence> for End {
    fn from(offence: Offence) -> Self {
        Self::Offence(offence)
    }
}

impl Connection {
    /// Serves `socket`, which does not block.
    pub(super) fn new(device: Arc<Device>, socket: UnixStream, now: Instant) -> io::Result<Self> {
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        let messages = Arc::new(Mutex::new(Messages::new(Session::new(device.clone()))));
        let crate_side = BackendReqHandler::from_stream(far, messages.clone());
        Ok(Self { device, socket, gate: Gate::default(), messages, crate_side, near, deadline: Some(now + SILENCE) })
    }

    /// By when the peer must have said more; `None` while nothing is expected of it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Takes what the peer says now.
    pub(super) fn serve(&mut self, now: Instant) -> Result<(), End> {
        for _ in 0..TURN {
            match self.gate.take(self.socket.as_fd())? {
                Arrival::Message(message) => {
                    self.deadline = None;
                    self.handle(message)?;
                }
                Arrival::Later => {
                    if self.gate.is_underway() {
                        self.deadline.get_or_insert(now + SILENCE);
                    }
                    return Ok(());
                }
                Arrival::Closed => return Err(End::Left),
            }
        }
        Ok(())
    }

    /// Whether the peer kept silent for too long, or its rings made no sense.
    pub(super) fn check(&self, now: Instant) -> Result<(), Offence> {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let what = if self.gate.is_underway() { "the rest of a message" } else { "a first message" };
            return Err(Offence::new(format_args!("{what} did not come within {SILENCE:?}")));
        }
        self.messages().session.lost().map_or(Ok(()), Err)
    }

    fn handle(&mut self, message: Message) -> Result<(), Offence> {
        let by_us = self.answer(&message);
        let (answer, done) = match by_us {
            Some(Ok(answer)) => (answer, Ok(())),
            Some(Err(offence)) => (None, Err(offence)),
            None => self.pass_on(message),
        };
        let mut messages = self.messages();
        messages.session.announce();
        let runs = messages.session.runs();
        drop(messages);
        // Before the answer: who has it may rely on what it says.
        self.device.set_up(runs);
        let sent = answer.map_or(Ok(()), |answer| self.send(&answer));
        done.and(sent)
    }

    /// Carries out a message that the crate does not know: `None` when it does.
    fn answer(&self, message: &Message) -> Option<Result<Option<Vec<u8>>, Offence>> {
        let request = message.request();
        let mut messages = self.messages();
        let messages = &mut *messages;
        let chose = |feature| messages.protocol.contains(feature);
        let malformed = || Offence::new(format_args!("{} with a body of another length than it has", Name(request)));
        let acknowledges = message.wants_reply() && chose(VhostUserProtocolFeatures::REPLY_ACK);
        let acknowledge = |fails: bool| acknowledges.then(|| message.answer(fails.into()));
        Some(match request {
            request::NET_SET_MTU if chose(VhostUserProtocolFeatures::MTU) => message.number().map_or_else(
                || Err(malformed()),
                |mtu| {
                    let ours = u64::from(messages.session.offer.mtu);
                    if mtu > ours {
                        let what = format_args!("the peer's MTU of {mtu} is above {ours}; set mtu={mtu}");
                        self.device.say(Level::Warn, what);
                    }
                    Ok(acknowledge(mtu > ours))
                },
            ),
            request::SET_STATUS if chose(VhostUserProtocolFeatures::STATUS) => match message.number() {
                Some(status @ 0..=0xff) => {
                    let session = &mut messages.session;
                    session.status = status as u8;
                    if session.status == 0 {
                        session.stop_all();
                    } else if session.status & STATUS_FAILED != 0 {
                        self.device.say(Level::Warn, "the peer's driver says that it has failed");
                    }
                    Ok(acknowledge(false))
                }
                _ => Err(malformed()),
            },
            request::GET_STATUS if chose(VhostUserProtocolFeatures::STATUS) => {
                Ok(Some(message.answer(messages.session.status.into())))
            }
            // An eventfd by which the kernel's vhost would report on its log; there is nothing to report.
            request::SET_LOG_FD => Ok(acknowledge(false)),
            // QEMU enables its rings as soon as the device exists, before there is a driver to agree on features.
            request::SET_VRING_ENABLE if !messages.session.features().has(Features::PROTOCOL_FEATURES) => {
                match message.ring_state() {
                    Some((index, on @ 0..=1)) => messages.session.enable(index, on == 1).map(|()| acknowledge(false)),
                    _ => Err(malformed()),
                }
            }
            _ => return None,
        })
    }

    /// Lets the crate carry a message out: its answer, if there is one, and whether the connection may go on.
    fn pass_on(&mut self, message: Message) -> (Option<Vec<u8>>, Result<(), Offence>) {
        let request = message.request();
        let name = Name(request);
        let sent = socket::send(self.near.as_fd(), &message.bytes, &message.fds);
        if sent.as_ref().ok() != Some(&message.bytes.len()) {
            return (None, Err(Offence::new(format_args!("{name} could not be passed on: {sent:?}"))));
        }
        drop(message);
        let done = self.crate_side.handle_request().map_err(|error| {
            let offence = self.messages().take_offence();
            offence.unwrap_or_else(|| Offence::new(format_args!("{name}: {error}")))
        });
        let mut answer = [0; 8192];
        let answer = self.near.read(&mut answer).ok().map(|bytes| answer[..bytes].to_vec());
        (answer, done)
    }

    /// Answers are short, and a peer waits for each: one that has left so many unread that the socket is full never will.
    fn send(&mut self, answer: &[u8]) -> Result<(), Offence> {
        match self.socket.write(answer) {
            Ok(bytes) if bytes == answer.len() => Ok(()),
            // That it left shows when it is read.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            Ok(_) | Err(_) => Err(Offence::new("it does not read its answers")),
        }
    }

    pub(super) fn messages(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// All rings are back before the peer sees the end.
impl Drop for Connection {
    fn drop(&mut self) {
        self.messages().session.stop_all();
        self.device.set_up(false);
    }
}
