//! The atomics of a ring: the standard library's, or loom's when its model checker explores them (`cfg(loom)`).

#[cfg(not(loom))]
pub(super) use std::sync::{Arc, atomic};

#[cfg(loom)]
pub(super) use loom::sync::{Arc, atomic};
