//! The device's half of a ring, in memory that a driver may write at any time.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use spinwake::dma::Domain;
use spinwake::frame::{Frame, Pool, PoolConfig};
use spinwake::irq::Vector;
use spinwake::mem::{DirtyLog, PeerArea};
use spinwake::sys::mem::Memfd;

use super::super::slot::{Position, RingConfig, RingKind, RingSlot};
use super::guest::{Driver, Guest, LEN_MAX, SIZE};
use super::queues::Queue;
use crate::fuzz::{Input, STEPS};
use crate::virtio::features::Features;

/// Frames of the pool: less than a ring may ask for.
const FRAMES: usize = 96;

/// Every feature that changes what is done with a ring.
const FEATURES: [Features; 8] = [
    Features::IN_ORDER,
    Features::EVENT_IDX,
    Features::INDIRECT_DESC,
    Features::MRG_RXBUF,
    Features::CSUM,
    Features::GUEST_CSUM,
    Features::GUEST_TSO4.with(Features::GUEST_TSO6).with(Features::GUEST_ECN),
    Features::GUEST_USO4.with(Features::GUEST_USO6),
];

/// What stays from run to run.
struct Bench {
    guest: Guest,
    log: Arc<DirtyLog>,
    pool: Pool,
}

impl Bench {
    fn new() -> Self {
        let memfd = Memfd::new(c"log", 4096, None).expect("a memfd");
        let log = Arc::new(DirtyLog::map(memfd.as_fd(), 0, 4096).expect("a log"));
        let config = PoolConfig { frames: FRAMES, ..PoolConfig::default() };
        Self { guest: Guest::new(), log, pool: Pool::new_in(&Domain::new(), &config).expect("a pool") }
    }
}

thread_local! {
    static BENCH: OnceCell<std::cell::RefCell<Bench>> = const { OnceCell::new() };
}

/// Runs one queue on rings of all kinds, features and places, and on what `bytes` write there.
pub fn vhost_rings(bytes: &[u8]) {
    BENCH.with(|bench| {
        let Bench { guest, log, pool } = &mut *bench.get_or_init(|| Bench::new().into()).borrow_mut();
        guest.clear();
        let mut input = Input::new(bytes);
        let (alarm, call) =
            (Arc::new(Vector::new().expect("an eventfd")), Arc::new(Vector::new().expect("an eventfd")));
        let slot = Arc::new(RingSlot::new(alarm).expect("a slot"));
        let receives = input.flag();
        let mut ring = Ring { guest, log, slot: &slot, call, driver: Driver::new(RingKind::Split, 1, 0) };
        ring.offer(&mut input);
        let mut queue = Queue::new(&slot, receives);
        let mut kept = Vec::new();
        // Rarely: threads cost time, and what they do is different each time.
        if input.u8() == 0x77 {
            ring.storm(&mut queue, &mut input, pool, &mut kept);
            ring.settle(&mut queue, &mut input, pool, &mut kept);
        }
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            ring.step(&mut queue, &mut input, pool, &mut kept, receives);
            ring.settle(&mut queue, &mut input, pool, &mut kept);
        }
        drop((queue, ring));
        slot.withdraw(RingKind::Split, Instant::now());
        kept.into_iter().for_each(|frame| pool.give(frame));
        assert_eq!(pool.available(), FRAMES);
        assert!(guest.is_whole(), "a write where no region is");
    });
}

/// A slot, what it was given, and who writes there.
struct Ring<'a> {
    guest: &'a Guest,
    log: &'a Arc<DirtyLog>,
    slot: &'a Arc<RingSlot>,
    call: Arc<Vector>,
    driver: Driver,
}

impl Ring<'_> {
    fn step(
        &mut self,
        queue: &mut Queue,
        input: &mut Input<'_>,
        pool: &mut Pool,
        kept: &mut Vec<Frame>,
        receives: bool,
    ) {
        match input.below(16) {
            0..3 => self.driver.scribble(self.guest, input),
            3..8 => self.driver.add(self.guest, input, !receives),
            8 => self.guest.spoil(input),
            9 => queue.wait(input),
            10 => self.driver.wish(self.guest, input),
            11 => match input.below(4) {
                0 => queue.renew(),
                1 => drop(self.slot.withdraw(self.driver.kind, Instant::now())),
                2 => kept.drain(..).for_each(|frame| pool.give(frame)),
                _ => {
                    // Late, if the queue has it: it goes on with the old one until its next burst.
                    self.slot.withdraw(self.driver.kind, Instant::now());
                    self.offer(input);
                }
            },
            _ => _ = queue.burst(pool, input, kept),
        }
    }

    /// Takes a ring back that the queue has given up, as a connection does when it ends, and offers the next one.
    fn settle(&mut self, queue: &mut Queue, input: &mut Input<'_>, pool: &mut Pool, kept: &mut Vec<Frame>) {
        if self.slot.take_lost().is_some() {
            // It leaves the ring alone, and says so but once.
            let before = self.guest.bytes();
            assert_eq!(queue.burst(pool, input, kept), 0);
            assert!(self.slot.take_lost().is_none() && self.guest.bytes() == before, "a ring that was lost is used");
            queue.renew();
            assert!(self.slot.withdraw(self.driver.kind, Instant::now()).is_some_and(|ring| !ring.late));
            self.offer(input);
        }
    }

    /// Gives the queue a ring: with areas as drivers have them, or anywhere in memory, over each other too.
    fn offer(&mut self, input: &mut Input<'_>) {
        let (mask, shape) = (input.u8(), input.u8());
        let features = FEATURES
            .iter()
            .zip(0..)
            .fold(Features::VERSION_1, |features, (&feature, bit)| features.with(feature.when(mask >> bit & 1 == 1)));
        let kind = if shape & 1 == 0 { RingKind::Split } else { RingKind::Packed };
        let len =
            if shape & 2 == 0 { input.pick(&[16, 1, 2, 4, 8, 32, 64, LEN_MAX]) } else { input.u16() % (LEN_MAX + 1) };
        self.driver = Driver::new(kind, len.max(1), 0);
        let area = |at: usize, bytes: usize| self.guest.shared.area_at_guest(self.guest.address(at), bytes);
        let anywhere = |input: &mut Input<'_>, bytes: usize| {
            let at = usize::from(input.u16()) * 2 % SIZE;
            area(at, bytes).or_else(|| area(at & 0x7ffe, bytes))
        };
        let areas: Option<Vec<PeerArea>> = self
            .driver
            .areas()
            .into_iter()
            .map(|(at, bytes)| if shape & 12 == 12 { anywhere(input, bytes) } else { area(at, bytes) })
            .collect();
        let Some(areas) = areas.and_then(|areas| <[PeerArea; 3]>::try_from(areas).ok()) else { return };
        let position = if shape & 48 == 48 {
            let of = if shape & 64 == 0 { kind } else { RingKind::Split };
            Position::resumed(of, input.u32())
        } else {
            Position::start(kind)
        };
        let log = (shape & 128 != 0).then(|| self.log.clone());
        self.slot.offer(RingConfig {
            kind,
            len,
            position,
            is_behind: false,
            memory: self.guest.shared.clone(),
            log_used_at: log.as_ref().map(|_| areas[2].guest()),
            areas,
            features,
            call: Some(self.call.clone()),
            log,
        });
    }

    /// Bursts while another thread writes what comes next in `input`.
    fn storm(&self, queue: &mut Queue, input: &mut Input<'_>, pool: &mut Pool, kept: &mut Vec<Frame>) {
        let (peer, driver, stop) = (self.guest.again(), self.driver.clone(), AtomicBool::new(false));
        let script = input.slice(64);
        std::thread::scope(|scope| {
            let storm = scope.spawn(|| {
                let mut driver = driver;
                while !stop.load(Ordering::Relaxed) {
                    let mut script = Input::new(script);
                    while !script.is_empty() {
                        if script.flag() {
                            driver.scribble(&peer, &mut script)
                        } else {
                            driver.add(&peer, &mut script, false)
                        }
                    }
                    std::thread::yield_now();
                }
            });
            for _ in 0..64 {
                queue.burst(pool, input, kept);
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            // The scope waits for the closure alone; what the thread itself still has would be found as a leak.
            let _ = storm.join();
        });
    }
}
