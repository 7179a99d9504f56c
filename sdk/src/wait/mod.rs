//! Waiting: what a worker can wait for, and how it is woken.

mod source;
mod waker;

pub use source::{Source, Wake};
pub use waker::Waker;
