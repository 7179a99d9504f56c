//! Receive queues.
//!
//! A buffer is given to the device with the header's bytes from its headroom, so that data starts where programs expect it.
//! Without mergeable buffers and offloads nobody reads the header: its cache line stays where the device left it.
//!
//! Frames of one buffer, used in order, with nothing to say in their header, take the short path. All else (chains, large
//! frames, partial checksums, buffers used out of order, nonsense) is taken one buffer at a time.

use std::mem;
use std::sync::Arc;

use spinwake::frame::{Burst, Checksum, DATA_ROOM, Frame, Pool, Posted, Verdicts};
use spinwake::irq::Vector;
use spinwake::port::{PortError, RxCounters, RxQueue};
use spinwake::sys::relax::Watch;
use spinwake::wait::{Source, Wake};

use super::features::Features;
use super::header::{HEADER_LEN, NetHeader};
use super::queue::{Common, DriverRx, QueueSetup, RingHealth};
use super::ring::{Fault, Filler, Packed, Ring, RingKind, Split, post};

/// Descriptors that are refilled together, in whole cache lines.
const BATCH: usize = 32;
const LINE: usize = 4;
/// Bytes of a whole buffer, and the most of them that a frame may take.
const WHOLE: usize = HEADER_LEN + DATA_ROOM;
const MAX_BUFFERS: usize = 64;
/// About a frame whose header nobody asked for.
const NO_VERDICTS: Verdicts = Verdicts::new(Checksum::Unknown, Checksum::Unknown);

/// Makes a receive queue on an idle ring.
///
/// # Errors
///
/// When frames may be longer than a buffer, and the device cannot put them into several.
pub(crate) fn rx_queue(setup: QueueSetup, counters: Arc<RxCounters>) -> Result<Box<dyn DriverRx>, PortError> {
    Ok(match setup.memory.kind() {
        RingKind::Split => Box::new(Rx::<Split>::new(setup, counters)?),
        RingKind::Packed => Box::new(Rx::<Packed>::new(setup, counters)?),
    })
}

/// One receive queue.
#[derive(Debug)]
struct Rx<R> {
    common: Common,
    ring: R,
    /// The buffers that the device has; of those used early, others in their place.
    posted: Posted,
    /// Refill in units of this many.
    batch: usize,
    in_order: bool,
    mergeable: bool,
    /// The header may say something about the frame.
    offloads: bool,
    chain: Chain,
    /// Slots whose buffer was used before an older one was, and how many.
    early: Box<[bool]>,
    earlies: usize,
    /// Buffers up to this position are used, the last one with that many bytes: told by one entry for all.
    batched: Option<(usize, usize)>,
    counters: Arc<RxCounters>,
}

/// A frame of several buffers that is still coming in.
#[derive(Debug, Default)]
struct Chain {
    header: NetHeader,
    /// Never grows: it has room for the longest frame.
    segments: Vec<Frame>,
    len: usize,
    /// Buffers to come.
    left: usize,
    /// The frame turned out to be bad: drop the rest of it.
    skip: bool,
}

/// What a burst adds to the counters.
#[derive(Debug, Default)]
struct Tally {
    frames: usize,
    bytes: usize,
    lies: u64,
    no_buf: bool,
}

impl<R: Ring> Rx<R> {
    fn new(setup: QueueSetup, counters: Arc<RxCounters>) -> Result<Self, PortError> {
        let (common, memory) = Common::new(setup);
        let mergeable = common.features.has(Features::MRG_RXBUF);
        if common.max_frame > DATA_ROOM && !mergeable {
            return Err(common.unsupported(format_args!(
                "frames of {} bytes need several buffers of {DATA_ROOM}, and the device has no MRG_RXBUF; use a smaller MTU \
                 and no large_receive",
                common.max_frame
            )));
        }
        if common.max_frame > MAX_BUFFERS * DATA_ROOM {
            return Err(common.unsupported(format_args!("frames of {} bytes are too long", common.max_frame)));
        }
        let len = common.len;
        // A device that lacks room for a frame waits for it, and all frames behind that one: what may be missing before a
        // refill leaves room for the longest.
        let spare = len.saturating_sub((HEADER_LEN + common.max_frame).div_ceil(WHOLE));
        Ok(Self {
            ring: R::new(memory, common.features, Filler::Device),
            posted: Posted::new(len),
            batch: BATCH.min(len / 4).min(spare + 1).max(1),
            in_order: common.features.has(Features::IN_ORDER),
            mergeable,
            offloads: common.features.has(Features::GUEST_CSUM),
            chain: Chain { segments: Vec::with_capacity(MAX_BUFFERS), ..Chain::default() },
            early: vec![false; len].into(),
            earlies: 0,
            batched: None,
            counters,
            common,
        })
    }

    /// Whether the next used buffer is the oldest one, and begins a frame.
    fn is_plain(&self) -> bool {
        self.chain.left == 0 && self.earlies == 0 && self.batched.is_none()
    }

    #[cold]
    fn break_down(&mut self, fault: Fault, tally: &mut Tally) {
        tally.lies += 1;
        self.common.break_down(fault);
    }

    /// Moves plain frames, one buffer each, into `burst`. Returns whether it stopped at something that is not plain.
    #[inline(always)]
    fn harvest(&mut self, burst: &mut Burst, tally: &mut Tally) -> bool {
        let most = burst.remaining_capacity().min(self.posted.len());
        let mut want = match self.ring.ready(most, self.posted.len()) {
            Ok(ready) => ready.min(most),
            Err(fault) => {
                self.break_down(fault, tally);
                return false;
            }
        };
        while want > 0 {
            // Up to the end of the ring at a time.
            let (moved, looked, bytes) = if self.mergeable || self.offloads {
                let (mergeable, offloads) = (self.mergeable, self.offloads);
                let verdicts = |bytes: &[u8; HEADER_LEN]| {
                    let header = NetHeader::from_bytes(*bytes);
                    if mergeable && header.num_buffers != 1 {
                        return None;
                    }
                    if offloads { header.verdicts() } else { Some(NO_VERDICTS) }
                };
                self.ring.harvest(&mut self.posted, burst, want, Some(verdicts))
            } else {
                let none = None::<fn(&[u8; HEADER_LEN]) -> Option<Verdicts>>;
                self.ring.harvest(&mut self.posted, burst, want, none)
            };
            tally.frames += moved;
            tally.bytes += bytes;
            if moved < looked {
                return self.ring.pending();
            }
            want -= moved;
        }
        false
    }

    /// Takes used buffers one by one until what comes next is plain again; returns whether it is.
    #[cold]
    #[inline(never)]
    fn harvest_odd(&mut self, pool: &mut Pool, burst: &mut Burst, tally: &mut Tally) -> bool {
        while !burst.is_full() {
            // What stands in for buffers that were used early has done so.
            while self.earlies > 0 && mem::take(&mut self.early[self.posted.head() & (self.common.len - 1)]) {
                self.earlies -= 1;
                self.posted.pop().into_iter().for_each(|frame| pool.give(frame));
            }
            let (position, len) = match self.next_used() {
                Ok(Some(used)) => used,
                Ok(None) => return false,
                Err(fault) => {
                    self.break_down(fault, tally);
                    return false;
                }
            };
            let frame = if position == self.posted.head() {
                self.posted.pop()
            } else {
                let frame = self.posted.replace(position, pool);
                if frame.is_some() {
                    self.early[position & (self.common.len - 1)] = true;
                    self.earlies += 1;
                }
                frame
            };
            // Out of order, and the pool is dry: it stays in the ring.
            let Some(frame) = frame else {
                tally.no_buf = true;
                return false;
            };
            self.ring.consume(1);
            self.batched = self.batched.filter(|(last, _)| *last != position);
            self.take(frame, len, pool, burst, tally);
            if self.is_plain() {
                return true;
            }
        }
        false
    }

    /// The position of the buffer that is used next, and its bytes, if one is.
    fn next_used(&mut self) -> Result<Option<(usize, usize)>, Fault> {
        let head = self.posted.head();
        if let Some((last, len)) = self.batched {
            // Those before the last are full (2.7.9).
            return Ok(Some((head, if head == last { len } else { WHOLE })));
        }
        let outstanding = self.posted.len() - self.earlies;
        let Some(used) = self.ring.peek(outstanding)? else { return Ok(None) };
        let slot = usize::try_from(used.id).ok().filter(|slot| *slot < self.common.len).ok_or(Fault::NotInFlight)?;
        let position = head + (slot.wrapping_sub(head) & (self.common.len - 1));
        if position >= self.posted.tail() || self.early[slot] {
            return Err(Fault::NotInFlight);
        }
        let len = used.len as usize;
        if self.in_order && position != head {
            // The index counts each buffer of a batch.
            let batch = position - head + 1;
            if self.ring.ready(batch, outstanding)? < batch {
                return Err(Fault::NotInFlight);
            }
            self.batched = Some((position, len));
            return Ok(Some((head, WHOLE)));
        }
        Ok(Some((position, len)))
    }

    /// One more buffer of a frame, which holds `len` bytes, header included.
    fn take(&mut self, mut frame: Frame, len: usize, pool: &mut Pool, burst: &mut Burst, tally: &mut Tally) {
        let first = self.chain.left == 0;
        if first {
            self.chain.skip = len <= HEADER_LEN || len > WHOLE;
            self.chain.len = 0;
            if !self.chain.skip {
                frame.set_len(len - HEADER_LEN);
                self.begin(&frame, tally);
            } else {
                tally.lies += 1;
            }
        } else {
            self.chain.left -= 1;
            if !self.chain.skip && len.wrapping_sub(1) < WHOLE {
                // There is no header in front of its data.
                frame.set_len(len.saturating_sub(HEADER_LEN));
                frame.prepend(HEADER_LEN);
                frame.truncate(len);
            } else {
                self.spoil(pool, tally);
            }
        }
        if !self.chain.skip {
            self.chain.len += frame.len();
            if self.chain.len > self.common.max_frame.max(DATA_ROOM) {
                self.spoil(pool, tally);
            }
        }
        if self.chain.skip {
            pool.give(frame);
            return;
        }
        self.chain.segments.push(frame);
        if self.chain.left == 0 {
            self.finish(pool, burst, tally);
        }
    }

    /// Reads the header in front of the first buffer's data.
    fn begin(&mut self, frame: &Frame, tally: &mut Tally) {
        let header = NetHeader::from_bytes(*frame.headroom().unwrap_or(&[0; HEADER_LEN]));
        let buffers = if self.mergeable { usize::from(header.num_buffers) } else { 1 };
        self.chain.header = header;
        self.chain.left = buffers.saturating_sub(1);
        if buffers == 0 || buffers > MAX_BUFFERS.min(self.common.len) {
            tally.lies += 1;
            self.chain.skip = true;
            // A number of buffers that the ring does not have says nothing of those to come.
            if buffers > self.common.len {
                self.chain.left = 0;
            }
        }
    }

    /// The frame that comes in is bad: what there is of it goes home.
    fn spoil(&mut self, pool: &mut Pool, tally: &mut Tally) {
        if !mem::replace(&mut self.chain.skip, true) {
            tally.lies += 1;
        }
        self.chain.segments.drain(..).for_each(|frame| pool.give(frame));
    }

    /// The frame is complete.
    fn finish(&mut self, pool: &mut Pool, burst: &mut Burst, tally: &mut Tally) {
        // From the end, so that each step finds the end of its chain at once.
        let whole = self.chain.segments.drain(..).rev().reduce(|tail, mut segment| {
            segment.chain(tail);
            segment
        });
        let Some(mut frame) = whole else { return };
        if self.offloads && self.chain.header.note(&mut frame).is_err() {
            tally.lies += 1;
            pool.give(frame);
            return;
        }
        tally.frames += 1;
        tally.bytes += self.chain.len;
        burst.push(frame);
    }

    /// Refills the ring if a batch is missing, and tells the device if it wants to know.
    #[inline(always)]
    fn replenish(&mut self, pool: &mut Pool, tally: &mut Tally) {
        let missing = self.common.len - self.posted.len();
        if missing < self.batch {
            return;
        }
        let mut want = missing;
        if self.batch >= LINE {
            // Up to the end of a cache line.
            want -= self.posted.tail().wrapping_add(missing) % LINE;
        }
        while want > 0 {
            let (posted, run) = post(&self.ring, &mut self.posted, pool, want);
            self.ring.offer(self.posted.tail() - posted, posted);
            if posted < run {
                tally.no_buf = true;
                break;
            }
            want -= posted;
        }
        let wanted = self.ring.publish(self.posted.tail());
        self.common.notify(wanted);
    }
}

impl<R: Ring> RxQueue for Rx<R> {
    fn rx_burst(&mut self, pool: &mut Pool, burst: &mut Burst) -> usize {
        self.common.check_domain(pool);
        if self.common.broken {
            return 0;
        }
        let mut tally = Tally::default();
        let mut odd = !self.is_plain();
        while !odd || self.harvest_odd(pool, burst, &mut tally) {
            odd = self.harvest(burst, &mut tally);
            if !odd {
                break;
            }
        }
        if !self.common.broken {
            self.replenish(pool, &mut tally);
        }
        if tally.frames > 0 {
            self.counters.frames.add(tally.frames as u64);
            self.counters.bytes.add(tally.bytes as u64);
        }
        if tally.lies > 0 {
            self.counters.lies.add(tally.lies);
        }
        if tally.no_buf {
            self.counters.no_buf.add(1);
        }
        tally.frames
    }

    fn vector(&self) -> Option<&Arc<Vector>> {
        self.common.vector()
    }

    fn counters(&self) -> &Arc<RxCounters> {
        &self.counters
    }
}

impl<R: Ring> Source for Rx<R> {
    fn label(&self) -> String {
        self.common.label.clone()
    }

    fn pending(&self) -> bool {
        !self.common.broken && (self.batched.is_some() || self.ring.pending())
    }

    fn arm(&mut self) {
        self.ring.arm();
    }

    fn disarm(&mut self) {
        self.ring.disarm();
    }

    fn wake(&self) -> Wake {
        self.common.wake()
    }

    fn watch(&self) -> Option<Watch<'_>> {
        Some(self.ring.watch())
    }
}

impl<R: Ring> DriverRx for Rx<R> {
    fn reset(&mut self) -> usize {
        let held = self.posted.len() + self.chain.segments.len();
        self.posted = Posted::new(self.common.len);
        self.chain = Chain { segments: Vec::with_capacity(MAX_BUFFERS), ..Chain::default() };
        self.early.fill(false);
        (self.earlies, self.batched) = (0, None);
        self.ring.reset();
        self.common.recover();
        held
    }

    fn abandon(&mut self) {
        self.posted.leak();
        self.common.broken = true;
    }

    fn health(&self) -> &Arc<RingHealth> {
        &self.common.health
    }
}
