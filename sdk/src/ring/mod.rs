//! Bounded queues between cores: [`spsc`] for one producer and one consumer, [`mpmc`] for many of each.
//!
//! ```text
//!  popped            pushed                positions count up for ever; position p lives in slot p mod capacity
//!    │                 │
//! ───┼─────────────────┼───────────────
//!    │ items, in order │ free slots ...   at most `capacity` items between the two
//! ───┼─────────────────┼───────────────
//! consumer          producer
//! ```
//!
//! Values are moved in and out, singly or as bursts; a burst operation moves as many as it can, keeps their order, and
//! leaves the rest with the caller. Memory is allocated at creation only, no operation waits for another thread, and
//! what is still inside when the last handle goes is dropped.
//!
//! Between two cores the cost is the cache lines that travel. The values' own lines must (once each way), so the design
//! spends the rest of its effort on not moving anything else: each side remembers what it last saw of the other and
//! looks again only when that is used up, publishes once a burst, and asks for the lines of its next burst while the
//! other side is busy elsewhere. `cargo bench -p spinwake-bench --bench ring` shows the cost, beside DPDK's.
//!
//! Size a ring for the burstiness it must absorb, no larger: a ring walks through all its slots even when few are filled,
//! and a line that has left the producer's first-level cache costs several times as much to write again. Up to about
//! 16 KiB of slots (1024 of 16 bytes, 2048 of 8) it stays there.
//!
//! What this module refuses: blocking (see [`crate::worker`]), growing, and capacities that are not powers of two.

pub mod mpmc;
pub mod spsc;

mod laps;
mod memory;
mod parking;
mod slots;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;

/// Why a ring could not be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The capacity is zero or not a power of two.
    #[error("a ring of {capacity} slots cannot be made: the capacity must be a power of two, such as {next}")]
    NotPowerOfTwo {
        /// What was asked for.
        capacity: usize,
        /// The nearest capacity that works and is not smaller, if there is one; else the largest there is.
        next: usize,
    },
    /// The slots would not fit into the address space.
    #[error("a ring of {capacity} slots of {slot_bytes} bytes cannot be made: at most {max} fit; ask for fewer")]
    TooLarge {
        /// What was asked for.
        capacity: usize,
        /// Bytes in one slot.
        slot_bytes: usize,
        /// The largest capacity for slots of this size.
        max: usize,
    },
}
