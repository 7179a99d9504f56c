//! Interrupts of transmit completions: what wakes a sender that waits for room.

use std::sync::Arc;

use spinwake::frame::{Burst, Pool};
use spinwake::irq::{IrqKind, Vector};
use spinwake::port::{MacAddr, Port, PortConfig};
use spinwake::wait::{Source, Wake};

use crate::packet::{frame, pattern};
use crate::rig::{LIMIT, Rig, Side, disarm, finish, until};

fn start(rig: &Rig, kind: IrqKind, config: &PortConfig) -> (Side, Side, Pool) {
    let (a, b, mut pool) = rig.open(Some(kind));
    let [mut a, mut b] = [a, b].map(|port| Side::start(port, config));
    a.await_link();
    b.await_link();
    b.prime(&mut pool);
    (a, b, pool)
}

fn vector_of(source: &dyn Source, kind: IrqKind) -> Arc<Vector> {
    match source.wake() {
        Wake::Vector(vector, of) if of == kind => vector,
        other => panic!("{} wakes by {other:?}", source.label()),
    }
}

/// Puts one frame into the ring.
fn send_one(side: &mut Side, pool: &mut Pool, to: MacAddr) {
    let mut burst: Burst = [frame(pool, &pattern(to, side.port.mac(), 64, 0))].into_iter().collect();
    assert_eq!(side.tx[0].tx_burst(pool, &mut burst), 1);
}

/// A completion fires the vector of a queue that is armed with frames in flight, and of no other.
pub(crate) fn completions_wake(rig: &Rig, kind: IrqKind) {
    const ROUNDS: usize = 100;
    let (mut a, mut b, mut pool) = start(rig, kind, &PortConfig::default());
    let to = b.port.mac();
    let vector = vector_of(&*a.tx[0], kind);
    let own = kind == IrqKind::Msix;
    assert_eq!(Arc::ptr_eq(&vector, a.rx[0].vector().unwrap()), !own, "one of its own where there are enough");
    for round in 0..ROUNDS {
        assert!(!a.tx[0].pending());
        a.tx[0].arm();
        send_one(&mut a, &mut pool, to);
        until("the completion", || a.tx[0].pending());
        assert_eq!(vector.take(), 0, "round {round}: armed with nothing in flight, so nothing was asked for");
        disarm(&mut *a.tx[0], &vector);
        // Completed and not reclaimed: that is in flight, and another completion is to come.
        a.tx[0].arm();
        assert!(a.tx[0].pending());
        send_one(&mut a, &mut pool, to);
        assert!(vector.wait(LIMIT) > 0, "round {round}: {kind} woke nobody");
        disarm(&mut *a.tx[0], &vector);
        until("the completion", || a.tx[0].pending());
        assert_eq!(a.tx[0].reclaim(&mut pool), 1);
        vector.take();
        a.tx[0].fired();
        // Polled: not a word.
        send_one(&mut a, &mut pool, to);
        until("the completion", || a.tx[0].reclaim(&mut pool) == 1);
        assert_eq!(vector.take(), 0, "round {round}: a disarmed queue does not fire");
        b.poll(&mut pool);
    }
    finish([a, b], pool);
}

/// A sender that fills its ring sleeps until there is room, as often as the device is slower than it; every frame is sent,
/// and no wake-up is lost. `sleeps` is how often it must have slept: none on a device that sends at once.
pub(crate) fn room_wakes(rig: &Rig, kind: IrqKind, sleeps: usize) {
    const FRAMES: usize = 3000;
    let config = PortConfig { tx_ring_len: 32, ..PortConfig::default() };
    let (mut a, mut b, mut pool) = start(rig, kind, &config);
    let bytes = pattern(b.port.mac(), a.port.mac(), 64, 0);
    let vector = vector_of(&*a.tx[0], kind);
    let mut burst = Burst::new();
    let (mut sent, mut slept) = (0, 0);
    until("the sleeps of a full ring's owner", || {
        while !burst.is_full() {
            burst.push(frame(&mut pool, &bytes));
        }
        sent += a.tx[0].tx_burst(&mut pool, &mut burst);
        if !burst.is_empty() {
            a.tx[0].arm();
            if !a.tx[0].pending() {
                slept += 1;
                assert!(vector.wait(LIMIT) > 0, "lost a wake-up after {sent} frames and {slept} sleeps: {kind}");
            }
            disarm(&mut *a.tx[0], &vector);
            b.poll(&mut pool);
        }
        sent >= FRAMES && slept >= sleeps
    });
    drop(burst);
    until("the last completion", || (a.tx[0].reclaim(&mut pool), a.tx[0].in_flight()).1 == 0);
    // The device counts when it likes.
    until("the count of what was sent", || a.port.stats().tx_frames == sent as u64);
    finish([a, b], pool);
}

/// Where one vector serves both directions, each side that is armed is woken by its own cause, whatever the other does.
/// A sleep ends with the first interrupt, after which everybody who shared it arms again.
pub(crate) fn shared_vector_wakes(rig: &Rig, kind: IrqKind) {
    // With MSI-X more queues than there are vectors for.
    let queues = if kind == IrqKind::Msix { 16 } else { 1 };
    let config = PortConfig { rx_queues: queues, tx_queues: queues, rx_ring_len: 64, ..PortConfig::default() };
    let (mut a, mut b, mut pool) = start(rig, kind, &config);
    a.prime(&mut pool);
    let (to_a, to_b) = (a.port.mac(), b.port.mac());
    let vector = vector_of(&*a.tx[0], kind);
    assert!(Arc::ptr_eq(&vector, a.rx[0].vector().unwrap()));
    for round in 0..100 {
        let (tx_first, completion, alone) = (round & 1 != 0, round & 2 != 0, round & 4 != 0);
        // In flight, or there would be nothing to be armed for.
        send_one(&mut a, &mut pool, to_b);
        until("the completion", || a.tx[0].pending());
        // What fired before is no wake-up, and makes another arming necessary.
        while {
            if tx_first {
                a.tx[0].arm();
            }
            a.rx[0].arm();
            a.tx[0].arm();
            match (alone, completion) {
                (true, true) => a.rx[0].disarm(),
                (true, false) => a.tx[0].disarm(),
                (false, _) => {}
            }
            vector.take() > 0
        } {
            a.rx[0].disarm();
            disarm(&mut *a.tx[0], &vector);
        }
        if completion {
            send_one(&mut a, &mut pool, to_b);
        } else {
            send_one(&mut b, &mut pool, to_a);
        }
        assert!(vector.wait(LIMIT) > 0, "round {round}: {kind} woke nobody");
        a.rx[0].disarm();
        disarm(&mut *a.tx[0], &vector);
        assert_eq!(a.receive(&mut pool, usize::from(!completion)).len(), usize::from(!completion));
        for side in [&mut a, &mut b] {
            until("completions", || (side.tx[0].reclaim(&mut pool), side.tx[0].in_flight()).1 == 0);
        }
        b.poll(&mut pool);
        vector.take();
        a.rx[0].fired();
    }
    finish([a, b], pool);
}
