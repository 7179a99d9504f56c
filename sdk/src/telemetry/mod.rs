//! Numbers that one thread writes and any thread reads, without either disturbing the other.

mod counter;
mod gauge;
mod histogram;
mod snapshot;

pub use counter::Counter;
pub use gauge::Gauge;
pub use histogram::LiveHistogram;
pub use snapshot::Snapshot;
