//! A transmit queue.

use std::sync::Arc;
use std::time::Duration;

use spinwake::frame::{Burst, Pool};
use spinwake::port::{TxCounters, TxQueue};
use spinwake::sys::relax::Watch;
use spinwake::wait::{Source, Wake};

use super::follower::Follower;
use crate::virtio::queue::DriverTx;

/// A transmit queue; while there is no back end it takes nothing.
#[derive(Debug)]
pub(super) struct UserTx {
    pub(super) follower: Follower<dyn DriverTx>,
    pub(super) counters: Arc<TxCounters>,
}

impl TxQueue for UserTx {
    #[inline]
    fn tx_burst(&mut self, pool: &mut Pool, burst: &mut Burst) -> usize {
        self.follower.live().map_or(0, |half| half.tx_burst(pool, burst))
    }

    fn reclaim(&mut self, pool: &mut Pool) -> usize {
        self.follower.live().map_or(0, |half| half.reclaim(pool))
    }

    fn in_flight(&self) -> usize {
        self.follower.half().map_or(0, TxQueue::in_flight)
    }

    fn counters(&self) -> &Arc<TxCounters> {
        &self.counters
    }
}

impl Source for UserTx {
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
