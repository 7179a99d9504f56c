//! Requests that were sent, and what became of them.
//!
//! ```text
//!          oldest              next
//!   gone ── │ ─ under way or ── │ ── not sent yet
//!               answered
//! ```

/// Requests under way at most. At a gap of 10 µs all of them may wait for their deadline.
const LIMIT: usize = 1 << 17;

/// The requests of one run, by sequence number.
#[derive(Debug)]
pub(crate) struct Flight {
    slots: Box<[Slot]>,
    next: u64,
    oldest: u64,
    /// Under way for longer than this, in clock ticks, is lost.
    patience: u64,
    /// One more than the highest number answered.
    answered: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// When it was to be sent, in clock ticks.
    due: u64,
    sent: u64,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Fate {
    #[default]
    UnderWay,
    Answered,
    Lost,
}

/// What an answer turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The answer to a request that was due at that time.
    Answer {
        due: u64,
        /// A later request was answered before.
        reordered: bool,
    },
    /// One more answer to the same request.
    Duplicate,
    /// The answer to one that was given up.
    Late,
    /// There was no such request.
    Unknown,
}

impl Flight {
    /// Nothing under way; what stays out for longer than `patience` clock ticks is lost.
    pub(crate) fn new(patience: u64) -> Self {
        Self { slots: vec![Slot::default(); LIMIT].into(), next: 0, oldest: 0, patience, answered: 0 }
    }

    /// Whether one more may be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.next - self.oldest < LIMIT as u64
    }

    /// Whether all that was sent is answered or lost.
    pub(crate) fn is_empty(&self) -> bool {
        self.next == self.oldest
    }

    /// The number of the next request.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// The next request is sent now. There must be room.
    pub(crate) fn send(&mut self, due: u64, now: u64) {
        debug_assert!(self.has_room());
        *self.slot(self.next) = Slot { due, sent: now, fate: Fate::UnderWay };
        self.next += 1;
    }

    /// The last `count` requests were not sent after all.
    pub(crate) fn withdraw(&mut self, count: u64) {
        self.next -= count.min(self.next - self.oldest);
    }

    /// How late the last `count` requests were sent, in clock ticks.
    pub(crate) fn lags(&self, count: u64) -> impl Iterator<Item = u64> {
        let slots = (self.next.saturating_sub(count)..self.next).map(|sequence| &self.slots[index(sequence)]);
        slots.map(|slot| slot.sent.saturating_sub(slot.due))
    }

    /// An answer to `sequence`, which asserts that its request was `due` then, has come.
    pub(crate) fn arrive(&mut self, sequence: u64, is_due: impl FnOnce(u64) -> bool) -> Arrival {
        if sequence >= self.next {
            return Arrival::Unknown;
        }
        if self.next - sequence > LIMIT as u64 {
            return Arrival::Late;
        }
        let slot = self.slot(sequence);
        let due = slot.due;
        if !is_due(due) {
            return Arrival::Unknown;
        }
        match slot.fate {
            Fate::Answered => return Arrival::Duplicate,
            Fate::Lost => return Arrival::Late,
            Fate::UnderWay => slot.fate = Fate::Answered,
        }
        let reordered = sequence < self.answered;
        self.answered = self.answered.max(sequence + 1);
        self.forget();
        Arrival::Answer { due, reordered }
    }

    /// Gives up what has been under way for too long; returns how many.
    pub(crate) fn expire(&mut self, now: u64) -> u64 {
        let mut lost = 0;
        while self.deadline().is_some_and(|deadline| deadline <= now) {
            self.slot(self.oldest).fate = Fate::Lost;
            lost += 1;
            self.forget();
        }
        lost
    }

    /// When the oldest that is under way will be given up.
    pub(crate) fn deadline(&self) -> Option<u64> {
        (!self.is_empty()).then(|| self.slots[index(self.oldest)].sent.saturating_add(self.patience))
    }

    /// Moves on to the oldest that is under way.
    fn forget(&mut self) {
        while self.oldest < self.next && self.slot(self.oldest).fate != Fate::UnderWay {
            self.oldest += 1;
        }
    }

    fn slot(&mut self, sequence: u64) -> &mut Slot {
        &mut self.slots[index(sequence)]
    }
}

fn index(sequence: u64) -> usize {
    sequence as usize % LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(flight: &mut Flight, sequence: u64) -> Arrival {
        flight.arrive(sequence, |_| true)
    }

    #[test]
    fn answers_are_told_from_what_only_looks_like_them() {
        let mut flight = Flight::new(100);
        (0..4).for_each(|i| flight.send(10 * i, 10 * i + 1));
        assert_eq!(answer(&mut flight, 0), Arrival::Answer { due: 0, reordered: false });
        assert_eq!(answer(&mut flight, 2), Arrival::Answer { due: 20, reordered: false });
        assert_eq!(answer(&mut flight, 1), Arrival::Answer { due: 10, reordered: true });
        assert_eq!(answer(&mut flight, 1), Arrival::Duplicate);
        assert_eq!(answer(&mut flight, 4), Arrival::Unknown);
        assert_eq!(answer(&mut flight, u64::MAX), Arrival::Unknown);
        assert_eq!(flight.arrive(3, |due| due == 31), Arrival::Unknown);
        assert_eq!((flight.expire(130), flight.deadline()), (0, Some(131)));
        assert_eq!((flight.expire(131), flight.deadline(), flight.is_empty()), (1, None, true));
        assert_eq!(answer(&mut flight, 3), Arrival::Late);
        flight.send(40, 140);
        flight.send(50, 140);
        flight.withdraw(1);
        assert!(flight.lags(1).eq([100]));
        assert_eq!((answer(&mut flight, 5), flight.next()), (Arrival::Unknown, 5));
    }

    #[test]
    fn there_is_a_limit_and_old_ones_make_room() {
        let mut flight = Flight::new(100);
        while flight.has_room() {
            flight.send(0, flight.next());
        }
        assert_eq!(flight.next(), LIMIT as u64);
        assert_eq!(answer(&mut flight, 1), Arrival::Answer { due: 0, reordered: false });
        assert!(!flight.has_room());
        assert_eq!(answer(&mut flight, 0), Arrival::Answer { due: 0, reordered: true });
        flight.send(7, 7);
        flight.send(7, 7);
        assert!(!flight.has_room());
        // Their places are taken.
        assert_eq!(answer(&mut flight, 0), Arrival::Late);
        assert_eq!(flight.expire(u64::MAX), LIMIT as u64);
    }
}
