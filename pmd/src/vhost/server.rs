//! One thread for the connections of all `vhost:` ports of the process. It begins with the first port and ends with the
//! last.
//!
//! It never waits for one peer alone: sockets do not block, messages are taken when they are whole, and only a worker that
//! is to let go of a ring is waited for, for a second at most.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::Level;
use spinwake::irq::Vector;
use spinwake::sys::epoll::{Epoll, Events, Trigger, Woken};

use super::connection::{Connection, End};
use super::device::Device;
use super::door::Door;
use super::session::Offence;

/// A wait's bound while nothing is due: should a wake-up ever be lost, this finds the work.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long a door stays shut when the process has no descriptors for another peer, or one that we called meant no good.
const PAUSE: Duration = Duration::from_secs(1);

static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());

/// The thread, as ports know it.
#[derive(Debug)]
pub(super) struct Server {
    shared: Arc<Shared>,
    next_id: AtomicU32,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    inbox: Mutex<Vec<Request>>,
    /// A request, or a ring that was lost.
    alarm: Arc<Vector>,
}

#[derive(Debug)]
enum Request {
    Serve(u32, Arc<Device>, Door),
    /// Closes the connection that there is; the peer may come again, and finds another offer.
    Hang(u32),
    /// Closes connection and door, and says when that is done.
    End(u32, Sender<()>),
    Stop,
}

/// A port's place with the server. Dropping it closes the connection and the door.
#[derive(Debug)]
pub(super) struct Service {
    server: Arc<Server>,
    id: u32,
}

impl Server {
    /// The process's server.
    ///
    /// # Errors
    ///
    /// When there is no thread or descriptor for it.
    pub(super) fn get() -> io::Result<Arc<Self>> {
        let mut current = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = current.upgrade() {
            return Ok(server);
        }
        let shared = Arc::new(Shared { inbox: Mutex::default(), alarm: Arc::new(Vector::new()?) });
        let desk = Desk::new(shared.clone())?;
        let thread = std::thread::Builder::new().name("vhost-server".into()).spawn(move || desk.run())?;
        let server = Arc::new(Self { shared, next_id: AtomicU32::new(1), thread: Mutex::new(Some(thread)) });
        *current = Arc::downgrade(&server);
        Ok(server)
    }

    /// Wakes the thread: for slots that lose a ring.
    pub(super) fn alarm(&self) -> &Arc<Vector> {
        &self.shared.alarm
    }

    /// Serves the peers that come by `door`.
    pub(super) fn serve(self: &Arc<Self>, device: Arc<Device>, door: Door) -> Service {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.shared.ask(Request::Serve(id, device, door));
        Service { server: self.clone(), id }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ask(Request::Stop);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It panicked if this fails, and has said so.
            let _ = thread.join();
        }
    }
}

impl Service {
    /// Closes the connection, so that the peer comes again and finds what is offered now.
    pub(super) fn hang_up(&self) {
        self.server.shared.ask(Request::Hang(self.id));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let (done, wait) = channel();
        self.server.shared.ask(Request::End(self.id, done));
        // An error means that the thread has ended, and with it the connection.
        let _ = wait.recv();
    }
}

impl Shared {
    fn ask(&self, request: Request) {
        self.inbox().push(request);
        self.alarm.signal(1);
    }

    fn inbox(&self) -> MutexGuard<'_, Vec<Request>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's own.
struct Desk {
    shared: Arc<Shared>,
    epoll: Epoll,
    ports: Vec<Served>,
}

/// One port's peers.
struct Served {
    id: u32,
    device: Arc<Device>,
    door: Door,
    connection: Option<Connection>,
    /// The door is watched: while a peer is here, the next one waits in the kernel's queue.
    watched: bool,
    /// The door stays shut until then.
    paused_until: Option<Instant>,
}

const ALARM: u64 = 0;

/// The keys of a port's door and connection; ids start at 1.
fn key_of_door(id: u32) -> u64 {
    u64::from(id) << 1
}

fn key_of_connection(id: u32) -> u64 {
    u64::from(id) << 1 | 1
}

impl Desk {
    fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(shared.alarm.as_fd(), ALARM, Trigger::Edge)?;
        Ok(Self { shared, epoll, ports: Vec::new() })
    }

    fn run(mut self) {
        let mut events = Events::new(64);
        loop {
            let now = Instant::now();
            let due = self.ports.iter().filter_map(Served::due).min();
            let timeout = due.map_or(LONGEST_WAIT, |due| due.saturating_duration_since(now).min(LONGEST_WAIT));
            // Its descriptor and buffer are ours: there is nothing that could fail.
            let woken = self.epoll.wait(&mut events, timeout).unwrap_or(Woken::Interrupted);
            if !self.requests() {
                return;
            }
            let now = Instant::now();
            for port in &mut self.ports {
                let spoken = woken != Woken::TimedOut && events.keys().any(|key| key == key_of_connection(port.id));
                port.turn(&self.epoll, now, spoken);
            }
        }
    }

    /// Carries out what ports ask; `false` when that is to end.
    fn requests(&mut self) -> bool {
        for request in std::mem::take(&mut *self.shared.inbox()) {
            match request {
                Request::Serve(id, device, door) => {
                    let (connection, watched, paused_until) = (None, false, None);
                    self.ports.push(Served { id, device, door, connection, watched, paused_until });
                }
                Request::Hang(id) => {
                    for port in self.ports.iter_mut().filter(|port| port.id == id) {
                        port.hang_up(&self.epoll);
                    }
                }
                Request::End(id, done) => {
                    for port in self.ports.iter_mut().filter(|port| port.id == id) {
                        port.hang_up(&self.epoll);
                        port.watch(&self.epoll, false);
                    }
                    self.ports.retain(|port| port.id != id);
                    // A port that is not waited for is gone all the same.
                    let _ = done.send(());
                }
                Request::Stop => return false,
            }
        }
        true
    }
}

impl Served {
    /// When it wants its turn, whatever happens.
    fn due(&self) -> Option<Instant> {
        match &self.connection {
            Some(connection) => connection.deadline(),
            None => self.paused_until.or_else(|| self.door.due()),
        }
    }

    fn turn(&mut self, epoll: &Epoll, now: Instant, spoken: bool) {
        if let Some(connection) = &mut self.connection {
            let served = if spoken { connection.serve(now) } else { Ok(()) };
            match served.and_then(|()| connection.check(now).map_err(End::from)) {
                Ok(()) => return,
                Err(End::Left) => self.device.say(Level::Info, "the peer has left"),
                Err(End::Offence(offence)) => {
                    self.blame(&offence);
                    // One that we call would do it again at once.
                    self.paused_until = self.door.due().map(|_| now + PAUSE);
                }
            }
            self.hang_up(epoll);
        }
        if self.paused_until.is_some_and(|until| now < until) {
            return;
        }
        self.paused_until = None;
        match self.door.next(now) {
            Ok(None) => self.watch(epoll, true),
            Ok(Some(socket)) => {
                self.device.counts.connections.fetch_add(1, Ordering::Relaxed);
                let key = key_of_connection(self.id);
                let connection = Connection::new(self.device.clone(), socket, now);
                let watched = connection.and_then(|connection| {
                    epoll.add(connection.as_fd(), key, Trigger::Level)?;
                    Ok(connection)
                });
                match watched {
                    Ok(connection) => {
                        log::debug!("{}: a peer has come", self.device.name);
                        self.watch(epoll, false);
                        self.connection = Some(connection);
                    }
                    Err(error) => self.pause(epoll, now, &error),
                }
            }
            Err(error) => self.pause(epoll, now, &error),
        }
    }

    /// The one clear line.
    fn blame(&self, offence: &Offence) {
        self.device.counts.offences.fetch_add(1, Ordering::Relaxed);
        self.device.say(Level::Warn, format_args!("the peer's connection is closed: {offence}"));
    }

    fn pause(&mut self, epoll: &Epoll, now: Instant, error: &io::Error) {
        let limit = "raise the limit on open files (ulimit -n)";
        self.device.say(Level::Warn, format_args!("no peer can be served: {error}; {limit}"));
        self.watch(epoll, false);
        self.paused_until = Some(now + PAUSE);
    }

    fn hang_up(&mut self, epoll: &Epoll) {
        if let Some(connection) = self.connection.take() {
            // It was added, and is open: there is nothing that could fail.
            let _ = epoll.remove(connection.as_fd());
        }
    }

    fn watch(&mut self, epoll: &Epoll, on: bool) {
        let Some(listener) = self.door.listener().filter(|_| self.watched != on) else { return };
        let done = if on { epoll.add(listener, key_of_door(self.id), Trigger::Level) } else { epoll.remove(listener) };
        match done {
            Ok(()) => self.watched = on,
            // Then a peer is found when the longest wait is over.
            Err(error) => self.device.say(Level::Warn, format_args!("its socket cannot be waited for: {error}")),
        }
    }
}
