//! Peers that write and say anything, from bytes: see [`crate::fuzz`].

mod guest;
mod messages;
mod queues;
mod rings;

pub use messages::vhost_messages;
pub use rings::vhost_rings;
