//! What is held on to so that wake-ups are fast enough for a target: idle states that are left at once, a core that
//! stays fast.
//!
//! Each costs power, so each is tried, and kept only if wake-ups become faster by it.

use std::fmt::Display;
use std::io;

use super::policy::{Ns, WakeCost};
use crate::cpu::{LatencyHold, UtilHold};

/// What is held for one worker, until it is dropped: on the thread that made it.
#[derive(Debug, Default)]
pub(super) struct Care {
    // The order of release is that of the fields: the last acquired first.
    util: Option<UtilHold>,
    latency: Option<LatencyHold>,
    notes: Vec<String>,
}

/// Wake-ups that are too slow, and those that something made faster.
struct Trial<'a> {
    limit_ns: u64,
    cost: WakeCost,
    measure: &'a mut dyn FnMut() -> io::Result<WakeCost>,
    notes: Vec<String>,
}

/// Makes wake-ups of the calling thread as fast as `limit_ns` at p99 if they are not, as far as that is possible.
/// Returns what they cost then, by `measure`.
///
/// # Errors
///
/// Those of `measure`.
pub(super) fn take_care(
    limit_ns: u64,
    mut measure: impl FnMut() -> io::Result<WakeCost>,
) -> io::Result<(WakeCost, Care)> {
    let cost = measure()?;
    let mut trial = Trial { limit_ns, cost, measure: &mut measure, notes: Vec::new() };
    let latency = trial.attempt("idle cores of this machine poll, at full power", || LatencyHold::acquire(0))?;
    let util = trial.attempt("the scheduler takes this worker's core to be fully used", || UtilHold::acquire(1024))?;
    let mut care = Care { util, latency, notes: trial.notes };
    if trial.cost.latency_p99_ns > limit_ns {
        care.release();
    }
    Ok((trial.cost, care))
}

impl Care {
    /// What is held and why, or why not.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Lets go of everything, since a worker that can not sleep has no use for it.
    fn release(&mut self) {
        if self.util.take().is_some() | self.latency.take().is_some() {
            self.notes.push("that is not enough, so it is given up again".into());
        }
    }
}

impl Trial<'_> {
    /// Tries whether wake-ups that are too slow become faster by a hold, and keeps it if so.
    fn attempt<H, E: Display>(&mut self, what: &str, acquire: impl FnOnce() -> Result<H, E>) -> io::Result<Option<H>> {
        if self.cost.latency_p99_ns <= self.limit_ns {
            return Ok(None);
        }
        let hold = match acquire() {
            Ok(hold) => hold,
            Err(error) => {
                self.notes.push(error.to_string());
                return Ok(None);
            }
        };
        let before = self.cost;
        let with = (self.measure)()?;
        let figures =
            format!("p99 of a wake-up is {} with it, {} without", Ns(with.latency_p99_ns), Ns(before.latency_p99_ns));
        if helped(before, with, self.limit_ns) {
            self.notes.push(format!("{what}, as long as it runs: {figures}"));
            self.cost = with;
            return Ok(Some(hold));
        }
        self.notes.push(format!("tried and given up, for it helps too little: {what} ({figures})"));
        Ok(None)
    }
}

/// Whether wake-ups became fast enough, or faster by so much that it is no chance.
fn helped(before: WakeCost, with: WakeCost, limit_ns: u64) -> bool {
    with.latency_p99_ns <= limit_ns || (with.latency_p99_ns < before.latency_p99_ns / 4 * 3)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LIMIT_NS: u64 = 20_000;

    /// A hold that tells when it ends.
    #[derive(Debug)]
    struct Held<'a>(&'a Cell<u32>);

    impl Drop for Held<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }

    fn cost(latency_p99_ns: u64) -> WakeCost {
        WakeCost { latency_ns: latency_p99_ns / 2, latency_p99_ns, cpu_ns: 5_000 }
    }

    /// Tries a hold with which the p99 of a wake-up changes; returns it, what is then known, and whether it was
    /// measured again.
    fn attempt<'a>(
        held: &'a Cell<u32>,
        before_ns: u64,
        with_ns: u64,
    ) -> (Option<Held<'a>>, WakeCost, Vec<String>, bool) {
        let mut measured = false;
        let mut measure = || {
            assert_eq!(held.get(), 1, "measured while it is held");
            measured = true;
            Ok(cost(with_ns))
        };
        let mut trial = Trial { limit_ns: LIMIT_NS, cost: cost(before_ns), measure: &mut measure, notes: Vec::new() };
        let acquire = || {
            held.set(held.get() + 1);
            Ok::<_, String>(Held(held))
        };
        let hold = trial.attempt("fingers are crossed", acquire).expect("measuring cannot fail here");
        let (cost, notes) = (trial.cost, trial.notes);
        (hold, cost, notes, measured)
    }

    #[test]
    fn what_helps_is_kept_until_it_is_dropped() {
        for (before_ns, with_ns) in [(60_000, 19_000), (21_000, 20_000), (90_000, 40_000)] {
            let held = Cell::new(0);
            let (hold, now, notes, _) = attempt(&held, before_ns, with_ns);
            assert_eq!((held.get(), now), (1, cost(with_ns)));
            assert!(notes[0].starts_with("fingers are crossed, as long as it runs: p99"), "{notes:?}");
            drop(hold);
            assert_eq!(held.get(), 0);
        }
    }

    #[test]
    fn what_does_not_help_is_released_and_its_measurement_not_believed() {
        for with_ns in [21_000, 25_000, 90_000] {
            let held = Cell::new(0);
            let (hold, now, notes, _) = attempt(&held, 25_000, with_ns);
            assert!(hold.is_none());
            assert_eq!((held.get(), now), (0, cost(25_000)));
            assert!(notes[0].contains("given up") && notes[0].contains("25 us without"), "{notes:?}");
        }
    }

    #[test]
    fn nothing_is_held_where_wake_ups_are_fast_enough() {
        let held = Cell::new(0);
        let (hold, now, notes, measured) = attempt(&held, LIMIT_NS, 1);
        assert!(hold.is_none() && notes.is_empty() && !measured);
        assert_eq!(now, cost(LIMIT_NS));
        let (fast, care) = take_care(LIMIT_NS, || Ok(cost(LIMIT_NS))).unwrap();
        assert_eq!((fast, care.notes().len()), (cost(LIMIT_NS), 0));
    }

    #[test]
    fn what_cannot_be_held_is_said() {
        let mut measure = || panic!("there is nothing new to measure");
        let mut trial = Trial { limit_ns: LIMIT_NS, cost: cost(60_000), measure: &mut measure, notes: Vec::new() };
        let hold = trial.attempt("fingers are crossed", || Err::<(), _>("no fingers; grow some")).unwrap();
        assert_eq!((hold, trial.notes), (None, vec!["no fingers; grow some".to_owned()]));
    }
}
