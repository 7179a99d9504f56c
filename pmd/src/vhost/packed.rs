//! The device's half of a packed ring (2.8).
//!
//! ```text
//! descriptors   address, length, id, flags          the driver makes them available, the device overwrites them as used
//! driver area   when the driver wants to be told    written by the driver
//! device area   when the device wants to be told    written by the device
//! ```
//!
//! A descriptor's length, id and flags are one word, which each side writes, and reads, in one piece. Used descriptors of a
//! burst are written from the second on; the first, by which the driver sees them all, comes last.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use spinwake::frame::BURST;
use spinwake::mem::PeerView;
use spinwake::sys::relax::Watch;

use super::chain::{DESC_BYTES, Desc, INDIRECT, NEXT, Pieces, TableKind, WRITE, offence};
use super::ring::{Batch, Chain, Cursor, Ring, passes};
use super::slot::{Position, RingConfig, RingOffence};
use crate::virtio::features::Features;

/// Flags of a descriptor: available in this lap, used in this lap (2.8.1).
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// What a side wants (2.8.14): always to be told, never, or when a position is reached.
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const AT_POSITION: u16 = 2;

/// A packed ring.
///
/// # Invariant
///
/// `ring::check` has passed `config`; `avail` and `used` are places in the ring.
#[derive(Debug)]
pub(super) struct PackedRing {
    config: RingConfig,
    /// Where the next chain is.
    avail: Cursor,
    /// Where the next used descriptor goes.
    used: Cursor,
    /// The first used descriptor that the driver has not been shown: its place and word.
    held: Option<(u16, u64)>,
    /// Where `used` was when the driver's wish to be told was last looked at; `None` before the first time.
    told: Option<u16>,
    /// The driver goes by the order: one used descriptor stands for all up to it (2.8.9).
    in_order: bool,
    event_idx: bool,
    indirect: bool,
}

impl Cursor {
    /// `n` places on, at most a ring's length, in a ring of `len`.
    #[inline(always)]
    fn advance(self, n: u16, len: u16) -> Self {
        // A ring has 32,768 places at most, so the sum fits.
        let at = u32::from(self.at) + u32::from(n);
        if at >= len.into() {
            Self { at: (at - u32::from(len)) as u16, wrap: !self.wrap }
        } else {
            Self { at: at as u16, wrap: self.wrap }
        }
    }

    /// The flags that tell whose a descriptor here is, while it is available.
    #[inline(always)]
    fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// As an event position (2.8.14).
    fn event(self) -> u16 {
        self.at | u16::from(self.wrap) << 15
    }
}

impl PackedRing {
    pub(super) fn new(config: RingConfig) -> Self {
        let start = Position::Packed { avail: 0, avail_wrap: true, used: 0, used_wrap: true };
        let position = if matches!(config.position, Position::Packed { .. }) { config.position } else { start };
        let (avail, used) = match position {
            Position::Packed { avail, avail_wrap, used, used_wrap } => {
                (Cursor { at: avail, wrap: avail_wrap }, Cursor { at: used, wrap: used_wrap })
            }
            Position::Split { next } => (Cursor { at: next, wrap: true }, Cursor { at: next, wrap: true }),
        };
        let mut ring = Self {
            avail,
            used,
            held: None,
            told: None,
            in_order: config.features.has(Features::IN_ORDER),
            event_idx: config.features.has(Features::EVENT_IDX),
            indirect: config.features.has(Features::INDIRECT_DESC),
            config,
        };
        ring.disarm();
        ring
    }

    pub(super) fn position(&self) -> Position {
        let (Cursor { at: avail, wrap: avail_wrap }, Cursor { at: used, wrap: used_wrap }) = (self.avail, self.used);
        Position::Packed { avail, avail_wrap, used, used_wrap }
    }

    pub(super) fn config(&self) -> &RingConfig {
        &self.config
    }

    pub(super) fn into_config(self) -> RingConfig {
        RingConfig { position: self.position(), ..self.config }
    }

    /// The two words of the descriptor in place `at`.
    #[inline(always)]
    fn words(&self, at: u16) -> &[AtomicU64] {
        self.config.areas[0].u64s(DESC_BYTES * usize::from(at), 2)
    }

    #[inline(always)]
    fn show(&self, at: u16, word: u64, order: Ordering) {
        self.words(at)[1].store(word, order);
        self.note(at);
    }

    /// Notes a write to the descriptor in place `at`, if the peer wants to know.
    #[inline(always)]
    fn note(&self, at: u16) {
        if let Some(log) = &self.config.log {
            // Used descriptors stand in the ring itself, which has an address of its own.
            let place = self.config.areas[0].guest().wrapping_add((DESC_BYTES * usize::from(at)) as u64);
            log.mark(place, DESC_BYTES);
        }
    }

    /// Writes a used descriptor, or holds it back if it is the first.
    #[inline(always)]
    fn write_used<const TO_PEER: bool>(&mut self, id: u16, len: u32) {
        let word = used_word::<TO_PEER>(self.used, id, len);
        if self.held.is_none() {
            self.held = Some((self.used.at, word));
        } else {
            self.show(self.used.at, word, Ordering::Relaxed);
        }
    }

    /// Lets the first used descriptor stand for all up to `id`.
    #[inline(always)]
    fn skip_to(&mut self, id: u16) {
        self.held = Some(match self.held {
            Some((at, word)) => (at, word & !(0xffff << 32) | u64::from(id) << 32),
            None => (self.used.at, used_word::<false>(self.used, id, 0)),
        });
    }

    fn set_event(&self, position: u16, flags: u16) {
        self.config.areas[2].u32s(0, 1)[0].store(u32::from(position) | u32::from(flags) << 16, Ordering::Relaxed);
        if let (Some(log), Some(base)) = (&self.config.log, self.config.log_used_at) {
            log.mark(base, 4);
        }
    }

    /// Whether the driver wants to be told of what has been used since it was last asked.
    #[inline(always)]
    fn wants_call(&mut self) -> bool {
        let wish = self.config.areas[1].u32s(0, 1)[0].load(Ordering::Relaxed);
        let told = self.told.replace(self.used.at);
        match (wish >> 16) as u16 {
            DISABLE => false,
            AT_POSITION if self.event_idx => {
                let Some(told) = told else { return true };
                let (event, wrap) = (wish as u16 & 0x7fff, wish & 1 << 15 != 0);
                let new = self.used.at;
                // All three as positions of the present lap.
                let told = if new <= told { told.wrapping_sub(self.config.len) } else { told };
                let event = if wrap == self.used.wrap { event } else { event.wrapping_sub(self.config.len) };
                passes(event, new, told)
            }
            _ => true,
        }
    }
}

/// The second word of a used descriptor (2.8.8): its flags say that it is used in this lap, and whether it was written to.
#[inline(always)]
fn used_word<const TO_PEER: bool>(place: Cursor, id: u16, len: u32) -> u64 {
    let flags = if place.wrap { AVAIL | USED } else { 0 } | if TO_PEER { WRITE } else { 0 };
    u64::from(flags) << 48 | u64::from(id) << 32 | u64::from(len)
}

impl Ring for PackedRing {
    fn len(&self) -> usize {
        self.config.len.into()
    }

    fn cursor(&self) -> Cursor {
        self.avail
    }

    #[inline(always)]
    fn plain<const TO_PEER: bool>(&mut self, most: usize, batch: &mut Batch) -> Result<(), RingOffence> {
        let len = self.config.len;
        (batch.n, batch.odd) = (0, false);
        let (descs, _) = self.config.areas[0].u64s(0, 2 * usize::from(len)).as_chunks::<2>();
        let most = most.min(len.into()).min(BURST);
        let mut place = self.avail;
        // Up to the end of the ring at a time.
        while let Some(run) = descs.get(place.at.into()..).filter(|_| batch.n < most) {
            let (available, rest) = (place.available(), most - batch.n);
            for words in run.iter().take(rest) {
                // Acquire pairs with the driver's release of the flags: address, length and id stand in what it wrote before.
                let word = words[1].load(Ordering::Acquire);
                let desc = Desc::packed(words[0].load(Ordering::Relaxed), word);
                if desc.flags & (AVAIL | USED) != available {
                    return Ok(());
                }
                if !desc.is_plain::<TO_PEER>() {
                    batch.odd = true;
                    return Ok(());
                }
                let i = batch.n % BURST;
                (batch.addr[i], batch.len[i], batch.id[i]) = (desc.addr, desc.len, desc.link);
                batch.n += 1;
            }
            place = Cursor { at: 0, wrap: !place.wrap };
        }
        Ok(())
    }

    #[inline(always)]
    fn finish_plain<const TO_PEER: bool>(&mut self, batch: &Batch, n: usize) {
        if n == 0 {
            return;
        }
        let len = self.config.len;
        if self.in_order && !TO_PEER {
            self.skip_to(batch.id[(n - 1) % BURST]);
            self.used = self.used.advance(n as u16, len);
        } else {
            let (descs, _) = self.config.areas[0].u64s(0, 2 * usize::from(len)).as_chunks::<2>();
            let (first, mut done) = (self.used, 0);
            while let Some(run) = descs.get(self.used.at.into()..).filter(|_| done < n) {
                let count = run.len().min(n - done);
                for (words, i) in run.iter().zip(done..done + count) {
                    let written = if TO_PEER { batch.len[i % BURST] } else { 0 };
                    let word = used_word::<TO_PEER>(self.used, batch.id[i % BURST], written);
                    if self.held.is_none() {
                        self.held = Some((self.used.at, word));
                    } else {
                        words[1].store(word, Ordering::Relaxed);
                    }
                }
                self.used = self.used.advance(count as u16, len);
                done += count;
            }
            if self.config.log.is_some() {
                (0..n as u16).for_each(|i| self.note(first.advance(i, len).at));
            }
        }
        self.avail = self.avail.advance(n as u16, len);
    }

    fn chain<const TO_PEER: bool>(
        &mut self,
        cursor: Cursor,
        view: &PeerView,
        pieces: &mut Pieces,
    ) -> Result<Option<Chain>, RingOffence> {
        let before = pieces.bytes();
        let len = self.config.len;
        let mut place = cursor;
        let mut places = 0;
        let id = loop {
            let words = self.words(place.at);
            let word = words[1].load(Ordering::Acquire);
            let desc = Desc::packed(words[0].load(Ordering::Relaxed), word);
            // The driver makes the first descriptor of a chain available last (2.8.6); what the others say must agree.
            if desc.flags & (AVAIL | USED) != place.available() {
                if places == 0 {
                    return Ok(None);
                }
                return Err(offence("a chain ends in a descriptor that is not available, in place", place.at.into()));
            }
            places += 1;
            place = place.advance(1, len);
            if desc.flags & INDIRECT != 0 {
                if !self.indirect {
                    return Err(offence("an indirect table, which was not agreed on, at guest address", desc.addr));
                }
                pieces.add_table::<TO_PEER>(view, desc, TableKind::InOrder)?;
                break desc.link;
            }
            pieces.add::<TO_PEER>(desc)?;
            if desc.flags & NEXT == 0 {
                break desc.link;
            }
            if places == len {
                return Err(offence("a chain runs in a circle, from place", cursor.at.into()));
            }
        };
        Ok(Some(Chain { id, places, bytes: pieces.bytes() - before, next: place }))
    }

    fn finish<const TO_PEER: bool>(&mut self, chain: &Chain, written: u32) {
        if self.in_order && !TO_PEER {
            self.skip_to(chain.id);
        } else {
            self.write_used::<TO_PEER>(chain.id, written);
        }
        self.used = self.used.advance(chain.places, self.config.len);
        self.avail = self.avail.advance(chain.places, self.config.len);
    }

    #[inline(always)]
    fn publish(&mut self) -> bool {
        let Some((at, word)) = self.held.take() else { return false };
        // Release: who sees this descriptor sees those behind it, and the frames.
        self.show(at, word, Ordering::Release);
        if self.config.call.is_none() {
            return false;
        }
        // Between the descriptor and the look at what the driver wants: it writes what it wants, and then looks here.
        fence(Ordering::SeqCst);
        self.wants_call()
    }

    #[inline(always)]
    fn pending(&self) -> bool {
        let flags = (self.words(self.avail.at)[1].load(Ordering::Relaxed) >> 48) as u16;
        flags & (AVAIL | USED) == self.avail.available()
    }

    fn watch(&self) -> Watch<'_> {
        Watch::on(&self.words(self.avail.at)[1])
    }

    fn arm(&mut self) {
        let flags = if self.event_idx { AT_POSITION } else { ENABLE };
        self.set_event(self.avail.event(), flags);
    }

    fn disarm(&mut self) {
        self.set_event(0, DISABLE);
    }
}
