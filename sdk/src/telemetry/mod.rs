//! Numbers that one thread writes and any thread reads, without either disturbing the other.

mod counter;

pub use counter::Counter;
