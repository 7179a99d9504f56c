//! What is in a frame, as far as a NIC looks: tags, IP, TCP and UDP, and their checksums.

/// Ethernet header without a tag.
pub(super) const ETHERNET: usize = 14;
/// Shortest frame, without its check sequence.
pub(super) const MIN_FRAME: usize = 60;
/// Longest frame that the device handles, without its check sequence (7.1.1: 9.5 KiB with it).
pub(super) const MAX_FRAME: usize = 9728 - 4;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86DD;
const ETHERTYPE_VLAN: u16 = 0x8100;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// A frame's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Headers {
    /// The tag's value, when there is one.
    pub(super) vlan: Option<u16>,
    /// The network layer.
    pub(super) ip: Option<Ip>,
}

/// An IP header and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ip {
    pub(super) version: u8,
    /// Where it starts in the frame.
    pub(super) start: usize,
    /// Where the transport layer starts.
    pub(super) transport: usize,
    /// Where the packet ends: padding of the frame follows.
    pub(super) end: usize,
    pub(super) protocol: u8,
    /// A fragment carries no whole transport layer.
    pub(super) fragment: bool,
}

impl Headers {
    /// Reads the headers of `frame`; what is cut short or makes no sense is not there.
    pub(super) fn of(frame: &[u8]) -> Self {
        let mut at = ETHERNET;
        let mut ethertype = be16(frame, 12).unwrap_or(0);
        let mut vlan = None;
        if ethertype == ETHERTYPE_VLAN
            && let (Some(tag), Some(inner)) = (be16(frame, 14), be16(frame, 16))
        {
            (vlan, ethertype, at) = (Some(tag), inner, at + 4);
        }
        let ip = match ethertype {
            ETHERTYPE_IPV4 => ipv4(frame, at),
            ETHERTYPE_IPV6 => ipv6(frame, at),
            _ => None,
        };
        Self { vlan, ip }
    }
}

fn ipv4(frame: &[u8], start: usize) -> Option<Ip> {
    let header = frame.get(start..start + 20)?;
    let header_len = usize::from(header[0] & 0xF) * 4;
    let len = usize::from(be16(header, 2)?);
    let end = start + len;
    if header[0] >> 4 != 4 || header_len < 20 || len < header_len || end > frame.len() {
        return None;
    }
    // More fragments, or an offset.
    let fragment = be16(header, 6)? & 0x3FFF != 0;
    Some(Ip { version: 4, start, transport: start + header_len, end, protocol: header[9], fragment })
}

/// IPv6 without extension headers; with them, the protocol is theirs and nobody's transport.
fn ipv6(frame: &[u8], start: usize) -> Option<Ip> {
    let header = frame.get(start..start + 40)?;
    let end = start + 40 + usize::from(be16(header, 4)?);
    if header[0] >> 4 != 6 || end > frame.len() {
        return None;
    }
    Some(Ip { version: 6, start, transport: start + 40, end, protocol: header[6], fragment: false })
}

impl Ip {
    /// Source and destination address, one after the other.
    pub(super) fn addresses<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let (from, len) = if self.version == 4 { (12, 8) } else { (8, 32) };
        &frame[self.start + from..self.start + from + len]
    }

    /// Source and destination port, one after the other, of an unfragmented TCP segment or UDP datagram.
    pub(super) fn ports<'a>(&self, frame: &'a [u8]) -> Option<&'a [u8]> {
        let whole = !self.fragment && matches!(self.protocol, TCP | UDP) && self.transport + 4 <= self.end;
        whole.then(|| &frame[self.transport..self.transport + 4])
    }

    /// Whether the IPv4 header sums up; `None` for IPv6, which has no sum.
    pub(super) fn header_sums_up(&self, frame: &[u8]) -> Option<bool> {
        (self.version == 4).then(|| fold(sum(&frame[self.start..self.transport])) == 0xFFFF)
    }

    /// Whether the TCP segment or UDP datagram sums up; `None` when it carries no sum to check.
    pub(super) fn transport_sums_up(&self, frame: &[u8]) -> Option<bool> {
        let body = &frame[self.transport..self.end];
        let sum_at = match self.protocol {
            TCP => 16,
            UDP => 6,
            _ => return None,
        };
        let stored = be16(body, sum_at)?;
        if self.fragment || self.protocol == UDP && stored == 0 {
            return None;
        }
        Some(fold(self.pseudo_sum(frame) + sum(body)) == 0xFFFF)
    }

    /// The sum of the pseudo header: addresses, protocol, length.
    pub(super) fn pseudo_sum(&self, frame: &[u8]) -> u64 {
        sum(self.addresses(frame)) + u64::from(self.protocol) + (self.end - self.transport) as u64
    }
}

/// The big-endian 16-bit number at `at`.
pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// The sum of `bytes` as big-endian 16-bit numbers, an odd last byte padded with zero (RFC 1071), not folded.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let mut quads = bytes.chunks_exact(4);
    let mut sum: u64 = 0;
    for quad in &mut quads {
        // Two numbers at once: the upper one's carries are folded back at the end.
        sum += u64::from(u32::from_be_bytes([quad[0], quad[1], quad[2], quad[3]]));
    }
    let tail = quads.remainder();
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    sum + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum into 16 bits, end-around.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xFFFF {
        sum = (sum >> 16) + (sum & 0xFFFF);
    }
    sum as u16
}

/// The frame check sequence (IEEE 802.3 clause 3.2.9), as it goes over the wire.
pub(super) fn check_sequence(frame: &[u8]) -> [u8; 4] {
    let crc = frame.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 != 0 { 0xEDB8_8320 } else { 0 })
    });
    (!crc).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_rfc_1071() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
        assert_eq!(fold(sum(&[0x01, 0x02, 0x03])), 0x0402);
    }

    #[test]
    fn the_check_sequence_of_a_known_text() {
        assert_eq!(check_sequence(b"123456789"), 0xcbf4_3926_u32.to_le_bytes());
    }

    #[test]
    fn headers_that_are_cut_short_are_not_there() {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14] = 0x45;
        frame[17] = 46;
        frame[23] = UDP;
        let ip = Headers::of(&frame).ip.unwrap();
        assert_eq!((ip.start, ip.transport, ip.end, ip.protocol), (14, 34, 60, UDP));
        frame[17] = 47;
        assert_eq!(Headers::of(&frame).ip, None);
        for len in 0..60 {
            let _ = Headers::of(&frame[..len]);
        }
    }
}
