//! Who is told of what, and that nobody is told of what he did not ask for; what a migration and a handover need.

use std::sync::Arc;
use std::time::Instant;

use spinwake::frame::{BURST, Burst};
use spinwake::mem::{DirtyLog, PeerMemory, PeerRegion};
use spinwake::port::{RxQueue, TxQueue};
use spinwake::sys::mem::Memfd;
use spinwake::wait::Source;

use super::super::chain::offence;
use super::super::queue::QueueEnd;
use super::super::ring::{AnyRing, Batch, Ring};
use super::driver::Want;
use super::machine::SIZE;
use super::*;
use crate::virtio::header::HEADER_LEN;

/// Both kinds of ring, with and without event indices.
fn shapes(len: u16) -> impl Iterator<Item = Shape> {
    [RingKind::Split, RingKind::Packed].into_iter().flat_map(move |kind| {
        [Features::NONE, Features::EVENT_IDX].into_iter().map(move |features| Shape::new(kind, len, features))
    })
}

/// Gives one frame, or one buffer, of 60 bytes.
fn give(bench: &mut Bench, token: usize, to_driver: bool) {
    let at = bench.machine.room(HEADER_LEN + 60);
    bench.driver.add(&bench.machine, token, &[(bench.machine.guest(at), HEADER_LEN as u32 + 60)], to_driver, false);
}

/// Receives all there is; returns how many.
fn receive(bench: &mut Bench, rx: &mut VhostRx) -> usize {
    let mut burst = Burst::new();
    let n = rx.rx_burst(&mut bench.pool, &mut burst);
    bench.pool.give_burst(&mut burst);
    n
}

fn send(bench: &mut Bench, tx: &mut VhostTx, n: usize) -> usize {
    let mut burst: Burst = (0..n).map(|i| bench.frame(&payload(i, 60), 2048)).collect();
    let sent = tx.tx_burst(&mut bench.pool, &mut burst);
    bench.pool.give_burst(&mut burst);
    sent
}

#[test]
fn a_queue_that_polls_is_never_kicked() {
    for shape in shapes(4).chain(shapes(256)) {
        let mut bench = Bench::new(shape);
        let mut rx = bench.rx();
        assert_eq!(receive(&mut bench, &mut rx), 0);
        // More than once around all positions, in steps that do not divide them.
        let mut total = 0;
        while total < 140_000 {
            for token in 0..3 {
                give(&mut bench, total + token, false);
            }
            assert!(!bench.driver.kick(&bench.machine), "{shape:?} after {total}");
            assert_eq!(receive(&mut bench, &mut rx), 3);
            assert_eq!(bench.driver.take(&bench.machine).len(), 3);
            total += 3;
        }
    }
}

#[test]
fn an_armed_queue_is_kicked_and_a_disarmed_one_not() {
    for shape in shapes(8) {
        let mut bench = Bench::new(shape);
        let mut rx = bench.rx();
        receive(&mut bench, &mut rx);
        for round in 0..100 {
            let (machine, driver) = (&bench.machine, &mut bench.driver);
            assert!(!driver.kick(machine) && !rx.pending());
            rx.arm();
            rx.arm();
            assert!(!rx.pending());
            give(&mut bench, round, false);
            assert!(bench.driver.kick(&bench.machine) && rx.pending(), "{shape:?}");
            give(&mut bench, round, false);
            // By the event index one is enough; the flag says "always".
            assert_eq!(bench.driver.kick(&bench.machine), !shape.features.has(Features::EVENT_IDX), "{shape:?}");
            rx.disarm();
            give(&mut bench, round, false);
            assert!(!bench.driver.kick(&bench.machine), "{shape:?}");
            assert_eq!(receive(&mut bench, &mut rx), 3);
            assert_eq!(bench.driver.take(&bench.machine).len(), 3);
        }
    }
}

#[test]
fn a_queue_that_was_armed_before_its_ring_came_is_kicked() {
    for shape in shapes(8) {
        let mut bench = Bench::without_ring(shape);
        let mut rx = bench.rx();
        // It has looked at its slot and found nothing.
        assert_eq!(receive(&mut bench, &mut rx), 0);
        rx.arm();
        assert!(!rx.pending());
        bench.offer(Position::start(shape.kind), None);
        assert!(rx.pending());
        assert_eq!(receive(&mut bench, &mut rx), 0);
        assert!(!rx.pending());
        give(&mut bench, 0, false);
        assert!(bench.driver.kick(&bench.machine));
    }
}

#[test]
fn the_driver_is_told_when_it_wants() {
    for shape in shapes(16) {
        let mut bench = Bench::new(shape);
        let (mut rx, event_idx) = (bench.rx(), shape.features.has(Features::EVENT_IDX));
        // When the ring is taken up it is told in any case: it may have missed something before.
        receive(&mut bench, &mut rx);
        assert_eq!(bench.call.take(), 1);
        // So it is the first time, where it goes by positions: nobody knows what it was told before.
        bench.driver.want(&bench.machine, Want::Always);
        give(&mut bench, 0, false);
        receive(&mut bench, &mut rx);
        assert_eq!((bench.call.take(), bench.driver.take(&bench.machine).len()), (1, 1));
        for round in 0..50u16 {
            if event_idx {
                let n = round % 7;
                bench.driver.want(&bench.machine, Want::After(n));
                for i in 0..8 {
                    give(&mut bench, i, false);
                    receive(&mut bench, &mut rx);
                    assert_eq!(bench.call.take(), u64::from(i == usize::from(n)), "{shape:?} {n} {i}");
                }
                bench.driver.take(&bench.machine);
                // One burst of many tells once.
                bench.driver.want(&bench.machine, Want::After(n));
                (0..8).for_each(|i| give(&mut bench, i, false));
                receive(&mut bench, &mut rx);
                assert_eq!(bench.call.take(), 1);
            } else {
                for (want, calls) in [(Want::Never, 0), (Want::Always, 1)] {
                    bench.driver.want(&bench.machine, want);
                    (0..8).for_each(|i| give(&mut bench, i, false));
                    receive(&mut bench, &mut rx);
                    receive(&mut bench, &mut rx);
                    assert_eq!(bench.call.take(), calls, "{shape:?} {want:?}");
                }
            }
            bench.driver.take(&bench.machine);
        }
    }
}

#[test]
fn a_transmit_queue_wants_no_kicks_and_tells_once_a_burst() {
    for shape in shapes(32) {
        let mut bench = Bench::new(shape);
        let mut tx = bench.tx();
        bench.driver.want(&bench.machine, Want::Always);
        assert_eq!(send(&mut bench, &mut tx, 1), 0);
        assert_eq!((tx.counters().full.get(), bench.call.take()), (1, 1));
        (0..20).for_each(|token| give(&mut bench, token, true));
        assert!(!bench.driver.kick(&bench.machine) && !tx.pending());
        assert_eq!((send(&mut bench, &mut tx, 30), bench.call.take()), (20, 1));
        assert!(!tx.pending() && tx.in_flight() == 0);
    }
}

#[test]
fn a_queue_that_goes_leaves_its_place_to_the_next() {
    for shape in shapes(32) {
        let mut bench = Bench::new(shape);
        let mut rx = bench.rx();
        (0..20).for_each(|token| give(&mut bench, token, false));
        let mut burst = Burst::new();
        leave_room(&mut bench.pool, &mut burst, 12);
        assert_eq!(rx.rx_burst(&mut bench.pool, &mut burst), 12);
        drop(rx);
        let mut rx = bench.rx();
        assert_eq!(receive(&mut bench, &mut rx), 8);
        assert_eq!(bench.driver.take(&bench.machine).len(), 20);
        drop(rx);
        let withdrawn = bench.slot.withdraw(shape.kind, Instant::now()).unwrap();
        let expected = match shape.kind {
            RingKind::Split => Position::Split { next: 20 },
            RingKind::Packed => Position::Packed { avail: 20, avail_wrap: true, used: 20, used_wrap: true },
        };
        assert!(withdrawn.position == expected && !withdrawn.late);
    }
}

#[test]
fn a_ring_that_is_wanted_back_is_given_back() {
    for shape in shapes(32) {
        let mut bench = Bench::new(shape);
        let (mut rx, slot) = (bench.rx(), bench.slot.clone());
        (0..5).for_each(|token| give(&mut bench, token, false));
        assert_eq!(receive(&mut bench, &mut rx), 5);
        let mapped = Arc::downgrade(&bench.machine.shared);
        let before = mapped.strong_count();
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        let kind = shape.kind;
        let withdrawn = std::thread::spawn(move || slot.withdraw(kind, deadline));
        while !rx.pending() {
            std::thread::yield_now();
        }
        assert_eq!(receive(&mut bench, &mut rx), 0);
        let withdrawn = withdrawn.join().unwrap().unwrap();
        assert!(!withdrawn.late && mapped.strong_count() < before);
        bench.offer(withdrawn.position, None);
        give(&mut bench, 5, false);
        assert_eq!(receive(&mut bench, &mut rx), 1);
    }
}

/// A burst that takes all there is, begun and not yet ended.
fn begin_burst(end: &mut QueueEnd) -> usize {
    fn take(ring: &mut impl Ring) -> usize {
        let mut batch = Batch::new();
        ring.plain::<false>(BURST, &mut batch).unwrap();
        ring.finish_plain::<false>(&batch, batch.n);
        batch.n
    }
    match &mut end.ring().unwrap().ring {
        AnyRing::Split(ring) => take(ring),
        AnyRing::Packed(ring) => take(ring),
    }
}

#[test]
fn a_ring_that_goes_on_after_a_late_burst_does_so_behind_it() {
    for shape in shapes(8) {
        let mut bench = Bench::new(shape);
        let mut end = QueueEnd::new("test".into(), bench.slot.clone());
        (0..3).for_each(|token| give(&mut bench, token, false));
        assert_eq!(begin_burst(&mut end), 3);
        let withdrawn = bench.slot.withdraw(shape.kind, Instant::now()).unwrap();
        assert!(withdrawn.late);
        bench.offer_again(withdrawn, None);
        end.end_burst(Ok(()));
        assert_eq!(begin_burst(&mut end), 0, "{shape:?}");
        end.end_burst(Ok(()));
        give(&mut bench, 3, false);
        assert_eq!(begin_burst(&mut end), 1);
        end.end_burst(Ok(()));
        assert_eq!(bench.driver.take(&bench.machine).len(), 4);
    }
}

#[test]
fn what_a_late_burst_finds_is_no_offence_of_the_next_peer() {
    for shape in shapes(8) {
        let bench = Bench::new(shape);
        let mut end = QueueEnd::new("test".into(), bench.slot.clone());
        assert!(end.ring().is_some());
        assert!(bench.slot.withdraw(shape.kind, Instant::now()).unwrap().late);
        end.end_burst(Err(offence("nonsense:", 1)));
        assert_eq!(bench.slot.take_lost(), None);
    }
}

#[test]
fn every_page_that_changes_is_in_the_log() {
    for features in [Features::NONE, Features::MRG_RXBUF, Features::EVENT_IDX.with(Features::IN_ORDER)] {
        for kind in [RingKind::Split, RingKind::Packed] {
            let shape = Shape::new(kind, 32, features);
            let mut bench = Bench::without_ring(shape);
            // A bit for each page up to the end of the highest region.
            let bytes = ((1u64 << 40) + SIZE as u64) / 4096 / 8;
            let memfd = Memfd::new(c"log", bytes as usize, None).unwrap();
            let log = Arc::new(DirtyLog::map(memfd.as_fd(), 0, bytes).unwrap());
            bench.offer(Position::start(kind), Some(log));
            let marks = PeerRegion::map(0, 0, bytes, memfd.as_fd(), 0).unwrap();
            let marks = PeerMemory::new(vec![marks]).unwrap();
            let mut tx = bench.tx();
            bench.machine.seek(0xf_f000 - 300);
            for token in 0..12 {
                let at = bench.machine.room(HEADER_LEN + 700);
                let len = HEADER_LEN as u32 + 700;
                bench.driver.add(&bench.machine, token, &[(bench.machine.guest(at), len)], true, false);
            }
            let before = bench.machine.read(0, SIZE);
            let mut burst = Burst::new();
            for (i, len) in [60, 300, 700, 1400, 3000].into_iter().enumerate() {
                burst.push(bench.frame(&payload(i, len), 2048));
            }
            let sent = tx.tx_burst(&mut bench.pool, &mut burst);
            bench.pool.give_burst(&mut burst);
            assert_eq!(sent, 5);
            let after = bench.machine.read(0, SIZE);
            let pages = before.chunks(4096).zip(after.chunks(4096)).enumerate();
            let changed: Vec<usize> = pages.filter(|(_, (old, new))| old != new).map(|(page, _)| page).collect();
            assert!(changed.len() >= 3, "{changed:?}");
            for page in changed {
                let number = bench.machine.guest(page * 4096) / 4096;
                let mut byte = [0];
                marks.at(number / 8, 1).unwrap().read_into(&mut byte);
                assert!(byte[0] >> (number % 8) & 1 == 1, "{shape:?}: page {page} was written and not marked");
            }
        }
    }
}
