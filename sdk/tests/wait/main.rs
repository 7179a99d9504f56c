//! The wait engine as a program uses it, on real threads, eventfds and sockets.
#![cfg(not(loom))]

mod engine;
mod foreign;
mod rig;
mod told;
mod worker;
