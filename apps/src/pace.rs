//! How a program's own thread passes its time while workers work.

use std::thread;
use std::time::{Duration, Instant};

use crate::console::EndRequest;

/// How often the thread looks around.
const TICK: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);

/// The time from when it was made, cut into ticks and seconds.
#[derive(Debug)]
pub struct Pace {
    begin: Instant,
    /// The next full second, as time since the beginning.
    next: Duration,
}

/// A look around.
#[derive(Debug, Clone, Copy)]
pub struct Tick {
    /// Time since the beginning.
    pub at: Duration,
    /// Whether a second has passed since the last tick that said so.
    pub second: bool,
}

impl Pace {
    /// Begins now.
    pub fn start() -> Self {
        Self { begin: Instant::now(), next: SECOND }
    }

    /// Time since the beginning.
    pub fn at(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Calls `look` twenty times a second until `limit` has passed, `end` is asked for, or `look` returns false. The last
    /// call comes after that.
    pub fn run(&mut self, limit: Option<Duration>, end: &EndRequest, mut look: impl FnMut(Tick) -> bool) {
        loop {
            let over = end.is_set() || limit.is_some_and(|limit| self.at() >= limit);
            let at = self.at();
            let second = at >= self.next;
            if second {
                // One that was slept through has no line of its own.
                self.next = Duration::from_secs(at.as_secs()) + SECOND;
            }
            if !look(Tick { at, second }) || over {
                return;
            }
            let until = limit.map_or(self.next, |limit| limit.min(self.next));
            thread::sleep(until.saturating_sub(self.at()).min(TICK));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_time_is_up_or_the_looker_has_seen_enough() {
        let end = EndRequest::listen().unwrap();
        let mut seconds = 0;
        let mut last = Duration::ZERO;
        Pace::start().run(Some(Duration::from_millis(1_100)), &end, |tick| {
            seconds += u32::from(tick.second);
            last = tick.at;
            true
        });
        assert!(seconds == 1 && last >= Duration::from_millis(1_100), "{seconds} {last:?}");
        let mut looks = 0;
        Pace::start().run(None, &end, |_| {
            looks += 1;
            looks < 3
        });
        assert_eq!(looks, 3);
    }
}
