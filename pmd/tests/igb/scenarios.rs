//! What two cabled ports must do.

use std::collections::{BTreeMap, BTreeSet};

use spinwake::frame::{Burst, Checksum, Frame, L4Checksum};
use spinwake::port::{MacAddr, Offloads, Port, PortConfig};

use crate::packet::{self, ETHERNET, IPV4, STRANGER, bytes, chain, frame, ipv4, pattern, tagged};
use crate::rig::{Rig, Side, finish, until};

const GROUPS: u8 = 30;

pub(crate) fn every_size(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start(&PortConfig::default());
    let (mac_a, mac_b) = (a.port.mac(), b.port.mac());
    assert_ne!(mac_a, mac_b);
    ship(&mut a, &mut b, &mut pool, mac_a, mac_b);
    ship(&mut b, &mut a, &mut pool, mac_b, mac_a);
    finish([a, b], pool);
}

fn ship(from: &mut Side, to: &mut Side, pool: &mut spinwake::frame::Pool, source: MacAddr, target: MacAddr) {
    let sizes: Vec<usize> = (60..=1518).collect();
    for group in sizes.chunks(256) {
        let sent: Vec<Vec<u8>> = group.iter().map(|&len| pattern(target, source, len, len as u32)).collect();
        let frames = sent.iter().map(|bytes| frame(pool, bytes)).collect();
        from.send(pool, frames);
        let got = to.receive(pool, sent.len());
        assert_eq!(got.len(), sent.len());
        for (got, sent) in got.iter().zip(&sent) {
            assert!(!got.is_chained());
            assert_eq!(got.data(), sent, "{} bytes", sent.len());
        }
        got.into_iter().for_each(|frame| pool.give(frame));
    }
}

pub(crate) fn jumbo(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start(&PortConfig { mtu: 9000, ..PortConfig::default() });
    let (source, target) = (a.port.mac(), b.port.mac());
    let sizes = [60, 1514, 2047, 2048, 2049, 4095, 4096, 4097, 6144, 8192, 8193, 9000, 9014];
    let sent: Vec<Vec<u8>> = sizes.iter().map(|&len| pattern(target, source, len, len as u32)).collect();
    for segment in [2048, 1000, 513] {
        let frames = sent.iter().map(|bytes| chain(&mut pool, bytes, segment)).collect();
        a.send(&mut pool, frames);
        let got = b.receive(&mut pool, sent.len());
        for (got, sent) in got.iter().zip(&sent) {
            assert_eq!(bytes(got), *sent, "{} bytes from segments of {segment}", sent.len());
            assert_eq!(got.segments().count(), sent.len().div_ceil(2048));
        }
        got.into_iter().for_each(|frame| pool.give(frame));
    }
    finish([a, b], pool);
}

pub(crate) fn vlan_offload(rig: &Rig) {
    let offloads = Offloads { vlan_strip: true, vlan_insert: true, ..Offloads::default() };
    let (mut a, b, mut pool) = rig.start(&PortConfig { offloads, ..PortConfig::default() });
    let (source, target) = (a.port.mac(), b.port.mac());
    let tags = [Some(1), Some(0x2064), None, Some(0xefff), Some(0xefff), None, Some(0)];
    let sent: Vec<Vec<u8>> = (0..tags.len()).map(|i| pattern(target, source, 100 + i, i as u32)).collect();
    let ask = |pool: &mut spinwake::frame::Pool| -> Vec<Frame> {
        let ask = |(bytes, tag): (&Vec<u8>, &Option<u16>)| {
            let mut frame = frame(pool, bytes);
            frame.set_vlan(*tag);
            frame
        };
        sent.iter().zip(&tags).map(ask).collect()
    };

    // Put in by one device, taken out by the other.
    let mut b = b;
    let frames = ask(&mut pool);
    a.send(&mut pool, frames);
    let got = b.receive(&mut pool, sent.len());
    for ((got, sent), tag) in got.iter().zip(&sent).zip(&tags) {
        assert_eq!((got.vlan(), got.data()), (*tag, &sent[..]));
    }
    got.into_iter().for_each(|frame| pool.give(frame));

    // Put in by one device, seen by software at the other.
    let mut b = Side::start(b.stop(), &PortConfig::default());
    b.prime(&mut pool);
    let frames = ask(&mut pool);
    a.send(&mut pool, frames);
    let got = b.receive(&mut pool, sent.len());
    for ((got, sent), tag) in got.iter().zip(&sent).zip(&tags) {
        let expected = tag.map_or(sent.clone(), |tag| tagged(sent, tag));
        assert_eq!((got.vlan(), got.data()), (None, &expected[..]));
    }
    got.into_iter().for_each(|frame| pool.give(frame));
    finish([a, b], pool);
}

pub(crate) fn checksums(rig: &Rig) {
    let offloads = Offloads { rx_checksum: true, tx_checksum: true, ..Offloads::default() };
    let (mut a, mut b, mut pool) = rig.start(&PortConfig { offloads, ..PortConfig::default() });
    let (source, target) = (a.port.mac(), b.port.mac());
    let cases: Vec<(u8, L4Checksum, usize)> = [18, 100, 101, 1400]
        .into_iter()
        .flat_map(|payload| [(6, L4Checksum::Tcp, payload), (17, L4Checksum::Udp, payload)])
        .collect();

    // Filled in by one device: software computed the same.
    let right: Vec<Vec<u8>> =
        cases.iter().map(|&(protocol, _, payload)| ipv4(target, source, protocol, 7, payload)).collect();
    let mut frames = Vec::new();
    for (bytes, &(protocol, l4, _)) in right.iter().zip(&cases) {
        let mut blank = bytes.clone();
        packet::blank_sums(&mut blank, protocol);
        assert_ne!(blank, *bytes);
        let mut frame = frame(&mut pool, &blank);
        frame.request_checksums(ETHERNET, IPV4, true, l4);
        frames.push(frame);
    }
    a.send(&mut pool, frames);
    let got = b.receive(&mut pool, right.len());
    for (got, right) in got.iter().zip(&right) {
        assert_eq!(got.data(), &right[..]);
        assert_eq!((got.l3_checksum(), got.l4_checksum()), (Checksum::Good, Checksum::Good));
    }
    got.into_iter().for_each(|frame| pool.give(frame));

    // Found wrong by the other.
    for (at, expected) in
        [(ETHERNET + 10, (Checksum::Bad, Checksum::Good)), (packet::l4_sum_at(6), (Checksum::Good, Checksum::Bad))]
    {
        let mut bad = ipv4(target, source, 6, 7, 64);
        bad[at] ^= 0x55;
        let frames = vec![frame(&mut pool, &bad)];
        a.send(&mut pool, frames);
        let got = b.receive(&mut pool, 1);
        assert_eq!((got[0].l3_checksum(), got[0].l4_checksum()), expected);
        got.into_iter().for_each(|frame| pool.give(frame));
    }

    // What is no IP has no checksum to speak of.
    let frames = vec![frame(&mut pool, &pattern(target, source, 64, 1))];
    a.send(&mut pool, frames);
    let got = b.receive(&mut pool, 1);
    assert_eq!((got[0].l3_checksum(), got[0].l4_checksum()), (Checksum::Unknown, Checksum::Unknown));
    got.into_iter().for_each(|frame| pool.give(frame));
    finish([a, b], pool);
}

pub(crate) fn rss(rig: &Rig) {
    let offloads = Offloads { rss_hash: true, ..Offloads::default() };
    let config = PortConfig { rx_queues: 4, tx_queues: 4, offloads, ..PortConfig::default() };
    let (mut a, mut b, mut pool) = rig.start(&config);
    let (source, target) = (a.port.mac(), b.port.mac());
    let flows: Vec<Vec<u8>> = (0..128).map(|flow| ipv4(target, source, 6, flow, 30)).collect();
    let mut homes: BTreeMap<Vec<u8>, (usize, Option<u32>)> = BTreeMap::new();
    for round in 0..2 {
        // Every transmit queue takes its part.
        let mut left = 0;
        for (queue, tx) in a.tx.iter_mut().enumerate() {
            let mut burst: Burst = flows.iter().skip(queue).step_by(4).map(|bytes| frame(&mut pool, bytes)).collect();
            left += burst.len() - tx.tx_burst(&mut pool, &mut burst);
        }
        assert_eq!(left, 0);
        let mut count = 0;
        let mut burst = Burst::new();
        until("every flow", || {
            for (queue, rx) in b.rx.iter_mut().enumerate() {
                count += rx.rx_burst(&mut pool, &mut burst);
                for frame in burst.drain(..) {
                    let home = (queue, frame.rss_hash());
                    assert!(home.1.is_some());
                    let before = homes.insert(frame.data().to_vec(), home);
                    assert!(before.is_none_or(|b| b == home) && before.is_some() == (round == 1), "a flow moved");
                }
            }
            count >= flows.len()
        });
        until("completions", || a.tx.iter_mut().all(|tx| (tx.reclaim(&mut pool), tx.in_flight()).1 == 0));
    }
    assert_eq!(homes.len(), flows.len());
    for queue in 0..4 {
        let here = homes.values().filter(|home| home.0 == queue).count();
        assert!((8..=80).contains(&here), "queue {queue} has {here} of 128 flows");
    }
    let hashes: BTreeSet<_> = homes.values().map(|home| home.1).collect();
    assert!(hashes.len() > 100);
    for ((queue, hash), _) in homes.values().zip(0..) {
        assert_eq!((hash.unwrap() & 0x7f) as usize % 4, *queue);
    }
    finish([a, b], pool);
}

pub(crate) fn filters(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start(&PortConfig::default());
    let (source, target) = (a.port.mac(), b.port.mac());
    let group = |n: u8| MacAddr([0x01, 0x00, 0x5e, n, 0x10 + n, 0x20 + n]);
    // Which of these the port lets in.
    let probe = |a: &mut Side, b: &mut Side, pool: &mut spinwake::frame::Pool, to: Vec<Vec<u8>>| -> Vec<bool> {
        let mut frames: Vec<Frame> = to.iter().map(|bytes| frame(pool, bytes)).collect();
        // The last one always passes, so that there is no guessing when all have come.
        let end = pattern(target, source, 200, 0xe4d);
        frames.push(frame(pool, &end));
        a.send(pool, frames);
        let mut got = Vec::new();
        until("the last frame", || {
            got.extend(b.poll(pool).iter().map(bytes));
            got.last() == Some(&end)
        });
        to.iter().map(|bytes| got.contains(bytes)).collect()
    };
    let to = |mac: MacAddr| pattern(mac, source, 64, u32::from(mac.0[5]));
    let all = || vec![to(STRANGER), to(MacAddr::BROADCAST), to(group(1)), to(group(2))];

    assert_eq!(probe(&mut a, &mut b, &mut pool, all()), [false, true, false, false]);
    b.port.set_promiscuous(true);
    assert_eq!(probe(&mut a, &mut b, &mut pool, all()), [true; 4]);
    b.port.set_promiscuous(false);
    b.port.set_multicast(&[group(1)]);
    assert_eq!(probe(&mut a, &mut b, &mut pool, all()), [false, true, true, false]);

    // More groups than fit the table of exact ones: all pass, and some others may.
    let many: Vec<MacAddr> = (1..=GROUPS).map(group).collect();
    assert!(many.len() > b.port.capabilities().exact_multicast);
    b.port.set_multicast(&many);
    assert_eq!(probe(&mut a, &mut b, &mut pool, many.iter().copied().map(to).collect()), [true; GROUPS as usize]);
    b.port.set_multicast(&[]);
    assert_eq!(probe(&mut a, &mut b, &mut pool, all()), [false, true, false, false]);

    let vlans = || (1..=3).map(|id| tagged(&to(target), 0x2000 | id)).collect::<Vec<_>>();
    assert_eq!(probe(&mut a, &mut b, &mut pool, vlans()), [true; 3]);
    b.port.set_vlan_filter(Some(&[2]));
    assert_eq!(probe(&mut a, &mut b, &mut pool, vlans()), [false, true, false]);
    b.port.set_vlan_filter(None);
    assert_eq!(probe(&mut a, &mut b, &mut pool, vlans()), [true; 3]);

    // Filters outlive a restart.
    b.port.set_multicast(&[group(2)]);
    b.port.set_vlan_filter(Some(&[3]));
    let mut b = Side::start(b.stop(), &PortConfig::default());
    b.prime(&mut pool);
    assert_eq!(probe(&mut a, &mut b, &mut pool, all()), [false, true, false, true]);
    assert_eq!(probe(&mut a, &mut b, &mut pool, vlans()), [false, false, true]);
    finish([a, b], pool);
}

pub(crate) fn refusals(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start(&PortConfig::default());
    let (source, target) = (a.port.mac(), b.port.mac());
    let good = |n: u32| pattern(target, source, 64, n);
    let long = pattern(target, source, 1519, 0);
    let mut with_vlan = frame(&mut pool, &good(0));
    with_vlan.set_vlan(Some(5));
    let mut with_sums = frame(&mut pool, &good(0));
    with_sums.request_checksums(14, 20, true, L4Checksum::Tcp);
    let mut empty_part = frame(&mut pool, &good(0));
    empty_part.chain(pool.take().unwrap());
    let bad = vec![
        pool.take().unwrap(),
        frame(&mut pool, &good(0)[..16]),
        frame(&mut pool, &long),
        chain(&mut pool, &long, 800),
        chain(&mut pool, &good(0), 2),
        // Nobody turned these offloads on.
        with_vlan,
        with_sums,
        empty_part,
    ];
    let count = bad.len();
    let mut frames = vec![frame(&mut pool, &good(1))];
    for (i, bad) in bad.into_iter().enumerate() {
        frames.push(bad);
        frames.push(frame(&mut pool, &good(i as u32 + 2)));
    }
    a.send(&mut pool, frames);
    let got = b.receive(&mut pool, count + 1);
    for (i, got) in got.iter().enumerate() {
        assert_eq!(got.data(), good(i as u32 + 1));
    }
    drop(got);
    assert!(b.linger(&mut pool).is_empty());
    let stats = a.port.stats();
    assert_eq!((stats.queues[0].tx_refused, stats.queues[0].tx_frames), (count as u64, count as u64 + 1));
    finish([a, b], pool);
}

pub(crate) fn statistics(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start(&PortConfig::default());
    let (source, target) = (a.port.mac(), b.port.mac());
    let (mut frames_sent, mut bytes_sent) = (0, 0);
    for round in 0..5 {
        let sent: Vec<Vec<u8>> = (0..50).map(|i| pattern(target, source, 60 + i * 29, i as u32)).collect();
        let frames = sent.iter().map(|bytes| frame(&mut pool, bytes)).collect();
        a.send(&mut pool, frames);
        b.receive(&mut pool, sent.len());
        frames_sent += sent.len() as u64;
        bytes_sent += sent.iter().map(|bytes| bytes.len() as u64).sum::<u64>();
        // Read now and then: reading clears the device's counters, and must not lose any.
        if round % 2 == 0 {
            a.port.stats();
        }
        // Counters outlive a restart.
        if round == 3 {
            a = Side::start(a.stop(), &PortConfig::default());
            a.prime(&mut pool);
        }
    }
    let (out, inn) = (a.port.stats(), b.port.stats());
    assert_eq!((out.tx_frames, out.tx_bytes), (frames_sent, bytes_sent));
    assert_eq!((out.queues[0].tx_frames, out.queues[0].tx_bytes), (frames_sent, bytes_sent));
    assert_eq!((inn.rx_frames, inn.rx_bytes), (frames_sent, bytes_sent));
    assert_eq!((inn.queues[0].rx_frames, inn.queues[0].rx_bytes), (frames_sent, bytes_sent));
    assert_eq!((inn.rx_missed, inn.rx_errors, inn.queues[0].rx_lies), (0, 0, 0));
    finish([a, b], pool);
}

pub(crate) fn dry_pool(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start(&PortConfig::default());
    let (source, target) = (a.port.mac(), b.port.mac());
    // Everything is taken: nothing refills the ring any longer, and what is in it still comes.
    let mut hoard: Vec<Frame> = std::iter::from_fn(|| pool.take()).collect();
    let spare = hoard.split_off(hoard.len() - 600);
    let mut held = Vec::new();
    for (mut frame, n) in spare.into_iter().zip(0..) {
        frame.copy_from(&pattern(target, source, 64, n));
        held.push(frame);
    }
    a.send(&mut pool, held);
    let mut got = Vec::new();
    until("the ring's frames", || {
        // What came home from sending is hoarded too.
        hoard.extend(std::iter::from_fn(|| pool.take()));
        got.extend(b.poll(&mut pool));
        got.len() >= 400
    });
    assert!(got.iter().zip(0..).all(|(got, n)| got.data() == pattern(target, source, 64, n)));
    assert!(b.port.stats().queues[0].rx_no_buf > 0);
    drop((hoard, got));
    // With buffers, it goes on.
    b.linger(&mut pool);
    let frames = vec![frame(&mut pool, &pattern(target, source, 99, 99))];
    a.send(&mut pool, frames);
    until("a frame after the drought", || b.poll(&mut pool).iter().any(|frame| frame.len() == 99));
    finish([a, b], pool);
}

pub(crate) fn restart(rig: &Rig, times: usize) {
    let config = PortConfig { rx_queues: 2, tx_queues: 2, ..PortConfig::default() };
    let (mut a, mut b, mut pool) = rig.start(&config);
    let (source, target) = (a.port.mac(), b.port.mac());
    for round in 0..times {
        let sent = pattern(target, source, 60 + round, round as u32);
        let frames = (0..20).map(|_| frame(&mut pool, &sent)).collect();
        a.send(&mut pool, frames);
        let got = b.receive(&mut pool, 20);
        assert!(got.iter().all(|frame| frame.data() == sent));
        drop(got);
        // Some in flight, which nobody takes.
        let mut burst: Burst = (0..7).map(|_| frame(&mut pool, &sent)).collect();
        a.tx[1].tx_burst(&mut pool, &mut burst);
        drop(burst);
        if round % 2 == 0 {
            a = Side::start(a.stop(), &config);
            b = Side::start(b.stop(), &config);
        } else {
            b = Side::start(b.stop(), &config);
            a = Side::start(a.stop(), &config);
        }
        a.prime(&mut pool);
        b.prime(&mut pool);
    }
    finish([a, b], pool);
}

pub(crate) fn outlive(rig: &Rig) {
    let (mut a, b, mut pool) = rig.start(&PortConfig::default());
    let (source, target) = (a.port.mac(), b.port.mac());
    let Side { port, mut rx, mut tx } = b;
    let mut port = port;
    assert!(matches!(port.stop(), Err(spinwake::port::PortError::QueuesAlive { alive: 2, .. })));
    drop(port);
    let frames = vec![frame(&mut pool, &pattern(target, source, 64, 1))];
    a.send(&mut pool, frames);
    let mut burst = Burst::new();
    assert_eq!(rx[0].rx_burst(&mut pool, &mut burst), 0);
    burst.push(frame(&mut pool, &pattern(source, target, 64, 1)));
    tx[0].tx_burst(&mut pool, &mut burst);
    drop((burst, rx, tx));
    assert!(a.linger(&mut pool).is_empty(), "a silent port has sent");
    a.stop();
    assert_eq!(pool.available(), pool.capacity());
}
