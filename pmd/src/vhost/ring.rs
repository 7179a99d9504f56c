//! The device's half of a ring, of either kind.
//!
//! ```text
//! plain ──▶ Batch: chains of one buffer each, their descriptors read in one go ──▶ finish_plain ─┐
//! chain ──▶ Pieces: any chain, descriptor by descriptor ─────────────────────────▶ finish ───────┴─▶ publish
//! ```
//!
//! Buffers are finished in the order in which they came, at once: what is taken was copied, so a queue of this kind never has
//! any in flight. What is finished becomes visible by one store, `publish`, once a burst.

use spinwake::frame::BURST;
use spinwake::mem::PeerView;
use spinwake::sys::relax::Watch;

use super::chain::{Pieces, offence};
use super::packed::PackedRing;
use super::slot::{Position, RingConfig, RingKind, RingOffence};
use super::split::SplitRing;
use crate::virtio::features::Features;

/// Chains of one buffer, as they were when they were read.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) addr: [u64; BURST],
    pub(super) len: [u32; BURST],
    pub(super) id: [u16; BURST],
    /// How many.
    pub(super) n: usize,
    /// A chain of another shape follows.
    pub(super) odd: bool,
}

impl Batch {
    pub(super) const fn new() -> Self {
        Self { addr: [0; BURST], len: [0; BURST], id: [0; BURST], n: 0, odd: false }
    }
}

/// A place in a ring from which a chain may be gathered. The wrap counter means something in packed rings only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) at: u16,
    pub(super) wrap: bool,
}

/// A chain that has been gathered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain {
    /// By which the driver knows it.
    pub(super) id: u16,
    /// Places that it takes in the ring.
    pub(super) places: u16,
    /// Bytes in its buffers.
    pub(super) bytes: u64,
    /// Where the next one is.
    pub(super) next: Cursor,
}

/// What both kinds of ring can do. `TO_PEER`: the driver receives here, so that buffers are written and their lengths matter.
pub(super) trait Ring {
    /// Descriptors.
    fn len(&self) -> usize;

    /// Where the next chain is.
    fn cursor(&self) -> Cursor;

    /// Reads up to `most` chains into `batch`, as long as each is of a single buffer. None of them is taken yet.
    fn plain<const TO_PEER: bool>(&mut self, most: usize, batch: &mut Batch) -> Result<(), RingOffence>;

    /// Gives the first `n` chains of `batch` back, which begins where the ring stands, with as many bytes written as its `len`
    /// says.
    fn finish_plain<const TO_PEER: bool>(&mut self, batch: &Batch, n: usize);

    /// Adds the buffers of the chain at `cursor` to `pieces`; `None` while the driver has put none there. It is not taken yet.
    fn chain<const TO_PEER: bool>(
        &mut self,
        cursor: Cursor,
        view: &PeerView,
        pieces: &mut Pieces,
    ) -> Result<Option<Chain>, RingOffence>;

    /// Gives back the chain where the ring stands, with `written` bytes written.
    fn finish<const TO_PEER: bool>(&mut self, chain: &Chain, written: u32);

    /// Shows the driver what is finished. Returns whether it wants to be told.
    fn publish(&mut self) -> bool;

    /// Whether the driver has put a chain where the ring stands.
    fn pending(&self) -> bool;

    /// What the driver writes when it puts a chain where the ring stands.
    fn watch(&self) -> Watch<'_>;

    /// Asks the driver to say so when it puts a chain there. A full fence must follow before `pending` is asked.
    fn arm(&mut self);

    /// Asks the driver not to.
    fn disarm(&mut self);
}

/// A ring of either kind, set up from a configuration.
#[derive(Debug)]
pub(super) enum AnyRing {
    /// Descriptors, available ring, used ring.
    Split(SplitRing),
    /// One ring of descriptors.
    Packed(PackedRing),
}

impl AnyRing {
    /// A ring that goes on where `config` says; returns `config` and what is wrong with it, if something is.
    pub(super) fn new(config: RingConfig) -> Result<Self, Box<(RingConfig, RingOffence)>> {
        if let Err(why) = check(&config) {
            return Err(Box::new((config, why)));
        }
        Ok(match config.kind {
            RingKind::Split => Self::Split(SplitRing::new(config)),
            RingKind::Packed => Self::Packed(PackedRing::new(config)),
        })
    }

    /// What it was made of, with the position where it stands now.
    pub(super) fn into_config(self) -> RingConfig {
        match self {
            Self::Split(ring) => ring.into_config(),
            Self::Packed(ring) => ring.into_config(),
        }
    }

    pub(super) fn position(&self) -> Position {
        match self {
            Self::Split(ring) => ring.position(),
            Self::Packed(ring) => ring.position(),
        }
    }

    pub(super) fn config(&self) -> &RingConfig {
        match self {
            Self::Split(ring) => ring.config(),
            Self::Packed(ring) => ring.config(),
        }
    }

    pub(super) fn pending(&self) -> bool {
        match self {
            Self::Split(ring) => ring.pending(),
            Self::Packed(ring) => ring.pending(),
        }
    }

    pub(super) fn watch(&self) -> Watch<'_> {
        match self {
            Self::Split(ring) => ring.watch(),
            Self::Packed(ring) => ring.watch(),
        }
    }

    pub(super) fn arm(&mut self) {
        match self {
            Self::Split(ring) => ring.arm(),
            Self::Packed(ring) => ring.arm(),
        }
    }

    pub(super) fn disarm(&mut self) {
        match self {
            Self::Split(ring) => ring.disarm(),
            Self::Packed(ring) => ring.disarm(),
        }
    }
}

/// Whether a ring's areas are what its length needs (2.7, 2.8), so that no later access is out of bounds.
fn check(config: &RingConfig) -> Result<(), RingOffence> {
    let len = usize::from(config.len);
    if len == 0 || len > 1 << 15 || (config.kind == RingKind::Split && !len.is_power_of_two()) {
        return Err(offence("an impossible length:", len as u64));
    }
    // Behind both rings stand the event indices, where they were agreed on.
    let event = if config.features.has(Features::EVENT_IDX) { 2 } else { 0 };
    let needed = match config.kind {
        RingKind::Split => [(16 * len, 16), (4 + 2 * len + event, 2), (4 + 8 * len + event, 4)],
        RingKind::Packed => [(16 * len, 16), (4, 4), (4, 4)],
    };
    for (area, (bytes, align)) in config.areas.iter().zip(needed) {
        if area.len() < bytes || !area.is_aligned(align) {
            return Err(offence("an area too small or not aligned, at guest address", area.guest()));
        }
    }
    let kind = if matches!(config.position, Position::Split { .. }) { RingKind::Split } else { RingKind::Packed };
    if kind != config.kind || !config.position.is_in(config.len) {
        return Err(offence("an impossible position:", config.position.base().into()));
    }
    Ok(())
}

/// Whether moving a position from `old` to `new` passes `event`, by whose passing somebody wants to be told (2.7.10).
#[inline(always)]
pub(super) fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
