#![doc = include_str!("waiting.md")]

mod calibrate;
mod care;
mod counters;
mod engine;
mod fd;
mod loan;
#[cfg(loom)]
pub mod model;
mod park;
mod policy;
mod register;
mod relay;
mod set;
mod sleeps;
mod sounder;
mod source;
mod sync;
mod timer;
mod waker;

pub use counters::{SourceWakes, State, WaitCounters};
pub use engine::{Engine, EngineConfig, EngineError};
pub use fd::FdSource;
pub use loan::{Loan, Recalled};
pub use park::{Parked, Steps, after_arming, park, prepare};
pub use policy::{Adaptive, GapBucket, GapHistogram, Idle, ParsePolicyError, Target, WaitPolicy, WakeCost};
pub use register::{RegisterSource, Status, StatusInterrupt};
pub use relay::Relay;
pub use sleeps::{SleepPlan, Sleeps, measure_sleeps};
pub use source::{EachSource, Source, Wake};
pub use timer::Timer;
pub use waker::{Arming, Waker};
