//! The header before each frame in a virtqueue (VIRTIO 1.2, 5.1.6), and what it says of a frame.
//!
//! ```text
//! sending:    Frame's wishes ──describe──▶ NetHeader ──▶ 12 bytes in front of the frame
//! receiving:  12 bytes ──▶ NetHeader ──note──▶ Frame's wishes and verdicts
//! ```
//!
//! A frame with a partial checksum, or too large for a wire, comes from a virtual machine and asks whoever sends it on to
//! finish it: what the header says on receive is what a frame asks for on transmit.

use spinwake::frame::{Checksum, Cut, Frame, L4Checksum, Segmentation, Verdicts};

/// Bytes of the header, as every modern device has it.
pub(crate) const HEADER_LEN: usize = 12;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Where the checksum stands in a TCP header (RFC 9293, 3.1) and in that of UDP (RFC 768).
const TCP_SUM: u16 = 16;
const UDP_SUM: u16 = 6;

/// Bytes of an Ethernet header, and of a VLAN tag.
const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;

/// The header's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct NetHeader {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
    /// Buffers that the frame takes, on receive.
    pub(crate) num_buffers: u16,
}

/// A header says what cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nonsense;

impl NetHeader {
    /// Reads the header.
    #[inline(always)]
    pub(crate) fn from_bytes(bytes: [u8; HEADER_LEN]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }

    /// The header's bytes.
    #[inline(always)]
    pub(crate) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        (bytes[0], bytes[1]) = (self.flags, self.gso_type);
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Whether it says nothing about the frame, so that [`note`](Self::note) has nothing to do.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.flags | self.gso_type == 0
    }

    /// What it says about the checksums, if that is all that it says.
    #[inline(always)]
    pub(crate) fn verdicts(&self) -> Option<Verdicts> {
        const UNKNOWN: Verdicts = Verdicts::new(Checksum::Unknown, Checksum::Unknown);
        const GOOD: Verdicts = Verdicts::new(Checksum::Unknown, Checksum::Good);
        if self.flags & !DATA_VALID | self.gso_type != 0 {
            return None;
        }
        Some(if self.flags == 0 { UNKNOWN } else { GOOD })
    }

    /// What `frame` asks for, `num_buffers` left at zero. No header has room for the checksum of an IPv4 header, so a frame
    /// that asks for it gets it here.
    pub(crate) fn describe(frame: &mut Frame) -> Self {
        let mut header = Self::default();
        let Some((l2_len, l3_len, l3, l4)) = frame.requested_checksums() else { return header };
        if l3 {
            fill_ipv4_checksum(frame, l2_len, l3_len);
        }
        let transport = l2_len + l3_len;
        (header.csum_offset, header.hdr_len) = match l4 {
            L4Checksum::None => return header,
            L4Checksum::Tcp => (TCP_SUM, (transport + tcp_len(frame.data(), transport)) as u16),
            L4Checksum::Udp => (UDP_SUM, (transport + 8) as u16),
        };
        header.flags = NEEDS_CSUM;
        header.csum_start = transport as u16;
        match frame.requested_segmentation() {
            Some(Segmentation { cut, payload, ecn }) => {
                header.gso_size = payload;
                header.gso_type = match cut {
                    Cut::Tcp4 => GSO_TCPV4,
                    Cut::Tcp6 => GSO_TCPV6,
                    Cut::Udp => GSO_UDP_L4,
                } | if ecn { GSO_ECN } else { 0 };
            }
            None => header.hdr_len = 0,
        }
        header
    }

    /// Notes in a received `frame`, complete with all its segments, what the header says of it.
    ///
    /// # Errors
    ///
    /// When it says what cannot be; the frame is then as it was, and to be dropped.
    pub(crate) fn note(&self, frame: &mut Frame) -> Result<(), Nonsense> {
        if self.flags & NEEDS_CSUM == 0 {
            if self.gso_type != GSO_NONE {
                return Err(Nonsense);
            }
            if self.flags & DATA_VALID != 0 {
                frame.set_checksums(Checksum::Unknown, Checksum::Good);
            }
            return Ok(());
        }
        let l4 = match self.csum_offset {
            TCP_SUM => L4Checksum::Tcp,
            UDP_SUM => L4Checksum::Udp,
            _ => return Err(Nonsense),
        };
        let (start, l2_len) = (usize::from(self.csum_start), l2_len(frame.data()).ok_or(Nonsense)?);
        // The whole transport header stands in the first segment, and before it an IP header of a possible length.
        let header = if l4 == L4Checksum::Tcp { 20 } else { 8 };
        let l3_len = start.checked_sub(l2_len).filter(|len| (20..512).contains(len)).ok_or(Nonsense)?;
        if start + header > frame.len() {
            return Err(Nonsense);
        }
        let segmentation = self.segmentation(l4, start + header < frame.total_len())?;
        // Whoever left the sum to us vouches for the data: they never left a machine's memory.
        frame.set_checksums(Checksum::Unknown, Checksum::Good);
        frame.request_checksums(l2_len, l3_len, false, l4);
        frame.request_segmentation(segmentation);
        Ok(())
    }

    /// How the frame shall be cut, whose transport has a checksum `l4`.
    fn segmentation(&self, l4: L4Checksum, has_payload: bool) -> Result<Option<Segmentation>, Nonsense> {
        let cut = match (self.gso_type & !GSO_ECN, l4) {
            (GSO_NONE, _) if self.gso_type == GSO_NONE => return Ok(None),
            (GSO_TCPV4, L4Checksum::Tcp) => Cut::Tcp4,
            (GSO_TCPV6, L4Checksum::Tcp) => Cut::Tcp6,
            (GSO_UDP_L4, L4Checksum::Udp) if self.gso_type & GSO_ECN == 0 => Cut::Udp,
            _ => return Err(Nonsense),
        };
        if self.gso_size == 0 || !has_payload {
            return Err(Nonsense);
        }
        Ok(Some(Segmentation { cut, payload: self.gso_size, ecn: self.gso_type & GSO_ECN != 0 }))
    }
}

/// Bytes before the network header: Ethernet's, and up to two VLAN tags.
fn l2_len(data: &[u8]) -> Option<usize> {
    let mut len = ETHERNET;
    for _ in 0..2 {
        match data.get(len - 2..len)? {
            [0x81, 0x00] | [0x88, 0xa8] => len += VLAN_TAG,
            _ => return Some(len),
        }
    }
    (len <= data.len()).then_some(len)
}

/// Bytes of the TCP header at `at`; the least, where it is cut off.
fn tcp_len(data: &[u8], at: usize) -> usize {
    data.get(at + 12).map_or(20, |byte| usize::from(byte >> 4) * 4).max(20)
}

/// Fills in the checksum of the IPv4 header (RFC 791, 3.1), if there is a whole one.
fn fill_ipv4_checksum(frame: &mut Frame, at: usize, len: usize) {
    let Some(header) = frame.data_mut().get_mut(at..at + len).filter(|header| header.len() >= 20) else { return };
    header[10..12].fill(0);
    let sum: u32 =
        header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !((folded & 0xffff) + (folded >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spinwake::dma::Domain;
    use spinwake::frame::{Pool, PoolConfig};

    use super::*;

    fn pool() -> Pool {
        Pool::new_in(&Domain::new(), &PoolConfig { frames: 8, ..PoolConfig::default() }).unwrap()
    }

    /// A TCP segment over IPv4 of `len` bytes in all.
    fn tcp(pool: &mut Pool, len: usize) -> Frame {
        let mut bytes = vec![0; len];
        bytes[12..14].copy_from_slice(&[0x08, 0x00]);
        bytes[14] = 0x45;
        bytes[14 + 20 + 12] = 8 << 4;
        let mut frame = pool.take().unwrap();
        frame.copy_from(&bytes);
        frame
    }

    #[test]
    fn what_a_frame_asks_for_is_what_it_asks_for_on_the_other_side() {
        let mut pool = pool();
        for cut in [None, Some(Segmentation { cut: Cut::Tcp4, payload: 1448, ecn: true })] {
            let mut sent = tcp(&mut pool, 1500);
            sent.request_checksums(14, 20, false, L4Checksum::Tcp);
            sent.request_segmentation(cut);
            let header = NetHeader::describe(&mut sent);
            assert_eq!((header.csum_start, header.csum_offset), (34, 16));
            assert_eq!(header.hdr_len, if cut.is_some() { 66 } else { 0 });
            let mut received = tcp(&mut pool, 1500);
            NetHeader::from_bytes(header.to_bytes()).note(&mut received).unwrap();
            assert_eq!(received.requested_checksums(), sent.requested_checksums());
            assert_eq!(received.requested_segmentation(), cut);
        }
    }

    #[test]
    fn a_plain_frame_has_an_empty_header() {
        let mut frame = tcp(&mut pool(), 60);
        assert_eq!(NetHeader::describe(&mut frame).to_bytes(), [0; HEADER_LEN]);
        NetHeader::default().note(&mut frame).unwrap();
        assert!(!frame.needs_care() && frame.l4_checksum() == Checksum::Unknown);
    }

    #[test]
    fn the_sum_of_an_ipv4_header_is_filled_in_at_once() {
        let mut frame = pool().take().unwrap();
        // The example of RFC 1071's method that everybody knows: 45 00 00 73 ... has the sum b861.
        let header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xff, 0xff, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        frame.copy_from(&[[0; 14].as_slice(), &header, &[0; 8]].concat());
        frame.request_checksums(14, 20, true, L4Checksum::None);
        assert_eq!(NetHeader::describe(&mut frame), NetHeader::default());
        assert_eq!(frame.data()[24..26], [0xb8, 0x61]);
    }

    #[test]
    fn a_vlan_tag_stands_before_the_network_header() {
        let mut pool = pool();
        let mut frame = tcp(&mut pool, 100);
        frame.data_mut()[12..14].copy_from_slice(&[0x81, 0x00]);
        frame.data_mut()[16..18].copy_from_slice(&[0x08, 0x00]);
        let header = NetHeader { flags: NEEDS_CSUM, csum_start: 38, csum_offset: TCP_SUM, ..NetHeader::default() };
        header.note(&mut frame).unwrap();
        assert_eq!(frame.requested_checksums(), Some((18, 20, false, L4Checksum::Tcp)));
    }

    #[test]
    fn a_verdict_alone_is_told_apart() {
        let verdicts = |flags, gso_type| NetHeader { flags, gso_type, ..NetHeader::default() }.verdicts();
        assert_eq!(verdicts(0, 0), Some(Verdicts::new(Checksum::Unknown, Checksum::Unknown)));
        assert_eq!(verdicts(DATA_VALID, 0), Some(Verdicts::new(Checksum::Unknown, Checksum::Good)));
        for (flags, gso_type) in [(NEEDS_CSUM, 0), (NEEDS_CSUM | DATA_VALID, 0), (4, 0), (0, GSO_TCPV4)] {
            assert_eq!(verdicts(flags, gso_type), None);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let good = NetHeader { flags: NEEDS_CSUM, csum_start: 34, csum_offset: TCP_SUM, ..NetHeader::default() };
        let large = NetHeader { gso_type: GSO_TCPV4, gso_size: 1448, ..good };
        let mut pool = pool();
        for header in [
            NetHeader { csum_offset: 17, ..good },
            NetHeader { csum_start: 20, ..good },
            NetHeader { csum_start: 90, ..good },
            NetHeader { csum_start: u16::MAX, ..good },
            NetHeader { gso_size: 0, ..large },
            NetHeader { gso_type: 3, ..large },
            NetHeader { gso_type: GSO_UDP_L4, ..large },
            NetHeader { gso_type: GSO_ECN, ..large },
            NetHeader { flags: 0, ..large },
        ] {
            let mut frame = tcp(&mut pool, 100);
            assert_eq!(header.note(&mut frame), Err(Nonsense), "{header:?}");
            assert!(!frame.needs_care());
        }
        large.note(&mut tcp(&mut pool, 100)).unwrap();
        good.note(&mut tcp(&mut pool, 100)).unwrap();
    }

    proptest! {
        #[test]
        fn no_header_and_no_frame_panics(header: [u8; HEADER_LEN], data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut frame = pool().take().unwrap();
            frame.copy_from(&data);
            let header = NetHeader::from_bytes(header);
            prop_assert_eq!(NetHeader::from_bytes(header.to_bytes()), header);
            if header.note(&mut frame).is_ok() && !header.is_plain() && header.flags & NEEDS_CSUM != 0 {
                let again = NetHeader::describe(&mut frame);
                prop_assert_eq!((again.csum_start, again.csum_offset), (header.csum_start, header.csum_offset));
                prop_assert_eq!((again.gso_type, again.gso_size), if header.gso_type == 0 { (0, 0) } else { (header.gso_type, header.gso_size) });
            }
        }
    }
}
