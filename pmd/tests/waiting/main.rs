//! Workers that sleep on soft NICs in real time: nothing that comes while they arm, look again, block and wake is lost.
//!
//! `moments` meets one worker at random moments, without and with faults of the interrupts; `testbench/sleep-stress` runs the
//! same for as long as one likes. `crowd` has several workers, everything they can sleep on, and ports that come and go.
//!
//! Where nothing may be lost a sleep's limit is seconds: so long that a machine with other things to do cannot be
//! mistaken for a lost wake-up, nor the other way round.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod crowd;
mod mailbox;
mod moments;
mod party;
mod rig;
mod tally;
mod watchdog;
mod witness;
