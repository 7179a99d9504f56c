//! Transport checksums for peers that cannot finish them: a guest's firmware, which takes no partial ones.

use spinwake::frame::{Frame, L4Checksum};

/// Fills in the transport checksum that the frame asks for, whose field holds the pseudo-header's sum, and takes the wish away;
/// the wish for the IPv4 header's sum stays. Returns whether it could: not when the field lies beyond the first segment.
pub(super) fn finish(frame: &mut Frame) -> bool {
    let Some((l2_len, l3_len, l3, l4)) = frame.requested_checksums() else { return true };
    let (start, offset) = match l4 {
        L4Checksum::None => return true,
        L4Checksum::Tcp => (l2_len + l3_len, 16),
        L4Checksum::Udp => (l2_len + l3_len, 6),
    };
    let field = start + offset..start + offset + 2;
    if field.end > frame.len() {
        return false;
    }
    let mut sum = Sum::default();
    for (i, segment) in frame.segments().enumerate() {
        sum.add(if i == 0 { &segment.data()[start..] } else { segment.data() });
    }
    let sum = match sum.folded() {
        // Zero would say that UDP has no checksum (RFC 768).
        0 if l4 == L4Checksum::Udp => u16::MAX,
        sum => sum,
    };
    frame.data_mut()[field].copy_from_slice(&sum.to_be_bytes());
    frame.request_checksums(l2_len, l3_len, l3, L4Checksum::None);
    true
}

/// Whether the network header says that it is IPv6.
pub(super) fn is_ipv6(frame: &Frame) -> bool {
    let at = frame.requested_checksums().map(|(l2_len, ..)| l2_len);
    at.and_then(|at| frame.data().get(at)).is_some_and(|first| first >> 4 == 6)
}

/// The sum of 16-bit words in ones' complement (RFC 1071), over data in pieces of any length.
#[derive(Debug, Default)]
struct Sum {
    sum: u64,
    odd: bool,
}

impl Sum {
    fn add(&mut self, data: &[u8]) {
        for &byte in data {
            self.sum += if self.odd { u64::from(byte) } else { u64::from(byte) << 8 };
            self.odd = !self.odd;
        }
    }

    fn folded(&self) -> u16 {
        let mut sum = self.sum;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }
}

#[cfg(test)]
mod tests {
    use spinwake::dma::Domain;
    use spinwake::frame::{Pool, PoolConfig};

    use super::*;

    #[test]
    fn a_datagram_in_segments_gets_its_sum() {
        let domain = Domain::new();
        let mut pool = Pool::new_in(&domain, &PoolConfig { frames: 4, ..PoolConfig::default() }).unwrap();
        // 10.0.0.1 to 10.0.0.2, port 1 to 2, 5 bytes of data: the sum was worked out by hand.
        let mut bytes = vec![0; 14 + 20];
        bytes[14] = 0x45;
        let pseudo: u16 = 0x0a00 + 0x0001 + 0x0a00 + 0x0002 + 17 + 13;
        bytes.extend([0, 1, 0, 2, 0, 13]);
        bytes.extend(pseudo.to_be_bytes());
        let (mut head, mut tail) = (pool.take().unwrap(), pool.take().unwrap());
        head.copy_from(&[&bytes[..], &[1, 2, 3]].concat());
        tail.copy_from(&[4, 5]);
        head.chain(tail);
        head.request_checksums(14, 20, true, L4Checksum::Udp);
        assert!(finish(&mut head) && !is_ipv6(&head));
        let sum = u32::from(pseudo) + 1 + 2 + 13 + 0x0102 + 0x0304 + 0x0500;
        assert_eq!(head.data()[40..42], (!(sum as u16)).to_be_bytes());
        assert_eq!(head.requested_checksums(), Some((14, 20, true, L4Checksum::None)));
    }

    #[test]
    fn a_field_that_is_not_there_is_left() {
        let domain = Domain::new();
        let mut frame =
            Pool::new_in(&domain, &PoolConfig { frames: 1, ..PoolConfig::default() }).unwrap().take().unwrap();
        frame.copy_from(&[0; 40]);
        frame.request_checksums(14, 20, false, L4Checksum::Tcp);
        assert!(!finish(&mut frame));
    }
}
