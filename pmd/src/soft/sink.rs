//! Where frames end that a port sent to its built-in partner: each is checked, timed and accounted for.
//!
//! The [`Ledger`] is common to all sinks, so that a frame which comes out of two ports is seen to be two. It also knows
//! what faults did: a copy that a fault made is no duplicate of the driver's, and two frames that a lying descriptor
//! chained together are no corruption of the driver's.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::generator::{FrameId, Stamp};
use super::nic::Nic;
use super::tx::Sent;

/// How many of a generator's latest frames are remembered.
const WINDOW: u64 = 1 << 20;
/// How many notes about faults are kept at least; there are never more than twice as many.
const NOTES: usize = 1 << 10;

/// How many of a generator's latest frames are known to have been shown to a driver, and when: more than a program has
/// under way.
const SHOWN: u64 = 1 << 15;

/// Who has come in.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    generators: HashMap<u16, Window>,
    /// When frames became visible to the driver of their generator's port: number and nanoseconds, by the number's low bits.
    shown: HashMap<u16, Vec<(u64, u64)>>,
    /// Copies that faults made, not yet seen.
    copies: Notes,
    /// Frames about which a descriptor lied.
    tainted: Notes,
}

/// How often something was noted of a frame, for the latest frames of which anything was.
#[derive(Debug, Default)]
struct Notes {
    young: HashMap<FrameId, u32>,
    old: HashMap<FrameId, u32>,
}

impl Notes {
    fn add(&mut self, id: FrameId) {
        if self.young.len() >= NOTES {
            // The emptied map keeps its memory.
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        *self.young.entry(id).or_default() += 1;
    }

    /// Takes one note about `id` away; returns whether there was one.
    fn take(&mut self, id: FrameId) -> bool {
        for notes in [&mut self.young, &mut self.old] {
            if let Some(left) = notes.get_mut(&id) {
                *left -= 1;
                if *left == 0 {
                    notes.remove(&id);
                }
                return true;
            }
        }
        false
    }

    fn has(&self, id: FrameId) -> bool {
        self.young.contains_key(&id) || self.old.contains_key(&id)
    }

    fn forget(&mut self, generator: u16) {
        for notes in [&mut self.young, &mut self.old] {
            notes.retain(|id, _| id.0 != generator);
        }
    }
}

/// A sliding bitmap over a generator's sequence numbers.
#[derive(Debug)]
struct Window {
    bits: Vec<u64>,
    /// One past the highest number seen.
    end: u64,
}

impl Ledger {
    /// Notes that a fault made a copy of this frame.
    pub(super) fn copied(&mut self, frame: &[u8]) {
        if let Some(stamp) = Stamp::claimed(frame) {
            self.copies.add(stamp.id);
        }
    }

    /// Notes that a descriptor lied about this frame in a way that cannot be noticed.
    pub(super) fn taint(&mut self, frame: &[u8]) {
        if let Some(stamp) = Stamp::claimed(frame) {
            self.tainted.add(stamp.id);
        }
    }

    /// Forgets a generator that is gone.
    pub(super) fn forget(&mut self, generator: u16) {
        self.generators.remove(&generator);
        self.shown.remove(&generator);
        self.copies.forget(generator);
        self.tainted.forget(generator);
    }

    /// Notes that this frame becomes visible at `now_ns` to the driver of port `nic`, if it is that port's own
    /// generator's; only the first time counts.
    pub(super) fn show(&mut self, nic: u16, frame: &[u8], now_ns: u64) {
        let Some((_, sequence)) = Stamp::claimed(frame).map(|s| s.id).filter(|(generator, _)| *generator == nic) else {
            return;
        };
        let times = self.shown.entry(nic).or_insert_with(|| vec![(u64::MAX, 0); SHOWN as usize]);
        let time = &mut times[(sequence % SHOWN) as usize];
        if time.0 != sequence {
            *time = (sequence, now_ns);
        }
    }

    /// When frame `id` became visible to its first driver, in nanoseconds; `None` when that is long ago.
    fn shown_ns(&self, (generator, sequence): FrameId) -> Option<u64> {
        let (number, time_ns) = *self.shown.get(&generator)?.get((sequence % SHOWN) as usize)?;
        (number == sequence).then_some(time_ns)
    }

    /// Whether frame `id` has come in.
    pub(super) fn has(&self, (generator, sequence): FrameId) -> bool {
        self.generators.get(&generator).is_some_and(|window| window.has(sequence))
    }

    /// Whether frame `id` came in for the first time.
    fn is_new(&mut self, (generator, sequence): FrameId) -> bool {
        let window = self.generators.entry(generator).or_insert_with(Window::new);
        window.mark(sequence)
    }
}

impl Window {
    fn new() -> Self {
        // Written once, so that the memory is there from the start and does not grow with the numbers.
        let mut bits = vec![u64::MAX; (WINDOW / 64) as usize];
        bits.fill(0);
        Self { bits, end: 0 }
    }

    fn has(&self, n: u64) -> bool {
        n < self.end && n + WINDOW >= self.end && self.bits[(n % WINDOW / 64) as usize] >> (n % 64) & 1 != 0
    }

    /// Marks `n`; false when it was marked, or is too old to tell.
    fn mark(&mut self, n: u64) -> bool {
        if n >= self.end {
            let from = self.end.max((n + 1).saturating_sub(WINDOW));
            for gone in from..=n {
                self.bits[(gone % WINDOW / 64) as usize] &= !(1 << (gone % 64));
            }
            self.end = n + 1;
        } else if n + WINDOW < self.end {
            return false;
        }
        let (word, bit) = ((n % WINDOW / 64) as usize, 1 << (n % 64));
        let new = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        new
    }
}

/// Takes in what `nic` sent, and empties `frames` into `spare`.
pub(super) fn take_in(nic: &Nic, ledger: &mut Ledger, frames: &mut Vec<Sent>, spare: &mut Vec<Vec<u8>>, now_ns: u64) {
    if frames.is_empty() {
        return;
    }
    let account = &nic.account;
    let mut captured = account.captured.lock().unwrap_or_else(PoisonError::into_inner);
    let mut times = account.times.lock().unwrap_or_else(PoisonError::into_inner);
    for Sent { frame, rung_ns } in frames.drain(..) {
        match Stamp::checked(&frame) {
            Some(stamp) if ledger.is_new(stamp.id) => {
                account.received.fetch_add(1, Ordering::Relaxed);
                times.latency_ns.saturating_record(stamp.age_ns(now_ns).max(1));
                if let Some(shown_ns) = ledger.shown_ns(stamp.id) {
                    let response_ns = rung_ns.saturating_sub(shown_ns).max(1);
                    times.response_ns.saturating_record(response_ns);
                    if std::mem::replace(&mut times.rung_ns, rung_ns) != rung_ns {
                        times.first_response_ns.saturating_record(response_ns);
                    }
                }
            }
            Some(stamp) if ledger.copies.take(stamp.id) => {
                nic.faults.copies_seen.fetch_add(1, Ordering::Relaxed);
            }
            Some(_) => {
                account.duplicates.fetch_add(1, Ordering::Relaxed);
            }
            None => match Stamp::claimed(&frame) {
                Some(stamp) if ledger.tainted.has(stamp.id) => {
                    nic.faults.tainted_seen.fetch_add(1, Ordering::Relaxed);
                }
                // A test that captures sends frames of its own.
                None if captured.is_some() => {}
                _ => {
                    account.corrupt.fetch_add(1, Ordering::Relaxed);
                }
            },
        }
        match &mut *captured {
            Some(list) => list.push(frame),
            None => super::wire::recycle(frame, spare),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_knows_new_from_seen_and_from_too_old() {
        let mut ledger = Ledger::default();
        assert!(ledger.is_new((1, 5)) && ledger.is_new((1, 4)) && ledger.is_new((2, 5)));
        assert!(!ledger.is_new((1, 5)));
        assert!(ledger.is_new((1, WINDOW + 4)), "the same bit as 4, which it pushes out");
        assert!(!ledger.is_new((1, 4)) && !ledger.is_new((1, 3)));
        assert!(ledger.is_new((1, WINDOW + 3)));
        assert!(ledger.is_new((1, 10 * WINDOW)) && ledger.is_new((1, 10 * WINDOW - 1)));
    }
}
