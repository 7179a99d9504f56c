//! The model as a whole, driven by a driver of the tests' own: the smallest that works, with no code of the real one.

mod driver;
mod faults;
mod interrupts;
mod looped;
mod traffic;

use std::time::{Duration, Instant};

use super::{SoftNic, open};

/// Long enough for a machine whose cores are all taken.
pub(super) const LONG: Duration = Duration::from_secs(30);

fn nic(spec: &str) -> SoftNic {
    open(&spec.parse().unwrap()).unwrap()
}

/// Waits until `done` holds.
#[track_caller]
pub(super) fn wait(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "it did not happen within {LONG:?}");
        std::thread::sleep(Duration::from_micros(50));
    }
}
