//! A receive queue.

use std::sync::Arc;
use std::time::Duration;

use spinwake::frame::{Burst, Pool};
use spinwake::irq::Vector;
use spinwake::port::{RxCounters, RxQueue};
use spinwake::sys::relax::Watch;
use spinwake::wait::{Source, Wake};

use super::follower::Follower;
use crate::virtio::queue::DriverRx;

/// A receive queue, idle while there is no back end.
#[derive(Debug)]
pub(super) struct UserRx {
    pub(super) follower: Follower<dyn DriverRx>,
    pub(super) counters: Arc<RxCounters>,
}

impl RxQueue for UserRx {
    #[inline]
    fn rx_burst(&mut self, pool: &mut Pool, burst: &mut Burst) -> usize {
        self.follower.live().map_or(0, |half| half.rx_burst(pool, burst))
    }

    fn vector(&self) -> Option<&Arc<Vector>> {
        Some(&self.follower.seat().ring.call)
    }

    fn counters(&self) -> &Arc<RxCounters> {
        &self.counters
    }
}

impl Source for UserRx {
    fn label(&self) -> String {
        self.follower.seat().ring.label.clone()
    }

    #[inline]
    fn pending(&self) -> bool {
        self.follower.has_news() || self.follower.half().is_some_and(Source::pending)
    }

    fn arm(&mut self) {
        if let Some(half) = self.follower.half_mut() {
            half.arm();
        }
    }

    fn disarm(&mut self) {
        if let Some(half) = self.follower.half_mut() {
            half.disarm();
        }
    }

    fn wake(&self) -> Wake {
        Wake::Peer(self.follower.seat().ring.call.clone())
    }

    fn fired(&mut self) {
        if let Some(half) = self.follower.half_mut() {
            half.fired();
        }
    }

    fn watch(&self) -> Option<Watch<'_>> {
        self.follower.half().and_then(Source::watch)
    }

    fn moderate(&mut self, interval: Duration) -> Option<Duration> {
        self.follower.half_mut().and_then(|half| half.moderate(interval))
    }
}
