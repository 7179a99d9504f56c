//! What the thread that serves a peer's connection and the worker that owns a queue exchange: one ring, used by one of
//! them at a time.
//!
//! ```text
//! connection:  offer ───────────▶ withdraw ── waits ──▶ position
//!                │                    │          ▲
//! worker:        └─▶ exchange ── runs ┴▶ changed ┴ exchange, or put_back when its queue is dropped
//! ```

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use spinwake::irq::Vector;
use spinwake::mem::{DirtyLog, PeerArea, PeerMemory};
use spinwake::wait::{Loan, Recalled, Relay, Wake};

use crate::virtio::features::Features;
pub(super) use crate::virtio::ring::RingKind;

/// What the worker needs to run a ring. Addresses have been translated and checked: areas lie inside `memory`, aligned,
/// whole.
#[derive(Debug)]
pub(super) struct RingConfig {
    pub(super) kind: RingKind,
    /// Descriptors; for a split ring a power of two, 32,768 at most.
    pub(super) len: u16,
    /// Where to go on.
    pub(super) position: Position,
    /// A worker that was late let `position` be known last: if it has the ring still, it may have got further.
    pub(super) is_behind: bool,
    pub(super) memory: Arc<PeerMemory>,
    /// Descriptors, driver area, device area.
    pub(super) areas: [PeerArea; 3],
    /// What was agreed on.
    pub(super) features: Features,
    /// How the peer is told; `None`: it polls.
    pub(super) call: Option<Arc<Vector>>,
    /// Where to note which pages were written, while the peer wants to know.
    pub(super) log: Option<Arc<DirtyLog>>,
    /// The guest address by which writes to the device area (split: the used ring) are to be noted; `None`: not at all.
    pub(super) log_used_at: Option<u64>,
}

/// Where the device's half of a ring stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    /// The next entry of the available ring, counting on beyond its length. All before it have been used.
    Split {
        /// Free-running.
        next: u16,
    },
    /// The next descriptor to look at and the next to write, with their wrap counters.
    Packed {
        /// Below the ring's length.
        avail: u16,
        /// Starts as one.
        avail_wrap: bool,
        /// Below the ring's length.
        used: u16,
        /// Starts as one.
        used_wrap: bool,
    },
}

impl Position {
    /// The start of a ring.
    pub(super) fn start(kind: RingKind) -> Self {
        match kind {
            RingKind::Split => Self::Split { next: 0 },
            RingKind::Packed => Self::Packed { avail: 0, avail_wrap: true, used: 0, used_wrap: true },
        }
    }

    /// As `VHOST_USER_SET_VRING_BASE` has it. For a packed ring that is, from bit 0: 15 bits of the available position,
    /// its wrap counter, and the same of the used position.
    pub(super) fn from_base(kind: RingKind, base: u32) -> Self {
        match kind {
            RingKind::Split => Self::Split { next: base as u16 },
            RingKind::Packed => Self::Packed {
                avail: (base & 0x7fff) as u16,
                avail_wrap: base & 1 << 15 != 0,
                used: (base >> 16 & 0x7fff) as u16,
                used_wrap: base & 1 << 31 != 0,
            },
        }
    }

    /// Where a peer says that a ring shall go on. DPDK's front end leaves the used half of a packed ring's base zero, as its
    /// back end does: whoever stops a ring has used all that was available.
    pub(super) fn resumed(kind: RingKind, base: u32) -> Self {
        match kind {
            RingKind::Packed if base >> 16 == 0 => Self::from_base(kind, base | base << 16),
            _ => Self::from_base(kind, base),
        }
    }

    /// As `VHOST_USER_GET_VRING_BASE` answers.
    pub(super) fn base(self) -> u32 {
        match self {
            Self::Split { next } => next.into(),
            Self::Packed { avail, avail_wrap, used, used_wrap } => {
                let half = |at: u16, wrap: bool| u32::from(at & 0x7fff) | u32::from(wrap) << 15;
                half(avail, avail_wrap) | half(used, used_wrap) << 16
            }
        }
    }

    /// Whether a ring of `len` descriptors has such a place.
    pub(super) fn is_in(self, len: u16) -> bool {
        match self {
            Self::Split { .. } => true,
            Self::Packed { avail, used, .. } => avail < len && used < len,
        }
    }
}

/// Why a worker gave up a ring: what the peer wrote there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RingOffence {
    /// What was wrong, as the end of "ring 3: ".
    pub(super) what: &'static str,
    /// The number that the peer wrote.
    pub(super) value: u64,
}

/// One virtqueue, between the thread that serves connections and the worker that owns the queue.
#[derive(Debug)]
pub(super) struct RingSlot {
    loan: Loan<RingConfig, Position>,
    relay: Arc<Relay>,
    /// The worker's last [`publish`](Self::publish), as a base.
    published: AtomicU32,
    lost: Mutex<Option<RingOffence>>,
    /// Wakes the thread that serves connections.
    alarm: Arc<Vector>,
}

/// The worker's side.
impl RingSlot {
    /// What a queue has seen that has just been made.
    pub(super) const UNSEEN: u32 = Loan::<RingConfig, Position>::UNSEEN;

    /// Whether the queue must [exchange](Self::exchange): one load, to be asked at the top of each burst and in
    /// `Source::pending`.
    #[inline]
    pub(super) fn changed(&self, seen: u32) -> bool {
        self.loan.changed(seen)
    }

    /// The queue gives up what it ran, by its position, and gets what it shall run now; `None`: nothing. The old
    /// configuration must not be used any more.
    pub(super) fn exchange(&self, seen: &mut u32, position: Option<Position>) -> Option<RingConfig> {
        let config = self.loan.exchange(seen, position);
        if let Some(config) = &config {
            self.publish(config.position);
        }
        config
    }

    /// Notes where the queue stands, at the end of a burst that moved it: all that is known if it does not come back.
    #[inline]
    pub(super) fn publish(&self, position: Position) {
        self.published.store(position.base(), Ordering::Relaxed);
    }

    /// The queue is dropped: the next one goes on where it stood.
    pub(super) fn put_back(&self, seen: u32, config: RingConfig, position: Position) {
        self.loan.put_back(seen, RingConfig { position, is_behind: false, ..config }, position);
    }

    /// The queue found that its ring makes no sense. The connection is closed; the queue runs the ring no longer, and
    /// lets go of it when that [changes](Self::changed).
    pub(super) fn lost(&self, why: RingOffence) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.alarm.signal(1);
    }

    /// What ends the sleep of the queue's worker: the present peer's kicks, and changes of the slot. Never read: there is
    /// nothing to be done in `Source::fired`.
    pub(super) fn wake(&self) -> Wake {
        Wake::Relay(self.relay.clone())
    }
}

/// The connection's side.
impl RingSlot {
    /// A slot without a ring. `alarm` is fired when a worker loses one.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors.
    pub(super) fn new(alarm: Arc<Vector>) -> io::Result<Self> {
        Ok(Self {
            loan: Loan::new(),
            relay: Arc::new(Relay::new()?),
            published: AtomicU32::new(0),
            lost: Mutex::new(None),
            alarm,
        })
    }

    /// From now on the queue runs this ring. The one before must have been withdrawn.
    pub(super) fn offer(&self, config: RingConfig) {
        self.loan.lend(config, || self.relay.signal());
    }

    /// Takes the ring back: wakes the worker, and waits until it let go of it. Where it stands then; `None` when there was
    /// none.
    ///
    /// A worker that does not let go in time holds the peer's memory mapped until it does. Its place is then what it last
    /// published.
    pub(super) fn withdraw(&self, kind: RingKind, deadline: Instant) -> Option<Withdrawn> {
        Some(match self.loan.recall(deadline, || self.relay.signal()) {
            Recalled::Nothing => return None,
            Recalled::Unused(RingConfig { position, is_behind, .. }) => Withdrawn { position, is_behind, late: false },
            Recalled::Returned(position) => Withdrawn { position, is_behind: false, late: false },
            Recalled::Late => {
                let position = Position::from_base(kind, self.published.load(Ordering::Relaxed));
                Withdrawn { position, is_behind: true, late: true }
            }
        })
    }

    /// Wakes the worker by this eventfd of the peer from now on.
    ///
    /// # Errors
    ///
    /// When the kernel cannot wait for it.
    pub(super) fn follow(&self, kick: Option<Arc<Vector>>) -> io::Result<()> {
        self.relay.follow(kick)
    }

    /// Why a worker gave its ring up, told once.
    pub(super) fn take_lost(&self) -> Option<RingOffence> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A ring that was taken back from its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Withdrawn {
    /// Where it stands.
    pub(super) position: Position,
    /// As in [`RingConfig`].
    pub(super) is_behind: bool,
    /// The worker did not let go in time.
    pub(super) late: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_says_where_a_ring_stands() {
        for (kind, position, base) in [
            (RingKind::Split, Position::Split { next: 0xfffe }, 0xfffe),
            (RingKind::Packed, Position::start(RingKind::Packed), 0x8000_8000),
            (
                RingKind::Packed,
                Position::Packed { avail: 5, avail_wrap: false, used: 0x7fff, used_wrap: true },
                0xffff_0005,
            ),
        ] {
            assert_eq!(position.base(), base, "{position:?}");
            assert_eq!(Position::from_base(kind, base), position);
        }
        assert_eq!(Position::resumed(RingKind::Packed, 0x8005).base(), 0x8005_8005);
        assert_eq!(Position::resumed(RingKind::Packed, 0x8007_8005).base(), 0x8007_8005);
        assert!(!Position::from_base(RingKind::Packed, 256).is_in(256));
        assert!(Position::from_base(RingKind::Split, 0xffff).is_in(256));
    }
}
