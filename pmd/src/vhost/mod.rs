//! `vhost:PATH`, the vhost-user back end: the device that QEMU's guests and DPDK's virtio-user drive, in this process.
//!
//! ```text
//! peer ──socket──▶ server's thread ──▶ connection ──offer, withdraw──▶ RingSlot ◀──exchange── queue ◀── worker
//!   └──────────────────── rings and frames, in memory that the peer shares ────────────────────┘
//! ```
//!
//! A peer's every message is hostile. One that cannot be meant closes the connection, with one line in the log and a count;
//! the port lives on, and the next peer may come. What remains in a peer's power: to shrink the file behind its memory, which
//! ends this process (see `spinwake::mem`), and to make its call eventfd block and fill it, which holds up the worker that
//! signals it. So the socket's permissions are its owner's and group's alone.

mod chain;
mod checksum;
mod connection;
mod device;
mod door;
#[cfg(any(all(test, not(loom)), fuzzing))]
pub(crate) mod fuzz;
mod gate;
mod messages;
mod packed;
mod port;
mod queue;
mod ring;
mod rx;
mod server;
mod session;
mod slot;
mod spec;
mod split;
mod tx;
mod vring;

use std::io;
use std::path::PathBuf;

pub use door::DoorError;
pub use port::VhostPort;

pub(crate) use port::capabilities;
pub(crate) use spec::{KEYS, VhostSpec};

/// A vhost-user port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its socket.
    #[error("vhost: {0}")]
    Door(#[from] DoorError),
    /// The system gave no thread or no file descriptor.
    #[error("vhost:{path}: {source}; raise the limit (`ulimit -n`, `ulimit -u`)", path = path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
