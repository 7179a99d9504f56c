//! `spinwake-tune check` as it is run: on machines made of files, on this one, and in guests whose truth the tests set.
//!
//! Tests named `host_*` want root on this machine and change nothing; those named `guest_*` want a throwaway guest, and
//! change what they like. Each runs when `SPINWAKE_TEST_TIER` names its tier.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod guest;
mod host;
mod program;
mod trees;

use program::{Seen, check, program, tier};
