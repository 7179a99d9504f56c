//! The time of all soft NICs: nanoseconds since the first of them looked.

use std::sync::LazyLock;
use std::time::Instant;

/// Nanoseconds since some moment in this process, monotonic.
pub(super) fn now_ns() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // One at least: zero stands for "never" in a few places.
    START.elapsed().as_nanos() as u64 + 1
}
