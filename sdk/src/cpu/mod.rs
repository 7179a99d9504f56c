//! Cores: which there are, which are quiet, choosing one and staying on it.
//!
//! ```text
//! Topology::read ──▶ choose ──▶ Chosen ──▶ pin_current_thread ──▶ (set_fifo, lock_memory, set_timer_slack_ns)
//! ```
//!
//! Everything read from `/sys`, `/proc` and the cgroup tree may be missing or garbage; what cannot be known stays
//! `None`. Read the topology before pinning: a pinned thread sees itself allowed on one core alone.
//!
//! What this module refuses: sharing one core between two workers, and pinning that did not take effect.

mod choose;
mod cpuset;
#[cfg(test)]
mod fake;
mod latency;
mod pin;
mod realtime;
mod set;
mod topology;
mod util;

pub use choose::{Chosen, CoreChoice, CoreError, ParseCoreChoiceError, choose};
pub use latency::{LatencyError, LatencyHold};
pub(crate) use pin::process_cores;
pub use pin::{KeepOff, PinError, pin_current_thread, pinned_cores, set_thread_affinity};
pub use realtime::{FifoError, LockMemoryError, TimerSlackError, lock_memory, set_fifo, set_timer_slack_ns};
pub use set::{CpuSet, ParseCpuSetError};
pub use topology::{Core, Topology};
pub use util::{UtilError, UtilHold};
