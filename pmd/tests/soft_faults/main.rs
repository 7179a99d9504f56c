//! The igb driver on the soft NIC, with everything going wrong that can: no frame is duplicated or corrupted by us, nothing
//! panics, nothing hangs, and the counters say what happened.
//!
//! What a fault did and what the driver did are told apart by two accounts: the NIC counts each fault that it makes, and
//! its sink checks every frame that the driver sends back.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod descriptors;
mod frames;
mod interrupts;
mod outages;
mod rig;
