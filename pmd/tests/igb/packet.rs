//! Frames with known contents.

use spinwake::frame::{DATA_ROOM, Frame, Pool};
use spinwake::port::MacAddr;

/// Local addresses that nobody has.
pub(crate) const STRANGER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x99]);
/// Ethernet header: destination, source, type.
pub(crate) const ETHERNET: usize = 14;
/// IPv4 header without options.
pub(crate) const IPV4: usize = 20;
/// A protocol number kept for experiments (IEEE 802).
const EXPERIMENTAL: u16 = 0x88b5;

/// `len` bytes from `from` to `to` whose contents follow from `seed`.
pub(crate) fn pattern(to: MacAddr, from: MacAddr, len: usize, seed: u32) -> Vec<u8> {
    let mut bytes = header(to, from, EXPERIMENTAL);
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    bytes.extend((ETHERNET..len).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    }));
    bytes
}

/// A frame of one segment or, if `bytes` do not fit one, a chain.
pub(crate) fn frame(pool: &mut Pool, bytes: &[u8]) -> Frame {
    chain(pool, bytes, DATA_ROOM)
}

/// A chain of segments of `segment` bytes.
pub(crate) fn chain(pool: &mut Pool, bytes: &[u8], segment: usize) -> Frame {
    let mut parts = bytes.chunks(segment).map(|part| {
        let mut frame = pool.take().expect("the pool is large enough");
        frame.copy_from(part);
        frame
    });
    let mut head = parts.next().unwrap();
    parts.for_each(|part| head.chain(part));
    head
}

/// All data of a frame.
pub(crate) fn bytes(frame: &Frame) -> Vec<u8> {
    frame.segments().flat_map(|segment| segment.data().to_vec()).collect()
}

pub(crate) fn header(to: MacAddr, from: MacAddr, kind: u16) -> Vec<u8> {
    [&to.0[..], &from.0[..], &kind.to_be_bytes()[..]].concat()
}

/// A VLAN-tagged copy of `bytes`.
pub(crate) fn tagged(bytes: &[u8], tag: u16) -> Vec<u8> {
    [&bytes[..12], &[0x81, 0x00][..], &tag.to_be_bytes()[..], &bytes[12..]].concat()
}

/// An IPv4 packet from 10.0.0.`flow` with right checksums; `protocol` is 6 for TCP, 17 for UDP.
pub(crate) fn ipv4(to: MacAddr, from: MacAddr, protocol: u8, flow: u16, payload: usize) -> Vec<u8> {
    let l4_len = if protocol == 6 { 20 } else { 8 };
    let mut bytes = header(to, from, 0x0800);
    let total = (IPV4 + l4_len + payload) as u16;
    bytes.extend([0x45, 0]);
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0]);
    bytes.extend(flow.to_be_bytes());
    bytes.extend([10, 1, 0, 1]);
    bytes.extend(flow.wrapping_add(1024).to_be_bytes());
    bytes.extend(80u16.to_be_bytes());
    if protocol == 6 {
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        bytes.extend(((8 + payload) as u16).to_be_bytes());
        bytes.extend([0, 0]);
    }
    bytes.extend((0..payload).map(|i| (i as u8).wrapping_mul(31) ^ flow as u8));
    let sum = !fold(sum(&bytes[ETHERNET..ETHERNET + IPV4]));
    bytes[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
    let at = l4_sum_at(protocol);
    let sum = !fold(pseudo_sum(&bytes) + sum_of_l4(&bytes));
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// An [`ipv4`] packet back to where `bytes` came from. Sums do not depend on the order, so they still hold.
pub(crate) fn answer(bytes: &[u8]) -> Vec<u8> {
    let mut back = bytes.to_vec();
    for (at, len) in [(0, 6), (ETHERNET + 12, 4), (ETHERNET + IPV4, 2)] {
        back[at..at + len].copy_from_slice(&bytes[at + len..at + 2 * len]);
        back[at + len..at + 2 * len].copy_from_slice(&bytes[at..at + len]);
    }
    back
}

/// Where the transport checksum of [`ipv4`] stands.
pub(crate) fn l4_sum_at(protocol: u8) -> usize {
    ETHERNET + IPV4 + if protocol == 6 { 16 } else { 6 }
}

/// Makes an [`ipv4`] packet what a device that fills in checksums wants: no network sum, and the pseudo-header's.
pub(crate) fn blank_sums(bytes: &mut [u8], protocol: u8) {
    bytes[ETHERNET + 10..ETHERNET + 12].fill(0);
    let at = l4_sum_at(protocol);
    let pseudo = fold(pseudo_sum(bytes));
    bytes[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
}

/// Whether both checksums of an [`ipv4`] packet hold.
pub(crate) fn sums_hold(bytes: &[u8]) -> bool {
    fold(sum(&bytes[ETHERNET..ETHERNET + IPV4])) == 0xffff && fold(pseudo_sum(bytes) + sum_of_l4(bytes)) == 0xffff
}

fn pseudo_sum(bytes: &[u8]) -> u32 {
    let l4_len = bytes.len() - ETHERNET - IPV4;
    sum(&bytes[ETHERNET + 12..ETHERNET + 20]) + u32::from(bytes[ETHERNET + 9]) + l4_len as u32
}

fn sum_of_l4(bytes: &[u8]) -> u32 {
    sum(&bytes[ETHERNET + IPV4..])
}

/// The Internet checksum's sum (RFC 1071), not folded.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
