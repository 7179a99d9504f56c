//! Peers that follow no rule.

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use spinwake::frame::{Burst, Frame, L4Checksum};
use spinwake::port::{RxQueue, TxQueue};
use spinwake::wait::Source;

use super::driver::{DESCS, DEVICE, DRIVER};
use super::machine::{BUFFERS, Machine, SIZE};
use super::*;
use crate::virtio::header::HEADER_LEN;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A table in the buffers' part.
const TABLE: usize = BUFFERS + 0x1000;

/// Writes a descriptor by hand. In a packed ring it is available in the first lap.
fn desc(bench: &Bench, at: u16, addr: u64, len: u32, flags: u16, link: u16) {
    let place = DESCS + 16 * usize::from(at);
    entry(bench, place, addr, len, flags, link);
    if bench.shape.kind == RingKind::Packed {
        bench.machine.set_u16(place + 14, flags | 1 << 7);
    }
}

/// Writes an entry of a table.
fn entry(bench: &Bench, place: usize, addr: u64, len: u32, flags: u16, link: u16) {
    let m = &bench.machine;
    m.set_u64(place, addr);
    m.set_u32(place + 8, len);
    let (flags_at, link_at) = if bench.shape.kind == RingKind::Split { (12, 14) } else { (14, 12) };
    m.set_u16(place + flags_at, flags);
    m.set_u16(place + link_at, link);
}

/// Makes the chain that begins in descriptor 0 available.
fn give(bench: &Bench) {
    if bench.shape.kind == RingKind::Split {
        bench.machine.set_u16(DRIVER + 4, 0);
        bench.machine.set_u16(DRIVER + 2, 1);
    }
}

type Trick = fn(&Bench);

/// Tricks that work on both kinds of ring, against a queue that reads, and what is said of them.
const TRICKS: &[(&str, Trick)] = &[
    ("no memory at guest address", |b| desc(b, 0, 0x1000, 100, 0, 0)),
    ("no memory at guest address", |b| desc(b, 0, u64::MAX - 10, 100, 0, 0)),
    ("no memory at guest address", |b| desc(b, 0, b.machine.guest((8 << 20) - 50), 100, 0, 0)),
    ("no memory at guest address", |b| {
        desc(b, 0, b.machine.guest(BUFFERS), 100, NEXT, 1);
        desc(b, 1, b.machine.guest((8 << 20) - 50), 3000, 0, 0);
    }),
    ("a descriptor goes the wrong way, at guest address", |b| desc(b, 0, b.machine.guest(BUFFERS), 100, WRITE, 0)),
    ("a descriptor has no bytes, at guest address", |b| desc(b, 0, b.machine.guest(BUFFERS), 0, NEXT, 1)),
    ("a frame is shorter than its header, of bytes", |b| desc(b, 0, b.machine.guest(BUFFERS), 11, 0, 0)),
    ("a chain runs in a circle, from", |b| {
        for i in 0..b.shape.len {
            desc(b, i, b.machine.guest(BUFFERS), 1, NEXT, (i + 1) % b.shape.len);
        }
    }),
    ("an indirect table has an impossible length of bytes:", |b| {
        desc(b, 0, b.machine.guest(TABLE), 24, INDIRECT, 0);
    }),
    ("an indirect table has an impossible length of bytes:", |b| desc(b, 0, b.machine.guest(TABLE), 0, INDIRECT, 0)),
    ("an indirect table has an impossible length of bytes:", |b| {
        desc(b, 0, b.machine.guest(TABLE), 16 * 1025, INDIRECT, 0);
    }),
    ("an indirect descriptor has a next one, at guest address", |b| {
        desc(b, 0, b.machine.guest(TABLE), 16, INDIRECT | NEXT, 1);
    }),
    ("no memory for a table at guest address", |b| desc(b, 0, b.machine.guest((8 << 20) - 8), 32, INDIRECT, 0)),
    ("an indirect table in another, at guest address", |b| {
        entry(b, TABLE, b.machine.guest(TABLE), 16, INDIRECT, 0);
        desc(b, 0, b.machine.guest(TABLE), 16, INDIRECT, 0);
    }),
];

/// Tricks that a split ring alone allows.
const SPLIT_TRICKS: &[(&str, Trick)] = &[
    ("no such descriptor:", |b| b.machine.set_u16(DRIVER + 4, b.shape.len)),
    ("no such descriptor:", |b| desc(b, 0, b.machine.guest(BUFFERS), 100, NEXT, 0xffff)),
    ("a table's descriptor has a next one beyond its end:", |b| {
        entry(b, TABLE, b.machine.guest(BUFFERS), 50, NEXT, 2);
        desc(b, 0, b.machine.guest(TABLE), 32, INDIRECT, 0);
    }),
    ("an indirect table runs in a circle, at guest address", |b| {
        entry(b, TABLE, b.machine.guest(BUFFERS), 50, NEXT, 0);
        desc(b, 0, b.machine.guest(TABLE), 32, INDIRECT, 0);
    }),
    ("more than a ring ahead, the available index is", |b| b.machine.set_u16(DRIVER + 2, b.shape.len + 1)),
    ("more than a ring ahead, the available index is", |b| b.machine.set_u16(DRIVER + 2, 0xffff)),
];

const PACKED_TRICKS: &[(&str, Trick)] = &[("a chain ends in a descriptor that is not available, in place", |b| {
    desc(b, 0, b.machine.guest(BUFFERS), 100, NEXT, 0);
})];

fn burst_of(rx: &mut VhostRx, pool: &mut Pool) -> Vec<usize> {
    let mut burst = Burst::new();
    rx.rx_burst(pool, &mut burst);
    let lens = burst.iter().map(Frame::total_len).collect();
    pool.give_burst(&mut burst);
    lens
}

#[test]
fn each_trick_is_called_by_its_name_and_ends_that_ring_alone() {
    for kind in [RingKind::Split, RingKind::Packed] {
        let tricks = if kind == RingKind::Split { SPLIT_TRICKS } else { PACKED_TRICKS };
        for (name, trick) in TRICKS.iter().chain(tricks) {
            let shape = Shape::new(kind, 16, Features::INDIRECT_DESC);
            let (mut bench, mut other) = (Bench::new(shape), Bench::new(shape));
            let (mut rx, mut other_rx) = (bench.rx(), other.rx());
            assert!(burst_of(&mut rx, &mut bench.pool).is_empty());
            give(&bench);
            trick(&bench);
            assert!(burst_of(&mut rx, &mut bench.pool).is_empty());
            let why = bench.slot.take_lost().unwrap_or_else(|| panic!("{kind:?}: nobody noticed {name}"));
            assert!(why.what.starts_with(name), "{kind:?}: {} instead of {name}", why.what);
            assert_eq!(bench.alarm.take(), 1);
            // From then on it is left alone, and lost but once.
            desc(&bench, 0, bench.machine.guest(BUFFERS), 72, 0, 0);
            assert!(burst_of(&mut rx, &mut bench.pool).is_empty());
            assert_eq!((bench.slot.take_lost(), bench.pool.available()), (None, FRAMES));
            desc(&other, 0, other.machine.guest(BUFFERS), 72, 0, 0);
            give(&other);
            assert_eq!(burst_of(&mut other_rx, &mut other.pool), [60]);
        }
    }
}

#[test]
fn a_table_that_was_not_agreed_on_is_refused() {
    for kind in [RingKind::Split, RingKind::Packed] {
        let mut bench = Bench::new(Shape::new(kind, 16, Features::NONE));
        let mut rx = bench.rx();
        give(&bench);
        entry(&bench, TABLE, bench.machine.guest(BUFFERS), 100, 0, 0);
        desc(&bench, 0, bench.machine.guest(TABLE), 16, INDIRECT, 0);
        assert!(burst_of(&mut rx, &mut bench.pool).is_empty());
        assert!(bench.slot.take_lost().unwrap().what.contains("not agreed on"));
    }
}

#[test]
fn receive_buffers_are_judged_too() {
    let tricks: &[(&str, Trick)] = &[
        ("a descriptor goes the wrong way, at guest address", |b| desc(b, 0, b.machine.guest(BUFFERS), 100, 0, 0)),
        ("a receive buffer is shorter than a header", |b| desc(b, 0, b.machine.guest(BUFFERS), 11, WRITE, 0)),
        ("no memory at guest address", |b| desc(b, 0, b.machine.guest(8 << 20) - 50, 100, WRITE, 0)),
    ];
    for kind in [RingKind::Split, RingKind::Packed] {
        for (name, trick) in tricks {
            let mut bench = Bench::new(Shape::new(kind, 16, Features::MRG_RXBUF));
            let mut tx = bench.tx();
            give(&bench);
            trick(&bench);
            let mut burst: Burst = [bench.frame(&payload(0, 60), 2048)].into_iter().collect();
            assert_eq!((tx.tx_burst(&mut bench.pool, &mut burst), burst.len()), (0, 1), "{kind:?} {name}");
            let why = bench.slot.take_lost().unwrap_or_else(|| panic!("{kind:?}: nobody noticed {name}"));
            assert!(why.what.starts_with(name), "{kind:?}: {} instead of {name}", why.what);
        }
    }
}

#[test]
fn frames_that_cannot_be_are_counted_and_the_ring_goes_on() {
    for kind in [RingKind::Split, RingKind::Packed] {
        let mut bench = Bench::new(Shape::new(kind, 16, Features::CSUM));
        let mut rx = bench.rx();
        let give = |bench: &mut Bench, header: &[u8], len: usize| {
            let at = bench.machine.room(HEADER_LEN + len);
            bench.machine.write(at, &[0; HEADER_LEN]);
            bench.machine.write(at, header);
            let pieces = [(bench.machine.guest(at), (HEADER_LEN + len) as u32)];
            bench.driver.add(&bench.machine, 0, &pieces, false, false);
        };
        give(&mut bench, &[], 60);
        // A header and no frame; segments without a checksum; a checksum beyond the frame; one frame too long.
        give(&mut bench, &[], 0);
        give(&mut bench, &[0, 1], 60);
        give(&mut bench, &[1, 0, 0, 0, 0, 0, 50, 0, 16, 0], 60);
        give(&mut bench, &[1, 0, 0, 0, 0, 0, 50, 0, 16, 0], 3000);
        give(&mut bench, &[], LARGEST_FRAME + 1);
        give(&mut bench, &[1, 0, 0, 0, 0, 0, 34, 0, 6, 0], 61);
        let mut burst = Burst::new();
        assert_eq!(rx.rx_burst(&mut bench.pool, &mut burst), 3);
        assert_eq!(burst.iter().map(Frame::total_len).collect::<Vec<_>>(), [60, 3000, 61]);
        assert_eq!(burst[2].requested_checksums(), Some((14, 20, false, L4Checksum::Udp)));
        bench.pool.give_burst(&mut burst);
        assert_eq!((rx.counters().lies.get(), rx.counters().errors.get(), rx.counters().frames.get()), (2, 2, 3));
        assert_eq!((bench.driver.take(&bench.machine).len(), bench.slot.take_lost()), (7, None));
        assert_eq!(bench.pool.available(), FRAMES);
    }
}

#[test]
fn frames_that_cannot_be_do_not_keep_a_worker_for_longer_than_a_burst() {
    const CHAINS: usize = 100;
    for kind in [RingKind::Split, RingKind::Packed] {
        let mut bench = Bench::new(Shape::new(kind, 128, Features::NONE));
        let mut rx = bench.rx();
        for _ in 0..CHAINS {
            let pieces = [(bench.machine.guest(BUFFERS), HEADER_LEN as u32)];
            bench.driver.add(&bench.machine, 0, &pieces, false, false);
        }
        let mut bursts = 0;
        while rx.pending() {
            let before = rx.counters().errors.get();
            assert!(burst_of(&mut rx, &mut bench.pool).is_empty());
            let dropped = rx.counters().errors.get() - before;
            assert!((1..=32).contains(&dropped), "{kind:?}: {dropped} in one burst");
            bursts += 1;
        }
        assert_eq!((rx.counters().errors.get(), bursts), (CHAINS as u64, 4));
        assert_eq!((bench.driver.take(&bench.machine).len(), bench.slot.take_lost()), (CHAINS, None));
    }
}

/// Small and quick: what it writes is its own business.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % n
    }

    fn pick<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.roll(some.len() as u64) as usize]
    }
}

/// Writes something into a ring that is nearly right, or all wrong.
fn scribble(machine: &Machine, kind: RingKind, len: u16, dice: &mut Dice) {
    let addr = match dice.roll(8) {
        0 => dice.pick(&[0, 8 << 20, SIZE as u64, u64::MAX, (1 << 32) - 1]),
        1 => machine.guest(dice.pick(&[(1 << 20) - 40, (8 << 20) - 40, (15 << 20) - 40])),
        2 => machine.guest(TABLE + 16 * dice.roll(64) as usize),
        _ => machine.guest(BUFFERS + 0x2000 + dice.roll(0x10_0000) as usize),
    };
    let bytes =
        dice.pick(&[0, 1, 11, 12, 13, 16, 32, 64, 72, 72, 72, 256, 1530, 2060, 2061, 9000, 65_569, 80_000, u32::MAX]);
    let flags = dice.pick(&[0, 0, 0, 0, NEXT, NEXT, WRITE, WRITE, WRITE | NEXT, INDIRECT, INDIRECT, 7, 0xff7f]);
    let link = dice.roll(u64::from(len) + u64::from(len / 8 + 1)) as u16;
    let place = match dice.roll(3) {
        0 => TABLE + 16 * dice.roll(64) as usize,
        _ => DESCS + 16 * dice.roll(len.into()) as usize,
    };
    machine.set_u64(place, addr);
    machine.set_u32(place + 8, bytes);
    match kind {
        RingKind::Split => {
            machine.set_u16(place + 12, flags);
            machine.set_u16(place + 14, link);
            machine.set_u16(DRIVER + 4 + 2 * dice.roll(len.into()) as usize, link);
            if dice.roll(4) == 0 {
                let index = machine.u16(DEVICE + 2).wrapping_add(dice.roll(u64::from(len) + 1) as u16);
                machine.set_u16(DRIVER + 2, if dice.roll(200) == 0 { dice.roll(1 << 16) as u16 } else { index });
            }
        }
        RingKind::Packed => {
            machine.set_u16(place + 12, link);
            machine
                .set_u16(place + 14, flags & !(1 << 7 | 1 << 15) | dice.pick(&[1 << 7, 1 << 7, 1 << 15, 1 << 15, 0]));
            machine.set_u32(DRIVER, dice.roll(1 << 20) as u32);
        }
    }
}

/// A queue of either direction.
enum Queue {
    Rx(VhostRx),
    Tx(VhostTx),
}

impl Queue {
    fn new(bench: &Bench, receives: bool) -> Self {
        if receives { Self::Rx(bench.rx()) } else { Self::Tx(bench.tx()) }
    }

    /// Runs once on whatever stands there. Returns how many frames moved.
    fn run(&mut self, bench: &mut Bench, dice: &mut Dice) -> usize {
        match self {
            Self::Rx(rx) => burst_of(rx, &mut bench.pool).len(),
            Self::Tx(tx) => {
                let lens = [1, 60, 60, 60, 1500, 2048, 5000, 20_000];
                let mut burst: Burst =
                    (0..dice.roll(6) as usize).map(|i| bench.frame(&payload(i, dice.pick(&lens)), 2048)).collect();
                let sent = tx.tx_burst(&mut bench.pool, &mut burst);
                bench.pool.give_burst(&mut burst);
                sent
            }
        }
    }
}

/// As a connection does when a ring was lost: takes it back, and offers a fresh one.
fn start_anew(bench: &Bench, queue: Queue) {
    drop(queue);
    let kind = bench.shape.kind;
    assert!(bench.slot.withdraw(kind, std::time::Instant::now()).is_some_and(|ring| !ring.late));
    let position = match kind {
        RingKind::Split => Position::Split { next: bench.machine.u16(DRIVER + 2) },
        RingKind::Packed => Position::start(kind),
    };
    bench.offer(position, None);
}

/// Whether nothing was written where no region is.
fn untouched(machine: &Machine) -> bool {
    Machine::outside().into_iter().all(|range| machine.read(range.start, range.len()).iter().all(|byte| *byte == 0))
}

/// Every feature that changes what is done with a ring.
const ALL: Features = Features::INDIRECT_DESC
    .with(Features::EVENT_IDX)
    .with(Features::MRG_RXBUF)
    .with(Features::CSUM)
    .with(Features::GUEST_CSUM);

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_stands_in_a_ring_does_harm(split in any::<bool>(), receives in any::<bool>(), in_order in any::<bool>(), log in 0..6u32, seed in 1..u64::MAX) {
        let kind = if split { RingKind::Split } else { RingKind::Packed };
        let mut bench = Bench::new(Shape::new(kind, 1 << log, ALL.with(Features::IN_ORDER.when(in_order))));
        let mut dice = Dice(seed);
        let mut queue = Queue::new(&bench, receives);
        for _ in 0..400 {
            for _ in 0..=dice.roll(6) {
                scribble(&bench.machine, kind, bench.shape.len, &mut dice);
            }
            queue.run(&mut bench, &mut dice);
            prop_assert_eq!(bench.pool.available(), FRAMES);
            if bench.slot.take_lost().is_some() {
                start_anew(&bench, queue);
                queue = Queue::new(&bench, receives);
            }
        }
        prop_assert!(untouched(&bench.machine));
    }
}

#[test]
fn nothing_that_changes_while_we_read_does_harm() {
    for kind in [RingKind::Split, RingKind::Packed] {
        for receives in [true, false] {
            let mut bench = Bench::new(Shape::new(kind, 16, ALL));
            let mut queue = Queue::new(&bench, receives);
            let (peer, stop) = (bench.machine.again(), AtomicBool::new(false));
            let (mut moved, mut lost, mut dice) = (0, 0, Dice(77));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut dice = Dice(4711);
                    while !stop.load(Ordering::Relaxed) {
                        scribble(&peer, kind, 16, &mut dice);
                    }
                });
                // Many times, and on until the other thread has come to write at all.
                let end = std::time::Instant::now() + std::time::Duration::from_secs(120);
                let mut rounds = 0;
                while (rounds < 5000 || moved + lost == 0) && std::time::Instant::now() < end {
                    rounds += 1;
                    moved += queue.run(&mut bench, &mut dice);
                    if bench.slot.take_lost().is_some() {
                        lost += 1;
                        start_anew(&bench, queue);
                        queue = Queue::new(&bench, receives);
                    }
                }
                stop.store(true, Ordering::Relaxed);
            });
            assert!(moved + lost > 0, "{kind:?}: the ring never changed");
            assert!(bench.pool.available() == FRAMES && untouched(&bench.machine));
        }
    }
}
