//! What a peer has said about one ring, and whether that is enough to run it.

use std::sync::Arc;

use spinwake::irq::Vector;
use spinwake::mem::{DirtyLog, PeerArea, PeerMemory};

use super::slot::{Position, RingConfig, RingKind};
use crate::virtio::features::Features;

/// The longest ring (2.7.1: a power of two; 2.8.10.1: any number).
pub(super) const LEN_MAX: u32 = 32768;

/// The peer's word on one ring.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) len: Option<u16>,
    pub(super) addresses: Option<Addresses>,
    /// Where it stands, as the messages have it; `None` until the peer or a worker says: at its start.
    pub(super) base: Option<u32>,
    /// As in [`RingConfig`], of `base`.
    pub(super) is_behind: bool,
    pub(super) call: Option<Arc<Vector>>,
    /// From SET_VRING_KICK to GET_VRING_BASE.
    pub(super) started: bool,
    pub(super) enabled: bool,
    /// A worker has it, or may take it, with this layout.
    pub(super) offered: Option<RingKind>,
    /// Its worker did not let go of it once, and perhaps never will.
    pub(super) late: bool,
}

/// Where a ring lies, in the peer's own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) descriptors: u64,
    /// Split: the available ring.
    pub(super) driver: u64,
    /// Split: the used ring.
    pub(super) device: u64,
    /// The guest address of the device area, if writes to it are to be logged.
    pub(super) log: Option<u64>,
}

/// What a ring is run with that is the connection's, not the ring's.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) features: Features,
    pub(super) memory: &'a Arc<PeerMemory>,
    pub(super) log: Option<&'a Arc<DirtyLog>>,
}

/// Why a ring cannot be run, as the end of "ring 3: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("its length was not set (SET_VRING_NUM)")]
    NoLength,
    #[error("its addresses were not set (SET_VRING_ADDR)")]
    NoAddresses,
    #[error("the driver is one of before version 1 (no VERSION_1); use a modern one (QEMU: disable-legacy=on)")]
    Legacy,
    #[error("a length of {0} descriptors is impossible; split rings have a power of two")]
    Length(u16),
    #[error("its {area}, {bytes} bytes at {at:#x}, is in no memory that the peer shares")]
    Outside { area: &'static str, bytes: usize, at: u64 },
    #[error("its {area} at {at:#x} is not aligned to {to} bytes")]
    Alignment { area: &'static str, at: u64, to: usize },
    #[error("it cannot go on at {base:#x}, which is beyond its {len} descriptors")]
    Base { base: u32, len: u16 },
}

/// The three areas of a ring: name, bytes beside what each descriptor takes, bytes a descriptor, alignment (2.7, 2.8.10).
type Layout = [(&'static str, usize, usize, usize); 3];

/// The events' words at the ends of the split rings are there whether or not EVENT_IDX was agreed on.
const SPLIT: Layout = [("descriptor table", 0, 16, 16), ("available ring", 6, 2, 2), ("used ring", 6, 8, 4)];
const PACKED: Layout =
    [("descriptor ring", 0, 16, 16), ("driver event suppression", 4, 0, 4), ("device event suppression", 4, 0, 4)];

impl Vring {
    /// What a worker needs to run it.
    pub(super) fn config(&self, around: &Surroundings<'_>) -> Result<RingConfig, Unfit> {
        let len = self.len.ok_or(Unfit::NoLength)?;
        let addresses = self.addresses.ok_or(Unfit::NoAddresses)?;
        if !around.features.has(Features::VERSION_1) {
            return Err(Unfit::Legacy);
        }
        let packed = around.features.has(Features::RING_PACKED);
        let (kind, layout) = if packed { (RingKind::Packed, PACKED) } else { (RingKind::Split, SPLIT) };
        if kind == RingKind::Split && !len.is_power_of_two() {
            return Err(Unfit::Length(len));
        }
        let position = self.base.map_or(Position::start(kind), |base| Position::resumed(kind, base));
        if !position.is_in(len) {
            return Err(Unfit::Base { base: position.base(), len });
        }
        let area = |at: u64, (area, fixed, each, to): (&'static str, usize, usize, usize)| {
            let bytes = fixed + each * usize::from(len);
            let found = around.memory.area_at_user(at, bytes).ok_or(Unfit::Outside { area, bytes, at })?;
            if found.is_aligned(to) { Ok(found) } else { Err(Unfit::Alignment { area, at, to }) }
        };
        let [descriptors, driver, device] = layout;
        let areas: [PeerArea; 3] = [
            area(addresses.descriptors, descriptors)?,
            area(addresses.driver, driver)?,
            area(addresses.device, device)?,
        ];
        let log = around.log.filter(|_| around.features.has(Features::LOG_ALL));
        Ok(RingConfig {
            kind,
            len,
            position,
            is_behind: self.is_behind,
            memory: around.memory.clone(),
            areas,
            features: around.features,
            call: self.call.clone(),
            log: log.cloned(),
            log_used_at: addresses.log.filter(|_| log.is_some()),
        })
    }
}
