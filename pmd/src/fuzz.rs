//! What the fuzz targets in `pmd/fuzz` run, and what they have in common. Each is a function of bytes: whatever these are, it
//! returns, or has found a bug.
//!
//! The bytes are choices, a fixed number each, so that a changed byte changes one choice: mostly what an honest peer does next,
//! sometimes what none would. The same functions run as unit tests on the corpus that is kept, and on bytes of chance.

pub use crate::vhost::fuzz::{vhost_messages, vhost_rings};
pub use crate::virtio::fuzz::driver_rings;
pub use crate::virtio_user::fuzz::virtio_user_replies;

use spinwake::frame::{Burst, Cut, DATA_ROOM, Frame, L4Checksum, Pool, Segmentation};

/// Choices of one run at most: beyond, a run only gets slower.
pub(crate) const STEPS: usize = 256;

/// Bytes, read as choices. Beyond their end all are zero.
#[derive(Debug, Clone)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes as they are, `n` or as many as there are.
    pub(crate) fn slice(&mut self, n: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(n.min(self.0.len()));
        self.0 = later;
        now
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let (mut array, slice) = ([0; N], self.slice(N));
        array[..slice.len()].copy_from_slice(slice);
        array
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One byte's choice.
    pub(crate) fn flag(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// A number below `n`, of a byte where that is enough.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let number = if n <= 256 { self.u8().into() } else { usize::from(self.u16()) };
        number % n.max(1)
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A frame of `pool`, with anything that a program may ask for; `None` when the pool is dry.
    pub(crate) fn frame(&mut self, pool: &mut Pool) -> Option<Frame> {
        let mut frame = pool.take()?;
        let len = self.pick(&[60, 60, 60, 64, 1514, 1, 13, 14, 100, 2048, 0, 35]);
        frame.set_len(len);
        let wish = self.u8();
        for _ in 0..if wish & 1 == 0 { 0 } else { self.below(40) } {
            let Some(mut segment) = pool.take() else { break };
            segment.set_len(if wish & 2 == 0 { DATA_ROOM } else { usize::from(wish) });
            frame.chain(segment);
        }
        if wish & 4 != 0 {
            let l4 = self.pick(&[L4Checksum::Tcp, L4Checksum::Udp, L4Checksum::None]);
            frame.request_checksums(self.pick(&[14, 18, 0, 127]), self.pick(&[20, 40, 0, 511]), self.flag(), l4);
        }
        if wish & 8 != 0 {
            let cut = self.pick(&[Cut::Tcp4, Cut::Tcp6, Cut::Udp]);
            let (payload, ecn) = (self.pick(&[1460, 1, 0, 65_535]), self.flag());
            frame.request_segmentation(Some(Segmentation { cut, payload, ecn }));
        }
        if wish & 16 != 0 {
            frame.set_vlan(Some(1));
        }
        // As a frame is that was decapsulated, or has several headers in front.
        if wish & 32 != 0 {
            frame.trim_front(self.below(40).min(frame.len()));
        }
        if wish & 64 != 0 {
            while frame.prepend(16).is_some() {}
        }
        Some(frame)
    }

    /// Some frames, as [`frame`](Self::frame).
    pub(crate) fn burst(&mut self, pool: &mut Pool) -> Burst {
        let frames = self.pick(&[1, 2, 3, 8, 32]);
        (0..frames).map_while(|_| self.frame(pool)).collect()
    }
}

/// Buffers in these frames.
pub(crate) fn buffers(frames: &[Frame]) -> usize {
    frames.iter().map(|frame| frame.segments().count()).sum()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Every file of the corpus, and some bytes of chance.
    fn replay(target: &str, run: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut files = 0;
        for file in std::fs::read_dir(&corpus).unwrap() {
            run(&std::fs::read(file.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files > 0, "{} is empty", corpus.display());
        let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
        for len in (0..400).step_by(8) {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    chance = chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    (chance >> 56) as u8
                })
                .collect();
            run(&bytes);
        }
    }

    #[test]
    fn messages_of_a_vhost_peer_do_no_harm() {
        replay("vhost_messages", vhost_messages);
    }

    #[test]
    fn rings_of_a_vhost_peer_do_no_harm() {
        replay("vhost_rings", vhost_rings);
    }

    #[test]
    fn rings_of_a_device_do_no_harm() {
        replay("driver_rings", driver_rings);
    }

    #[test]
    fn replies_of_a_back_end_do_no_harm() {
        replay("virtio_user_replies", virtio_user_replies);
    }
}
