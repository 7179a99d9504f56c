//! Traffic: valid IPv4/UDP frames of many flows, each of which can be recognised and checked wherever it comes out.
//!
//! ```text
//! Ethernet │ IPv4 │ UDP │ magic 2 │ generator 2 │ sequence 6 │ time 6 │ check 2 │ pattern of (generator, sequence) ...
//! ```
//!
//! Nothing in a frame is free: the pattern follows from who and which, the check from that and the time and the length,
//! and the UDP checksum covers all of it. The smallest frame, 60 bytes, has no room for a pattern.

use std::ops::RangeInclusive;

use spinwake::port::MacAddr;

use super::fault::{Rng, mix};
use super::packet::{self, ETHERNET, Headers, UDP};
use super::schedule::Schedule;

/// Which generator, and which of its frames.
pub(super) type FrameId = (u16, u64);

const MAGIC: u16 = 0x5357;
/// Offset of the generator's own bytes within the UDP datagram, and their number.
const UDP_HEADER: usize = 8;
const STAMP: usize = 18;
const LOW_48: u64 = (1 << 48) - 1;
const FLOWS: u64 = 256;

/// One NIC's traffic source.
#[derive(Debug)]
pub(super) struct Generator {
    id: u16,
    /// The port's own address: where the frames go.
    to: MacAddr,
    /// When frames are due.
    pub(super) schedule: Schedule,
    size: RangeInclusive<u16>,
    sequence: u64,
    rng: Rng,
}

impl Generator {
    pub(super) fn new(id: u16, to: MacAddr, schedule: Schedule, size: RangeInclusive<u16>, seed: u64) -> Self {
        Self { id, to, schedule, size, sequence: 0, rng: Rng::new(seed) }
    }

    /// The number of the next frame.
    pub(super) fn next_id(&self) -> FrameId {
        (self.id, self.sequence & LOW_48)
    }

    /// Makes the next frame into the empty `frame`; it starts on its wire at `now_ns`.
    pub(super) fn make(&mut self, now_ns: u64, frame: &mut Vec<u8>) {
        let (low, high) = (*self.size.start(), *self.size.end());
        let len = low + if high > low { self.rng.below(u64::from(high - low) + 1) as u16 } else { 0 };
        let (_, sequence) = self.next_id();
        self.sequence += 1;
        let flow = sequence % FLOWS;

        let [id_high, id_low] = self.id.to_be_bytes();
        frame.extend_from_slice(&self.to.0);
        frame.extend_from_slice(&[0x02, 0x53, 0x47, 0x00, id_high, id_low, 0x08, 0x00]);
        let ip_len = (len - ETHERNET as u16).to_be_bytes();
        let identification = (sequence as u16).to_be_bytes();
        // 10.id.0.flow to 198.18.0.flow+1 (RFC 2544's range), do not fragment, 64 hops.
        #[rustfmt::skip]
        frame.extend_from_slice(&[
            0x45, 0, ip_len[0], ip_len[1], identification[0], identification[1], 0x40, 0, 64, UDP, 0, 0,
            10, id_high, id_low, flow as u8, 198, 18, 0, (flow as u8).wrapping_add(1),
        ]);
        let header_sum = !packet::fold(packet::sum(&frame[ETHERNET..ETHERNET + 20]));
        frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&header_sum.to_be_bytes());
        frame.extend_from_slice(&(1024 + flow as u16).to_be_bytes());
        frame.extend_from_slice(&9_u16.to_be_bytes());
        frame.extend_from_slice(&(len - 34).to_be_bytes());
        frame.extend_from_slice(&[0, 0]);
        let start = frame.len();
        frame.extend_from_slice(&MAGIC.to_be_bytes());
        frame.extend_from_slice(&self.id.to_be_bytes());
        frame.extend_from_slice(&sequence.to_be_bytes()[2..]);
        frame.extend_from_slice(&(now_ns & LOW_48).to_be_bytes()[2..]);
        frame.extend_from_slice(&check((self.id, sequence), now_ns & LOW_48, usize::from(len) - start).to_be_bytes());
        frame.resize(usize::from(len), 0);
        fill_pattern((self.id, sequence), &mut frame[start + STAMP..]);
        let headers = Headers::of(frame);
        if let Some(ip) = headers.ip {
            let body = packet::sum(&frame[ip.transport..ip.end]);
            // A sum of zero is sent as all ones: zero means that there is none (RFC 768).
            let sum = match !packet::fold(ip.pseudo_sum(frame) + body) {
                0 => 0xFFFF,
                sum => sum,
            };
            frame[ip.transport + 6..ip.transport + 8].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

/// A generator's frame, as found at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) id: FrameId,
    /// When it started on its first wire, in nanoseconds modulo 2^48.
    time_ns: u64,
}

impl Stamp {
    /// Which generator's frame this claims to be, if any, whatever became of the rest of it.
    pub(super) fn claimed(frame: &[u8]) -> Option<Self> {
        // The headers may be damaged: the stamp is where it was put, or one tag further.
        let tag = if packet::be16(frame, 12) == Some(0x8100) { 4 } else { 0 };
        let at = ETHERNET + tag + 20 + UDP_HEADER;
        let stamp = frame.get(at..at + STAMP)?;
        (packet::be16(stamp, 0)? == MAGIC).then(|| Self {
            id: (u16::from_be_bytes([stamp[2], stamp[3]]), be48(&stamp[4..])),
            time_ns: be48(&stamp[10..]),
        })
    }

    /// The stamp of a frame that is exactly what a generator sent, but for what forwarders change: addresses of the link
    /// layer, the hop count, a tag.
    pub(super) fn checked(frame: &[u8]) -> Option<Self> {
        let stamp = Self::claimed(frame)?;
        let headers = Headers::of(frame);
        let ip = headers.ip?;
        let payload = frame.get(ip.transport + UDP_HEADER..ip.end)?;
        let tag = if headers.vlan.is_some() { 4 } else { 0 };
        let whole = ip.version == 4
            && ip.protocol == UDP
            && ip.start == ETHERNET + tag
            && ip.transport == ip.start + 20
            // The frame holds the packet and nothing more, but for padding that a taken-out tag made necessary.
            && (frame.len() == ip.end || ip.end < packet::MIN_FRAME && frame.len() == packet::MIN_FRAME)
            && ip.header_sums_up(frame) == Some(true)
            && ip.transport_sums_up(frame) == Some(true)
            && packet::be16(payload, 16) == Some(check(stamp.id, stamp.time_ns, payload.len()))
            && has_pattern(stamp.id, &payload[STAMP..]);
        whole.then_some(stamp)
    }

    /// How long ago it started on its first wire.
    pub(super) fn age_ns(&self, now_ns: u64) -> u64 {
        now_ns.wrapping_sub(self.time_ns) & LOW_48
    }
}

fn be48(bytes: &[u8]) -> u64 {
    bytes[..6].iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

fn check((generator, sequence): FrameId, time_ns: u64, payload: usize) -> u16 {
    mix(mix(sequence ^ u64::from(generator) << 48) ^ time_ns ^ (payload as u64) << 48) as u16
}

/// The pattern's words: cheap, and different in every place of every frame.
fn pattern((generator, sequence): FrameId) -> impl Iterator<Item = [u8; 8]> {
    let seed = mix(sequence << 16 | u64::from(generator));
    (1_u64..).map(move |i| seed.wrapping_mul(i | 1).wrapping_add(i).to_le_bytes())
}

fn fill_pattern(id: FrameId, bytes: &mut [u8]) {
    for (chunk, word) in bytes.chunks_mut(8).zip(pattern(id)) {
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

fn has_pattern(id: FrameId, bytes: &[u8]) -> bool {
    bytes.chunks(8).zip(pattern(id)).all(|(chunk, word)| *chunk == word[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::super::spec::{Gap, Rate};
    use super::*;

    fn generator(size: RangeInclusive<u16>) -> Generator {
        let schedule = Schedule::new(Rate::Max, Gap::Even, 1);
        Generator::new(3, MacAddr([2, 0, 0, 0, 0, 9]), schedule, size, 1)
    }

    fn made(generator: &mut Generator, now_ns: u64) -> Vec<u8> {
        let mut frame = Vec::new();
        generator.make(now_ns, &mut frame);
        frame
    }

    #[test]
    fn every_frame_is_recognised_and_every_changed_byte_is_noticed() {
        let mut generator = generator(60..=150);
        for n in 0..50 {
            let frame = made(&mut generator, 1000 + n);
            let stamp = Stamp::checked(&frame).unwrap();
            assert_eq!((stamp.id, stamp.age_ns(5000)), ((3, n), 4000 - n));
            for at in 12..frame.len() {
                let mut changed = frame.clone();
                changed[at] ^= 0x10;
                assert_eq!(Stamp::checked(&changed), None, "byte {at} of {}", frame.len());
            }
            assert_eq!(Stamp::checked(&frame[..frame.len() - 1]), None);
            let longer: Vec<u8> = frame.iter().copied().chain([0]).collect();
            assert_eq!(Stamp::checked(&longer), None);
        }
    }

    #[test]
    fn what_a_forwarder_changes_is_no_damage() {
        let mut frame = made(&mut generator(60..=60), 1);
        frame[..12].fill(0xEE);
        assert!(Stamp::checked(&frame).is_some());
        // One hop less, and the sum one more in its upper byte.
        frame[22] -= 1;
        let sum = packet::be16(&frame, 24).unwrap();
        frame[24..26].copy_from_slice(&packet::fold(u64::from(sum) + 0x0100).to_be_bytes());
        assert!(Stamp::checked(&frame).is_some());
        let tagged = [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat();
        assert!(Stamp::checked(&tagged).is_some());
    }

    #[test]
    fn sizes_stay_in_their_range_and_vary() {
        let mut generator = generator(60..=9216);
        let sizes: Vec<usize> = (0..200).map(|_| made(&mut generator, 1).len()).collect();
        assert!(sizes.iter().all(|s| (60..=9216).contains(s)));
        assert!(sizes.iter().any(|s| *s > 5000) && sizes.iter().any(|s| *s < 3000));
    }
}
