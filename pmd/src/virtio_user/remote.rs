//! The back end as everybody on this side sees it: whether it is there, what it has been given, and what became of it.
//!
//! ```text
//! generation   odd: no back end has the rings; each queue that sees it takes its buffers back and acknowledges
//!              even: a back end runs the rings; it becomes so once all queues have acknowledged
//! ```

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::Level;
use spinwake::device::DeviceError;
use spinwake::dma::{TableRegion, TableUser};
use spinwake::irq::Vector;

use super::channel::Failure;
use super::ring::Ring;
use super::run::Run;
use super::session::Session;
use crate::virtio::features::Features;
use crate::voice::Voice;

/// What has happened on the socket.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Times that a back end went away while its rings ran.
    pub(super) outages: AtomicU64,
    /// Connections that were closed because the back end broke the protocol.
    pub(super) offences: AtomicU64,
    /// Frames to send that were in a back end's hands when it went.
    pub(super) lost: AtomicU64,
}

/// What is known of the back end.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) name: String,
    generation: AtomicU32,
    /// Wakes the thread that looks after the socket.
    pub(super) alarm: Vector,
    /// Fires when the back end comes or goes.
    pub(super) link: Arc<Vector>,
    pub(super) counts: Counts,
    voice: Voice,
    /// The port is no more.
    ended: AtomicBool,
    state: Mutex<State>,
    arrived: Condvar,
}

/// # Invariant
///
/// With an even generation there is a session and a run.
#[derive(Debug, Default)]
struct State {
    session: Option<Session>,
    /// Memory that a back end is to have.
    table: Vec<TableRegion>,
    run: Option<Run>,
    /// What was said last about connections that came to nothing: it is not said again.
    complaint: String,
    /// The port waits for its first back end, and has an error to say so.
    opening: bool,
}

impl Remote {
    /// `opening` says that somebody will [`wait`](Self::wait) for the first back end.
    pub(super) fn new(name: &str, opening: bool) -> io::Result<Self> {
        Ok(Self {
            name: name.into(),
            generation: AtomicU32::new(1),
            alarm: Vector::new()?,
            link: Arc::new(Vector::new()?),
            counts: Counts::default(),
            voice: Voice::default(),
            ended: AtomicBool::new(false),
            state: Mutex::new(State { opening, ..State::default() }),
            arrived: Condvar::new(),
        })
    }

    /// See the module's drawing.
    #[inline(always)]
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether a back end runs the rings.
    pub(super) fn is_up(&self) -> bool {
        self.generation().is_multiple_of(2)
    }

    /// Whether the thread is to end.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends it all.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        let state = &mut *self.lock();
        // Queues may live on, and take their buffers back as soon as there is no session: by then the back end must have
        // let go of them.
        if self.is_up()
            && let State { session: Some(session), run: Some(run), .. } = state
            && let Err(failure) = run.living().try_for_each(|ring| session.stop(ring.index))
        {
            log::debug!("{}: the back end {failure}", self.name);
        }
        self.drop_session(state);
        self.alarm.signal(1);
    }

    /// Waits at most `limit` for a back end; what it offers, and how many pairs of queues it has, or why there is none.
    pub(super) fn wait(&self, limit: Duration) -> Result<(Features, u16), String> {
        let nobody = |state: &mut State| state.session.is_none();
        let waited = self.arrived.wait_timeout_while(self.lock(), limit, nobody);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match &state.session {
            Some(session) => {
                let offer = (session.offered, session.pairs);
                state.opening = false;
                Ok(offer)
            }
            None if state.complaint.is_empty() => {
                Err("a program listens there and does not answer; does it serve another front end?".into())
            }
            None => Err(state.complaint.clone()),
        }
    }

    /// A back end is there. Returns its socket, to be watched.
    pub(super) fn arrive(&self, session: Session) -> Option<UnixStream> {
        let mut state = self.lock();
        if self.has_ended() {
            return None;
        }
        match session.stream() {
            Ok(stream) => {
                state.session = Some(session);
                self.arrived.notify_all();
                Some(stream)
            }
            Err(error) => {
                self.complain(&mut state, &format!("the socket cannot be watched: {error}"));
                None
            }
        }
    }

    /// No connection was made, or it came to nothing.
    pub(super) fn stay(&self, why: &str) {
        self.complain(&mut self.lock(), why);
    }

    /// A connection failed before it was one.
    pub(super) fn refuse(&self, failure: &Failure) {
        if failure.is_offence() {
            self.counts.offences.fetch_add(1, Ordering::Relaxed);
        }
        self.complain(&mut self.lock(), &format!("the back end {failure}"));
    }

    /// Looks after the connection: whether the back end is still there, and whether the rings can be given to it. Returns
    /// whether there still is one.
    pub(super) fn attend(&self) -> bool {
        let state = &mut *self.lock();
        let seen = state.session.as_ref().map_or(Ok(()), Session::look);
        let whole = || if self.is_up() { state.run.as_ref().map_or(Ok(()), Run::check) } else { Ok(()) };
        let seen = seen.and_then(|()| whole());
        if let Err(failure) = seen.and_then(|()| self.raise(state)) {
            self.fall(state, &failure);
        }
        state.session.is_some()
    }

    /// Begins a run. Rings run on return if a back end is there that can have them.
    pub(super) fn start(&self, run: Run) -> Result<(), Failure> {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.run = Some(run);
        match self.raise(state) {
            Err(failure @ Failure::Unfit(_)) => {
                let run = state.run.take();
                drop(guard);
                drop(run);
                Err(failure)
            }
            Err(failure) => {
                self.fall(state, &failure);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Ends the run, whose queues are gone. To be dropped by the caller: its memory's end needs the domain's lock, whose
    /// holder may wait for ours.
    pub(super) fn stop(&self) -> Option<Run> {
        let mut state = self.lock();
        if self.is_up() {
            self.generation.fetch_add(1, Ordering::Release);
            self.link.signal(1);
        }
        state.run.take()
    }

    /// Takes `ring`, whose queue is dropped, from the back end.
    pub(super) fn leave(&self, ring: &Ring) {
        let state = &mut *self.lock();
        ring.leave();
        if self.is_up()
            && let Some(session) = &mut state.session
            && let Err(failure) = session.stop(ring.index)
        {
            self.fall(state, &failure);
        }
        self.alarm.signal(1);
    }

    /// Gives the rings to the back end, if one is there and all queues have taken their buffers back.
    fn raise(&self, state: &mut State) -> Result<(), Failure> {
        let State { session: Some(session), run: Some(run), table, complaint, .. } = state else { return Ok(()) };
        let generation = self.generation();
        if self.is_up() || !run.rings().all(|ring| ring.is_quiet(generation)) {
            return Ok(());
        }
        let features = run.settle(session)?;
        session.begin(features, run.mtu())?;
        session.share(table)?;
        for ring in run.living() {
            session.place(ring)?;
        }
        session.run(run.living())?;
        complaint.clear();
        self.generation.store(generation.wrapping_add(1), Ordering::Release);
        run.wake();
        self.link.signal(1);
        self.voice.say(Level::Info, &self.name, "the back end has the rings");
        Ok(())
    }

    /// The connection ends.
    fn fall(&self, state: &mut State, failure: &Failure) {
        if failure.is_offence() {
            self.counts.offences.fetch_add(1, Ordering::Relaxed);
        }
        if self.is_up() {
            self.counts.outages.fetch_add(1, Ordering::Relaxed);
            let what = format_args!("the back end {failure}; no frames pass until it is back");
            self.voice.say(Level::Warn, &self.name, what);
        } else {
            self.complain(state, &format!("the back end {failure}"));
        }
        self.drop_session(state);
    }

    fn drop_session(&self, state: &mut State) {
        state.session = None;
        if self.is_up() {
            self.generation.fetch_add(1, Ordering::Release);
            self.link.signal(1);
        }
        state.run.iter().for_each(Run::wake);
        self.alarm.signal(1);
    }

    fn complain(&self, state: &mut State, what: &str) {
        if state.complaint != what {
            if !state.opening {
                self.voice.say(Level::Warn, &self.name, format_args!("{what}; trying again until it does"));
            }
            state.complaint = what.into();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TableUser for Remote {
    fn added(&self, _: &TableRegion, table: &[TableRegion]) -> Result<(), DeviceError> {
        let state = &mut *self.lock();
        let Some(session) = &mut state.session else {
            state.table = table.to_vec();
            return Ok(());
        };
        let told = if self.is_up() { session.share(table) } else { session.check_room(table) };
        match told {
            Err(failure @ (Failure::Unfit(_) | Failure::Refused { .. })) => Err(DeviceError::Call {
                device: self.name.clone(),
                call: "sharing memory with the back end",
                source: io::Error::other(format!("it {failure}")),
                hint: String::new(),
            }),
            told => {
                state.table = table.to_vec();
                if let Err(failure) = told {
                    self.fall(state, &failure);
                }
                Ok(())
            }
        }
    }

    fn removed(&self, _: &TableRegion, table: &[TableRegion]) {
        let state = &mut *self.lock();
        state.table = table.to_vec();
        let Some(session) = state.session.as_mut().filter(|session| session.has_memory()) else { return };
        if let Err(failure) = session.share(table) {
            self.fall(state, &failure);
        }
    }
}
