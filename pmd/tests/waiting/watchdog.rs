//! Ends a test that hangs, and says where.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

type Steps = Arc<Mutex<BTreeMap<String, String>>>;

/// While it lives a test has until its limit; then the process is aborted, with what each part of the test was doing. For what has no
/// deadline of its own: joining a thread, a lock, the kernel.
#[derive(Debug)]
pub(crate) struct Watchdog {
    steps: Steps,
    /// Closed when the test is over.
    _alive: Sender<()>,
}

impl Watchdog {
    pub(crate) fn new(test: &'static str, limit: Duration) -> Self {
        let steps = Steps::default();
        let (alive, over) = channel();
        let theirs = steps.clone();
        thread::spawn(move || {
            if over.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{test} hangs: it is not over after {limit:?}\n{}", describe(&theirs));
                std::process::abort();
            }
        });
        Self { steps, _alive: alive }
    }

    /// Notes what `part` of the test is doing now.
    pub(crate) fn step(&self, part: &str, step: impl Into<String>) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).insert(part.into(), step.into());
    }

    /// Forgets what the parts were doing: they have ended.
    pub(crate) fn clear(&self) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What each part is doing.
    pub(crate) fn describe(&self) -> String {
        describe(&self.steps)
    }
}

fn describe(steps: &Steps) -> String {
    let steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
    steps.iter().fold(String::new(), |mut text, (part, step)| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {part}: {step}");
        text
    })
}
