//! The sources of one worker as the kernel sees them: one epoll set.
//!
//! Vectors, relays and wakers are registered edge-triggered and never read: each signal counts once, and a wake costs no system
//! call but the one that slept. A program's own descriptors are registered level-triggered, so that what it leaves
//! unread is not forgotten.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::counters::SourceWakes;
use super::{EachSource, Relay, Source, Wake, Waker};
use crate::irq::{IrqKind, Vector};
use crate::sys::epoll::{Epoll, Events, Trigger, Woken};
use crate::telemetry::Counter;

/// The key of the sounder's event, which is no source's.
const SOUNDER: u64 = u64::MAX;

/// What ends a sleep.
#[derive(Debug)]
enum Event {
    Vector(Arc<Vector>),
    Relay(Arc<Relay>),
    Waker(Arc<Waker>),
    Fd(Arc<OwnedFd>),
}

impl Event {
    fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        Ok(match self {
            Self::Vector(vector) => vector.as_fd(),
            Self::Relay(relay) => relay.as_fd(),
            Self::Waker(waker) => waker.vector()?.as_fd(),
            Self::Fd(fd) => fd.as_fd(),
        })
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Vector(a), Self::Vector(b)) => Arc::ptr_eq(a, b),
            (Self::Relay(a), Self::Relay(b)) => Arc::ptr_eq(a, b),
            (Self::Waker(a), Self::Waker(b)) => Arc::ptr_eq(a, b),
            (Self::Fd(a), Self::Fd(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// How one source takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// By the event with this key.
    Event(usize),
    /// By its deadline.
    Deadline,
    /// Not at all.
    Deaf,
}

/// Where a source's work comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A device, by its vector or its relay.
    Device,
    /// Other threads, now and then: requests.
    Control,
    /// The clock.
    Clock,
    /// Anybody else: another worker, a file descriptor, a device that cannot wake.
    Other,
}

/// A source that cannot wake its worker, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Deaf {
    pub(super) label: String,
    pub(super) why: String,
}

/// All sources of a worker.
#[derive(Debug)]
pub(super) struct SourceSet {
    epoll: Epoll,
    ready: Events,
    events: Vec<Event>,
    wakes: Vec<Arc<SourceWakes>>,
    parts: Vec<Part>,
    deaf: Vec<Deaf>,
    has_fds: bool,
    has_lines: bool,
    has_sounder: bool,
    needs_heavy_fence: bool,
}

impl SourceSet {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            ready: Events::new(1),
            events: Vec::new(),
            wakes: Vec::new(),
            parts: Vec::new(),
            deaf: Vec::new(),
            has_fds: false,
            has_lines: false,
            has_sounder: false,
            needs_heavy_fence: false,
        })
    }

    /// Takes in what a sounder ends sleeps by, for good; before the first refresh.
    pub(super) fn add_sounder(&mut self, vector: &Vector) -> io::Result<()> {
        self.epoll.add(vector.as_fd(), SOUNDER, Trigger::Edge)?;
        self.has_sounder = true;
        Ok(())
    }

    /// Takes in the sources that `each` visits instead of those of before. On an error the set holds some of them.
    pub(super) fn refresh(&mut self, each: EachSource<'_>) -> Result<(), (String, io::Error)> {
        for event in self.events.drain(..) {
            // It was added, and is open: there is nothing that could fail.
            let _ = event.fd().and_then(|fd| self.epoll.remove(fd));
        }
        let mut known = std::mem::take(&mut self.wakes);
        (self.parts, self.deaf) = (Vec::new(), Vec::new());
        (self.has_fds, self.has_lines, self.needs_heavy_fence) = (false, false, false);
        let mut failed = None;
        each(&mut |source| {
            if failed.is_none() {
                failed = self.add(source.label(), source.wake()).err();
            }
        });
        // Those that stay keep their count; of several that have one name, each keeps one.
        for source in &mut self.wakes {
            let is_same = |known: &Arc<SourceWakes>| known.label == source.label && known.how == source.how;
            if let Some(at) = known.iter().position(is_same) {
                *source = known.remove(at);
            }
        }
        self.ready = Events::new((self.events.len() + usize::from(self.has_sounder)).max(1));
        // What fired before is no wake-up: its edges are seen here. Never by reading it: other workers may wait for the
        // same vector, and one that is empty by the time they run does not wake them.
        self.wait(Duration::ZERO, each);
        failed.map_or(Ok(()), Err)
    }

    fn add(&mut self, label: String, wake: Wake) -> Result<(), (String, io::Error)> {
        let (event, how) = match wake {
            Wake::Vector(vector, kind) => {
                self.has_lines |= kind == IrqKind::Intx;
                (Event::Vector(vector), by_vector(kind))
            }
            Wake::Peer(vector) => (Event::Vector(vector), "by its peer's eventfd"),
            Wake::Relay(relay) => (Event::Relay(relay), "by its peer's eventfd"),
            Wake::Waker(waker) => (Event::Waker(waker), "by a signal of the thread that has work for it"),
            Wake::Fd(fd) => (Event::Fd(fd), "by becoming readable"),
            Wake::At(_) => {
                self.parts.push(Part::Deadline);
                self.wakes.push(noted(label, "by its deadline".into()));
                return Ok(());
            }
            Wake::Never(why) => {
                self.parts.push(Part::Deaf);
                self.wakes.push(noted(label.clone(), why.to_string()));
                self.deaf.push(Deaf { label, why: why.into_owned() });
                return Ok(());
            }
        };
        self.wakes.push(noted(label.clone(), how.into()));
        if let Some(key) = self.events.iter().position(|known| known.is_same(&event)) {
            self.parts.push(Part::Event(key));
            return Ok(());
        }
        let trigger = match &event {
            Event::Vector(_) | Event::Relay(_) => Trigger::Edge,
            Event::Waker(waker) => {
                self.needs_heavy_fence |= waker.needs_heavy_fence();
                Trigger::Edge
            }
            Event::Fd(_) => {
                self.has_fds = true;
                Trigger::Level
            }
        };
        let key = self.events.len();
        event.fd().and_then(|fd| self.epoll.add(fd, key as u64, trigger)).map_err(|source| (label, source))?;
        self.events.push(event);
        self.parts.push(Part::Event(key));
        Ok(())
    }

    /// How the source at `index` takes part; sources that came after the last refresh do not.
    pub(super) fn part(&self, index: usize) -> Part {
        self.parts.get(index).copied().unwrap_or(Part::Deaf)
    }

    /// The sources' names and wakes, in their order.
    pub(super) fn wakes(&self) -> &[Arc<SourceWakes>] {
        &self.wakes
    }

    /// Those that cannot wake.
    pub(super) fn deaf(&self) -> &[Deaf] {
        &self.deaf
    }

    /// Who wakes by the source at `index`.
    pub(super) fn waker_of(&self, index: usize) -> Origin {
        match self.part(index) {
            Part::Event(key) => match self.events.get(key) {
                Some(Event::Vector(_) | Event::Relay(_)) => Origin::Device,
                Some(Event::Waker(waker)) if !waker.needs_heavy_fence() => Origin::Control,
                _ => Origin::Other,
            },
            Part::Deadline => Origin::Clock,
            Part::Deaf => Origin::Other,
        }
    }

    /// The place of the only source whose work may come at any moment; `None` when there are several. Timers are known
    /// ahead, and a control plane's requests can wait.
    pub(super) fn only_source(&self) -> Option<usize> {
        let mut urgent =
            (0..self.parts.len()).filter(|&index| matches!(self.waker_of(index), Origin::Device | Origin::Other));
        urgent.next().filter(|_| urgent.next().is_none())
    }

    /// Whether any is a program's own descriptor.
    pub(super) fn has_fds(&self) -> bool {
        self.has_fds
    }

    /// Whether any is woken by INTx, whose line is masked until its source is told that it fired.
    pub(super) fn has_lines(&self) -> bool {
        self.has_lines
    }

    /// Whether arming takes effect only with the heavy fence.
    pub(super) fn needs_heavy_fence(&self) -> bool {
        self.needs_heavy_fence
    }

    /// Blocks until an event comes, at most `limit`, and tells the sources whose event it was. There is no other way to
    /// consume an event: a source that is not told of one may never fire again.
    pub(super) fn wait(&mut self, limit: Duration, each: EachSource<'_>) -> Woken {
        // It fails only for a bad descriptor or buffer, and these are ours. As a limit of zero it stays bounded.
        let woken = self.epoll.wait(&mut self.ready, limit).unwrap_or(Woken::TimedOut);
        if let Woken::Ready(_) = woken {
            visit(each, &mut |index, source| {
                if self.has_fired(index) {
                    source.fired();
                }
            });
        }
        woken
    }

    /// Whether the source at `index` is among those whose event came with the last wait.
    pub(super) fn has_fired(&self, index: usize) -> bool {
        matches!(self.part(index), Part::Event(key) if self.ready.keys().any(|ready| ready == key as u64))
    }

    /// Whether the sounder's event is among those that came with the last wait.
    #[inline]
    pub(super) fn sounded(&self) -> bool {
        self.has_sounder && self.ready.keys().any(|ready| ready == SOUNDER)
    }

    /// When the first of the wakers whose event came with the last wait was signalled, in ticks.
    pub(super) fn signalled_at(&self) -> Option<u64> {
        let stamp = |key: u64| match self.events.get(key as usize) {
            Some(Event::Waker(waker)) => Some(waker.signalled_at()),
            _ => None,
        };
        self.ready.keys().filter_map(stamp).min()
    }
}

impl AsFd for SourceSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Visits the sources with their place in the order.
pub(super) fn visit(each: EachSource<'_>, to: &mut dyn FnMut(usize, &mut dyn Source)) {
    let mut index = 0;
    each(&mut |source| {
        to(index, source);
        index += 1;
    });
}

fn noted(label: String, how: String) -> Arc<SourceWakes> {
    Arc::new(SourceWakes { label, how, wakes: Counter::default() })
}

fn by_vector(kind: IrqKind) -> &'static str {
    match kind {
        IrqKind::Intx => "by INTx",
        IrqKind::Msi => "by MSI",
        IrqKind::Msix => "by MSI-X",
    }
}
