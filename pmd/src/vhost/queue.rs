//! What both directions of a queue have: the ring that a connection has given it, if any.

use std::sync::Arc;

use spinwake::mem::PeerView;
use spinwake::sys::relax::Watch;

use super::chain::Pieces;
use super::ring::{AnyRing, Batch, Ring};
use super::slot::{RingConfig, RingOffence, RingSlot};

/// A ring that a worker runs now.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) ring: AnyRing,
    /// The peer's memory.
    pub(super) view: PeerView,
}

/// What the slot has given to this queue.
#[derive(Debug)]
enum Held {
    /// No ring: there is no peer.
    Nothing,
    /// A ring that works.
    Ring(Box<Run>),
    /// A ring that made no sense.
    Lost(Box<RingConfig>),
}

/// A queue's end of its slot.
#[derive(Debug)]
pub(super) struct QueueEnd {
    label: String,
    slot: Arc<RingSlot>,
    seen: u32,
    held: Held,
    armed: bool,
}

/// What a burst works with besides the ring.
#[derive(Debug)]
pub(super) struct Hands {
    pub(super) batch: Batch,
    pub(super) pieces: Pieces,
}

impl Hands {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self { batch: Batch::new(), pieces: Pieces::new() })
    }
}

impl QueueEnd {
    pub(super) fn new(label: String, slot: Arc<RingSlot>) -> Self {
        Self { label, slot, seen: RingSlot::UNSEEN, held: Held::Nothing, armed: false }
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn slot(&self) -> &Arc<RingSlot> {
        &self.slot
    }

    /// The ring to run, after a look at whether it is still that one.
    #[inline(always)]
    pub(super) fn ring(&mut self) -> Option<&mut Run> {
        if self.slot.changed(self.seen) {
            self.exchange();
        }
        if let Held::Ring(run) = &mut self.held { Some(run) } else { None }
    }

    /// Whether the slot has another ring, or wants this one back.
    #[inline(always)]
    pub(super) fn changed(&self) -> bool {
        self.slot.changed(self.seen)
    }

    /// Whether the ring has a chain that was not taken.
    #[inline(always)]
    pub(super) fn has_chain(&self) -> bool {
        if let Held::Ring(run) = &self.held { run.ring.pending() } else { false }
    }

    /// What the driver writes when it puts a chain there.
    pub(super) fn watch(&self) -> Option<Watch<'_>> {
        if let Held::Ring(run) = &self.held { Some(run.ring.watch()) } else { None }
    }

    pub(super) fn arm(&mut self) {
        self.armed = true;
        if let Held::Ring(run) = &mut self.held {
            run.ring.arm();
        }
    }

    pub(super) fn disarm(&mut self) {
        self.armed = false;
        if let Held::Ring(run) = &mut self.held {
            run.ring.disarm();
        }
    }

    /// Ends a burst: shows the driver what is finished, tells it if it wants, and parts with a ring that makes no sense.
    #[inline(always)]
    pub(super) fn end_burst(&mut self, result: Result<(), RingOffence>) {
        let Held::Ring(run) = &mut self.held else { return };
        let wants_call = match &mut run.ring {
            AnyRing::Split(ring) => ring.publish(),
            AnyRing::Packed(ring) => ring.publish(),
        };
        if wants_call && let Some(call) = &run.ring.config().call {
            call.signal(1);
        }
        self.slot.publish(run.ring.position());
        if let Err(why) = result {
            self.lose(why);
        }
    }

    #[cold]
    #[inline(never)]
    fn lose(&mut self, why: RingOffence) {
        if let Some(config) = self.take() {
            self.held = Held::Lost(Box::new(config));
            // A ring that is wanted back is either looked at again or done with; if this burst was late, another peer may be
            // there already.
            if !self.slot.changed(self.seen) {
                self.slot.lost(why);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn exchange(&mut self) {
        // The memory goes before the slot hears that it was let go.
        let position = self.take().map(|config| config.position);
        let Some(mut config) = self.slot.exchange(&mut self.seen, position) else { return };
        if let Some(position) = position.filter(|_| config.is_behind) {
            // The same ring, wanted back during a burst that has ended since.
            config.position = position;
            self.slot.publish(position);
        }
        let view = PeerView::new(config.memory.clone());
        match AnyRing::new(config) {
            Ok(mut ring) => {
                if self.armed {
                    ring.arm();
                }
                // Its call descriptor may be new, and what the old one was not told the peer may have missed. Here, because
                // a peer can make the signal wait: that is for its worker, not for the thread that serves all peers.
                if let Some(call) = &ring.config().call {
                    call.signal(1);
                }
                self.held = Held::Ring(Box::new(Run { ring, view }));
            }
            Err(refused) => {
                let (config, why) = *refused;
                self.held = Held::Lost(Box::new(config));
                self.slot.lost(why);
            }
        }
    }

    fn take(&mut self) -> Option<RingConfig> {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing => None,
            Held::Ring(run) => Some(run.ring.into_config()),
            Held::Lost(config) => Some(*config),
        }
    }
}

impl Drop for QueueEnd {
    fn drop(&mut self) {
        // The driver's buffers are all its own again; it need not know that nobody looks at the ring.
        if let Some(config) = self.take() {
            let position = config.position;
            self.slot.put_back(self.seen, config, position);
        }
    }
}
