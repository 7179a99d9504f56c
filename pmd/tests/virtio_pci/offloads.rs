//! What is left to the other end of a cable: checksums, and the cutting of large frames. The cable is a bridge of the host's
//! kernel, which does for an end what that does not do itself: so it reads our wishes, and states its own.

use spinwake::frame::{Checksum, Cut, Frame, L4Checksum, Pool, Segmentation};
use spinwake::port::{Offloads, PortConfig};

use crate::packet::{ETHERNET, IPV4, blank_sums, bytes, frame, ipv4, sums_hold};
use crate::rig::{Rig, Side, finish};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Header of TCP without options.
const TCP_HEADER: usize = 20;
/// Payload of each piece of a large frame.
const PIECE: u16 = 1400;

fn plain(config: PortConfig) -> PortConfig {
    config
}

fn sums(config: PortConfig) -> PortConfig {
    PortConfig { offloads: Offloads { rx_checksum: true, tx_checksum: true, ..Offloads::default() }, ..config }
}

fn all(config: PortConfig) -> PortConfig {
    let offloads = Offloads {
        rx_checksum: true,
        tx_checksum: true,
        tcp_segmentation: true,
        large_receive: true,
        ..Offloads::default()
    };
    PortConfig { offloads, ..config }
}

/// A packet whose sums are left to the device, and what it is with them.
fn unfinished(from: &Side, to: &Side, pool: &mut Pool, protocol: u8, flow: u16, payload: usize) -> (Frame, Vec<u8>) {
    let whole = ipv4(to.port.mac(), from.port.mac(), protocol, flow, payload);
    let mut blank = whole.clone();
    blank_sums(&mut blank, protocol);
    let mut frame = frame(pool, &blank);
    let l4 = if protocol == TCP { L4Checksum::Tcp } else { L4Checksum::Udp };
    frame.request_checksums(ETHERNET, IPV4, true, l4);
    (frame, whole)
}

fn send_unfinished(from: &mut Side, to: &mut Side, pool: &mut Pool, mut look: impl FnMut(Frame, &[u8])) {
    for protocol in [TCP, UDP] {
        for payload in [0, 1, 18, 100, 1000, 1400] {
            let (frame, whole) = unfinished(from, to, pool, protocol, payload, payload.into());
            from.send(pool, vec![frame]);
            let [got] = <[Frame; 1]>::try_from(to.receive(pool, 1)).unwrap();
            look(got, &whole);
        }
    }
}

/// Who takes no unfinished checksums gets them finished.
pub(crate) fn checksums_are_finished(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start_each(sums, plain);
    send_unfinished(&mut a, &mut b, &mut pool, |got, whole| {
        assert_eq!(got.requested_checksums(), None);
        assert_eq!(bytes(&got), whole);
    });
    finish([a, b], pool);
}

/// Who takes them gets them as they are, with what is left to do; what was finished is known to be good.
pub(crate) fn checksums_are_passed_on(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start_each(sums, sums);
    send_unfinished(&mut a, &mut b, &mut pool, |got, whole| {
        let protocol = whole[ETHERNET + 9];
        let l4 = if protocol == TCP { L4Checksum::Tcp } else { L4Checksum::Udp };
        assert_eq!(got.requested_checksums(), Some((ETHERNET, IPV4, false, l4)));
        assert_eq!(got.l4_checksum(), Checksum::Good);
        let mut blank = whole.to_vec();
        blank_sums(&mut blank, protocol);
        // The header's own sum cannot be left to anybody.
        blank[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&whole[ETHERNET + 10..ETHERNET + 12]);
        assert_eq!(bytes(&got), blank);
    });
    finish([a, b], pool);
}

fn large(from: &Side, to: &Side, pool: &mut Pool, payload: usize) -> (Frame, Vec<u8>, Segmentation) {
    let (mut frame, whole) = unfinished(from, to, pool, TCP, 7, payload);
    let wish = Segmentation { cut: Cut::Tcp4, payload: PIECE, ecn: false };
    frame.request_segmentation(Some(wish));
    (frame, whole, wish)
}

const SIZES: [usize; 5] = [1401, 2800, 9000, 20_000, 65_000];

/// Who takes no large frames gets their pieces, each with its headers and sums.
pub(crate) fn large_frames_are_cut(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start_each(all, plain);
    for payload in SIZES {
        let (frame, whole, _) = large(&a, &b, &mut pool, payload);
        a.send(&mut pool, vec![frame]);
        let pieces = b.receive(&mut pool, payload.div_ceil(PIECE.into()));
        let mut data = Vec::<u8>::new();
        for piece in &pieces {
            let piece = bytes(piece);
            assert!(sums_hold(&piece), "a piece of {payload} bytes, at {}", data.len());
            let sequence = &piece[ETHERNET + IPV4 + 4..][..4];
            assert_eq!(sequence, (1 + data.len() as u32).to_be_bytes());
            data.extend(&piece[ETHERNET + IPV4 + TCP_HEADER..]);
        }
        assert_eq!(data, whole[ETHERNET + IPV4 + TCP_HEADER..]);
    }
    finish([a, b], pool);
}

/// Who takes them gets them whole, with the wish to cut them.
pub(crate) fn large_frames_are_passed_on(rig: &Rig) {
    let (mut a, mut b, mut pool) = rig.start_each(all, all);
    for payload in SIZES {
        let (frame, whole, wish) = large(&a, &b, &mut pool, payload);
        a.send(&mut pool, vec![frame]);
        let [got] = <[Frame; 1]>::try_from(b.receive(&mut pool, 1)).unwrap();
        assert_eq!(got.requested_segmentation(), Some(wish));
        assert_eq!(got.requested_checksums(), Some((ETHERNET, IPV4, false, L4Checksum::Tcp)));
        let (got, at) = (bytes(&got), ETHERNET + IPV4 + TCP_HEADER);
        assert_eq!(got[at..], whole[at..]);
        assert_eq!(got[..ETHERNET + IPV4], whole[..ETHERNET + IPV4]);
    }
    finish([a, b], pool);
}
