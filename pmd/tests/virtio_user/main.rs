//! `virtio-user:` against a back end that is not ours, and against what no back end should do.

#![expect(clippy::unwrap_used, reason = "the helpers of tests, too, fail by panicking")]

mod dpdk;
mod peer;
mod reconnect;
mod refusals;
mod rig;
mod traffic;
