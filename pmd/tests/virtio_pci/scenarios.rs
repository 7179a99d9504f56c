//! What two cabled ports must do.

use std::os::fd::AsFd;
use std::time::Duration;

use spinwake::frame::{Burst, Pool};
use spinwake::port::{Link, MacAddr, PortConfig};
use spinwake::sys::epoll::{Epoll, Events, Trigger, Woken};

use crate::monitor::Monitor;
use crate::packet::{STRANGER, answer, bytes, chain, frame, ipv4, pattern, tagged};
use crate::rig::{LIMIT, Rig, Side, finish, until};

fn as_it_is(config: PortConfig) -> PortConfig {
    config
}

pub(crate) fn every_size(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start(as_it_is);
    assert_eq!(a.port.driver(), "virtio");
    assert_ne!(a.port.mac(), b.port.mac());
    ship(&mut a, &mut b, &mut pool);
    ship(&mut b, &mut a, &mut pool);
    let (sent, came) = (a.port.stats(), b.port.stats());
    assert_eq!((sent.tx_frames, sent.tx_bytes), (came.rx_frames, came.rx_bytes));
    assert_eq!((came.tx_frames, came.tx_bytes), (sent.rx_frames, sent.rx_bytes));
    finish([a, b], pool);
}

fn ship(from: &mut Side, to: &mut Side, pool: &mut Pool) {
    ship_sizes(from, to, pool, (60..=1518).collect());
}

fn ship_few(from: &mut Side, to: &mut Side, pool: &mut Pool) {
    ship_sizes(from, to, pool, (60..=1518).step_by(50).collect());
}

fn ship_sizes(from: &mut Side, to: &mut Side, pool: &mut Pool, sizes: Vec<usize>) {
    let (source, target) = (from.port.mac(), to.port.mac());
    for group in sizes.chunks(100) {
        let sent: Vec<Vec<u8>> = group.iter().map(|&len| pattern(target, source, len, len as u32)).collect();
        let frames = sent.iter().map(|bytes| frame(pool, bytes)).collect();
        from.send(pool, frames);
        let got = to.receive(pool, sent.len());
        assert_eq!(got.len(), sent.len());
        for (got, sent) in got.iter().zip(&sent) {
            assert_eq!(bytes(got), *sent, "{} bytes", sent.len());
        }
        got.into_iter().for_each(|frame| pool.give(frame));
    }
}

pub(crate) fn jumbo(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start(|config| PortConfig { mtu: 9000, ..config });
    let (source, target) = (a.port.mac(), b.port.mac());
    let sizes = [60, 1514, 2047, 2048, 2049, 4095, 4096, 4097, 6144, 8192, 8193, 9000, 9014];
    let sent: Vec<Vec<u8>> = sizes.iter().map(|&len| pattern(target, source, len, len as u32)).collect();
    for segment in [2048, 1000, 513] {
        let frames = sent.iter().map(|bytes| chain(&mut pool, bytes, segment)).collect();
        a.send(&mut pool, frames);
        let got = b.receive(&mut pool, sent.len());
        for (got, sent) in got.iter().zip(&sent) {
            assert_eq!(bytes(got), *sent, "{} bytes from segments of {segment}", sent.len());
        }
        got.into_iter().for_each(|frame| pool.give(frame));
    }
    finish([a, b], pool);
}

/// Sends one frame to each of `targets`; which of them came.
fn passed(a: &mut Side, b: &mut Side, pool: &mut Pool, targets: &[MacAddr]) -> Vec<MacAddr> {
    let source = a.port.mac();
    // The last one always comes, and shows that all before it have had their turn.
    let all: Vec<_> = targets.iter().copied().chain([b.port.mac()]).collect();
    let frames = all.iter().map(|&target| frame(pool, &pattern(target, source, 80, 1))).collect();
    a.send(pool, frames);
    let mut came = Vec::new();
    until("the last frame", || {
        came.extend(b.poll(pool).iter().map(|frame| MacAddr(frame.data()[..6].try_into().unwrap())));
        came.last() == all.last()
    });
    came.pop();
    came
}

pub(crate) fn filters(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start(as_it_is);
    let group = |n| MacAddr([1, 0, 0x5e, 0, 0, n]);
    let targets = [STRANGER, MacAddr::BROADCAST, group(1), group(2)];
    assert_eq!(passed(&mut a, &mut b, &mut pool, &targets), [MacAddr::BROADCAST]);
    b.port.set_multicast(&[group(2)]);
    assert_eq!(passed(&mut a, &mut b, &mut pool, &targets), [MacAddr::BROADCAST, group(2)]);
    b.port.set_promiscuous(true);
    assert_eq!(passed(&mut a, &mut b, &mut pool, &targets), targets);
    b.port.set_promiscuous(false);
    let many: Vec<_> = (3..100).map(group).collect();
    b.port.set_multicast(&many);
    assert_eq!(passed(&mut a, &mut b, &mut pool, &targets), targets[1..], "all groups, because it cannot list so many");
    b.port.set_multicast(&[group(1)]);
    // A start tells the device all of it again.
    let mut b = Side::start(b.stop());
    b.prime(&mut pool);
    assert_eq!(passed(&mut a, &mut b, &mut pool, &targets), [MacAddr::BROADCAST, group(1)]);
    finish([a, b], pool);
}

pub(crate) fn vlan_filter(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start(as_it_is);
    let (source, target) = (a.port.mac(), b.port.mac());
    let mut came = |b: &mut Side, pool: &mut Pool| {
        let plain = pattern(target, source, 80, 1);
        let frames = [tagged(&plain, 5), tagged(&plain, 6), plain].map(|bytes| frame(pool, &bytes));
        a.send(pool, frames.into());
        let mut tags = Vec::new();
        until("the last frame", || {
            tags.extend(b.poll(pool).iter().map(|frame| (frame.len() == 84).then(|| frame.data()[15])));
            tags.last() == Some(&None)
        });
        tags
    };
    assert_eq!(came(&mut b, &mut pool), [Some(5), Some(6), None]);
    let mut port = b.stop();
    // QEMU from 8.1 to 10.0 begins with all VLANs let in, so that only those that were removed stay outside.
    port.set_vlan_filter(Some(&[5, 6]));
    let mut b = Side::start(port);
    b.prime(&mut pool);
    assert_eq!(came(&mut b, &mut pool), [Some(5), Some(6), None]);
    b.port.set_vlan_filter(Some(&[6]));
    assert_eq!(came(&mut b, &mut pool), [Some(6), None]);
    b.port.set_vlan_filter(Some(&[5]));
    assert_eq!(came(&mut b, &mut pool), [Some(5), None]);
    b.port.set_vlan_filter(None);
    let mut b = Side::start(b.stop());
    b.prime(&mut pool);
    assert_eq!(came(&mut b, &mut pool), [Some(5), Some(6), None]);
    finish([a, b], pool);
}

pub(crate) fn restart(rig: &Rig, times: usize) {
    let (mut a, mut b, mut pool) = rig.start(as_it_is);
    let (source, target) = (a.port.mac(), b.port.mac());
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let before = (files(), maps());
    for round in 0..times {
        let sent = pattern(target, source, 60 + round, round as u32);
        let frames = (0..20).map(|_| frame(&mut pool, &sent)).collect();
        a.send(&mut pool, frames);
        let mut came = 0;
        until("the frames", || {
            for frame in b.poll(&mut pool) {
                // What was in flight at the last stop may come now: QEMU keeps what a device could not take.
                let late = round > 0 && frame.data() == pattern(target, source, 59 + round, round as u32 - 1);
                assert!(late || frame.data() == sent, "round {round}: {frame:?}");
                came += usize::from(!late);
            }
            came >= 20
        });
        assert_eq!(came, 20);
        // Some in flight, which nobody takes.
        let mut burst: Burst = (0..7).map(|_| frame(&mut pool, &sent)).collect();
        a.tx[0].tx_burst(&mut pool, &mut burst);
        drop(burst);
        if round % 2 == 0 {
            a = Side::start(a.stop());
            b = Side::start(b.stop());
        } else {
            b = Side::start(b.stop());
            a = Side::start(a.stop());
        }
        a.prime(&mut pool);
        b.prime(&mut pool);
    }
    let after = (files(), maps());
    assert!(after.0 <= before.0 && after.1 <= before.1 + 8, "files and mappings: {before:?} before, {after:?} after");
    finish([a, b], pool);
}

pub(crate) fn outlive(rig: &Rig) {
    let (mut a, b, mut pool) = rig.start(as_it_is);
    let Side { mut rx, mut tx, port } = b;
    let bytes = pattern(port.mac(), a.port.mac(), 100, 1);
    drop(port);
    // Nobody waits for its completion: QEMU's hub keeps a frame as long as nobody receives.
    let mut burst: Burst = [frame(&mut pool, &bytes)].into_iter().collect();
    assert_eq!(a.tx[0].tx_burst(&mut pool, &mut burst), 1);
    let mut burst: Burst = (0..5).map(|_| frame(&mut pool, &bytes)).collect();
    tx[0].tx_burst(&mut pool, &mut burst);
    assert_eq!(rx[0].rx_burst(&mut pool, &mut Burst::new()), 0);
    drop((rx, tx, burst));
    a.stop();
    assert_eq!(pool.available(), pool.capacity());
}

/// As a worker waits: the vector is watched for edges, nobody ever takes its count, and a park may be called off with its
/// interrupt on the way. Each sleep is ended by the frame that comes in it.
pub(crate) fn edges_wake(rig: &Rig) {
    const ROUNDS: u32 = 150;
    let (mut a, mut b, mut pool) = rig.start(as_it_is);
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
        // What is left of an earlier sleep must not be taken for this one's end. As a worker does, which wakes for nothing.
        loop {
            b.rx[0].arm();
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            assert!(!b.rx[0].pending());
            if epoll.wait(&mut events, Duration::ZERO).unwrap() == Woken::TimedOut {
                break;
            }
            b.rx[0].fired();
            b.rx[0].disarm();
        }
        let frames = vec![frame(&mut pool, &bytes)];
        a.send(&mut pool, frames);
        assert_eq!(epoll.wait(&mut events, LIMIT).unwrap(), Woken::Ready(1), "round {round}: it woke nobody");
        b.rx[0].fired();
        b.rx[0].disarm();
        assert_eq!(b.receive(&mut pool, 1).len(), 1);
    }
    finish([a, b], pool);
}

/// Frames that are done wake whoever waits for them.
pub(crate) fn completions_wake(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start(as_it_is);
    let bytes = pattern(b.port.mac(), a.port.mac(), 64, 0);
    let spinwake::wait::Wake::Vector(vector, _) = a.tx[0].wake() else { panic!("no vector") };
    for _ in 0..50 {
        let mut burst: Burst = (0..10).map(|_| frame(&mut pool, &bytes)).collect();
        assert_eq!(a.tx[0].tx_burst(&mut pool, &mut burst), 10);
        a.tx[0].arm();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        // What is done already is seen by the second look, and the rest fires.
        assert!(a.tx[0].pending() || vector.wait(LIMIT) > 0);
        until("completions", || a.tx[0].pending());
        a.tx[0].fired();
        a.tx[0].disarm();
        until("all completions", || {
            a.tx[0].reclaim(&mut pool);
            a.tx[0].in_flight() == 0
        });
        assert_eq!(b.receive(&mut pool, 10).len(), 10);
    }
    finish([a, b], pool);
}

pub(crate) fn refusals(rig: &Rig) {
    let (mut a, _b, _pool) = rig.open();
    let refused = |port: &mut dyn spinwake::port::Port, config| port.configure(config).unwrap_err().to_string();
    let config = a.config().clone();
    let text = refused(&mut *a, PortConfig { mtu: 9000, ..config.clone() });
    assert!(text.contains("mtu=9000 is not possible; it takes 68 to 2030"), "{text}");
    let text = refused(&mut *a, PortConfig { rx_queues: 2, tx_queues: 2, ..config.clone() });
    assert!(text.contains("rx_queues=2 is not possible; it takes only 1"), "{text}");
    let text = refused(&mut *a, PortConfig { rx_ring_len: 1024, ..config });
    assert!(text.contains("powers of two from 32 to 256"), "{text}");
}

/// A link that is taken away is told at once, and frames pass again when it is back.
pub(crate) fn link_change(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start(as_it_is);
    let mut monitor = Monitor::open();
    let vector = b.port.link_vector().expect("a vector for changes");
    vector.take();
    for _ in 0..5 {
        for up in [false, true] {
            monitor.set_link("d1", up);
            assert!(vector.wait(LIMIT) > 0, "nobody was told that the link is up: {up}");
            assert_eq!(b.port.link() != Link::Down, up);
            assert_ne!(a.port.link(), Link::Down, "only one end of the cable was pulled");
        }
        ship_few(&mut a, &mut b, &mut pool);
        ship_few(&mut b, &mut a, &mut pool);
    }
    assert_eq!(vector.take(), 0);
    finish([a, b], pool);
}

/// Every frame of many flows arrives, whichever queue it comes to; a tap device sends a flow to the queue that it sent by.
pub(crate) fn several_queues(rig: &Rig) {
    const FLOWS: u16 = 64;
    let (mut a, mut b, mut pool) = rig.start(as_it_is);
    let queues = a.rx.len();
    assert_eq!((a.tx.len(), b.rx.len(), b.tx.len()), (queues, queues, queues));
    let (source, target) = (a.port.mac(), b.port.mac());
    let mut seen = vec![0; queues];
    for _ in 0..2 {
        for flow in 0..FLOWS {
            let there = ipv4(target, source, 17, flow, 20);
            let frames = vec![frame(&mut pool, &there)];
            a.send(&mut pool, frames);
            let (queue, got) = b.receive_one(&mut pool);
            assert_eq!(got.data(), there);
            seen[queue] += 1;
            // Back by a queue of its own, which is where the flow goes from then on if nothing else says where.
            let back = answer(&there);
            let mut burst: Burst = [frame(&mut pool, &back)].into_iter().collect();
            assert_eq!(b.tx[usize::from(flow) % queues].tx_burst(&mut pool, &mut burst), 1);
            assert_eq!(a.receive_one(&mut pool).1.data(), back);
        }
    }
    assert!(seen.iter().all(|&count| count > 0), "frames by queue: {seen:?}");
    finish([a, b], pool);
}
