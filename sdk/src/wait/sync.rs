//! What the wake protocol is made of: the real thing, or what loom's model checker can follow (`cfg(loom)`).

#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, fence};
#[cfg(not(loom))]
pub(super) use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(not(loom))]
pub(super) use crate::irq::Vector;
#[cfg(not(loom))]
pub(super) use crate::sys::barrier;

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicU32, AtomicU64};
#[cfg(loom)]
pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};

#[cfg(loom)]
pub(super) use super::model::{Vector, barrier, fence};
