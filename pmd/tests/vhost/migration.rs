//! A guest that moves to another host while frames flow: QEMU's side of it (docs/interop/vhost-user.rst, "Migration").

use std::collections::BTreeSet;

use vhost::VhostBackend;

use crate::guest::{Guest, LOG_ALL, Log, MEMORY, PAGE, PROTOCOL, Peer, VERSION_1};
use crate::protocol::{assert_passes, running};
use crate::rig::{Rig, wait_until};

/// The pages of the guest's memory that `len` bytes at `at` lie in.
fn pages(at: u64, len: usize) -> impl Iterator<Item = u64> {
    at / PAGE..=(at + len as u64 - 1) / PAGE
}

#[test]
fn a_guest_moves_with_exactly_the_pages_that_were_written() {
    let mut source = Rig::new("");
    let (guest, peer, mut receive, mut send) = running(&mut source);
    assert_passes(&mut source, &guest, &mut receive, &mut send);

    // The log is turned on while the rings run. From then on, what was copied before is kept up by the log.
    let log = Log::new();
    source.while_turning(|| {
        peer.set_log(&log.memfd, Log::BYTES);
        peer.frontend.set_features(VERSION_1 | PROTOCOL | LOG_ALL).unwrap();
        peer.frontend.set_vring_addr(0, &receive.addresses(true)).unwrap();
        peer.frontend.set_vring_addr(1, &send.addresses(true)).unwrap();
    });
    let moved = Guest::new();
    moved.write(0, &guest.read(0, MEMORY));
    // A device that takes a ring may say there at once that it wants no kicks, and must note that; nothing else was written.
    let rings = BTreeSet::from([receive.used_page() / PAGE, send.used_page() / PAGE]);
    assert!(log.pages().is_subset(&rings), "{:?}", log.pages());
    assert!(source.lines().iter().any(|line| line.contains("are noted from now on")), "{:#?}", source.lines());

    // Buffers that were there before come first, then those that lie across two pages.
    let mut expected = BTreeSet::new();
    for n in 0..40 {
        receive.add_at(&guest, (3 << 20) + n * 2 * PAGE + PAGE - 100, 2048, true);
        wait_until("a frame for the peer", || source.send(0, &[&[n as u8; 300]]) == 1);
        for (at, len) in receive.written(&guest) {
            assert_eq!(len, 312);
            expected.extend(pages(at, len));
        }
    }
    assert!(expected.len() > 40 + 4, "some lie across pages");
    assert_eq!(&log.pages() - &rings, expected);
    assert!(log.pages().contains(&(receive.used_page() / PAGE)));

    // What the guest sends is not written; that it was used is.
    send.add_frame(&guest, &[5; 60]);
    wait_until("a frame from the peer", || !source.receive().is_empty());
    expected.extend(rings);
    assert_eq!(log.pages(), expected);
    send.used(&guest);

    let bases = source.while_turning(|| [0, 1].map(|index| peer.frontend.get_vring_base(index).unwrap()));
    assert_eq!(bases, [41, 2]);
    assert_eq!(log.pages(), expected);
    drop(peer);
    wait_until("its leaving", || !source.is_up());

    // The destination gets the logged pages, and those that the driver wrote, which its processor notes.
    let by_driver = [&receive, &send].into_iter().flat_map(|ring| {
        pages(ring.available() - PAGE, 2 * PAGE as usize).chain(pages(ring.buffer(0), 2 * (PAGE as usize) * 64))
    });
    let driver_only: BTreeSet<u64> = by_driver.filter(|page| !expected.contains(page)).collect();
    for page in expected.iter().chain(&driver_only) {
        moved.write(page * PAGE, &guest.read(page * PAGE, PAGE as usize));
    }
    assert!(moved.read(0, MEMORY) == guest.read(0, MEMORY), "all of the guest is there");

    let mut target = Rig::new("");
    let path = target.path.clone();
    let _peer = target.while_turning(|| {
        let mut peer = Peer::connect(&path);
        peer.negotiate(VERSION_1 | PROTOCOL);
        peer.share(&moved);
        peer.start(&receive, bases[0] as u16, false);
        peer.start(&send, bases[1] as u16, false);
        peer
    });
    for _ in 0..100 {
        assert_passes(&mut target, &moved, &mut receive, &mut send);
    }
}

#[test]
fn a_migration_that_is_called_off_ends_the_log() {
    let mut rig = Rig::new("");
    let (guest, peer, mut receive, mut send) = running(&mut rig);
    let log = Log::new();
    rig.while_turning(|| {
        peer.set_log(&log.memfd, Log::BYTES);
        peer.frontend.set_features(VERSION_1 | PROTOCOL | LOG_ALL).unwrap();
    });
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
    let noted = log.pages();
    assert_eq!(noted.len(), 1, "the frame, and no ring as none was to be noted: {noted:?}");
    rig.while_turning(|| peer.frontend.set_features(VERSION_1 | PROTOCOL).unwrap());
    assert_passes(&mut rig, &guest, &mut receive, &mut send);
    assert_eq!(log.pages(), noted);
}

#[test]
fn a_guest_that_has_moved_may_announce_itself() {
    // QEMU offers its guest this only if we do, and asks us to announce the guest otherwise (SEND_RARP).
    const GUEST_ANNOUNCE: u64 = 1 << 21;
    let rig = Rig::new("");
    assert!(Peer::connect(&rig.path).negotiate(0) & GUEST_ANNOUNCE != 0);
}
