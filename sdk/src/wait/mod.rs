//! Waiting: what a worker can wait for, how it is woken, and when it sleeps.

mod policy;
mod register;
mod source;
mod waker;

pub use policy::{Adaptive, GapBucket, GapHistogram, Idle, ParsePolicyError, Target, WaitPolicy, WakeCost};
pub use register::{RegisterSource, Status, StatusInterrupt};
pub use source::{Source, Wake};
pub use waker::Waker;
