//! Frames, the pools they come from, and the bursts they travel in.
//!
//! ```text
//! Pool::take ──▶ Frame ──▶ rx ring ──▶ Burst ──▶ application ──▶ tx ring ──▶ Pool::give
//!                                                    └─ dropped anywhere ──▶ returns ──▶ Pool, when it runs dry
//! ```
//!
//! A [`Frame`] is 16 bytes, moved by value: forwarding one touches its descriptors and, if the program looks, its data,
//! but no metadata in memory. What only some frames have (a next segment, a VLAN tag, an RSS hash) stands in a header
//! of its own, in memory that no device can reach.
//!
//! A [`Pool`] belongs to one worker and needs no atomics on its fast path; a frame dropped elsewhere, on any thread,
//! comes home through a lock-free list. A pool's memory outlives its last frame, whoever holds it.

mod burst;
mod handle;
mod header;
mod in_flight;
mod layout;
mod pool;
mod posted;
mod returns;

pub use burst::{BURST, Burst};
pub use handle::{Checksum, Cut, Frame, L4Checksum, Segmentation, Segments, Verdicts};
pub use in_flight::InFlight;
pub use pool::{Pool, PoolConfig, PoolError};
pub use posted::Posted;

/// Bytes kept free in front of a received frame, for a program that adds headers.
pub const HEADROOM: usize = 128;

/// Bytes of data that one buffer holds after its headroom.
pub const DATA_ROOM: usize = 2048;

/// Bytes from one buffer to the next. An odd number of cache lines, so that the starts of frames spread over all sets
/// of the L1 cache; a power of two would crowd them into a few.
const STRIDE: usize = HEADROOM + DATA_ROOM + 64;
const _: () = assert!(STRIDE.is_multiple_of(64) && (STRIDE / 64) % 2 == 1);
