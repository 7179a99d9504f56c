//! The driver's half of both kinds of ring, as plainly as the specification has it: one field at a time, one chain at a time.

use std::collections::VecDeque;

use super::machine::Machine;
use crate::vhost::slot::RingKind;
use crate::virtio::features::Features;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Where things lie. A ring is 256 long at most.
pub(super) const DESCS: usize = 0;
pub(super) const DRIVER: usize = 0x2000;
pub(super) const DEVICE: usize = 0x3000;
/// Tables, 64 entries each, one for each place of the ring.
const TABLES: usize = 0x8000;
pub(super) const TABLE_ENTRIES: usize = 64;

/// A chain that the device has.
struct Given {
    token: usize,
    id: u16,
    /// Its descriptors in the ring.
    descs: Vec<u16>,
}

pub(super) struct Driver {
    kind: RingKind,
    len: u16,
    in_order: bool,
    event_idx: bool,
    given: VecDeque<Given>,
    /// Split: descriptors that are free. Packed: buffer ids that are.
    free: VecDeque<u16>,
    /// Split: the available index. Packed: the next place, and its wrap counter.
    next: u16,
    wrap: bool,
    /// The same for used ones.
    used: u16,
    used_wrap: bool,
    /// Positions, by wrap counter too, that were made available since `kick` was last asked.
    news: Vec<(u16, bool)>,
}

impl Driver {
    pub(super) fn new(kind: RingKind, len: u16, features: Features) -> Self {
        Self {
            kind,
            len,
            in_order: features.has(Features::IN_ORDER),
            event_idx: features.has(Features::EVENT_IDX),
            given: VecDeque::new(),
            free: (0..len).collect(),
            next: 0,
            wrap: true,
            used: 0,
            used_wrap: true,
            news: Vec::new(),
        }
    }

    /// Offset and bytes of the three areas (2.7 and 2.8.10).
    pub(super) fn areas(&self) -> [(usize, usize); 3] {
        let len = usize::from(self.len);
        match self.kind {
            RingKind::Split => [(DESCS, 16 * len), (DRIVER, 6 + 2 * len), (DEVICE, 6 + 8 * len)],
            RingKind::Packed => [(DESCS, 16 * len), (DRIVER, 4), (DEVICE, 4)],
        }
    }

    /// Places that are free in the ring.
    pub(super) fn room(&self) -> usize {
        usize::from(self.len) - self.given.iter().map(|given| given.descs.len()).sum::<usize>()
    }

    /// Chains that the device has.
    pub(super) fn outstanding(&self) -> usize {
        self.given.len()
    }

    /// Gives buffers (guest address, length) to the device as one chain. The caller has seen to room.
    pub(super) fn add(&mut self, m: &Machine, token: usize, buffers: &[(u64, u32)], to_driver: bool, indirect: bool) {
        let places = if indirect { 1 } else { buffers.len() };
        assert!(places > 0 && places <= self.room());
        let flag = if to_driver { WRITE } else { 0 };
        match self.kind {
            RingKind::Split => self.add_split(m, token, buffers, flag, indirect),
            RingKind::Packed => self.add_packed(m, token, buffers, flag, indirect),
        }
    }

    fn add_split(&mut self, m: &Machine, token: usize, buffers: &[(u64, u32)], flag: u16, indirect: bool) {
        let places = if indirect { 1 } else { buffers.len() };
        // In order: in the order of the table (2.7.9). Otherwise the one that came back last.
        let take = |free: &mut VecDeque<u16>| if self.in_order { free.pop_front() } else { free.pop_back() };
        let descs: Vec<u16> = (0..places).map(|_| take(&mut self.free).unwrap()).collect();
        let write = |at: usize, addr: u64, len: u32, flags: u16, next: u16| {
            m.set_u64(at, addr);
            m.set_u32(at + 8, len);
            m.set_u16(at + 12, flags);
            m.set_u16(at + 14, next);
        };
        if indirect {
            let table = TABLES + usize::from(descs[0]) * 16 * TABLE_ENTRIES;
            // Backwards, because nothing says that a table goes forwards.
            let last = buffers.len() - 1;
            for (i, &(addr, len)) in buffers.iter().enumerate() {
                let place = if i == 0 { 0 } else { last + 1 - i };
                let more = if i < last { NEXT } else { 0 };
                write(table + 16 * place, addr, len, flag | more, (last - i) as u16);
            }
            let len = 16 * buffers.len() as u32;
            write(DESCS + 16 * usize::from(descs[0]), m.guest(table), len, INDIRECT, 0xffff);
        } else {
            for (i, &(addr, len)) in buffers.iter().enumerate() {
                let next = descs.get(i + 1).copied();
                let more = if next.is_some() { NEXT } else { 0 };
                write(DESCS + 16 * usize::from(descs[i]), addr, len, flag | more, next.unwrap_or(0xffff));
            }
        }
        m.set_u16(DRIVER + 4 + 2 * usize::from(self.next % self.len), descs[0]);
        self.news.push((self.next, true));
        self.next = self.next.wrapping_add(1);
        m.set_u16(DRIVER + 2, self.next);
        self.given.push_back(Given { token, id: descs[0], descs });
    }

    fn add_packed(&mut self, m: &Machine, token: usize, buffers: &[(u64, u32)], flag: u16, indirect: bool) {
        let id = if self.in_order { self.free.pop_front() } else { self.free.pop_back() }.unwrap();
        let write = |at: usize, addr: u64, len: u32, id: u16| {
            m.set_u64(at, addr);
            m.set_u32(at + 8, len);
            m.set_u16(at + 12, id);
        };
        let (first, mut descs) = ((self.next, self.wrap), Vec::new());
        let mut first_flags = 0;
        let entries: Vec<(u64, u32, u16)> = if indirect {
            let table = TABLES + usize::from(id) * 16 * TABLE_ENTRIES;
            for (i, &(addr, len)) in buffers.iter().enumerate() {
                write(table + 16 * i, addr, len, 0xffff);
                // DPDK 22.11 leaves this flag on the header's entry, whichever way the buffer goes.
                m.set_u16(table + 16 * i + 14, if i == 0 { WRITE } else { flag });
            }
            vec![(m.guest(table), 16 * buffers.len() as u32, INDIRECT)]
        } else {
            let more = |i: usize| if i + 1 < buffers.len() { NEXT } else { 0 };
            buffers.iter().enumerate().map(|(i, &(addr, len))| (addr, len, flag | more(i))).collect()
        };
        for (i, (addr, len, flags)) in entries.into_iter().enumerate() {
            let at = DESCS + 16 * usize::from(self.next);
            write(at, addr, len, id);
            let flags = flags | if self.wrap { 1 << 7 } else { 1 << 15 };
            if i == 0 {
                first_flags = flags
            } else {
                m.set_u16(at + 14, flags)
            }
            descs.push(self.next);
            (self.next, self.wrap) = self.after(self.next, self.wrap);
        }
        m.set_u16(DESCS + 16 * usize::from(first.0) + 14, first_flags);
        for &at in &descs {
            self.news.push((at, if at < first.0 { !first.1 } else { first.1 }));
        }
        self.given.push_back(Given { token, id, descs });
    }

    fn after(&self, at: u16, wrap: bool) -> (u16, bool) {
        if at + 1 == self.len { (0, !wrap) } else { (at + 1, wrap) }
    }

    /// Takes back what the device has used: token, and bytes written where that is said.
    pub(super) fn take(&mut self, m: &Machine) -> Vec<(usize, u32)> {
        let mut taken = Vec::new();
        while let Some((id, len)) = self.next_used(m) {
            loop {
                let at = if self.in_order { 0 } else { self.given.iter().position(|given| given.id == id).unwrap() };
                let given = self.given.remove(at).expect("the device used what it had");
                self.free.extend(if self.kind == RingKind::Split { given.descs.clone() } else { vec![given.id] });
                let places = if self.kind == RingKind::Split { 1 } else { given.descs.len() };
                for _ in 0..places {
                    (self.used, self.used_wrap) = match self.kind {
                        RingKind::Split => (self.used.wrapping_add(1), true),
                        RingKind::Packed => self.after(self.used, self.used_wrap),
                    };
                }
                let last = given.id == id;
                taken.push((given.token, if last { len } else { 0 }));
                if last {
                    break;
                }
            }
        }
        taken
    }

    fn next_used(&self, m: &Machine) -> Option<(u16, u32)> {
        match self.kind {
            RingKind::Split => {
                if m.u16(DEVICE + 2) == self.used {
                    return None;
                }
                let at = DEVICE + 4 + 8 * usize::from(self.used % self.len);
                Some((m.u32(at) as u16, m.u32(at + 4)))
            }
            RingKind::Packed => {
                let at = DESCS + 16 * usize::from(self.used);
                let flags = m.u16(at + 14);
                let (avail, used) = (flags & 1 << 7 != 0, flags & 1 << 15 != 0);
                (avail == used && used == self.used_wrap).then(|| (m.u16(at + 12), m.u32(at + 8)))
            }
        }
    }

    /// Whether the device wants to be told of what was given to it since this was last asked.
    pub(super) fn kick(&mut self, m: &Machine) -> bool {
        let news = std::mem::take(&mut self.news);
        let any = !news.is_empty();
        match self.kind {
            RingKind::Split if self.event_idx => {
                let event = m.u16(DEVICE + 4 + 8 * usize::from(self.len));
                news.contains(&(event, true))
            }
            RingKind::Split => any && m.u16(DEVICE) & 1 == 0,
            RingKind::Packed => match m.u16(DEVICE + 2) {
                0 => any,
                1 => false,
                2 if self.event_idx => {
                    let event = m.u16(DEVICE);
                    news.contains(&(event & 0x7fff, event & 1 << 15 != 0))
                }
                other => panic!("the device wants {other}"),
            },
        }
    }

    /// Wants to be told of used buffers never, always, or when the one that is next used has been (`Some` number: so many
    /// chains on; each of one place).
    pub(super) fn want(&self, m: &Machine, want: Want) {
        let (kind, len) = (self.kind, self.len);
        match (kind, want) {
            (RingKind::Split, Want::Never) => m.set_u16(DRIVER, 1),
            (RingKind::Split, Want::Always) => m.set_u16(DRIVER, 0),
            (RingKind::Split, Want::After(n)) => {
                m.set_u16(DRIVER + 4 + 2 * usize::from(len), self.used.wrapping_add(n));
            }
            (RingKind::Packed, Want::Never) => m.set_u32(DRIVER, 1 << 16),
            (RingKind::Packed, Want::Always) => m.set_u32(DRIVER, 0),
            (RingKind::Packed, Want::After(n)) => {
                let (mut at, mut wrap) = (self.used, self.used_wrap);
                for _ in 0..n {
                    (at, wrap) = self.after(at, wrap);
                }
                m.set_u32(DRIVER, u32::from(at) | u32::from(wrap) << 15 | 2 << 16);
            }
        }
    }
}

/// When a driver wants to be told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Want {
    Never,
    Always,
    After(u16),
}
