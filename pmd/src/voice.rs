//! A port's lines in the log, of which a peer cannot make as many as it likes.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

/// Lines that may come at once.
const AT_ONCE: u32 = 100;
/// And from then on, one each so often.
const EACH: Duration = Duration::from_secs(2);

/// Says what happens on a port, within reason. Takes a lock: not for the data path.
#[derive(Debug)]
pub(crate) struct Voice(Mutex<Breath>);

#[derive(Debug)]
struct Breath {
    /// Lines that may be said now.
    lines: u32,
    /// Since when the next one has been earned.
    since: Instant,
    /// Lines that were not said.
    kept_back: u64,
}

impl Default for Voice {
    fn default() -> Self {
        Self(Mutex::new(Breath { lines: AT_ONCE, since: Instant::now(), kept_back: 0 }))
    }
}

impl Voice {
    /// A line about the port of this name, unless too many were said lately; how many were not is told with the next one.
    pub(crate) fn say(&self, level: Level, port: &str, what: impl fmt::Display) {
        if !log::log_enabled!(level) {
            return;
        }
        let kept_back = self.0.lock().unwrap_or_else(PoisonError::into_inner).draw(Instant::now());
        match kept_back {
            None => {}
            Some(0) => log::log!(level, "{port}: {what}"),
            Some(more) => log::log!(level, "{port}: {what} ({more} lines before it were left out: too many)"),
        }
    }
}

impl Breath {
    /// Whether there is enough for a line now: then how many were kept back before it.
    fn draw(&mut self, now: Instant) -> Option<u64> {
        let earned = now.saturating_duration_since(self.since).as_nanos() / EACH.as_nanos();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        if self.lines.saturating_add(earned) >= AT_ONCE {
            (self.lines, self.since) = (AT_ONCE, now);
        } else {
            self.lines += earned;
            self.since += EACH * earned;
        }
        if self.lines == 0 {
            self.kept_back += 1;
            return None;
        }
        self.lines -= 1;
        Some(std::mem::take(&mut self.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_trickle_and_what_is_left_out_is_counted() {
        let begun = Instant::now();
        let mut breath = Breath { lines: AT_ONCE, since: begun, kept_back: 0 };
        let said = (0..1_000).filter(|_| breath.draw(begun).is_some()).count();
        assert_eq!(said, AT_ONCE as usize);
        assert_eq!(breath.draw(begun + EACH), Some(1_000 - u64::from(AT_ONCE)));
        assert_eq!(breath.draw(begun + EACH), None);
        // A thousand a second, for a hundred seconds.
        let said =
            (0..100_000u64).filter(|&at| breath.draw(begun + EACH + Duration::from_millis(at)).is_some()).count();
        assert!((49..=50).contains(&said), "{said}");
        // Silence earns all of it back, and no more.
        let later = begun + EACH * 1_000;
        assert_eq!((0..1_000).filter(|_| breath.draw(later).is_some()).count(), AT_ONCE as usize);
    }
}
