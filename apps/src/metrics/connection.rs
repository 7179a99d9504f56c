//! One client, from its first byte to its last.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::http::{Answer, HEAD_MAX, Request};
use super::listener::Stream;

/// What a client has from start to end, whatever it does. On a loopback a scrape takes a millisecond.
const LIMIT: Duration = Duration::from_secs(5);

/// Bytes that are thrown away after the answer, for clients that send more than was asked: closing on unread bytes resets
/// the connection, and the client might lose the answer.
const SURPLUS_MAX: usize = 64 * 1024;

/// One client. Never blocks.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Stream,
    /// When it is closed at the latest.
    pub(super) deadline: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Reading what it asks for.
    Asked(Vec<u8>),
    /// Writing the answer, of which this much is out.
    Answering(Answer, usize),
    /// Waiting for it to close, having thrown this much away.
    Answered(usize),
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, deadline: Instant::now() + LIMIT, state: State::Asked(Vec::new()) }
    }

    /// Does what can be done without waiting for the client. Returns whether the connection is over.
    pub(super) fn advance(&mut self, mut metrics: impl FnMut() -> Arc<[u8]>) -> bool {
        loop {
            match self.step(&mut metrics) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return false,
                    io::ErrorKind::Interrupted => {}
                    _ => return true,
                },
            }
        }
    }

    /// One read or write. Returns whether it was the last.
    fn step(&mut self, metrics: &mut impl FnMut() -> Arc<[u8]>) -> io::Result<bool> {
        match &mut self.state {
            State::Asked(bytes) => {
                let mut chunk = [0; 1024];
                let room = chunk.len().min(HEAD_MAX - bytes.len());
                let len = self.stream.read(&mut chunk[..room])?;
                bytes.extend_from_slice(&chunk[..len]);
                match Request::parse(bytes) {
                    Some(request) => self.state = State::Answering(request.answer(metrics), 0),
                    None if len == 0 => return Ok(true),
                    None => {}
                }
            }
            State::Answering(answer, out) => {
                let (head, body) = (&answer.head, &answer.body);
                let rest = head.get(*out..).filter(|rest| !rest.is_empty());
                let rest = rest.unwrap_or_else(|| body.get(*out - head.len()..).unwrap_or_default());
                if rest.is_empty() {
                    self.stream.shutdown_write()?;
                    self.state = State::Answered(0);
                } else {
                    match self.stream.write(rest)? {
                        0 => return Ok(true),
                        len => *out += len,
                    }
                }
            }
            State::Answered(surplus) => {
                let mut chunk = [0; 1024];
                match self.stream.read(&mut chunk)? {
                    0 => return Ok(true),
                    len => *surplus += len,
                }
                if *surplus > SURPLUS_MAX {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
