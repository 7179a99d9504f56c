//! What a peer and we have agreed on, from its connecting to its leaving: features, memory, rings, log.
//!
//! The messages come through `messages.rs`; each method here is one of them with a body that is well-formed, and nothing
//! more known of it. What cannot be meant is an [`Offence`], which ends the connection.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use log::Level;
use spinwake::irq::Vector;
use spinwake::mem::{DirtyLog, PeerMemory, PeerRegion};

use super::device::{Device, Offer};
use super::slot::{Position, RingKind};
use super::vring::{Addresses, LEN_MAX, Surroundings, Unfit, Vring};
use crate::virtio::features::{Agreement, Features};

/// Pieces of memory that a peer may share. QEMU asks for it, and has one for each piece of its guest's.
pub(super) const MEMORY_SLOTS: usize = 64;
/// Bytes of memory that a peer may share in all, and of its log. Mapping takes addresses of ours, of which there are 2^47 for
/// the whole process: whoever takes most of them leaves the others nothing to allocate.
const MEMORY_BYTES: u64 = 1 << 44;
const LOG_BYTES: u64 = 1 << 32;
/// How long a worker has to let go of a ring: it looks at each turn, and is woken when it sleeps.
const LET_GO: Duration = Duration::from_secs(1);

/// What a peer did that ends its connection, as the end of "the peer's connection is closed: ".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offence(String);

impl Offence {
    pub(super) fn new(what: impl fmt::Display) -> Self {
        Self(what.to_string())
    }

    fn ring(index: usize, what: impl fmt::Display) -> Self {
        Self(format!("ring {index}: {what}"))
    }
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

type Done = Result<(), Offence>;

/// One peer's state. When it is dropped, all rings have been taken back.
#[derive(Debug)]
pub(super) struct Session {
    device: Arc<Device>,
    pub(super) offer: Offer,
    features: Features,
    regions: Vec<PeerRegion>,
    memory: Arc<PeerMemory>,
    log: Option<Arc<DirtyLog>>,
    rings: Vec<Vring>,
    /// How long a worker has to let go of a ring.
    pub(super) patience: Duration,
    /// The device status, as the peer set it last (2.1).
    pub(super) status: u8,
    /// What was agreed on has been told.
    announced: bool,
}

impl Session {
    pub(super) fn new(device: Arc<Device>) -> Self {
        let offer = device.offer();
        let rings = (0..2 * offer.pairs).map(|_| Vring::default()).collect();
        Self {
            device,
            offer,
            features: Features::NONE,
            regions: Vec::new(),
            memory: Arc::new(PeerMemory::default()),
            log: None,
            rings,
            patience: LET_GO,
            status: 0,
            announced: false,
        }
    }

    pub(super) fn features(&self) -> Features {
        self.features
    }

    /// Whether any ring runs.
    pub(super) fn runs(&self) -> bool {
        self.rings.iter().any(|ring| ring.offered.is_some())
    }

    /// Also while rings run: a peer that migrates turns logging on and off.
    pub(super) fn set_features(&mut self, bits: u64) -> Done {
        let features = Features::from_bits(bits);
        let beyond = features.without(self.offer.features);
        if !beyond.is_empty() {
            return Err(Offence::new(format_args!("SET_FEATURES with {beyond}, which was not offered")));
        }
        if features == self.features {
            return Ok(());
        }
        self.withdraw_all();
        let logs = features.has(Features::LOG_ALL);
        if logs != self.features.has(Features::LOG_ALL) {
            let what = if logs { "are noted from now on, for a migration" } else { "are noted no longer" };
            self.device.say(Level::Info, format_args!("pages that frames are written to {what}"));
        }
        self.features = features;
        self.offer_all(Strictly::Yes)
    }

    pub(super) fn set_memory(&mut self, regions: Vec<NewRegion>) -> Done {
        if regions.len() > MEMORY_SLOTS {
            return Err(Offence::new(format_args!(
                "{} memory regions, above the limit of {MEMORY_SLOTS}",
                regions.len()
            )));
        }
        check_bytes(regions.iter().map(|region| region.len))?;
        let regions = regions.into_iter().map(NewRegion::map).collect::<Result<_, _>>()?;
        self.use_regions(regions)
    }

    pub(super) fn add_region(&mut self, region: NewRegion) -> Done {
        if self.regions.len() >= MEMORY_SLOTS {
            return Err(Offence::new(format_args!(
                "ADD_MEM_REG beyond the {MEMORY_SLOTS} memory regions that are possible"
            )));
        }
        check_bytes(self.regions.iter().map(PeerRegion::len).chain([region.len]))?;
        let mut regions = self.regions.clone();
        regions.push(region.map()?);
        self.use_regions(regions)
    }

    pub(super) fn remove_region(&mut self, guest: u64, user: u64, len: u64) -> Done {
        let mut regions = self.regions.clone();
        let is_it = |region: &PeerRegion| (region.guest(), region.user(), region.len()) == (guest, user, len);
        let Some(at) = regions.iter().position(is_it) else {
            return Err(Offence::new(format_args!(
                "REM_MEM_REG for {len:#x} bytes at {guest:#x}, which were not added"
            )));
        };
        regions.remove(at);
        self.use_regions(regions)
    }

    /// Rings that lie in memory that has gone wait for it to come back: a peer may replace its regions one by one.
    fn use_regions(&mut self, regions: Vec<PeerRegion>) -> Done {
        let memory = PeerMemory::new(regions.clone()).map_err(Offence::new)?;
        self.withdraw_all();
        self.memory = Arc::new(memory);
        self.regions = regions;
        self.offer_all(Strictly::No)
    }

    pub(super) fn set_log(&mut self, file: &impl AsFd, offset: u64, len: u64) -> Done {
        if len > LOG_BYTES {
            return Err(Offence::new(format_args!(
                "SET_LOG_BASE of {len:#x} bytes, above the limit of {LOG_BYTES:#x}"
            )));
        }
        let log = DirtyLog::map(file.as_fd(), offset, len)
            .map_err(|error| Offence::new(format_args!("SET_LOG_BASE: {error}")))?;
        self.withdraw_all();
        self.log = Some(Arc::new(log));
        self.offer_all(Strictly::Yes)
    }

    pub(super) fn set_len(&mut self, index: u32, len: u32) -> Done {
        let index = self.stopped(index, "SET_VRING_NUM")?;
        if !(1..=LEN_MAX).contains(&len) {
            return Err(Offence::ring(
                index,
                format_args!("a length of {len} descriptors; 1 to {LEN_MAX} are possible"),
            ));
        }
        self.rings[index].len = Some(len as u16);
        Ok(())
    }

    /// Also while it runs: a peer that migrates turns the log of the used ring on and off.
    pub(super) fn set_addresses(&mut self, index: u32, addresses: Addresses) -> Done {
        let index = self.index(index, "SET_VRING_ADDR")?;
        self.withdraw(index);
        self.rings[index].addresses = Some(addresses);
        self.offer(index, Strictly::Yes)
    }

    pub(super) fn set_base(&mut self, index: u32, base: u32) -> Done {
        let index = self.stopped(index, "SET_VRING_BASE")?;
        (self.rings[index].base, self.rings[index].is_behind) = (Some(base), false);
        Ok(())
    }

    /// Stops the ring, and says where it stands.
    pub(super) fn stop(&mut self, index: u32) -> Result<u32, Offence> {
        let index = self.index(index, "GET_VRING_BASE")?;
        self.stop_ring(index);
        let packed = self.features.has(Features::RING_PACKED);
        let kind = if packed { RingKind::Packed } else { RingKind::Split };
        Ok(self.rings[index].base.unwrap_or_else(|| Position::start(kind).base()))
    }

    /// Starts the ring.
    pub(super) fn set_kick(&mut self, index: u8, fd: Option<OwnedFd>) -> Done {
        let index = self.index(index.into(), "SET_VRING_KICK")?;
        let kick = vector(index, "kick", fd)?;
        if kick.is_none() {
            let what = format_args!("the peer will not kick ring {index}: its worker must poll");
            self.device.say(Level::Warn, what);
        }
        let followed = self.device.slots[index].follow(kick.map(Arc::new));
        followed
            .map_err(|error| Offence::ring(index, format_args!("its kick descriptor cannot be waited for: {error}")))?;
        let ring = &mut self.rings[index];
        if !ring.started {
            ring.started = true;
            // Without the protocol's features, nothing else enables a ring.
            ring.enabled |= !self.features.has(Features::PROTOCOL_FEATURES);
            return self.offer(index, Strictly::Yes);
        }
        Ok(())
    }

    pub(super) fn set_call(&mut self, index: u8, fd: Option<OwnedFd>) -> Done {
        let index = self.index(index.into(), "SET_VRING_CALL")?;
        let call = vector(index, "call", fd)?.map(Arc::new);
        self.withdraw(index);
        self.rings[index].call = call;
        self.offer(index, Strictly::Yes)
    }

    /// Judged and dropped: a ring that makes no sense ends the connection, which says more. To signal it could hold up the
    /// thread that serves all peers (see [`Vector::adopt`]).
    pub(super) fn set_error(&mut self, index: u8, fd: Option<OwnedFd>) -> Done {
        let index = self.index(index.into(), "SET_VRING_ERR")?;
        vector(index, "error", fd).map(drop)
    }

    pub(super) fn enable(&mut self, index: u32, on: bool) -> Done {
        let index = self.index(index, "SET_VRING_ENABLE")?;
        if self.rings[index].enabled != on {
            self.rings[index].enabled = on;
            self.withdraw(index);
            return self.offer(index, Strictly::Yes);
        }
        Ok(())
    }

    /// Stops every ring.
    pub(super) fn stop_all(&mut self) {
        self.withdraw_all();
        (0..self.rings.len()).for_each(|index| self.stop_ring(index));
    }

    /// As after connecting, but for the memory.
    pub(super) fn reset(&mut self) {
        self.stop_all();
        self.rings.iter_mut().for_each(|ring| *ring = Vring::default());
        (self.features, self.log, self.status) = (Features::NONE, None, 0);
    }

    /// Why a worker gave a ring up, if one did.
    pub(super) fn lost(&self) -> Option<Offence> {
        self.device.slots.iter().enumerate().find_map(|(index, slot)| {
            let why = slot.take_lost()?;
            Some(Offence::ring(index, format_args!("{} ({:#x})", why.what, why.value)))
        })
    }

    /// What was agreed on, when the first ring runs; told once.
    pub(super) fn announce(&mut self) {
        if self.announced || !self.runs() {
            return;
        }
        self.announced = true;
        let bytes: u64 = self.regions.iter().map(PeerRegion::len).sum();
        let (mib, regions, pairs) = (bytes >> 20, self.regions.len(), self.offer.pairs);
        let agreement = Agreement::told(self.offer.features, self.features);
        let what = format_args!(
            "a peer runs; {mib} MiB of memory in {regions} regions, pairs of rings: up to {pairs}; {agreement}"
        );
        self.device.say(Level::Info, what);
    }

    fn index(&self, index: u32, message: &str) -> Result<usize, Offence> {
        let rings = self.rings.len();
        let known = usize::try_from(index).ok().filter(|&index| index < rings);
        known.ok_or_else(|| Offence::new(format_args!("{message} for ring {index} of {rings}")))
    }

    fn stopped(&self, index: u32, message: &str) -> Result<usize, Offence> {
        let index = self.index(index, message)?;
        if self.rings[index].started {
            return Err(Offence::ring(index, format_args!("{message} while it is started; GET_VRING_BASE stops it")));
        }
        Ok(index)
    }

    fn stop_ring(&mut self, index: usize) {
        self.withdraw(index);
        self.rings[index].started = false;
        // Following nothing cannot fail.
        let _ = self.device.slots[index].follow(None);
    }

    fn withdraw_all(&mut self) {
        let deadline = Instant::now() + self.patience;
        (0..self.rings.len()).for_each(|index| self.withdraw_until(index, deadline));
    }

    /// Takes a ring back from its worker, if it has been offered.
    fn withdraw(&mut self, index: usize) {
        self.withdraw_until(index, Instant::now() + self.patience);
    }

    fn withdraw_until(&mut self, index: usize, deadline: Instant) {
        let ring = &mut self.rings[index];
        let Some(kind) = ring.offered.take() else { return };
        // One that did not come once is not waited for again: other ports' peers are waiting, too.
        let deadline = if ring.late { Instant::now() } else { deadline };
        let Some(withdrawn) = self.device.slots[index].withdraw(kind, deadline) else { return };
        (ring.base, ring.is_behind) = (Some(withdrawn.position.base()), withdrawn.is_behind);
        if withdrawn.late && !ring.late {
            let what = format_args!(
                "the worker of ring {index} did not let go of it within {:?}; is it stuck? The peer's memory stays mapped \
                 until it does",
                self.patience
            );
            self.device.say(Level::Warn, what);
            self.device.counts.late.fetch_add(1, Ordering::Relaxed);
        }
        ring.late = withdrawn.late;
    }

    fn offer_all(&mut self, strictly: Strictly) -> Done {
        (0..self.rings.len()).try_for_each(|index| self.offer(index, strictly))
    }

    /// Gives a ring to its worker, if it is started and enabled.
    fn offer(&mut self, index: usize, strictly: Strictly) -> Done {
        let ring = &mut self.rings[index];
        if !ring.started || !ring.enabled {
            return Ok(());
        }
        let around = Surroundings { features: self.features, memory: &self.memory, log: self.log.as_ref() };
        match ring.config(&around) {
            Ok(config) => {
                ring.offered = Some(config.kind);
                self.device.slots[index].offer(config);
                Ok(())
            }
            Err(Unfit::Outside { .. }) if strictly == Strictly::No => Ok(()),
            Err(unfit) => Err(Offence::ring(index, unfit)),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_all();
        for slot in &self.device.slots {
            // The next peer has nothing to do with it.
            let _ = slot.take_lost();
        }
    }
}

/// Whether a ring that should run must be able to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strictly {
    Yes,
    /// Its memory may come later.
    No,
}

/// A region as a message describes it.
#[derive(Debug)]
pub(super) struct NewRegion {
    pub(super) guest: u64,
    pub(super) user: u64,
    pub(super) len: u64,
    pub(super) offset: u64,
    pub(super) fd: OwnedFd,
}

impl NewRegion {
    fn map(self) -> Result<PeerRegion, Offence> {
        PeerRegion::map(self.guest, self.user, self.len, self.fd.as_fd(), self.offset).map_err(Offence::new)
    }
}

/// Whether regions of these lengths may be mapped.
fn check_bytes(lens: impl Iterator<Item = u64>) -> Done {
    let bytes = lens.fold(0, u64::saturating_add);
    if bytes <= MEMORY_BYTES {
        return Ok(());
    }
    Err(Offence::new(format_args!("{bytes:#x} bytes of memory, above the limit of {MEMORY_BYTES:#x}")))
}

fn vector(index: usize, name: &str, fd: Option<OwnedFd>) -> Result<Option<Vector>, Offence> {
    let adopted = fd.map(Vector::adopt).transpose();
    adopted.map_err(|error| Offence::ring(index, format_args!("bad {name} descriptor: {error}")))
}
