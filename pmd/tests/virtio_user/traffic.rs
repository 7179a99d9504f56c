//! Frames, and the memory that they are in.

use spinwake::dma::Domain;
use spinwake::frame::Burst;
use spinwake::port::{Link, Offloads, PortConfig};

use crate::peer::{CUTS_TCP, EVENT_IDX, INDIRECT, MRG_RXBUF, Peer, Traits};
use crate::rig::{LONG, Rig, pool, socket, wait};

#[test]
fn frames_come_back_whatever_the_back_end_offers() {
    let all = Traits::default();
    for without in [0, EVENT_IDX, INDIRECT, MRG_RXBUF, EVENT_IDX | INDIRECT | MRG_RXBUF] {
        let (_dir, path) = socket();
        let peer = Peer::listen(&path, Traits { features: all.features & !without, ..all.clone() });
        let mut rig = Rig::open(&path, ",rx_ring=64,tx_ring=64,mrg=on");
        assert!(matches!(rig.port.link(), Link::Up { .. }) && rig.port.driver() == "virtio-user");
        for len in [60, 64, 1500] {
            rig.circle(0, len, 1000);
        }
        rig.end();
        drop(peer);
    }
}

#[test]
fn each_pair_of_queues_has_its_own_frames() {
    let (_dir, path) = socket();
    let _peer = Peer::listen(&path, Traits::default());
    let mut rig = Rig::open(&path, ",queues=2");
    for q in [0, 1, 0, 1] {
        rig.circle(q, 100, 500);
    }
    let stats = rig.port.stats();
    assert_eq!((stats.tx_frames, stats.rx_frames, stats.queues.len()), (2000, 2000, 2));
    assert!(stats.extra.iter().all(|(_, count)| *count == 0), "{stats:?}");
    rig.end();
}

#[test]
fn a_port_starts_and_stops_any_number_of_times() {
    let (_dir, path) = socket();
    let _peer = Peer::listen(&path, Traits::default());
    let mut rig = Rig::open(&path, "");
    for _ in 0..20 {
        rig.circle(0, 64, 100);
        let domain = rig.domain.clone();
        let port = rig.end();
        assert_eq!(port.link(), Link::Down);
        rig = Rig::start(port, domain);
    }
    assert_eq!(rig.count("outages"), 0);
    rig.end();
}

#[test]
fn pools_that_come_and_go_while_frames_flow_are_shared() {
    for traits in [Traits::default(), Traits::default().with_slots(4)] {
        let (_dir, path) = socket();
        let peer = Peer::listen(&path, traits);
        let mut rig = Rig::open(&path, "");
        let regions = || peer.account.regions.load(std::sync::atomic::Ordering::Acquire);
        for _ in 0..3 {
            rig.circle(0, 64, 100);
            assert_eq!(regions(), 2, "rings and the first pool");
            let other = pool(&rig.domain, 600);
            assert_eq!(regions(), 3);
            let first = std::mem::replace(&mut rig.pool, other);
            rig.circle(0, 64, 1000);
            // The ring still has buffers of the second pool, which outlives it.
            let second = std::mem::replace(&mut rig.pool, first);
            drop(second);
            rig.circle(0, 64, 1000);
            let port = rig.port;
            drop(rig.queues);
            wait("the second pool's end", || regions() == 2);
            let mut port = port;
            port.stop().unwrap();
            let queues = port.start().unwrap();
            rig = Rig { queues, port, ..rig };
        }
        rig.end();
    }
}

#[test]
fn more_pools_than_the_back_end_takes_are_refused_by_name() {
    for (traits, most) in [(Traits::default(), 8), (Traits::default().with_slots(4), 4)] {
        let (_dir, path) = socket();
        let _peer = Peer::listen(&path, traits);
        let mut rig = Rig::open(&path, "");
        // Two regions are taken: the rings' and the rig's pool.
        let _pools: Vec<_> = (0..most - 2).map(|_| pool(&rig.domain, 32)).collect();
        let config = spinwake::frame::PoolConfig { frames: 32, ..Default::default() };
        let error = spinwake::frame::Pool::new_in(&rig.domain, &config).unwrap_err();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        assert!(text.contains(&format!("takes {most} regions")) && text.contains("make fewer pools"), "{text}");
        rig.circle(0, 64, 500);
        rig.end();
    }
}

#[test]
fn a_back_end_that_connects_to_us_is_waited_for() {
    let (_dir, path) = socket();
    let mut rig = Rig::open(&path, ",server=on");
    assert_eq!(rig.port.link(), Link::Down);
    let mut burst = Burst::new();
    burst.push(rig.pool.take().unwrap());
    assert_eq!(rig.queues.tx[0].tx_burst(&mut rig.pool, &mut burst), 0, "there is nobody");
    rig.pool.give_burst(&mut burst);
    for _ in 0..3 {
        let peer = Peer::connect(&path, Traits::default());
        rig.until_up();
        rig.circle(0, 64, 500);
        drop(peer);
        rig.until_down();
    }
    drop(rig.end());
    assert!(!path.exists(), "the socket is left over");
}

#[test]
fn a_sleeping_worker_is_woken_when_the_back_end_goes_and_comes() {
    let (_dir, path) = socket();
    let peer = Peer::listen(&path, Traits::default());
    let mut rig = Rig::open(&path, "");
    rig.circle(0, 64, 100);
    let vector = rig.queues.rx[0].vector().unwrap().clone();
    vector.take();
    rig.queues.rx[0].arm();
    drop(peer);
    assert!(vector.wait(LONG) > 0, "not woken when it went");
    assert!(rig.queues.rx[0].pending() && rig.queues.tx[0].pending());
    rig.turn();
    assert!(!rig.queues.rx[0].pending());
    let _peer = Peer::listen(&path, Traits::default());
    wait("its return", || rig.queues.rx[0].pending());
    assert!(vector.wait(LONG) > 0, "not woken when it came");
    rig.turn();
    rig.circle(0, 64, 100);
    rig.end();
}

#[test]
fn a_frame_beyond_the_mtu_is_refused_though_the_back_end_cuts_those_that_ask_for_it() {
    let (_dir, path) = socket();
    let traits = Traits::default();
    let _peer = Peer::listen(&path, Traits { features: traits.features | CUTS_TCP, ..traits });
    let domain = Domain::new();
    let mut port = spinwake_pmd::open_in(&domain, &format!("virtio-user:{}", path.display())).unwrap();
    let offloads = Offloads { tx_checksum: true, tcp_segmentation: true, ..Offloads::default() };
    port.configure(PortConfig { offloads, ..port.config().clone() }).unwrap();
    let mut rig = Rig::start(port, domain);
    rig.until_up();
    // 1,500 bytes, an Ethernet header and two VLAN tags.
    for (len, refused) in [(1522, 0), (1523, 1)] {
        let mut frame = rig.pool.take().unwrap();
        frame.set_len(len);
        let tx = &mut rig.queues.tx[0];
        assert_eq!(tx.tx_burst(&mut rig.pool, &mut std::iter::once(frame).collect()), 1);
        assert_eq!(tx.counters().refused.get(), refused, "{len} bytes");
    }
    rig.end();
}
