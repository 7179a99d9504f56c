//! A point in time as a source.

use std::time::Duration;

use super::{Source, Wake};
use crate::clock::Clock;

/// Work that is due at a certain time.
///
/// A timer bounds its worker's sleep instead of waking it, so it needs no file descriptor and no system call of its
/// own.
#[derive(Debug)]
pub struct Timer {
    label: String,
    clock: Clock,
    due: Option<u64>,
}

impl Timer {
    /// A timer without a deadline, by this name in reports.
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), clock: Clock::get(), due: None }
    }

    /// Makes it due after `delay` from now, instead of whenever it was due before.
    pub fn set(&mut self, delay: Duration) {
        let ns = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        self.due = Some(self.clock.now().saturating_add(self.clock.ns_to_ticks(ns)));
    }

    /// Makes it due when the [`Clock`] shows `ticks`.
    pub fn set_at(&mut self, ticks: u64) {
        self.due = Some(ticks);
    }

    /// Takes its deadline away.
    pub fn clear(&mut self) {
        self.due = None;
    }

    /// Whether it is due; if so, its deadline is taken away.
    pub fn take_due(&mut self) -> bool {
        let due = self.pending();
        if due {
            self.due = None;
        }
        due
    }
}

impl Source for Timer {
    fn label(&self) -> String {
        self.label.clone()
    }

    fn pending(&self) -> bool {
        self.due.is_some_and(|due| self.clock.now() >= due)
    }

    fn wake(&self) -> Wake {
        Wake::At(self.due)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_once() {
        let mut timer = Timer::new("test");
        assert!(!timer.pending() && !timer.take_due());
        timer.set(Duration::from_secs(3600));
        assert!(!timer.take_due() && matches!(timer.wake(), Wake::At(Some(_))));
        timer.set(Duration::ZERO);
        assert!(timer.pending() && timer.take_due() && !timer.take_due());
        timer.set(Duration::MAX);
        assert!(!timer.pending());
        timer.clear();
        assert!(matches!(timer.wake(), Wake::At(None)));
    }
}
