//! Queues against devices that others wrote: that of the `virtio-queue` crate for split rings, and for packed ones a model
//! written after the specification alone.
#![cfg(not(loom))]

mod hostile;
mod peer;
mod receive;
mod rig;
mod transmit;
