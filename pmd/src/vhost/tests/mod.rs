//! The queues against a driver's half that was written from the specification alone, and against peers that follow no rule.

mod driver;
mod hostile;
mod machine;
mod notify;
mod traffic;

use std::sync::Arc;

use proptest::prelude::*;
use spinwake::dma::Domain;
use spinwake::frame::{Burst, Pool, PoolConfig};
use spinwake::irq::Vector;
use spinwake::mem::DirtyLog;
use spinwake::port::{RxCounters, TxCounters};

use self::driver::Driver;
use self::machine::Machine;
use super::rx::{LARGEST_FRAME, VhostRx};
use super::slot::{Position, RingConfig, RingKind, RingSlot, Withdrawn};
use super::tx::VhostTx;
use crate::virtio::features::Features;

/// Frames in the pools of these tests.
const FRAMES: usize = 128;

/// A ring's kind, length and features.
#[derive(Debug, Clone, Copy)]
struct Shape {
    kind: RingKind,
    len: u16,
    features: Features,
}

impl Shape {
    fn new(kind: RingKind, len: u16, features: Features) -> Self {
        Self { kind, len, features: features.with(Features::VERSION_1) }
    }

    /// All there are.
    fn any() -> impl Strategy<Value = Self> {
        let features = [Features::IN_ORDER, Features::EVENT_IDX, Features::INDIRECT_DESC, Features::MRG_RXBUF];
        let features = prop::sample::subsequence(features.to_vec(), 0..=features.len());
        let features = features.prop_map(|some| some.into_iter().fold(Features::NONE, Features::with));
        (any::<bool>(), 0..7u32, 1..40u16, features).prop_map(|(split, log, len, features)| {
            if split {
                Self::new(RingKind::Split, 1 << log, features)
            } else {
                Self::new(RingKind::Packed, len, features)
            }
        })
    }
}

/// One ring, between a driver and a slot.
struct Bench {
    machine: Machine,
    driver: Driver,
    slot: Arc<RingSlot>,
    alarm: Arc<Vector>,
    call: Arc<Vector>,
    pool: Pool,
    shape: Shape,
}

impl Bench {
    /// A fresh ring, offered to the slot.
    fn new(shape: Shape) -> Self {
        let bench = Self::without_ring(shape);
        bench.offer(Position::start(shape.kind), None);
        bench
    }

    fn without_ring(shape: Shape) -> Self {
        let alarm = Arc::new(Vector::new().unwrap());
        Self {
            machine: Machine::new(),
            driver: Driver::new(shape.kind, shape.len, shape.features),
            slot: Arc::new(RingSlot::new(alarm.clone()).unwrap()),
            alarm,
            call: Arc::new(Vector::new().unwrap()),
            pool: Pool::new_in(&Domain::new(), &PoolConfig { frames: FRAMES, ..PoolConfig::default() }).unwrap(),
            shape,
        }
    }

    fn offer(&self, position: Position, log: Option<Arc<DirtyLog>>) {
        self.offer_again(Withdrawn { position, is_behind: false, late: false }, log);
    }

    /// The same ring, as it was taken back.
    fn offer_again(&self, withdrawn: Withdrawn, log: Option<Arc<DirtyLog>>) {
        let Withdrawn { position, is_behind, .. } = withdrawn;
        let areas = self.driver.areas().map(|(at, len)| {
            self.machine.shared.area_at_guest(self.machine.guest(at), len).expect("rings lie in memory")
        });
        let log_used_at = log.is_some().then(|| areas[2].guest());
        self.slot.offer(RingConfig {
            kind: self.shape.kind,
            len: self.shape.len,
            position,
            is_behind,
            memory: self.machine.shared.clone(),
            areas,
            features: self.shape.features,
            call: Some(self.call.clone()),
            log,
            log_used_at,
        });
    }

    fn rx(&self) -> VhostRx {
        VhostRx::new("test rx".into(), self.slot.clone(), LARGEST_FRAME, Arc::new(RxCounters::default()))
    }

    fn tx(&self) -> VhostTx {
        VhostTx::new("test tx".into(), self.slot.clone(), LARGEST_FRAME, Arc::new(TxCounters::default()))
    }

    /// A frame of these bytes, in as many segments as it takes, each of `most` bytes at most.
    fn frame(&mut self, bytes: &[u8], most: usize) -> spinwake::frame::Frame {
        let mut segments = bytes.chunks(most).map(|chunk| {
            let mut segment = self.pool.take().expect("a frame for each segment");
            segment.copy_from(chunk);
            segment
        });
        let mut frame = segments.next().expect("a frame of at least a byte");
        segments.for_each(|segment| frame.chain(segment));
        frame
    }
}

/// The bytes of a frame with this number: no two frames are alike, nor two places in one.
fn payload(number: usize, len: usize) -> Vec<u8> {
    let seed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..len as u64).map(|at| (seed.wrapping_mul(2 * at + 1) >> 53) as u8).collect()
}

fn whole(frame: &spinwake::frame::Frame) -> Vec<u8> {
    frame.segments().flat_map(|segment| segment.data().to_vec()).collect()
}

/// Makes `burst` hold as many as leave room for `room` more, with frames that nobody looks at.
fn leave_room(pool: &mut Pool, burst: &mut Burst, room: usize) {
    while burst.remaining_capacity() > room {
        burst.push(pool.take().expect("frames to fill a burst with"));
    }
}
