//! The device's half of a split ring (2.7).
//!
//! | area | written by | layout |
//! |---|---|---|
//! | descriptors | driver | 16 bytes each: address, length, flags, next |
//! | available ring | driver | flags, index, a descriptor each, used_event |
//! | used ring | device | flags, index, descriptor and length each, avail_event |
//!
//! The available index stands in a line that the driver writes at each burst of its own: it is read again only when what it
//! said last does not fill a burst.

use std::sync::atomic::{AtomicU16, Ordering, fence};

use spinwake::frame::BURST;
use spinwake::mem::PeerView;
use spinwake::sys::relax::Watch;

use super::chain::{Desc, INDIRECT, NEXT, Pieces, TableKind, offence};
use super::ring::{Batch, Chain, Cursor, Ring, passes};
use super::slot::{Position, RingConfig, RingOffence};
use crate::virtio::features::Features;

/// Used ring: no notifications, please (2.7.8). Available ring: the same of the driver (2.7.6).
const NO_NOTIFY: u16 = 1;

/// How far behind the ring an event index is put so that nothing passes it, and after how many chains it is put there anew:
/// the driver is a ring ahead at most, 32,768, and positions come round after 65,536.
const OUT_OF_REACH: u16 = 0x4000;
const REFRESH: u16 = 0x2000;

/// A split ring.
///
/// # Invariant
///
/// `ring::check` has passed `config`; `mask + 1` is its length.
#[derive(Debug)]
pub(super) struct SplitRing {
    config: RingConfig,
    mask: u16,
    /// The next entry of the available ring to take, free-running.
    next: u16,
    /// The next entry of the used ring to write, free-running.
    used: u16,
    /// The used index that the driver sees.
    published: u16,
    /// The available index, when it was last read.
    seen: u16,
    /// The used index when the driver's wish to be told was last looked at; `None` before the first time.
    told: Option<u16>,
    /// The driver goes by the order: one entry of the used ring stands for all up to it (2.7.9).
    in_order: bool,
    event_idx: bool,
    indirect: bool,
    /// The chain that was finished last, if entries of the used ring were left out up to it.
    skipped_to: Option<u16>,
    /// Where the ring stood when the event index was put out of reach; `None` while it is armed.
    parked: Option<u16>,
}

impl SplitRing {
    pub(super) fn new(config: RingConfig) -> Self {
        let next = if let Position::Split { next } = config.position { next } else { 0 };
        let mut ring = Self {
            mask: config.len - 1,
            next,
            used: 0,
            published: 0,
            seen: next,
            told: None,
            in_order: config.features.has(Features::IN_ORDER),
            event_idx: config.features.has(Features::EVENT_IDX),
            indirect: config.features.has(Features::INDIRECT_DESC),
            skipped_to: None,
            parked: None,
            config,
        };
        // A device that died with buffers in its hands left the used index behind: those stay lost.
        ring.used = ring.used_index().load(Ordering::Relaxed);
        ring.published = ring.used;
        ring.disarm();
        ring
    }

    pub(super) fn position(&self) -> Position {
        Position::Split { next: self.next }
    }

    pub(super) fn config(&self) -> &RingConfig {
        &self.config
    }

    pub(super) fn into_config(self) -> RingConfig {
        RingConfig { position: self.position(), ..self.config }
    }

    fn slots(&self) -> usize {
        usize::from(self.mask) + 1
    }

    #[inline(always)]
    fn available_index(&self) -> &AtomicU16 {
        &self.config.areas[1].u16s(2, 1)[0]
    }

    #[inline(always)]
    fn used_index(&self) -> &AtomicU16 {
        &self.config.areas[2].u16s(2, 1)[0]
    }

    /// Notes a write to the used ring, if the peer wants to know.
    #[inline(always)]
    fn note(&self, offset: usize, len: usize) {
        if let (Some(log), Some(base)) = (&self.config.log, self.config.log_used_at) {
            log.mark(base.wrapping_add(offset as u64), len);
        }
    }

    /// Writes an entry of the used ring.
    #[inline(always)]
    fn write_used(&self, position: u16, id: u16, len: u32) {
        let offset = 4 + 8 * usize::from(position & self.mask);
        let entry = self.config.areas[2].u32s(offset, 2);
        entry[0].store(id.into(), Ordering::Relaxed);
        entry[1].store(len, Ordering::Relaxed);
        self.note(offset, 8);
    }

    /// How many chains the driver has put there; it looks for more unless there are `enough`.
    #[inline(always)]
    fn ready(&mut self, from: u16, enough: usize) -> Result<usize, RingOffence> {
        if usize::from(self.seen.wrapping_sub(from)) < enough {
            // Acquire pairs with the driver's release: what it wrote before is then visible.
            let index = self.available_index().load(Ordering::Acquire);
            let ahead = index.wrapping_sub(self.next);
            if ahead > self.config.len {
                return Err(offence("more than a ring ahead, the available index is", index.into()));
            }
            if ahead < self.seen.wrapping_sub(self.next) {
                return Err(offence("the available index went back, to", index.into()));
            }
            self.seen = index;
        }
        Ok(self.seen.wrapping_sub(from).into())
    }

    /// The descriptor `id`.
    fn desc(&self, id: u16) -> Result<Desc, RingOffence> {
        if id > self.mask {
            return Err(offence("no such descriptor:", id.into()));
        }
        let words = self.config.areas[0].u64s(16 * usize::from(id), 2);
        Ok(Desc::split(words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed)))
    }

    /// The head that the driver put at `position` of the available ring.
    #[inline(always)]
    fn head(&self, position: u16) -> u16 {
        self.config.areas[1].u16s(4 + 2 * usize::from(position & self.mask), 1)[0].load(Ordering::Relaxed)
    }

    /// Puts the event index where the driver does not come by, if it has come closer.
    #[inline(always)]
    fn keep_out_of_reach(&mut self) {
        if let Some(parked) = self.parked
            && self.next.wrapping_sub(parked) >= REFRESH
        {
            self.disarm();
        }
    }

    fn set_event(&self, position: u16) {
        let offset = 4 + 8 * self.slots();
        self.config.areas[2].u16s(offset, 1)[0].store(position, Ordering::Relaxed);
        self.note(offset, 2);
    }

    fn set_flags(&self, flags: u16) {
        self.config.areas[2].u16s(0, 1)[0].store(flags, Ordering::Relaxed);
        self.note(0, 2);
    }
}

impl Ring for SplitRing {
    fn len(&self) -> usize {
        self.slots()
    }

    fn cursor(&self) -> Cursor {
        Cursor { at: self.next, wrap: false }
    }

    #[inline(always)]
    fn plain<const TO_PEER: bool>(&mut self, most: usize, batch: &mut Batch) -> Result<(), RingOffence> {
        let n = self.ready(self.next, most.min(BURST))?.min(most);
        (batch.n, batch.odd) = (0, false);
        let heads = self.config.areas[1].u16s(4, self.slots());
        let (descs, _) = self.config.areas[0].u64s(0, 2 * self.slots()).as_chunks::<2>();
        for i in 0..n.min(BURST) {
            let at = self.next.wrapping_add(i as u16) & self.mask;
            let Some(head) = heads.get(usize::from(at)) else { break };
            let id = head.load(Ordering::Relaxed);
            let Some(words) = descs.get(usize::from(id)) else {
                return Err(offence("no such descriptor:", id.into()));
            };
            let desc = Desc::split(words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed));
            if !desc.is_plain::<TO_PEER>() {
                batch.odd = true;
                break;
            }
            (batch.addr[i], batch.len[i], batch.id[i]) = (desc.addr, desc.len, id);
            batch.n = i + 1;
        }
        Ok(())
    }

    #[inline(always)]
    fn finish_plain<const TO_PEER: bool>(&mut self, batch: &Batch, n: usize) {
        if n == 0 {
            return;
        }
        if self.in_order && !TO_PEER {
            self.skipped_to = batch.id.get(n - 1).copied();
        } else {
            let (entries, _) = self.config.areas[2].u32s(4, 2 * self.slots()).as_chunks::<2>();
            for i in 0..n.min(BURST) {
                let at = self.used.wrapping_add(i as u16) & self.mask;
                let Some([id, len]) = entries.get(usize::from(at)) else { break };
                id.store(batch.id[i].into(), Ordering::Relaxed);
                len.store(if TO_PEER { batch.len[i] } else { 0 }, Ordering::Relaxed);
            }
            if self.config.log.is_some() {
                (0..n as u16).for_each(|i| self.note(4 + 8 * usize::from(self.used.wrapping_add(i) & self.mask), 8));
            }
        }
        self.used = self.used.wrapping_add(n as u16);
        self.next = self.next.wrapping_add(n as u16);
    }

    fn chain<const TO_PEER: bool>(
        &mut self,
        cursor: Cursor,
        view: &PeerView,
        pieces: &mut Pieces,
    ) -> Result<Option<Chain>, RingOffence> {
        if self.ready(cursor.at, 1)? == 0 {
            return Ok(None);
        }
        let before = pieces.bytes();
        let id = self.head(cursor.at);
        let mut desc = self.desc(id)?;
        let mut steps = 1;
        while desc.flags & INDIRECT == 0 {
            pieces.add::<TO_PEER>(desc)?;
            if desc.flags & NEXT == 0 {
                break;
            }
            // A driver makes no chain longer than its ring (2.7.5.2.1): then it runs in a circle.
            if steps == self.slots() {
                return Err(offence("a chain runs in a circle, from descriptor", id.into()));
            }
            steps += 1;
            desc = self.desc(desc.link)?;
        }
        if desc.flags & INDIRECT != 0 {
            if !self.indirect {
                return Err(offence("an indirect table, which was not agreed on, at guest address", desc.addr));
            }
            pieces.add_table::<TO_PEER>(view, desc, TableKind::Linked)?;
        }
        let next = Cursor { at: cursor.at.wrapping_add(1), wrap: false };
        Ok(Some(Chain { id, places: 1, bytes: pieces.bytes() - before, next }))
    }

    fn finish<const TO_PEER: bool>(&mut self, chain: &Chain, written: u32) {
        if self.in_order && !TO_PEER {
            self.skipped_to = Some(chain.id);
        } else {
            self.write_used(self.used, chain.id, written);
        }
        self.used = self.used.wrapping_add(1);
        self.next = self.next.wrapping_add(1);
    }

    #[inline(always)]
    fn publish(&mut self) -> bool {
        self.keep_out_of_reach();
        if self.used == self.published {
            return false;
        }
        if let Some(id) = self.skipped_to.take() {
            // Of a batch the driver reads the first place, where the id of the last stands (2.7.9).
            self.write_used(self.published, id, 0);
        }
        // Release: who sees the index sees the entries, and the frames.
        self.used_index().store(self.used, Ordering::Release);
        self.note(2, 2);
        self.published = self.used;
        if self.config.call.is_none() {
            return false;
        }
        // Between the index and the look at what the driver wants: it writes what it wants, and then looks at the index.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.config.areas[1].u16s(4 + 2 * self.slots(), 1)[0].load(Ordering::Relaxed);
            let told = self.told.replace(self.used);
            told.is_none_or(|told| passes(event, self.used, told))
        } else {
            self.config.areas[1].u16s(0, 1)[0].load(Ordering::Relaxed) & NO_NOTIFY == 0
        }
    }

    #[inline(always)]
    fn pending(&self) -> bool {
        self.seen != self.next || self.available_index().load(Ordering::Relaxed) != self.next
    }

    fn watch(&self) -> Watch<'_> {
        Watch::on(self.available_index())
    }

    fn arm(&mut self) {
        self.parked = None;
        if self.event_idx {
            self.set_event(self.next);
        } else {
            self.set_flags(0);
        }
    }

    fn disarm(&mut self) {
        if self.event_idx {
            self.set_event(self.next.wrapping_sub(OUT_OF_REACH));
            self.parked = Some(self.next);
        } else {
            self.set_flags(NO_NOTIFY);
        }
    }
}
