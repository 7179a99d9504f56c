//! Receive-side scaling: the Toeplitz hash, and which queue it chooses (82576 datasheet 7.1.1.7).

use super::layout::{self as at, mrqc, rxcsum};
use super::packet::{Ip, TCP, UDP};
use super::registers::Registers;

/// What RSS found out about a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Scaled {
    pub(super) queue: usize,
    pub(super) hash: u32,
    /// The descriptor's RSS type; zero when the frame was not hashed.
    pub(super) kind: u8,
}

/// The longest input: two IPv6 addresses and two ports.
const INPUT: usize = 36;

/// The hash under one key: what each half of each input byte contributes, worked out beforehand.
pub(super) struct Toeplitz {
    table: Box<[[u32; 16]; 2 * INPUT]>,
}

impl Toeplitz {
    /// With the key that stands in RSSRK.
    pub(super) fn new(registers: &Registers) -> Self {
        let mut key = [0; 40];
        for (word, bytes) in key.chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&registers.get(at::RSSRK + 4 * word).to_le_bytes());
        }
        // The 32 key bits that start at each input bit.
        let window = |bit: usize| {
            (0..32).fold(0, |word: u32, i| word << 1 | u32::from(key[(bit + i) / 8] >> (7 - (bit + i) % 8) & 1))
        };
        let mut table = Box::new([[0; 16]; 2 * INPUT]);
        for (nibble, row) in table.iter_mut().enumerate() {
            for (value, word) in row.iter_mut().enumerate() {
                *word = (0..4).filter(|i| value >> (3 - i) & 1 != 0).fold(0, |hash, i| hash ^ window(4 * nibble + i));
            }
        }
        Self { table }
    }

    /// The hash of `parts`, one after the other; what lies beyond the longest input is left out.
    fn hash(&self, parts: [&[u8]; 2]) -> u32 {
        let bytes = parts.into_iter().flatten();
        bytes
            .zip(self.table.chunks_exact(2))
            .fold(0, |hash, (byte, rows)| hash ^ rows[0][usize::from(byte >> 4)] ^ rows[1][usize::from(byte & 0xF)])
    }

    /// Chooses a queue for `frame`.
    pub(super) fn scale(&self, registers: &Registers, frame: &[u8], ip: Option<&Ip>) -> Scaled {
        let control = registers.get(at::MRQC);
        // RSS needs the descriptor's field that would carry the packet checksum.
        if control & 7 != mrqc::RSS || registers.get(at::RXCSUM) & rxcsum::PCSD == 0 {
            return Scaled::default();
        }
        let Some(ip) = ip else { return Scaled::default() };
        let ports = ip.ports(frame);
        let on = |bit| control & bit != 0;
        let kind = match (ip.version, ports.map(|_| ip.protocol)) {
            (4, Some(TCP)) if on(mrqc::TCP_IPV4) => 1,
            (4, Some(UDP)) if on(mrqc::UDP_IPV4) => 7,
            (4, _) if on(mrqc::IPV4) => 2,
            (6, Some(TCP)) if on(mrqc::TCP_IPV6) => 3,
            (6, Some(UDP)) if on(mrqc::UDP_IPV6) => 8,
            (6, _) if on(mrqc::IPV6) => 5,
            _ => return Scaled::default(),
        };
        let ports = if matches!(kind, 2 | 5) { &[][..] } else { ports.unwrap_or_default() };
        let hash = self.hash([ip.addresses(frame), ports]);
        let entry = (hash & 0x7F) as usize;
        let queue = registers.get(at::RETA + (entry & !3)) >> (8 * (entry & 3)) & 0xF;
        Scaled { queue: queue as usize, hash, kind }
    }
}

#[cfg(test)]
mod tests {
    use spinwake::port::{MacAddr, PortConfig};

    use super::super::packet::Headers;
    use super::*;

    /// The verification suite that Microsoft publishes for this hash, with its key.
    #[test]
    fn the_hash_agrees_with_the_published_values() {
        let registers = Registers::new(MacAddr([2, 0, 0, 0, 0, 1]));
        for (i, word) in PortConfig::default().rss_key.chunks_exact(4).enumerate() {
            registers.set(at::RSSRK + 4 * i, u32::from_le_bytes(word.try_into().unwrap()));
        }
        let toeplitz = Toeplitz::new(&registers);
        let addresses = [66, 9, 149, 187, 161, 142, 100, 80];
        let ports = [0x0a, 0xea, 0x06, 0xe6];
        assert_eq!(toeplitz.hash([&addresses, &[]]), 0x323e_8fc2);
        assert_eq!(toeplitz.hash([&addresses, &ports]), 0x51cc_c178);

        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14] = 0x45;
        frame[17] = 40;
        frame[23] = TCP;
        frame[26..34].copy_from_slice(&addresses);
        frame[34..38].copy_from_slice(&ports);
        let ip = Headers::of(&frame).ip;
        assert_eq!(toeplitz.scale(&registers, &frame, ip.as_ref()), Scaled::default(), "RSS is off");
        registers.set(at::MRQC, mrqc::RSS | mrqc::IPV4 | mrqc::TCP_IPV4);
        registers.set(at::RXCSUM, rxcsum::PCSD);
        registers.set(at::RETA + (0x78 & !3), 0x0403_0201);
        assert_eq!(toeplitz.scale(&registers, &frame, ip.as_ref()), Scaled { queue: 1, hash: 0x51cc_c178, kind: 1 });
    }
}
