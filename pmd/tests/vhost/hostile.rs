//! Peers that mean no good: each loses its connection, with one line and a count, and nobody else anything.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use spinwake::sys::event::{eventfd, eventfd_take};
use spinwake::sys::mem::Memfd;
use spinwake::sys::socket;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::guest::{GUEST, Guest, LEN, MEMORY, PROTOCOL, Peer, Ring, USER, VERSION_1, message, wait_for_the_end};
use crate::protocol::{assert_passes, running};
use crate::rig::{Rig, open_fds, wait_until};

/// Requests (vhost-user.rst).
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_LOG_BASE: u32 = 6;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const REM_MEM_REG: u32 = 38;

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn pair(low: u32, high: u32) -> Vec<u8> {
    [low, high].map(u32::to_le_bytes).concat()
}

/// One message, with descriptors.
type Said = (Vec<u8>, Vec<OwnedFd>);

fn say(request: u32, body: Vec<u8>) -> Said {
    (message(request, &body), Vec::new())
}

fn say_with(request: u32, body: Vec<u8>, fds: Vec<OwnedFd>) -> Said {
    (message(request, &body), fds)
}

fn open(path: &str) -> OwnedFd {
    File::options().read(true).write(true).open(path).unwrap().into()
}

/// A file of this size, without a page in it.
fn sparse(len: usize) -> OwnedFd {
    Memfd::new(c"sparse", len, None).unwrap().as_fd().try_clone_to_owned().unwrap()
}

fn memory(guest: &Guest) -> OwnedFd {
    guest.memfd.as_fd().try_clone_to_owned().unwrap()
}

/// Everything that is refused: what the line must name, and what is said for it.
fn offences() -> Vec<(&'static str, Vec<Said>)> {
    let guest = Guest::new();
    let len = MEMORY as u64;
    let table = |regions: &[[u64; 4]], fds: Vec<OwnedFd>| {
        say_with(SET_MEM_TABLE, [pair(regions.len() as u32, 0), words(regions.as_flattened())].concat(), fds)
    };
    let whole = [GUEST, len, USER, 0];
    let many = || (0..20).map(|_| eventfd().unwrap()).collect::<Vec<_>>();
    let ready = || {
        vec![
            say(SET_FEATURES, words(&[VERSION_1])),
            table(&[whole], vec![memory(&guest)]),
            say(SET_VRING_NUM, pair(0, LEN.into())),
        ]
    };
    let kick = || say_with(SET_VRING_KICK, words(&[0]), vec![eventfd().unwrap()]);
    let address = |at: [u64; 3]| say(SET_VRING_ADDR, [pair(0, 0), words(&at), words(&[0])].concat());
    let then = |mut first: Vec<Said>, rest: Vec<Said>| {
        first.extend(rest);
        first
    };
    vec![
        ("GET_FEATURES of 5000 bytes", vec![([GET_FEATURES, 9, 5000].map(u32::to_le_bytes).concat(), vec![])]),
        ("GET_FEATURES with flags 0x2", vec![([GET_FEATURES, 2, 0].map(u32::to_le_bytes).concat(), vec![])]),
        ("GET_FEATURES with flags 0x5", vec![([GET_FEATURES, 5, 0].map(u32::to_le_bytes).concat(), vec![])]),
        ("request 77", vec![say(77, vec![])]),
        ("request 0", vec![say(0, vec![])]),
        ("IOTLB_MSG", vec![say(22, vec![0; 32])]),
        ("SET_FEATURES: ", vec![say(SET_FEATURES, vec![0; 4])]),
        ("SET_FEATURES with CTRL_VQ, which was not offered", vec![say(SET_FEATURES, words(&[1 << 17]))]),
        ("SET_PROTOCOL_FEATURES with 0x40", vec![say(SET_PROTOCOL_FEATURES, words(&[0x40]))]),
        ("SET_OWNER: ", vec![say_with(SET_OWNER, vec![], vec![eventfd().unwrap()])]),
        ("GET_QUEUE_NUM: ", vec![say(17, vec![])]),
        ("GPU_SET_SOCKET: ", vec![say_with(33, vec![], vec![eventfd().unwrap()])]),
        (
            "GPU_SET_SOCKET, which was not offered",
            vec![say_with(33, vec![], vec![UnixStream::pair().unwrap().0.into()])],
        ),
        (
            "a message with more than 32 descriptors",
            vec![
                (message(SET_MEM_TABLE, &[0; 40])[..5].to_vec(), many()),
                (message(SET_MEM_TABLE, &[0; 40])[5..].to_vec(), many()),
            ],
        ),
        ("SET_VRING_NUM for ring 2 of 2", vec![say(SET_VRING_NUM, pair(2, 64))]),
        ("SET_VRING_NUM for ring 4294967295 of 2", vec![say(SET_VRING_NUM, pair(u32::MAX, 64))]),
        ("a length of 0 descriptors", vec![say(SET_VRING_NUM, pair(0, 0))]),
        ("a length of 65536 descriptors", vec![say(SET_VRING_NUM, pair(0, 65536))]),
        ("GET_VRING_BASE for ring 9", vec![say(GET_VRING_BASE, pair(9, 0))]),
        ("SET_VRING_ENABLE for ring 2", vec![say(SET_VRING_ENABLE, pair(2, 1))]),
        ("SET_VRING_ENABLE with a body", vec![say(SET_VRING_ENABLE, pair(0, 2))]),
        ("SET_VRING_KICK: ", vec![say(SET_VRING_KICK, words(&[0]))]),
        ("SET_VRING_KICK for ring 200", vec![say_with(SET_VRING_KICK, words(&[200]), vec![eventfd().unwrap()])]),
        (
            "bad kick descriptor: /dev/zero is no eventfd",
            vec![say_with(SET_VRING_KICK, words(&[0]), vec![open("/dev/zero")])],
        ),
        (
            "bad call descriptor: pipe:",
            vec![say_with(SET_VRING_CALL, words(&[0]), vec![std::io::pipe().unwrap().1.into()])],
        ),
        ("ring 0: its length was not set", vec![kick()]),
        ("ring 0: its addresses were not set", then(ready(), vec![kick()])),
        ("one of before version 1", vec![say(SET_VRING_NUM, pair(0, 64)), address([USER; 3]), kick()]),
        (
            "ring 0: its descriptor table, 1024 bytes at 0x10, is in no memory",
            then(ready(), vec![address([0x10, USER, USER]), kick()]),
        ),
        ("its used ring, 518 bytes at", then(ready(), vec![address([USER, USER + len - 4, USER]), kick()])),
        (
            "a length of 63 descriptors is impossible",
            then(ready(), vec![say(SET_VRING_NUM, pair(0, 63)), address([USER; 3]), kick()]),
        ),
        (
            "SET_VRING_BASE while it is started",
            then(ready(), vec![address([USER, USER + 4096, USER + 8192]), kick(), say(SET_VRING_BASE, pair(0, 5))]),
        ),
        ("SET_MEM_TABLE: ", vec![table(&[whole], vec![])]),
        ("SET_MEM_TABLE: ", vec![table(&[whole; 2], vec![memory(&guest)])]),
        ("SET_MEM_TABLE: ", vec![table(&[[GUEST, u64::MAX, USER, 0]], vec![memory(&guest)])]),
        (
            "ends at byte 0x400001 of its file, which has 0x400000",
            vec![table(&[[GUEST, len, USER, 1]], vec![memory(&guest)])],
        ),
        (
            "0x100000001000 bytes of memory, above the limit of 0x100000000000",
            vec![table(&[whole, [1 << 45, (1 << 44) - len + 4096, 0, 0]], vec![memory(&guest), sparse(1 << 44)])],
        ),
        (
            "SET_LOG_BASE of 0x100001000 bytes, above the limit of 0x100000000",
            vec![
                say(SET_PROTOCOL_FEATURES, words(&[2])),
                say_with(SET_LOG_BASE, words(&[(1 << 32) + 4096, 0]), vec![sparse(1 << 33)]),
            ],
        ),
        ("overlap", vec![table(&[whole, [GUEST + len - 1, len, 1, 0]], vec![memory(&guest), memory(&guest)])]),
        ("no memory", vec![table(&[whole], vec![open("/dev/zero")])]),
        ("no memory", vec![table(&[whole], vec![eventfd().unwrap()])]),
        ("SET_LOG_BASE: ", vec![say_with(SET_LOG_BASE, words(&[4096, 0]), vec![memory(&guest)])]),
        (
            "SET_LOG_BASE: the peer's memory region",
            vec![
                say(SET_PROTOCOL_FEATURES, words(&[2])),
                say_with(SET_LOG_BASE, words(&[len + 1, 0]), vec![memory(&guest)]),
            ],
        ),
        (
            "REM_MEM_REG for 0x400000 bytes at 0x100000000, which were not added",
            vec![say(SET_PROTOCOL_FEATURES, words(&[1 << 15])), say(REM_MEM_REG, words(&[0, GUEST, len, USER, 0]))],
        ),
    ]
}

/// Says all that; what the other side answers does not matter.
fn commit(rig: &mut Rig, said: &[Said]) {
    let stream = UnixStream::connect(&rig.path).unwrap();
    for (bytes, fds) in said {
        // It may have hung up already.
        let _ = socket::send(stream.as_fd(), bytes, fds);
    }
    rig.while_turning(|| wait_for_the_end(&stream));
}

#[test]
fn each_offence_closes_its_connection_with_one_line_and_the_next_peer_works() {
    let mut rig = Rig::new("");
    for (nth, (names, said)) in offences().into_iter().enumerate() {
        commit(&mut rig, &said);
        let line = rig.offence(nth as u64 + 1);
        assert!(line.starts_with("WARN") && line.contains(names), "no `{names}` in: {line}");
        assert!(Peer::connect(&rig.path).frontend.get_features().unwrap() & VERSION_1 != 0, "after {names}");
    }
    let (guest, _peer, mut receive, mut send) = running(&mut rig);
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
}

#[test]
fn no_descriptor_stays_open() {
    let mut rig = Rig::alone("");
    drop(Peer::connect(&rig.path).frontend.get_features());
    let round = |rig: &mut Rig| {
        for (_, said) in offences() {
            commit(rig, &said);
        }
        let running = running(rig);
        rig.while_turning(|| drop(running));
        wait_until("link down", || !rig.is_up());
        rig.turn();
    };
    round(&mut rig);
    let before = open_fds();
    round(&mut rig);
    wait_until("as many descriptors as before", || open_fds() <= before);
}

#[test]
fn the_thread_that_serves_all_peers_signals_none_of_their_descriptors() {
    let rig = Rig::new("");
    let mut stream = UnixStream::connect(&rig.path).unwrap();
    let call = eventfd().unwrap();
    let (bytes, fds) = say_with(SET_VRING_CALL, words(&[0]), vec![call.try_clone().unwrap()]);
    socket::send(stream.as_fd(), &bytes, &fds).unwrap();
    stream.write_all(&message(GET_FEATURES, &[])).unwrap();
    stream.read_exact(&mut [0; 20]).unwrap();
    assert_eq!(eventfd_take(call.as_fd()).unwrap(), 0);
}

#[test]
fn a_message_that_ends_early_is_an_offence() {
    let rig = Rig::new("");
    let mut stream = UnixStream::connect(&rig.path).unwrap();
    stream.write_all(&message(SET_FEATURES, &[0; 8])[..15]).unwrap();
    drop(stream);
    assert!(rig.offence(1).contains("a message that ends after 15 bytes"));
}

#[test]
fn a_peer_that_keeps_us_waiting_is_given_up_and_others_are_not_kept_waiting() {
    let (rig, mut other) = (Rig::new(""), Rig::new(""));
    let mut slow = UnixStream::connect(&rig.path).unwrap();
    slow.write_all(&message(SET_FEATURES, &[0; 8])[..15]).unwrap();
    let mut silent = UnixStream::connect(&rig.path).unwrap();
    let (guest, _peer, mut receive, mut send) = running(&mut other);
    assert_passes(&mut other, &guest, &mut receive, &mut send);
    assert_eq!(rig.count("offences"), 0, "not yet");
    assert_eq!(slow.read(&mut [0; 1]).unwrap(), 0);
    assert!(rig.offence(1).contains("the rest of a message did not come within"));
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    assert!(rig.offence(2).contains("a first message did not come within"));
    assert_passes(&mut other, &guest, &mut receive, &mut send);
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let rig = Rig::new("");
    let stream = UnixStream::connect(&rig.path).unwrap();
    stream.set_nonblocking(true).unwrap();
    let question = message(GET_FEATURES, &[]);
    wait_until("the end of its patience", || {
        while socket::send(stream.as_fd(), &question, &[]).is_ok() {}
        rig.count("offences") == 1
    });
    assert!(rig.offence(1).contains("does not read its answers"));
}

#[test]
fn a_ring_that_makes_no_sense_ends_the_connection() {
    let mut rig = Rig::new("");
    let (guest, peer, _receive, send) = running(&mut rig);
    let error = send.call.try_clone().unwrap();
    peer.frontend.set_vring_err(1, &error).unwrap();
    guest.set_u16(send.available() + 2, LEN + 1);
    rig.while_turning(|| peer.wait_for_the_end());
    assert!(rig.offence(1).contains("ring 1: "));
    let (guest, _peer, mut receive, mut send) = running(&mut rig);
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
}

#[test]
fn a_worker_that_never_comes_back_holds_up_nobody_for_long() {
    let mut rig = Rig::new("");
    let (guest, mut peer, mut receive, mut send) = running(&mut rig);
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
    // No turns any more: both rings are with their queues.
    assert_eq!(peer.frontend.get_vring_base(0).unwrap(), 1, "what it last said");
    assert_eq!(rig.count("late_workers"), 1);
    assert!(rig.lines().iter().any(|line| line.contains("the worker of ring 0 did not let go")), "{:#?}", rig.lines());
    peer.frontend.set_vring_enable(1, false).unwrap();
    drop(peer);
    wait_until("link down", || !rig.is_up());
    let (guest, _peer, mut receive, mut send) = running(&mut rig);
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
}

#[test]
fn a_late_worker_takes_up_the_next_peers_rings_where_that_peer_has_them() {
    let mut rig = Rig::new("");
    let (guest, peer, mut receive, mut send) = running(&mut rig);
    for _ in 0..3 {
        assert_passes(&mut rig, &guest, &mut receive, &mut send);
    }
    // From here on no turns: both rings of the first peer are with their queues.
    drop(peer);
    let (guest, mut peer) = (Guest::new(), Peer::connect(&rig.path));
    peer.negotiate(VERSION_1 | PROTOCOL);
    peer.share(&guest);
    let (mut receive, mut send) = (Ring::new(0), Ring::new(1));
    (0..32).for_each(|_| _ = receive.add(&guest, 2048, true));
    for ring in [&receive, &send] {
        peer.start(ring, 0, false);
        // Takes back, and lends again, what no queue has seen.
        peer.frontend.set_vring_call(ring.index, &ring.call).unwrap();
    }
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
    assert_eq!((rig.count("late_workers"), rig.count("offences")), (2, 0));
}

#[test]
fn random_bytes_do_no_harm() {
    let mut rig = Rig::new("");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..200 {
        let stream = UnixStream::connect(&rig.path).unwrap();
        let mut bytes = Vec::new();
        for _ in 0..8 {
            // Half of the rounds are noise, the others well-formed headers with noise in them.
            if round % 2 == 0 {
                bytes.extend(words(&[random(), random()]));
            } else {
                let body = words(&[random() % 4, random() % 4096, random()]);
                let len = (random() % 25) as usize;
                bytes.extend(message((random() % 45) as u32, &body[..len]));
            }
        }
        // It may have hung up already.
        let _ = socket::send(stream.as_fd(), &bytes, &[]);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        rig.while_turning(|| wait_for_the_end(&stream));
    }
    let (guest, _peer, mut receive, mut send) = running(&mut rig);
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
}
