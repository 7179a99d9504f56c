//! Interrupts: what wakes a blocked wait.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use spinwake::frame::Burst;
use spinwake::irq::IrqKind;
use spinwake::port::{Link, Port, PortConfig};
use spinwake::sys::epoll::{Epoll, Events, Trigger, Woken};

use crate::packet::{frame, ipv4, pattern};
use crate::rig::{LIMIT, QUIET, Rig, Side, arm, disarm, finish, until};

pub(crate) fn link_vector(rig: &Rig) {
    // Where the cable cannot be pulled, the link comes up some time after opening: a port that is started before sees it
    // come, unless the machine is slow.
    for _ in 0..10 {
        let (a, b, pool) = rig.open(Some(IrqKind::Msix));
        let config = PortConfig::default();
        let [mut a, b] = [a, b].map(|port| Side::start(port, &config));
        let vector = a.port.link_vector().expect("MSI-X has a vector to spare");
        let mut seen = a.port.link() == Link::Down;
        if seen {
            assert!(vector.wait(LIMIT) > 0, "nothing fired");
        }
        a.await_link();
        assert!(matches!(a.port.link(), Link::Up { mbps: 1000, full_duplex: true }));
        if let Some(plug) = &rig.plug {
            for (on, what) in [(false, "pulled"), (true, "plugged in"), (false, "pulled"), (true, "plugged in")] {
                vector.take();
                plug(on);
                assert!(vector.wait(LIMIT) > 0, "nothing fired when the cable was {what}");
                until("the link's change", || (a.port.link() != Link::Down) == on);
            }
            seen = true;
        }
        vector.take();
        assert_eq!(vector.wait(QUIET), 0, "it fires only for changes");
        finish([a, b], pool);
        if seen {
            return;
        }
    }
    panic!("the link was always up before the port was started");
}

/// Frames that come while the receiver blocks wake it, each time, with nothing left to luck.
pub(crate) fn frames_wake(rig: &Rig, kind: IrqKind) {
    const ROUNDS: u32 = 50;
    let (a, b, mut pool) = rig.open(Some(kind));
    let config = PortConfig::default();
    let [mut a, mut b] = [a, b].map(|port| Side::start(port, &config));
    a.await_link();
    b.await_link();
    b.prime(&mut pool);
    assert_eq!(b.port.irq_kind(), Some(kind));
    let (source, target) = (a.port.mac(), b.port.mac());
    let vector = b.rx[0].vector().expect("a vector").clone();
    let mut spurious = 0;
    for round in 0..ROUNDS {
        // Frames that were polled leave their cause behind; it must not count as a wake.
        let polled = vec![frame(&mut pool, &pattern(target, source, 64, round))];
        a.send(&mut pool, polled);
        assert_eq!(b.receive(&mut pool, 1).len(), 1);
        spurious += arm(&mut *b.rx[0], &vector);
        assert!(!b.rx[0].pending());
        // The sender waits until the receiver is about to block, in half of the rounds.
        let blocked = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            let waiter = scope.spawn({
                let (vector, blocked) = (vector.clone(), blocked.clone());
                move || {
                    blocked.store(true, Ordering::Release);
                    vector.wait(LIMIT)
                }
            });
            if round % 2 == 0 {
                until("the waiter", || blocked.load(Ordering::Acquire));
                std::thread::sleep(Duration::from_millis(2));
            }
            let frames = vec![frame(&mut pool, &pattern(target, source, 70, round))];
            a.send(&mut pool, frames);
            assert!(waiter.join().unwrap() > 0, "round {round}: {kind} woke nobody");
        });
        if !b.rx[0].pending() {
            // The polled frame was visible before its interrupt, which came after the arming.
            spurious += 1;
            until("the frame", || b.rx[0].pending());
        }
        // What fired until here belongs to this round.
        disarm(&mut *b.rx[0], &vector);
        assert_eq!(b.receive(&mut pool, 1)[0].len(), 70);
        assert_eq!(vector.take(), 0, "a disarmed queue does not fire");
    }
    assert!(spurious <= u64::from(ROUNDS / 10), "{spurious} wakes for frames that had been polled");
    finish([a, b], pool);
}

/// As a worker waits: the vector is watched for edges, nobody ever takes its count, and a park may be called off with its
/// interrupt on the way. Each sleep is ended by the frame that comes in it.
pub(crate) fn edges_wake(rig: &Rig, kind: IrqKind) {
    const ROUNDS: u32 = 150;
    let (a, b, mut pool) = rig.open(Some(kind));
    let config = PortConfig::default();
    let [mut a, mut b] = [a, b].map(|port| Side::start(port, &config));
    a.await_link();
    b.await_link();
    b.prime(&mut pool);
    let bytes = pattern(b.port.mac(), a.port.mac(), 64, 0);
    let (epoll, mut events) = (Epoll::new().unwrap(), Events::new(1));
    epoll.add(b.rx[0].vector().expect("a vector").as_fd(), 0, Trigger::Edge).unwrap();
    for round in 0..ROUNDS {
        if round % 3 == 0 {
            // The second look finds a frame, so nobody looks whether its interrupt came too.
            b.rx[0].arm();
            let frames = vec![frame(&mut pool, &bytes)];
            a.send(&mut pool, frames);
            until("the frame", || b.rx[0].pending());
            b.rx[0].disarm();
            assert_eq!(b.receive(&mut pool, 1).len(), 1);
        }
        // What is left of an earlier sleep must not be taken for this one's end. As a worker does, which wakes for nothing then.
        loop {
            b.rx[0].arm();
            assert!(!b.rx[0].pending());
            if epoll.wait(&mut events, Duration::ZERO).unwrap() == Woken::TimedOut {
                break;
            }
            b.rx[0].fired();
            b.rx[0].disarm();
        }
        let frames = vec![frame(&mut pool, &bytes)];
        a.send(&mut pool, frames);
        assert_eq!(epoll.wait(&mut events, LIMIT).unwrap(), Woken::Ready(1), "round {round}: {kind} woke nobody");
        b.rx[0].fired();
        b.rx[0].disarm();
        assert_eq!(b.receive(&mut pool, 1).len(), 1);
    }
    assert!(b.rx[0].vector().unwrap().take() >= u64::from(ROUNDS), "nobody took it");
    finish([a, b], pool);
}

/// With four queues, only the vector of the queue whose flow it is fires.
pub(crate) fn vector_each(rig: &Rig) {
    let config = PortConfig { rx_queues: 4, ..PortConfig::default() };
    let (mut a, mut b, mut pool) = rig.start(&config);
    assert_eq!(b.port.irq_kind(), Some(IrqKind::Msix));
    let (source, target) = (a.port.mac(), b.port.mac());
    let mut seen = [false; 4];
    for flow in 0..64 {
        b.rx.iter_mut().for_each(|rx| rx.arm());
        for rx in &b.rx {
            rx.vector().unwrap().take();
        }
        let frames = vec![frame(&mut pool, &ipv4(target, source, 17, flow, 20))];
        a.send(&mut pool, frames);
        until("the frame", || b.rx.iter().any(|rx| rx.pending()));
        let home = b.rx.iter().position(|rx| rx.pending()).unwrap();
        assert!(b.rx[home].vector().unwrap().wait(LIMIT) > 0);
        for (queue, rx) in b.rx.iter_mut().enumerate() {
            assert!(queue == home || rx.vector().unwrap().take() == 0, "queue {queue} fired for {home}");
            rx.disarm();
            rx.vector().unwrap().take();
        }
        let mut burst = Burst::new();
        assert_eq!(b.rx[home].rx_burst(&mut pool, &mut burst), 1);
        seen[home] = true;
    }
    assert_eq!(seen, [true; 4]);
    finish([a, b], pool);
}
