//! What a well-behaved peer sees.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use spinwake::port::PortConfig;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::guest::{Guest, PROTOCOL, Peer, Ring, VERSION_1};
use crate::rig::{Rig, wait_until};

/// A guest whose first pair of rings runs, with buffers to receive into.
pub(crate) fn running(rig: &mut Rig) -> (Guest, Peer, Ring, Ring) {
    let path = rig.path.clone();
    rig.while_turning(move || {
        let (guest, mut peer) = (Guest::new(), Peer::connect(&path));
        peer.negotiate(VERSION_1 | PROTOCOL);
        peer.share(&guest);
        let (mut receive, send) = (Ring::new(0), Ring::new(1));
        for _ in 0..32 {
            receive.add(&guest, 2048, true);
        }
        peer.start(&receive, 0, false);
        peer.start(&send, 0, false);
        (guest, peer, receive, send)
    })
}

/// Frames pass in both directions.
pub(crate) fn assert_passes(rig: &mut Rig, guest: &Guest, receive: &mut Ring, send: &mut Ring) {
    let frame: Vec<u8> = (0..100).collect();
    send.add_frame(guest, &frame);
    let mut got = Vec::new();
    wait_until("a frame from the peer", || {
        got.extend(rig.receive());
        !got.is_empty()
    });
    assert_eq!(got, std::slice::from_ref(&frame));
    receive.add(guest, 2048, true);
    wait_until("a frame for the peer", || rig.send(0, &[&frame]) == 1);
    wait_until("a frame at the peer", || {
        rig.turn();
        let frames = receive.received(guest);
        assert!(frames.iter().all(|got| *got == frame));
        !frames.is_empty()
    });
}

#[test]
fn frames_pass_both_ways_and_the_link_follows_the_peer() {
    let mut rig = Rig::new("");
    assert!(!rig.is_up());
    let vector = rig.port.link_vector().unwrap();
    let (guest, peer, mut receive, mut send) = running(&mut rig);
    assert!(rig.is_up());
    assert!(vector.take() > 0);
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
    assert!(receive.call.read().unwrap() > 0);
    drop(peer);
    wait_until("link down", || !rig.is_up());
    assert!(vector.take() > 0);
    assert_eq!((rig.count("connections"), rig.count("offences")), (1, 0));
    let stats = rig.port.stats();
    assert_eq!((stats.rx_frames, stats.tx_frames), (1, 1));
}

#[test]
fn what_was_agreed_on_is_told_in_one_line() {
    let mut rig = Rig::new("");
    let _running = running(&mut rig);
    let lines: Vec<String> = rig.lines().into_iter().filter(|line| line.contains("features in use")).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    for part in ["4 MiB of memory", "features in use: PROTOCOL_FEATURES VERSION_1", "offered and left: ", "RING_PACKED"]
    {
        assert!(lines[0].contains(part), "{}", lines[0]);
    }
}

#[test]
fn keys_and_configuration_decide_what_is_offered() {
    const PACKED: u64 = 1 << 34;
    const MQ: u64 = 1 << 22;
    const CSUM: u64 = 1;
    let rig = Rig::new("");
    let offered = Peer::connect(&rig.path).negotiate(0);
    assert_eq!(offered & (PACKED | MQ | CSUM | VERSION_1 | PROTOCOL), PACKED | VERSION_1 | PROTOCOL);
    let mut rig = Rig::new(",packed=off,queues=3");
    let mut peer = Peer::connect(&rig.path);
    assert_eq!(peer.negotiate(PROTOCOL) & (PACKED | MQ), MQ);
    assert_eq!(peer.frontend.get_queue_num().unwrap(), 3);
    assert_eq!(peer.frontend.get_max_mem_slots().unwrap(), 64);
    // Another configuration is another device: the peer comes again.
    rig.queues = None;
    rig.port.stop().unwrap();
    let mut config = PortConfig { rx_queues: 1, tx_queues: 1, ..rig.port.config().clone() };
    config.offloads.rx_checksum = true;
    rig.port.configure(config).unwrap();
    peer.wait_for_the_end();
    rig.queues = Some(rig.port.start().unwrap());
    assert_eq!(Peer::connect(&rig.path).negotiate(0) & (MQ | CSUM), CSUM);
}

#[test]
fn rings_of_a_pair_that_is_not_enabled_stay_idle() {
    let mut rig = Rig::new(",queues=2");
    let (guest, mut peer, mut receive, mut send) = running(&mut rig);
    let mut second = Ring::new(3);
    rig.while_turning(|| {
        peer.start(&second, 0, false);
        peer.frontend.set_vring_enable(3, false).unwrap();
    });
    second.add_frame(&guest, &[7; 60]);
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
    assert!(second.used(&guest).is_empty(), "its frame waits");
    rig.while_turning(|| peer.frontend.set_vring_enable(3, true).unwrap());
    wait_until("its frame", || {
        rig.turn();
        !second.used(&guest).is_empty()
    });
}

#[test]
fn a_ring_stops_where_it_stands_and_goes_on_there() {
    let mut rig = Rig::new("");
    let (guest, mut peer, mut receive, mut send) = running(&mut rig);
    for _ in 0..3 {
        assert_passes(&mut rig, &guest, &mut receive, &mut send);
    }
    let bases = rig.while_turning(|| [0, 1].map(|index| peer.frontend.get_vring_base(index).unwrap()));
    assert_eq!(bases, [3, 3]);
    assert!(!rig.is_up());
    send.add_frame(&guest, &[1; 64]);
    assert!(rig.receive().is_empty(), "it is stopped");
    rig.while_turning(|| {
        peer.start(&receive, 3, false);
        peer.start(&send, 3, false);
    });
    // One of the turns may have been the one that got it.
    wait_until("the frame that waited", || {
        rig.turn();
        rig.port.stats().rx_frames == 4
    });
    let bases = rig.while_turning(|| [0, 1].map(|index| peer.frontend.get_vring_base(index).unwrap()));
    assert_eq!(bases, [3, 4]);
}

#[test]
fn memory_comes_and_goes_while_rings_run() {
    let mut rig = Rig::new("");
    let (guest, mut peer, mut receive, mut send) = running(&mut rig);
    let more = Guest::new();
    let mut region = more.region();
    region.guest_phys_addr = 1 << 40;
    region.userspace_addr = 1 << 40;
    rig.while_turning(|| peer.frontend.add_mem_region(&region).unwrap());
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
    rig.while_turning(|| peer.frontend.remove_mem_region(&region).unwrap());
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
    // Rings whose memory goes wait until it is back; the link has followed when the answer is there.
    for _ in 0..50 {
        rig.while_turning(|| peer.frontend.remove_mem_region(&guest.region()).unwrap());
        assert!(!rig.is_up());
        rig.while_turning(|| peer.frontend.add_mem_region(&guest.region()).unwrap());
        assert!(rig.is_up());
    }
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
}

#[test]
fn a_peer_that_waits_gets_its_turn_when_the_first_has_left() {
    let mut rig = Rig::new("");
    let (_guest, peer, ..) = running(&mut rig);
    let second = Peer::connect(&rig.path);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.count("connections"), 1);
    drop(peer);
    let features = rig.while_turning(|| second.frontend.get_features().unwrap());
    assert!(features & VERSION_1 != 0);
    assert_eq!((rig.count("connections"), rig.count("offences")), (2, 0));
}

#[test]
fn a_port_calls_a_peer_that_listens_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qemu");
    let mut port = spinwake_pmd::open(&format!("vhost:{},client=on", path.display())).unwrap();
    let _queues = port.start().unwrap();
    for _ in 0..2 {
        let listener = UnixListener::bind(&path).unwrap();
        let mut peer = Peer::from_stream(listener.accept().unwrap().0);
        assert!(peer.negotiate(PROTOCOL) & VERSION_1 != 0);
        drop((peer, listener));
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(port.stats().extra("offences"), Some(0));
}

#[test]
fn stopping_keeps_the_peer_and_dropping_ends_it_cleanly() {
    let mut rig = Rig::new("");
    let (guest, peer, mut receive, mut send) = running(&mut rig);
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
    rig.port.stop().unwrap_err();
    rig.queues = None;
    rig.port.stop().unwrap();
    assert!(rig.is_up(), "its rings wait");
    send.add_frame(&guest, &[9; 64]);
    rig.queues = Some(rig.port.start().unwrap());
    wait_until("the frame that waited", || !rig.receive().is_empty());
    receive.add(&guest, 2048, true);
    wait_until("a frame for the peer", || rig.send(0, &[&[3; 60]]) == 1);
    wait_until("it", || receive.received(&guest) == [[3; 60]]);
    rig.queues = None;
    let path = rig.path.clone();
    drop(rig);
    peer.wait_for_the_end();
    assert!(!path.exists());
}

#[test]
fn the_mtu_and_the_status_are_told() {
    // Messages that the front end of the crate does not have.
    let rig = Rig::new(",mtu=9000");
    let mut peer = Peer::connect(&rig.path);
    peer.negotiate(PROTOCOL);
    assert_eq!(peer.ask(20, Some(1500)), 0);
    assert_eq!(peer.ask(20, Some(9001)), 1, "refused, and no offence");
    assert_eq!(peer.ask(39, Some(15)), 0);
    assert_eq!(peer.ask(40, None), 15);
    assert_eq!(rig.count("offences"), 0);
    assert!(rig.lines().iter().any(|line| line.contains("MTU of 9001 is above 9000")), "{:#?}", rig.lines());
}
