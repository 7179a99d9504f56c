//! `virtio-user:PATH`, the vhost-user front end: drives a virtio-net device that is another process at the other end of a Unix
//! socket, as DPDK's vhost, a vhost-user switch or this program's own `vhost:` port is.
//!
//! ```text
//! UserPort ── control plane            Remote ── session ── socket ──▶ back end
//!    │                                   ▲ │                              │
//!    └── start ──▶ UserRx, UserTx ───────┘ └── thread: connects, looks    │
//!                     └── Follower ──▶ driver's half ──▶ rings ◀──────────┘
//! ```
//!
//! The back end may go and come back at any time. Each queue sees it by one load at its next burst, takes back what the back
//! end had, and idles until another has the rings, which then start from their beginning. Programs notice nothing but
//! [`Port::link`](spinwake::port::Port::link) and frames that are lost, which are counted.
//!
//! The protocol is that of QEMU's docs/interop/vhost-user.rst. All that a back end says is checked, and each exchange has a
//! deadline; one that breaks the protocol loses its connection, with one line in the log and a count. What it shares with
//! us is memory, though: it can write to the buffers of all pools, at any time.

mod channel;
mod follower;
#[cfg(any(all(test, not(loom)), fuzzing))]
pub(crate) mod fuzz;
mod message;
mod port;
mod remote;
mod ring;
mod run;
mod rx;
mod session;
mod spec;
mod thread;
mod tx;

pub(crate) use port::{UserPort, best_offloads, capabilities};
pub(crate) use spec::{KEYS, PAIRS_MAX, UserSpec};
