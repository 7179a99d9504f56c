//! Which sleeps are ended early on purpose, to see how long a wake-up takes.
//!
//! ```text
//! sleep ───────┬─ expiry, known exactly ──┬─ awake: late by this ──▶ the sleep goes on
//!              └────── a short limit      └─ or work came first: nothing is known
//! ```
//!
//! A device does not tell when it interrupted; a time limit does. Where work came first, and the worker was awake before
//! the limit, nobody knows how long that took, and it counts for nothing. Taken for punctual it would hide late ones: where
//! most sleeps are short and some long, the limit, which follows their mean, is longer than most.

/// One sleep in so many is sounded while nothing speaks against the target. It divides no round number, so that
/// traffic with a period meets it in all its phases.
const SLEEPS_PER_SOUNDING: u32 = 11;
/// The first so many sleeps all are.
const FIRST_SLEEPS: u32 = 256;
/// The limit as a part of the time that sleeps last: long enough that the core sleeps as it otherwise does, short
/// enough that work seldom comes first.
const PART_OF_SLEEP: u64 = 4;
/// Of that time's mean a new sleep is this part.
const MEMORY: u64 = 16;

/// When to sound.
#[derive(Debug, Clone)]
pub(super) struct Sounding {
    /// How long sleeps last until work comes, on average, in nanoseconds.
    asleep_ns: u64,
    /// Sleeps until all of the first ones have been sounded.
    first: u32,
    until_next: u32,
}

impl Sounding {
    pub(super) fn new() -> Self {
        Self { asleep_ns: 0, first: FIRST_SLEEPS, until_next: 1 }
    }

    /// Work came this long after the worker stopped looking for it.
    #[inline]
    pub(super) fn slept(&mut self, asleep_ns: u64) {
        self.asleep_ns = self.asleep_ns - self.asleep_ns / MEMORY + asleep_ns / MEMORY;
    }

    /// After how long the sleep that begins now shall be ended, if it shall. `doubtful`: wake-ups have been late of
    /// late, so each is looked at. A wake-up takes `latency_ns`: what is no longer than that is no sleep.
    pub(super) fn next(&mut self, doubtful: bool, latency_ns: u64) -> Option<u64> {
        self.first = self.first.saturating_sub(1);
        self.until_next = self.until_next.saturating_sub(1);
        if self.until_next > 0 && self.first == 0 && !doubtful {
            return None;
        }
        self.until_next = SLEEPS_PER_SOUNDING;
        Some((self.asleep_ns / PART_OF_SLEEP).max(latency_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sleep_in_eleven_is_sounded_and_each_while_in_doubt() {
        let mut sounding = Sounding::new();
        let mut count = |sleeps, doubtful| (0..sleeps).filter(|_| sounding.next(doubtful, 20_000).is_some()).count();
        assert!((255..=256).contains(&count(256, false)));
        assert!((99..=101).contains(&count(1_100, false)));
        assert_eq!(count(300, true), 300);
        assert!((99..=101).contains(&count(1_100, false)));
    }

    #[test]
    fn soundings_are_shorter_than_most_sleeps() {
        let mut sounding = Sounding::new();
        assert_eq!(sounding.next(true, 20_000), Some(20_000));
        for _ in 0..200 {
            sounding.slept(1_000_000);
        }
        let limit_ns = sounding.next(true, 20_000).expect("in doubt");
        assert!((240_000..=250_000).contains(&limit_ns), "{limit_ns}");
    }
}
