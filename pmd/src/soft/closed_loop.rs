//! Traffic in a closed loop: one frame at a time, each a random time after what the driver did with the one before.
//!
//! ```text
//!      ┌────────────── gap ◀── back at a sink, or the driver armed ──┐
//!      ▼                                                             │
//!  frame sent ──▶ ring ──▶ interrupt ──▶ driver ──▶ doorbell ──▶ sink ┘
//! ```
//!
//! A driver that sleeps whenever it is idle is thus met at random moments around its arming, millions of times and with
//! no test's thread in between.

use std::ops::RangeInclusive;

use super::fault::Rng;

/// A frame that has not come back for so long is given up.
const PATIENCE_NS: u64 = 1_000_000_000;
/// A frame is expected back so soon that the fabric stays awake for it: a sleeper answers when it has woken up.
const EXPECTED_NS: u64 = 1_000_000;

/// What a generator shall send in a closed loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedLoop {
    /// How many frames, one after the other.
    pub frames: u64,
    /// From when a gap counts.
    pub after: After,
    /// The gaps, each drawn evenly from this range, in nanoseconds.
    pub gap_ns: RangeInclusive<u64>,
}

/// From when the gap before the next frame of a closed loop counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// From the former frame's arrival at a sink, whichever port's. With gaps from zero to a little more than what the
    /// driver takes from sending to sleeping, frames come before, while and after it arms.
    Return,
    /// From the driver's first write that unmasks interrupts (EIMS, IMS) since the former frame was sent; the former frame
    /// must have come back too. So frames come while the driver looks again, blocks, and sleeps.
    Arm,
}

/// How far a closed loop is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoopCounts {
    /// Frames sent.
    pub sent: u64,
    /// Frames that came back to a sink.
    pub returned: u64,
    /// Frames that had not come back after a second: lost, or changed on their way.
    pub given_up: u64,
}

/// A closed loop under way.
#[derive(Debug)]
pub(super) struct Looper {
    plan: ClosedLoop,
    state: State,
    pub(super) counts: LoopCounts,
    rng: Rng,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The next frame is to be sent then.
    Gap { until_ns: u64 },
    /// A frame is out, or back and the driver has not armed since.
    Out { sent_ns: u64, back: bool },
    /// All were sent and came back.
    Over,
}

/// What a closed loop sees of the world in a round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) now_ns: u64,
    /// The latest frame has come into a sink.
    pub(super) back: bool,
    /// When the driver last unmasked interrupts, in nanoseconds.
    pub(super) armed_ns: u64,
}

impl Looper {
    pub(super) fn new(plan: ClosedLoop, now_ns: u64, seed: u64) -> Self {
        let state = if plan.frames == 0 { State::Over } else { State::Gap { until_ns: now_ns } };
        Self { plan, state, counts: LoopCounts::default(), rng: Rng::new(seed) }
    }

    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether a frame shall be sent now; it must be.
    pub(super) fn take(&mut self, seen: Seen) -> bool {
        if let State::Out { sent_ns, back } = &mut self.state {
            let sent_ns = *sent_ns;
            if seen.back && !*back {
                *back = true;
                self.counts.returned += 1;
            }
            let impatient = seen.now_ns >= sent_ns + PATIENCE_NS;
            if impatient && !*back {
                self.counts.given_up += 1;
            }
            let from_ns = match self.plan.after {
                _ if impatient => Some(seen.now_ns),
                _ if !*back => None,
                After::Return => Some(seen.now_ns),
                After::Arm => Some(seen.armed_ns).filter(|armed| *armed > sent_ns),
            };
            if self.counts.sent == self.plan.frames {
                if *back || impatient {
                    self.state = State::Over;
                }
            } else if let Some(from_ns) = from_ns {
                let gap_ns = self.rng.within(&self.plan.gap_ns);
                self.state = State::Gap { until_ns: from_ns.saturating_add(gap_ns) };
            }
        }
        let due = matches!(self.state, State::Gap { until_ns } if until_ns <= seen.now_ns);
        if due {
            self.state = State::Out { sent_ns: seen.now_ns, back: false };
            self.counts.sent += 1;
        }
        due
    }

    /// When to look again, in nanoseconds; `u64::MAX` for never.
    pub(super) fn due_ns(&self, now_ns: u64) -> u64 {
        match self.state {
            State::Gap { until_ns } => until_ns,
            State::Out { sent_ns, .. } if now_ns < sent_ns + EXPECTED_NS => now_ns,
            State::Out { sent_ns, .. } => sent_ns + PATIENCE_NS,
            State::Over => u64::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(now_ns: u64, back: bool, armed_ns: u64) -> Seen {
        Seen { now_ns, back, armed_ns }
    }

    fn looper(frames: u64, after: After, gap_ns: RangeInclusive<u64>) -> Looper {
        Looper::new(ClosedLoop { frames, after, gap_ns }, 1000, 1)
    }

    #[test]
    fn a_frame_waits_for_the_one_before_and_for_its_gap() {
        let mut looper = looper(2, After::Return, 500..=500);
        assert!(looper.take(seen(1000, false, 0)), "the first comes at once");
        assert!(!looper.take(seen(9000, false, 0)));
        assert_eq!(looper.due_ns(9000), 9000, "expected soon");
        assert!(!looper.take(seen(10_000, true, 0)));
        assert_eq!(looper.due_ns(10_000), 10_500);
        assert!(!looper.take(seen(10_499, true, 0)));
        assert!(looper.take(seen(10_500, true, 0)));
        assert!(!looper.take(seen(11_000, false, 0)) && !looper.is_over());
        assert!(!looper.take(seen(12_000, true, 0)));
        assert!(looper.is_over());
        assert_eq!(looper.due_ns(12_000), u64::MAX);
        assert_eq!(looper.counts, LoopCounts { sent: 2, returned: 2, given_up: 0 });
    }

    #[test]
    fn after_arming_means_after_both() {
        let mut looper = looper(9, After::Arm, 300..=300);
        assert!(looper.take(seen(1000, false, 900)));
        assert!(!looper.take(seen(2000, true, 900)), "armed before it was sent");
        assert!(!looper.take(seen(2600, true, 2500)));
        assert_eq!(looper.due_ns(2600), 2800);
        assert!(looper.take(seen(2800, true, 2500)));
        assert!(!looper.take(seen(9000, false, 8000)), "armed again, but the frame is not back");
        assert!(looper.take(seen(9100, true, 8000)), "its gap is over by then");
        assert_eq!(looper.counts.returned, 2);
    }

    #[test]
    fn a_lost_frame_and_a_driver_that_never_arms_do_not_stop_it() {
        let mut looper = looper(3, After::Arm, 0..=0);
        assert!(looper.take(seen(1000, false, 0)));
        let give_up = 1000 + PATIENCE_NS;
        assert_eq!(looper.due_ns(give_up - 1), give_up);
        assert!(!looper.take(seen(give_up - 1, false, 0)));
        assert!(looper.take(seen(give_up, false, 0)), "it did not come back");
        assert!(!looper.take(seen(give_up + 1, true, 0)));
        assert!(looper.take(seen(give_up + PATIENCE_NS, true, 0)), "the driver did not arm");
        assert!(!looper.take(seen(give_up + 2 * PATIENCE_NS, false, 0)));
        assert!(looper.is_over());
        assert_eq!(looper.counts, LoopCounts { sent: 3, returned: 1, given_up: 2 });
    }

    #[test]
    fn gaps_are_spread_evenly_over_their_range() {
        let mut looper = looper(100_001, After::Return, 100..=1099);
        let mut gaps = [0; 10];
        let mut now_ns = 1000;
        assert!(looper.take(seen(now_ns, false, 0)));
        for _ in 0..100_000 {
            assert!(!looper.take(seen(now_ns, true, 0)));
            let due_ns = looper.due_ns(now_ns);
            gaps[((due_ns - now_ns - 100) / 100) as usize] += 1;
            now_ns = due_ns;
            assert!(looper.take(seen(now_ns, true, 0)));
        }
        assert!(gaps.iter().all(|n| (9_500..10_500).contains(n)), "{gaps:?}");
    }

    #[test]
    fn no_frames_are_no_loop() {
        let mut looper = looper(0, After::Return, 0..=0);
        assert!(looper.is_over() && !looper.take(seen(5000, true, 0)));
    }
}
