//! Interrupt moderation: the device keeps its wake-ups apart.

use std::time::{Duration, Instant};

use spinwake::frame::Pool;
use spinwake::irq::IrqKind;
use spinwake::port::{Port, PortConfig};

use crate::packet::{frame, pattern};
use crate::rig::{LIMIT, Rig, Side, arm, disarm, finish};

const WAKES: u32 = 30;

/// Frames one at a time, each of which wakes its receiver from its sleep. Returns how long they took.
fn one_by_one(a: &mut Side, b: &mut Side, pool: &mut Pool) -> Duration {
    let vector = b.rx[0].vector().expect("a vector").clone();
    let bytes = pattern(b.port.mac(), a.port.mac(), 64, 0);
    let start = Instant::now();
    for n in 0..WAKES {
        arm(&mut *b.rx[0], &vector);
        assert!(!b.rx[0].pending());
        let frames = vec![frame(pool, &bytes)];
        a.send(pool, frames);
        assert!(vector.wait(LIMIT) > 0, "frame {n} woke nobody");
        disarm(&mut *b.rx[0], &vector);
        assert_eq!(b.receive(pool, 1).len(), 1);
    }
    start.elapsed()
}

/// With an interval, wake-ups are that far apart; without, each frame wakes. A wake-up is an interrupt of its own, so the
/// time that all of them took is bounded from below, however late each was seen. `per_interval` is how many of them the
/// device lets through in one interval: two in QEMU's igb (10.0), where what follows a postponed one comes at once.
pub(crate) fn keeps_its_distance(rig: &Rig, kind: IrqKind, interval: Duration, per_interval: u32) {
    let (a, b, mut pool) = rig.open(Some(kind));
    let config = PortConfig::default();
    let [mut a, mut b] = [a, b].map(|port| Side::start(port, &config));
    a.await_link();
    b.await_link();
    b.prime(&mut pool);
    one_by_one(&mut a, &mut b, &mut pool);
    assert_eq!(b.rx[0].moderate(interval), Some(interval));
    let took = one_by_one(&mut a, &mut b, &mut pool);
    // A hundredth for clocks that do not agree.
    let least = interval * (WAKES / per_interval - 1) * 99 / 100;
    assert!(took >= least, "{WAKES} wakes by {kind} took {took:?}, and {interval:?} apart they take {least:?}");
    assert_eq!(b.rx[0].moderate(Duration::ZERO), Some(Duration::ZERO));
    one_by_one(&mut a, &mut b, &mut pool);
    finish([a, b], pool);
}

/// What a device cannot do exactly, it does a little more of, and no more than it can.
pub(crate) fn what_is_done_is_told(rig: &Rig) {
    let config = PortConfig { rx_queues: 2, tx_queues: 2, ..PortConfig::default() };
    let (mut a, b, pool) = rig.start(&config);
    let us = Duration::from_micros;
    for (asked, done) in
        [(Duration::from_nanos(1), us(1)), (Duration::from_nanos(50_001), us(51)), (us(8192), us(8191))]
    {
        assert_eq!(a.rx[1].moderate(asked), Some(done));
        assert_eq!(a.tx[1].moderate(asked), Some(done));
    }
    assert_eq!(a.rx[0].moderate(us(7)), Some(us(7)), "another vector, another interval");
    finish([a, b], pool);
}
