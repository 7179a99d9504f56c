//! What stands in the frames, and which frames are well formed.
//!
//! ```text
//!  0  destination, source                       12 bytes
//! 12  EtherType 0x88B5                           2   IEEE 802: local experimental EtherType 1
//! 14  magic "SWpp"                               4
//! 18  version 1                                  1
//! 19  1 for a request, 2 for an answer           1
//! 20  length of all this, padding of the wire aside   2
//! 22  session: which run of which client         4
//! 26  sequence number                            8
//! 34  when it was to be sent, in nanoseconds of the client's clock   8
//! 42  load of who sends it: processor time, and time, in milliseconds  4 + 4
//! 50  Fletcher-64 of 14 to 49 and 58 to the end  8
//! 58  payload
//! ```
//!
//! Numbers are big-endian. What comes in is anybody's: nothing in it is believed before all of it has been checked.

use spinwake::frame::{DATA_ROOM, Frame, Pool};
use spinwake::port::MacAddr;

use crate::checksum::Fletcher64;

const ETHERTYPE: [u8; 2] = 0x88b5_u16.to_be_bytes();
const MAGIC: [u8; 4] = *b"SWpp";
const VERSION: u8 = 1;
/// Where the payload begins.
pub(crate) const HEADER_LEN: usize = 58;
/// The shortest frame on Ethernet, its check sequence aside.
pub(crate) const MIN_LEN: usize = 60;
/// Bytes of a frame besides what the MTU counts.
pub(crate) const ETHERNET_LEN: usize = 14;

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// From a client.
    Request = 1,
    /// Back to it.
    Answer = 2,
}

/// What a node's worker has had to do so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Load {
    /// Its processor time, in milliseconds.
    pub(crate) cpu_ms: u32,
    /// How long it has run, in milliseconds.
    pub(crate) up_ms: u32,
}

/// The content of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    pub(crate) session: u32,
    pub(crate) sequence: u64,
    pub(crate) due_ns: u64,
    pub(crate) load: Load,
}

/// Why a frame is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is of another protocol.
    Foreign,
    /// It is for somebody else.
    Misaddressed,
    /// It claims to be one of ours and is not right.
    Spoiled,
}

impl Load {
    /// As one number, so that both parts change at once.
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.cpu_ms) << 32 | u64::from(self.up_ms)
    }

    /// From such a number.
    pub(crate) fn unpack(packed: u64) -> Self {
        Self { cpu_ms: (packed >> 32) as u32, up_ms: packed as u32 }
    }
}

/// Makes a frame of `payload` after the header; `None` when the pool has not enough for it.
pub(crate) fn build(pool: &mut Pool, payload: &[u8]) -> Option<Frame> {
    let mut head = pool.take()?;
    let (first, rest) = payload.split_at(payload.len().min(DATA_ROOM - HEADER_LEN));
    head.set_len(HEADER_LEN + first.len());
    head.data_mut()[HEADER_LEN..].copy_from_slice(first);
    for piece in rest.chunks(DATA_ROOM) {
        // What is there so far goes home by itself.
        let mut segment = pool.take()?;
        segment.copy_from(piece);
        head.chain(segment);
    }
    Some(head)
}

/// Writes `message` into a frame that has room for the header, from `from` to `to`. All of the frame counts as the message.
pub(crate) fn write(frame: &mut Frame, to: MacAddr, from: MacAddr, message: &Message) {
    let len = frame.total_len();
    let Some(header) = frame.data_mut().first_chunk_mut::<HEADER_LEN>() else { return };
    header[..6].copy_from_slice(&to.0);
    header[6..12].copy_from_slice(&from.0);
    header[12..14].copy_from_slice(&ETHERTYPE);
    header[14..18].copy_from_slice(&MAGIC);
    (header[18], header[19]) = (VERSION, message.kind as u8);
    // No MTU that a port can have is over 65,521.
    header[20..22].copy_from_slice(&(len as u16).to_be_bytes());
    header[22..26].copy_from_slice(&message.session.to_be_bytes());
    header[26..34].copy_from_slice(&message.sequence.to_be_bytes());
    header[34..42].copy_from_slice(&message.due_ns.to_be_bytes());
    header[42..50].copy_from_slice(&message.load.pack().to_be_bytes());
    let sum = checksum(frame, len);
    frame.data_mut()[50..HEADER_LEN].copy_from_slice(&sum.to_be_bytes());
}

/// The message of this kind in a frame for `me`, and who sent it.
pub(crate) fn read(frame: &Frame, me: MacAddr, kind: Kind) -> Result<(MacAddr, Message), Refusal> {
    let data = frame.data();
    if data.get(12..18) != Some(&[ETHERTYPE[0], ETHERTYPE[1], MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3]]) {
        return Err(Refusal::Foreign);
    }
    // No driver cuts the first buffer as short as this.
    let header = data.first_chunk::<HEADER_LEN>().ok_or(Refusal::Spoiled)?;
    if header[..6] != me.0 {
        return Err(Refusal::Misaddressed);
    }
    let from = MacAddr(field(header, 6));
    let len = usize::from(u16::from_be_bytes(field(header, 20)));
    let whole = header[18..20] == [VERSION, kind as u8]
        && from.is_unicast()
        && from != me
        && (HEADER_LEN..=frame.total_len()).contains(&len)
        && u64::from_be_bytes(field(header, 50)) == checksum(frame, len);
    if !whole {
        return Err(Refusal::Spoiled);
    }
    let message = Message {
        kind,
        session: u32::from_be_bytes(field(header, 22)),
        sequence: u64::from_be_bytes(field(header, 26)),
        due_ns: u64::from_be_bytes(field(header, 34)),
        load: Load::unpack(u64::from_be_bytes(field(header, 42))),
    };
    Ok((from, message))
}

/// Cuts off what the wire added behind the message, of which `read` has found that it is all there.
pub(crate) fn trim(frame: &mut Frame) {
    let Some(len) = frame.data().get(20..22) else { return };
    let len = usize::from(u16::from_be_bytes([len[0], len[1]]));
    if !frame.is_chained() && len >= MIN_LEN {
        frame.truncate(len);
    }
}

fn field<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|i| header[at + i])
}

/// Of the first `len` bytes, but for the addresses, the EtherType and itself. The header is in the first segment.
fn checksum(frame: &Frame, len: usize) -> u64 {
    let mut sum = Fletcher64::default();
    let mut left = len;
    for (index, segment) in frame.segments().enumerate() {
        let data = segment.data();
        let data = &data[..data.len().min(left)];
        left -= data.len();
        if index == 0 {
            sum.update(data.get(ETHERNET_LEN..50).unwrap_or_default());
            sum.update(data.get(HEADER_LEN..).unwrap_or_default());
        } else {
            sum.update(data);
        }
    }
    sum.finish()
}

#[cfg(test)]
mod tests {
    use spinwake::dma::Domain;
    use spinwake::frame::PoolConfig;

    use super::*;

    const ME: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    const MESSAGE: Message = Message {
        kind: Kind::Request,
        session: 0x1234_5678,
        sequence: u64::MAX - 3,
        due_ns: 7,
        load: Load { cpu_ms: 3, up_ms: 9 },
    };

    fn pool() -> Pool {
        Pool::new_in(&Domain::new(), &PoolConfig { frames: 16, ..PoolConfig::default() }).unwrap()
    }

    fn request(pool: &mut Pool, len: usize) -> Frame {
        let payload: Vec<u8> = (0..len - HEADER_LEN).map(|i| i as u8).collect();
        let mut frame = build(pool, &payload).unwrap();
        write(&mut frame, ME, PEER, &MESSAGE);
        frame
    }

    #[test]
    fn what_is_written_is_read_at_every_length() {
        let mut pool = pool();
        for len in [60, 61, 1514, 2048, 2049, 4097, 9014] {
            let frame = request(&mut pool, len);
            assert_eq!(frame.total_len(), len);
            assert_eq!(read(&frame, ME, Kind::Request), Ok((PEER, MESSAGE)), "{len}");
            assert_eq!(read(&frame, ME, Kind::Answer), Err(Refusal::Spoiled));
            assert_eq!(read(&frame, PEER, Kind::Request), Err(Refusal::Misaddressed));
        }
        assert_eq!(pool.available(), 16);
    }

    #[test]
    fn padding_does_not_matter() {
        let mut pool = pool();
        let mut frame = request(&mut pool, 60);
        frame.set_len(90);
        frame.data_mut()[60..].fill(0xee);
        assert_eq!(read(&frame, ME, Kind::Request), Ok((PEER, MESSAGE)));
        trim(&mut frame);
        assert_eq!(frame.len(), 60);
    }

    #[test]
    fn no_changed_byte_goes_unnoticed() {
        let mut pool = pool();
        for at in 0..70 {
            let mut frame = request(&mut pool, 70);
            frame.data_mut()[at] ^= 0x41;
            match read(&frame, ME, Kind::Request) {
                // Another sender is as good as any.
                Ok((from, _)) => assert!((6..12).contains(&at) && from != PEER, "{at}"),
                Err(refusal) => assert_eq!(
                    refusal,
                    match at {
                        0..6 => Refusal::Misaddressed,
                        12..18 => Refusal::Foreign,
                        _ => Refusal::Spoiled,
                    },
                    "{at}"
                ),
            }
        }
    }

    #[test]
    fn frames_of_any_length_and_content_are_only_refused() {
        let mut pool = pool();
        let mut frame = request(&mut pool, 200);
        for len in (0..200).rev() {
            frame.truncate(len);
            assert!(read(&frame, ME, Kind::Request).is_err(), "{len}");
        }
        for fill in [0, 0x88, 0xff] {
            let mut frame = pool.take().unwrap();
            frame.copy_from(&[fill; 100]);
            assert_eq!(read(&frame, ME, Kind::Request), Err(Refusal::Foreign));
        }
        for claimed in [0_u16, 57, 201, u16::MAX] {
            let mut frame = request(&mut pool, 200);
            frame.data_mut()[20..22].copy_from_slice(&claimed.to_be_bytes());
            assert_eq!(read(&frame, ME, Kind::Request), Err(Refusal::Spoiled), "{claimed}");
        }
    }
}
