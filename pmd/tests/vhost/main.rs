//! `vhost:` ports against the front end of the `vhost` crate, and against peers that mean no good.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod guest;
mod hostile;
mod migration;
mod protocol;
mod rig;
