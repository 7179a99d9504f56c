//! Stopping dead in the middle, for tests of what is left behind.
//!
//! With `SPINWAKE_TUNE_STOP_AFTER=N` in its environment the process aborts at the N-th step, with no chance to tidy up, as
//! if it had been killed there. Without, a step costs one load.

use std::process;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable that tells the step.
const VARIABLE: &str = "SPINWAKE_TUNE_STOP_AFTER";

/// How many steps are left. None are counted when the variable is not set.
static LEFT: LazyLock<Option<AtomicU64>> = LazyLock::new(|| {
    let steps = std::env::var(VARIABLE).ok()?.parse().ok()?;
    Some(AtomicU64::new(steps))
});

/// A step: a place where the process may be killed and something different is left behind than at the last one.
pub(crate) fn point() {
    if is_here() {
        process::abort();
    }
}

/// Whether this step is the last. Whoever asks calls [`process::abort`] after having left something behind.
pub(super) fn is_here() -> bool {
    LEFT.as_ref().is_some_and(|left| left.fetch_sub(1, Ordering::Relaxed) == 1)
}
