//! The thread that answers.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use super::connection::Connection;
use super::listener::Listener;
use super::{Metrics, MetricsAddress, ServeError};

/// Clients that are served at a time. When more come, whoever has been there longest must go: a scrape is over long before.
const CLIENTS_MAX: usize = 64;

/// Clients let in between two looks at those who are in.
const ACCEPT_MAX: usize = 16;

/// How long one text is good enough, so that no client makes a worker's counters be read more often.
const TEXT_AGE_MAX: Duration = Duration::from_millis(20);

/// When to try again to let clients in, after that failed: the process is out of file descriptors, most likely.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

const LISTENER: Token = Token(CLIENTS_MAX);
const STOP: Token = Token(CLIENTS_MAX + 1);

/// Serves [`Metrics`] until it is dropped.
pub struct MetricsServer {
    address: MetricsAddress,
    stop: Waker,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Listens at `address`, and answers from now on with what `metrics` has at the time. The socket of a program that ended
    /// without removing it is replaced.
    ///
    /// # Errors
    ///
    /// When the address is taken or is none of this machine's, the path cannot be written or is no socket's, or there is no
    /// thread to be had. Nothing has changed then.
    pub fn start(address: &MetricsAddress, metrics: &Metrics) -> Result<Self, ServeError> {
        let mut listener = Listener::bind(address)?;
        let error = |source| ServeError::Thread { address: address.clone(), source };
        let poll = Poll::new().map_err(error)?;
        listener.register(poll.registry(), LISTENER).map_err(error)?;
        let stop = Waker::new(poll.registry(), STOP).map_err(error)?;
        let found = listener.address().map_err(error)?;
        let metrics = metrics.clone();
        let clients = [const { None }; CLIENTS_MAX];
        let server = Server { poll, listener, metrics, clients, text: None, failed: false };
        let thread = thread::Builder::new().name("metrics".into()).spawn(move || server.run());
        Ok(Self { address: found, stop, thread: Some(thread.map_err(error)?) })
    }

    /// Where it listens, with the port that was found where port 0 was asked for.
    pub fn address(&self) -> &MetricsAddress {
        &self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        // Writing to an eventfd of ours fails only when it is full, and then it wakes as well.
        let _ = self.stop.wake();
        if let Some(thread) = self.thread.take() {
            // If it panicked, standard error has said so.
            drop(thread.join());
        }
    }
}

impl fmt::Debug for MetricsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsServer").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What the thread owns.
struct Server {
    poll: Poll,
    listener: Listener,
    metrics: Metrics,
    clients: [Option<Connection>; CLIENTS_MAX],
    text: Option<(Instant, Arc<[u8]>)>,
    /// Letting clients in failed, and was reported.
    failed: bool,
}

impl Server {
    fn run(mut self) {
        let mut events = Events::with_capacity(CLIENTS_MAX + 2);
        // When to look for clients without being told.
        let mut look_at = None;
        loop {
            let deadlines = self.clients.iter().flatten().map(|client| client.deadline);
            let until = deadlines.chain(look_at).min();
            let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
            if let Err(error) = self.poll.poll(&mut events, timeout) {
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                log::warn!("metrics are no longer served: waiting for clients failed: {error}");
                return;
            }
            let mut look = look_at.is_some_and(|at| at <= Instant::now());
            for event in &events {
                match event.token() {
                    STOP => return,
                    LISTENER => look = true,
                    Token(slot) => self.advance(slot),
                }
            }
            self.close_late();
            if look {
                look_at = self.let_in().map(|pause| Instant::now() + pause);
            }
        }
    }

    /// Lets clients in, and says after which time to do so again unasked.
    fn let_in(&mut self) -> Option<Duration> {
        for _ in 0..ACCEPT_MAX {
            let mut stream = match self.listener.accept() {
                Ok(stream) => stream,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return None,
                    // It has gone again.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => continue,
                    _ => {
                        if !self.failed {
                            log::warn!("a client cannot read the metrics: {error}");
                            self.failed = true;
                        }
                        return Some(ACCEPT_RETRY);
                    }
                },
            };
            let slot = self.free_slot();
            if stream.register(self.poll.registry(), Token(slot)).is_ok() {
                self.clients[slot] = Some(Connection::new(stream));
                // Most have asked by now.
                self.advance(slot);
            }
        }
        Some(Duration::ZERO)
    }

    /// A slot for one more client, if need be that of the one who has been there longest.
    fn free_slot(&mut self) -> usize {
        // An empty one is older than any.
        let age = |slot: &usize| self.clients[*slot].as_ref().map(|client| client.deadline);
        let slot = (0..CLIENTS_MAX).min_by_key(age).unwrap_or(0);
        self.clients[slot] = None;
        slot
    }

    /// Does what can be done for a client. Its event may be one of a predecessor in that slot, and then there is nothing.
    fn advance(&mut self, slot: usize) {
        let Self { clients, metrics, text, .. } = self;
        if let Some(client) = &mut clients[slot]
            && client.advance(|| current(text, metrics))
        {
            clients[slot] = None;
        }
    }

    fn close_late(&mut self) {
        let now = Instant::now();
        for client in &mut self.clients {
            client.take_if(|client| client.deadline <= now);
        }
    }
}

/// The text, made anew if it is too old.
fn current(text: &mut Option<(Instant, Arc<[u8]>)>, metrics: &Metrics) -> Arc<[u8]> {
    if let Some((made_at, text)) = text
        && made_at.elapsed() < TEXT_AGE_MAX
    {
        return Arc::clone(text);
    }
    let new: Arc<[u8]> = metrics.text().into_bytes().into();
    *text = Some((Instant::now(), Arc::clone(&new)));
    new
}
