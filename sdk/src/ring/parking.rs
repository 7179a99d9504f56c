//! A consumer's side of sleeping on its ring.

use std::sync::Arc;

use crate::wait::{Arming, Wake, Waker};

/// What a consumer knows of its own waiting.
#[derive(Debug, Default)]
pub(super) struct Parking {
    name: Option<Box<str>>,
    arming: Arming,
    /// That the ring is closed was work once, and is no more.
    closing_seen: bool,
}

impl Parking {
    /// For another consumer of the same ring.
    pub(super) fn of_clone(&self) -> Self {
        Self { name: self.name.clone(), ..Self::default() }
    }

    pub(super) fn set_name(&mut self, name: Box<str>) {
        self.name = Some(name);
    }

    pub(super) fn label(&self, capacity: usize) -> String {
        self.name.as_ref().map_or_else(|| format!("ring of {capacity}"), ToString::to_string)
    }

    /// Whether a ring that is closed, if it is, keeps its consumer from sleeping: once, so that the consumer looks at it
    /// then, and sleeps on other sources afterwards. A consumer that is not armed looks by itself.
    #[inline]
    pub(super) fn closing_is_work(&self, is_closed: impl FnOnce() -> bool) -> bool {
        self.arming.is_armed() && !self.closing_seen && is_closed()
    }

    pub(super) fn arm(&mut self, waker: &Waker) {
        waker.arm(&mut self.arming);
    }

    /// `is_closed` as of now: the consumer's turn that follows sees at least that.
    pub(super) fn disarm(&mut self, waker: &Waker, is_closed: bool) {
        waker.disarm(&mut self.arming);
        self.closing_seen |= is_closed;
    }
}

/// Makes the waker's eventfd, if this is the first time that a worker waits for the ring.
pub(super) fn wake_by(waker: &Arc<Waker>) -> Wake {
    match waker.vector() {
        Ok(_) => Wake::Waker(Arc::clone(waker)),
        Err(error) => {
            Wake::Never(format!("it got no eventfd: {error}; raise the limit on open files (ulimit -n)").into())
        }
    }
}
