//! What is refused, and what no back end should say.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use spinwake::dma::Domain;
use spinwake::mem::MemRequest;

use crate::peer::{Peer, Traits};
use crate::rig::{Rig, socket, wait};

fn refusal(spec: &str) -> String {
    spinwake_pmd::open_in(&Domain::new(), spec).unwrap_err().to_string()
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

#[test]
fn where_nobody_answers_the_error_says_what_to_start() {
    let (_dir, path) = socket();
    let path = path.display().to_string();
    let started = Instant::now();
    let text = refusal(&format!("virtio-user:{path}"));
    assert!(started.elapsed() > Duration::from_secs(1), "it may be just about to start");
    assert_says(&text, &[&path, "no back end answers", "os error 2", "net_vhost0", "server=on"]);
}

#[test]
fn a_back_end_that_is_silent_is_told_from_one_that_is_not_there() {
    let (_dir, path) = socket();
    let _silent = UnixListener::bind(&path).unwrap();
    let text = refusal(&format!("virtio-user:{}", path.display()));
    assert_says(&text, &["does not answer", "another front end"]);
}

#[test]
fn what_the_back_end_cannot_do_is_refused_by_name() {
    let (_dir, path) = socket();
    let one = Traits { pairs: 1, ..Traits::default() };
    let _peer = Peer::listen(&path, one);
    let spec = format!("virtio-user:{}", path.display());
    assert_says(&refusal(&format!("{spec},queues=2")), &["queues=2", "only 1"]);
    let mut port = spinwake_pmd::open_in(&Domain::new(), &format!("{spec},packed=on")).unwrap();
    assert_says(&port.start().unwrap_err().to_string(), &["does not offer RING_PACKED"]);
    drop(port);
    let mut port = spinwake_pmd::open_in(&Domain::new(), &format!("{spec},mrg=off,mtu=9000")).unwrap();
    drop(port.start().unwrap());
}

#[test]
fn a_port_that_comes_after_private_memory_is_refused() {
    let (_dir, path) = socket();
    let _peer = Peer::listen(&path, Traits::default());
    let domain = Domain::new();
    let _pool = domain.alloc(&MemRequest::new(1 << 16)).unwrap();
    let error = spinwake_pmd::open_in(&domain, &format!("virtio-user:{}", path.display())).unwrap_err().to_string();
    assert_says(&error, &["virtio-user:", "open this device before making pools"]);
}

#[test]
fn two_ports_cannot_listen_at_one_path() {
    let (_dir, path) = socket();
    let spec = format!("virtio-user:{},server=on", path.display());
    let first = spinwake_pmd::open_in(&Domain::new(), &spec).unwrap();
    assert_says(&refusal(&spec), &["listening at the path", "in use"]);
    drop(first);
    // What a program leaves behind that is killed.
    drop(UnixListener::bind(&path).unwrap());
    drop(spinwake_pmd::open_in(&Domain::new(), &spec).unwrap());
}

/// Answers of a hostile back end to the first request that it gets.
fn lies() -> Vec<(&'static str, Vec<u8>)> {
    let answer = |request: u32, flags: u32, len: u32, body: &[u8]| {
        let mut bytes: Vec<u8> = [request, flags, len].iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(body);
        bytes
    };
    vec![
        ("another request's answer", answer(2, 5, 8, &[0; 8])),
        ("no answer's flags", answer(1, 1, 8, &[0; 8])),
        ("another version", answer(1, 6, 8, &[0; 8])),
        ("an endless body", answer(1, 5, u32::MAX, &[0; 8])),
        ("no body", answer(1, 5, 0, &[])),
        ("noise", vec![0xff; 4096]),
    ]
}

#[test]
fn a_back_end_that_breaks_the_protocol_is_cut_off_and_counted() {
    let (_dir, path) = socket();
    let mut peer = Some(Peer::listen(&path, Traits::default()));
    let mut rig = Rig::open(&path, "");
    rig.circle(0, 64, 100);
    for (what, bytes) in lies() {
        drop(peer.take());
        rig.until_down();
        let before = rig.count("offences");
        let listener = UnixListener::bind(&path).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 12]).unwrap();
        // It may be cut off before it has said all.
        let _ = stream.write_all(&bytes);
        wait(what, || rig.count("offences") > before);
        drop((listener, stream));
        std::fs::remove_file(&path).unwrap();
        peer = Some(Peer::listen(&path, Traits::default()));
        rig.until_up();
        rig.circle(0, 64, 100);
    }
    rig.end();
}

#[test]
fn a_back_end_that_never_answers_is_given_up() {
    let (_dir, path) = socket();
    let peer = Peer::listen(&path, Traits::default());
    let mut rig = Rig::open(&path, "");
    drop(peer);
    rig.until_down();
    let listener = UnixListener::bind(&path).unwrap();
    let mut silent = listener.accept().unwrap().0;
    wait("giving it up", || rig.count("offences") > 0);
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    drop(listener);
    std::fs::remove_file(&path).unwrap();
    let _peer = Peer::listen(&path, Traits::default());
    rig.until_up();
    rig.circle(0, 64, 100);
    rig.end();
}
