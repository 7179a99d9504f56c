//! The device's half of a ring.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::features::Features;
use super::super::ring::RingKind;

/// A buffer, or several, that the driver made available.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    pub(super) id: u16,
    /// Descriptors in the ring.
    slots: u16,
    /// Address, length, whether the device writes it.
    pub(super) parts: Vec<(u64, u32, bool)>,
}

/// What the driver made available is no chain of descriptors.
#[derive(Debug)]
pub(super) struct Nonsense(#[expect(dead_code, reason = "read by people, where a test fails")] &'static str);

/// The device's half of a ring of either kind.
pub(super) enum Peer {
    Split(Queue),
    Packed(Packed),
}

impl Peer {
    pub(super) fn new(kind: RingKind, len: u16, areas: [u64; 3], features: Features) -> Self {
        let event_idx = features.has(Features::EVENT_IDX);
        match kind {
            RingKind::Split => {
                let mut queue = Queue::new(len).unwrap();
                queue.set_size(len);
                queue.try_set_desc_table_address(GuestAddress(areas[0])).unwrap();
                queue.try_set_avail_ring_address(GuestAddress(areas[1])).unwrap();
                queue.try_set_used_ring_address(GuestAddress(areas[2])).unwrap();
                queue.set_event_idx(event_idx);
                queue.set_ready(true);
                Self::Split(queue)
            }
            RingKind::Packed => Self::Packed(Packed {
                len,
                areas: areas.map(GuestAddress),
                event_idx,
                avail: Place { at: 0, wrap: true },
                used: Place { at: 0, wrap: true },
                signalled: Place { at: 0, wrap: true },
            }),
        }
    }

    /// Takes what is available next.
    pub(super) fn pop(&mut self, memory: &GuestMemoryMmap) -> Option<Chain> {
        self.try_pop(memory).unwrap()
    }

    /// Takes what is available next, which may be nonsense where somebody scribbled into the ring.
    pub(super) fn try_pop(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Chain>, Nonsense> {
        match self {
            Self::Split(queue) => {
                assert!(queue.is_valid(memory));
                let Some(chain) = queue.pop_descriptor_chain(memory) else { return Ok(None) };
                let id = chain.head_index();
                let parts = chain.map(|part| (part.addr().0, part.len(), part.is_write_only())).collect();
                Ok(Some(Chain { id, slots: 1, parts }))
            }
            Self::Packed(packed) => packed.pop(memory),
        }
    }

    /// Gives `chains` back one by one, each with the bytes written to it.
    pub(super) fn give_back(&mut self, memory: &GuestMemoryMmap, chains: &[(Chain, u32)]) {
        match self {
            Self::Split(queue) => {
                chains.iter().for_each(|(chain, len)| queue.add_used(memory, chain.id, *len).unwrap())
            }
            Self::Packed(packed) => {
                chains.iter().for_each(|(chain, len)| packed.mark(memory, chain.id, *len, chain.slots))
            }
        }
    }

    /// Gives `chains` back by one entry that names the last, with the bytes written to that.
    pub(super) fn give_back_batch(&mut self, memory: &GuestMemoryMmap, chains: &[Chain], len: u32) {
        let Some(last) = chains.last() else { return };
        match self {
            Self::Split(queue) => {
                let (next, used) = (queue.next_used(), queue.used_ring());
                let entry = used + 4 + 8 * u64::from(next % queue.size());
                memory.write_obj(u32::from(last.id), GuestAddress(entry)).unwrap();
                memory.write_obj(len, GuestAddress(entry + 4)).unwrap();
                let next = next.wrapping_add(chains.len() as u16);
                memory.store(next, GuestAddress(used + 2), Ordering::Release).unwrap();
                queue.set_next_used(next);
            }
            Self::Packed(packed) => packed.mark(memory, last.id, len, chains.iter().map(|chain| chain.slots).sum()),
        }
    }

    /// Wants to be told of new buffers, or not. Returns whether there are some already.
    pub(super) fn set_notification(&mut self, memory: &GuestMemoryMmap, on: bool) -> bool {
        match self {
            Self::Split(queue) if on => queue.enable_notification(memory).unwrap(),
            Self::Split(queue) => {
                queue.disable_notification(memory).unwrap();
                if queue.event_idx_enabled() {
                    // The crate leaves the event where it was, which at first is the first buffer.
                    let event = queue.used_ring() + 4 + 8 * u64::from(queue.size());
                    memory.write_obj(queue.next_avail().wrapping_sub(1), GuestAddress(event)).unwrap();
                }
                false
            }
            Self::Packed(packed) => packed.set_notification(memory, on),
        }
    }

    /// Whether the driver wants an interrupt for what was given back since the last call.
    pub(super) fn needs_interrupt(&mut self, memory: &GuestMemoryMmap) -> bool {
        match self {
            Self::Split(queue) if queue.event_idx_enabled() => queue.needs_notification(memory).unwrap(),
            // The crate leaves flags to others (2.7.7.2).
            Self::Split(queue) => memory.read_obj::<u16>(GuestAddress(queue.avail_ring())).unwrap() & 1 == 0,
            Self::Packed(packed) => packed.needs_interrupt(memory),
        }
    }

    /// Puts any used entry into the ring, as a device without scruples would.
    pub(super) fn lie(&mut self, memory: &GuestMemoryMmap, id: u32, len: u32, ahead: u16) {
        match self {
            Self::Split(queue) => {
                let (next, used) = (queue.next_used(), queue.used_ring());
                let entry = used + 4 + 8 * u64::from(next % queue.size());
                memory.write_obj(id, GuestAddress(entry)).unwrap();
                memory.write_obj(len, GuestAddress(entry + 4)).unwrap();
                let next = (Wrapping(next) + Wrapping(ahead)).0;
                memory.store(next, GuestAddress(used + 2), Ordering::Release).unwrap();
                queue.set_next_used(next);
            }
            Self::Packed(packed) => packed.mark(memory, id as u16, len, ahead.min(packed.len)),
        }
    }
}

/// A place in a packed ring, with its wrap counter (2.8.1).
#[derive(Debug, Clone, Copy)]
struct Place {
    at: u16,
    wrap: bool,
}

impl Place {
    fn advance(&mut self, by: u16, len: u16) {
        self.at += by;
        if self.at >= len {
            self.at -= len;
            self.wrap = !self.wrap;
        }
    }
}

/// The device's half of a packed ring, after VIRTIO 1.2, 2.8.
pub(super) struct Packed {
    len: u16,
    areas: [GuestAddress; 3],
    event_idx: bool,
    avail: Place,
    used: Place,
    signalled: Place,
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

impl Packed {
    /// Address, length, id and flags of a descriptor.
    fn descriptor(memory: &GuestMemoryMmap, at: u64) -> Result<(u64, u32, u16, u16), Nonsense> {
        let at = |offset| at.checked_add(offset).map(GuestAddress).ok_or(Nonsense("an address without memory"));
        let read = |_| Nonsense("an address without memory");
        Ok((
            memory.read_obj(at(0)?).map_err(read)?,
            memory.read_obj(at(8)?).map_err(read)?,
            memory.read_obj(at(12)?).map_err(read)?,
            memory.load(at(14)?, Ordering::Acquire).map_err(read)?,
        ))
    }

    fn pop(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Chain>, Nonsense> {
        let mut place = self.avail;
        let mut chain = Chain { id: 0, slots: 0, parts: Vec::new() };
        loop {
            let (address, len, id, flags) = Self::descriptor(memory, self.areas[0].0 + 16 * u64::from(place.at))?;
            let available = (flags & AVAIL != 0) == place.wrap && (flags & USED != 0) != place.wrap;
            if !available && chain.slots == 0 {
                return Ok(None);
            }
            if !available || chain.slots == self.len {
                return Err(Nonsense("a chain whose head was made available before its end"));
            }
            chain.id = id;
            chain.slots += 1;
            place.advance(1, self.len);
            if flags & INDIRECT != 0 {
                if flags & NEXT != 0 || chain.slots > 1 || !len.is_multiple_of(16) || len / 16 > 1024 {
                    return Err(Nonsense("a table in a chain, or of no whole descriptors"));
                }
                for entry in 0..len / 16 {
                    let at = address.wrapping_add(16 * u64::from(entry));
                    let (address, len, _, flags) = Self::descriptor(memory, at)?;
                    chain.parts.push((address, len, flags & WRITE != 0));
                }
            } else {
                chain.parts.push((address, len, flags & WRITE != 0));
            }
            if flags & NEXT == 0 {
                self.avail = place;
                return Ok(Some(chain));
            }
        }
    }

    fn mark(&mut self, memory: &GuestMemoryMmap, id: u16, len: u32, slots: u16) {
        let at = self.areas[0].0 + 16 * u64::from(self.used.at);
        memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        memory.write_obj(id, GuestAddress(at + 12)).unwrap();
        let flags = if self.used.wrap { AVAIL | USED } else { 0 };
        memory.store(flags, GuestAddress(at + 14), Ordering::Release).unwrap();
        self.used.advance(slots, self.len);
    }

    fn set_notification(&mut self, memory: &GuestMemoryMmap, on: bool) -> bool {
        let event = self.avail.at | u16::from(self.avail.wrap) << 15;
        memory.write_obj(event, self.areas[2]).unwrap();
        let flags: u16 = match (on, self.event_idx) {
            (false, _) => 1,
            (true, false) => 0,
            (true, true) => 2,
        };
        memory.write_obj(flags, GuestAddress(self.areas[2].0 + 2)).unwrap();
        let (saved, some) = (self.avail, on && self.pop(memory).unwrap().is_some());
        self.avail = saved;
        some
    }

    fn needs_interrupt(&mut self, memory: &GuestMemoryMmap) -> bool {
        let (old, new) = (self.signalled, self.used);
        self.signalled = new;
        let event: u16 = memory.read_obj(self.areas[1]).unwrap();
        match memory.read_obj::<u16>(GuestAddress(self.areas[1].0 + 2)).unwrap() & 3 {
            0 => true,
            1 => false,
            _ => {
                // One by one from old to new: does any of them have this place and wrap counter?
                let mut place = old;
                while (place.at, place.wrap) != (new.at, new.wrap) {
                    if (place.at, place.wrap) == (event & 0x7fff, event >> 15 != 0) {
                        return true;
                    }
                    place.advance(1, self.len);
                }
                false
            }
        }
    }
}
