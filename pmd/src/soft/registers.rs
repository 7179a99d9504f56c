//! The register file: plain words, statistics that reading clears, and their values after a reset.
//!
//! Both sides use it at once, the driver's thread through traps and the fabric's: every word is an atomic. What a write
//! *does* is decided in `trap`; this module only stores.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spinwake::port::MacAddr;

use super::layout::{self as at, queue, stat};

const STATISTICS: usize = (at::STATISTICS.end - at::STATISTICS.start) / 4;

/// The words of BAR 0.
#[derive(Debug)]
pub(super) struct Registers {
    words: Box<[AtomicU32]>,
    /// By register: a wide counter stands whole at its low half, and what a read of that left for the high half there.
    statistics: [AtomicU64; STATISTICS],
}

impl Registers {
    pub(super) fn new(mac: MacAddr) -> Self {
        let words = (0..at::BAR_LEN / 4).map(|_| AtomicU32::new(0)).collect();
        let registers = Self { words, statistics: std::array::from_fn(|_| AtomicU64::new(0)) };
        registers.reset(mac);
        registers
    }

    /// The word at byte `offset`.
    #[inline]
    pub(super) fn get(&self, offset: usize) -> u32 {
        self.words[offset / 4].load(Ordering::Relaxed)
    }

    /// The word at byte `offset`, a tail that the driver wrote: what it wrote to memory before is visible after.
    #[inline]
    pub(super) fn acquire(&self, offset: usize) -> u32 {
        self.words[offset / 4].load(Ordering::Acquire)
    }

    /// Stores a word; what was written before is visible to whoever acquires it.
    #[inline]
    pub(super) fn set(&self, offset: usize, value: u32) {
        self.words[offset / 4].store(value, Ordering::Release);
    }

    /// Reads and clears a word.
    pub(super) fn take(&self, offset: usize) -> u32 {
        self.words[offset / 4].swap(0, Ordering::Relaxed)
    }

    /// Sets bits and returns what stood there before.
    pub(super) fn fetch_or(&self, offset: usize, bits: u32) -> u32 {
        self.words[offset / 4].fetch_or(bits, Ordering::Relaxed)
    }

    /// Changes a word in one step that nothing comes between.
    pub(super) fn update(&self, offset: usize, change: impl Fn(u32) -> u32) {
        // The closure never gives up, so the update cannot fail.
        let _ = self.words[offset / 4].fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| Some(change(old)));
    }

    /// Adds to a word: a counter that is no statistics register.
    pub(super) fn add(&self, offset: usize, n: u32) {
        self.words[offset / 4].fetch_add(n, Ordering::Relaxed);
    }

    /// Reads a statistics register, which clears it. Of a wide one the low half is read first and clears both.
    pub(super) fn take_statistic(&self, offset: usize) -> u32 {
        let index = (offset - at::STATISTICS.start) / 4;
        let count = self.statistics[index].swap(0, Ordering::Relaxed);
        if stat::WIDE.contains(&offset) {
            self.statistics[index + 1].store(count >> 32, Ordering::Relaxed);
            count as u32
        } else {
            // They stick at their maximum (8.18).
            count.min(u32::MAX.into()) as u32
        }
    }

    /// Brings every register to its value after a reset. The filter tables keep what they hold: they are memories that a
    /// reset does not touch, and a driver has to clear them.
    pub(super) fn reset(&self, mac: MacAddr) {
        for (index, word) in self.words.iter().enumerate() {
            if !matches!(index * 4, at::MTA..at::RA | at::VFTA..0x5800 | 0xA000..0xA200) {
                word.store(0, Ordering::Relaxed);
            }
        }
        for statistic in &self.statistics {
            statistic.store(0, Ordering::Relaxed);
        }
        let [a, b, c, d, e, f] = mac.0;
        self.set(at::RA, u32::from_le_bytes([a, b, c, d]));
        self.set(at::RA + 4, u32::from(u16::from_le_bytes([e, f])) | at::RAH_AV);
        self.set(at::EECD, at::EECD_READY);
        self.set(at::VET, 0x8100_8100);
        self.set(at::RXCSUM, at::rxcsum::IPOFLD | at::rxcsum::TUOFLD);
        self.set(at::RLPML, 0x2600);
        self.set(at::TCTL, at::tctl::PSP);
        for q in 0..at::QUEUES {
            // Queue 0 is enabled from the start (8.10.9, 8.12.15); without a ring it moves nothing.
            let enable = if q == 0 { at::DCTL_ENABLE | at::DCTL_WISH } else { 0 };
            self.set(at::rx(q, queue::DCTL), 1 << 16 | enable);
            self.set(at::tx(q, queue::DCTL), enable);
        }
        // Last: this is what shows a waiting driver that the reset is over.
        self.set(at::CTRL, at::ctrl::FD | at::ctrl::SPEED_1000);
    }
}

/// What one round of the fabric adds to the statistics: counted here, flushed once.
#[derive(Debug)]
pub(super) struct Tally {
    counts: [u64; STATISTICS],
    dirty: bool,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self { counts: [0; STATISTICS], dirty: false }
    }

    /// Counts `n` more in the statistics register at `offset`.
    #[inline]
    pub(super) fn add(&mut self, offset: usize, n: u64) {
        self.counts[(offset - at::STATISTICS.start) / 4] += n;
        self.dirty = true;
    }

    /// Counts a frame of `len` bytes (without its check sequence) in the size class that starts at `first`.
    pub(super) fn add_size(&mut self, first: usize, len: usize) {
        let class = match len + 4 {
            ..=64 => 0,
            65..=127 => 1,
            128..=255 => 2,
            256..=511 => 3,
            512..=1023 => 4,
            _ => 5,
        };
        self.add(first + 4 * class, 1);
    }

    /// What has been counted and not yet flushed.
    pub(super) fn pending(&self, offset: usize) -> u64 {
        self.counts[(offset - at::STATISTICS.start) / 4]
    }

    /// Moves the counts into the registers.
    pub(super) fn flush(&mut self, registers: &Registers) {
        if !self.dirty {
            return;
        }
        for (count, statistic) in self.counts.iter_mut().zip(&registers.statistics) {
            if *count > 0 {
                statistic.fetch_add(std::mem::take(count), Ordering::Relaxed);
            }
        }
        self.dirty = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_a_statistic_clears_it_and_a_wide_one_keeps_its_high_half() {
        let registers = Registers::new(MacAddr([2, 0, 0, 0, 0, 1]));
        let mut tally = Tally::new();
        tally.add(stat::GPRC, 3);
        tally.add(stat::GORCL, 0x1_0000_0005);
        tally.flush(&registers);
        tally.flush(&registers);
        assert_eq!((registers.take_statistic(stat::GPRC), registers.take_statistic(stat::GPRC)), (3, 0));
        assert_eq!((registers.take_statistic(stat::GORCL), registers.take_statistic(stat::GORCL + 4)), (5, 1));
        assert_eq!(registers.take_statistic(stat::GORCL), 0);
    }

    #[test]
    fn a_reset_restores_the_address_and_leaves_the_filter_tables() {
        let registers = Registers::new(MacAddr([2, 0, 0, 0, 0, 1]));
        registers.set(at::RA, 7);
        registers.set(at::MTA + 4, 9);
        registers.set(at::RCTL, at::rctl::EN);
        registers.reset(MacAddr([2, 0, 0, 0, 0, 1]));
        assert_eq!(registers.get(at::RA), 2);
        assert_eq!(registers.get(at::MTA + 4), 9);
        assert_eq!(registers.get(at::RCTL), 0);
    }
}
