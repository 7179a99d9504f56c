//! The queues of a PCI port: the driver's half of a virtqueue, with what is PCI's about it. That is its interrupt, and
//! the way in which its memory is taken back.

use std::sync::Arc;
use std::time::Duration;

use spinwake::frame::{Burst, Pool};
use spinwake::irq::Vector;
use spinwake::port::{RxCounters, RxQueue, TxCounters, TxQueue};
use spinwake::sys::relax::Watch;
use spinwake::wait::{Source, Wake};

use super::irq::Line;
use super::nic::{Nic, Retired};
use crate::virtio::queue::{DriverRx, DriverTx};

/// What both kinds of queue hold of their port.
#[derive(Debug)]
pub(super) struct Hold {
    nic: Arc<Nic>,
    /// The number of the virtqueue.
    index: u16,
    line: Option<Arc<Line>>,
    armed: bool,
}

impl Hold {
    pub(super) fn new(nic: Arc<Nic>, index: u16, line: Option<Arc<Line>>) -> Self {
        nic.born();
        Self { nic, index, line, armed: false }
    }

    fn arm(&mut self) {
        if let Some(line) = &self.line
            && !self.armed
        {
            self.armed = true;
            line.arm(&self.nic);
        }
    }

    fn disarm(&mut self) {
        if let Some(line) = &self.line
            && self.armed
        {
            self.armed = false;
            line.disarm();
        }
    }

    fn fired(&self) {
        if let Some(line) = &self.line {
            line.fired();
        }
    }

    fn retire(&mut self, queue: Option<Retired>) {
        self.disarm();
        if let Some(queue) = queue {
            self.nic.retire(self.index, queue);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.nic.died();
    }
}

/// One receive queue.
#[derive(Debug)]
pub(super) struct PciRx {
    /// There until it is dropped.
    ring: Option<Box<dyn DriverRx>>,
    hold: Hold,
    /// The queue's own, to be had without it.
    counters: Arc<RxCounters>,
}

impl PciRx {
    pub(super) fn new(ring: Box<dyn DriverRx>, hold: Hold) -> Self {
        let counters = ring.counters().clone();
        Self { ring: Some(ring), hold, counters }
    }
}

impl RxQueue for PciRx {
    fn rx_burst(&mut self, pool: &mut Pool, burst: &mut Burst) -> usize {
        self.ring.as_mut().map_or(0, |ring| ring.rx_burst(pool, burst))
    }

    fn vector(&self) -> Option<&Arc<Vector>> {
        self.hold.line.as_ref().map(|line| &line.vector)
    }

    fn counters(&self) -> &Arc<RxCounters> {
        &self.counters
    }
}

impl Drop for PciRx {
    fn drop(&mut self) {
        let ring = self.ring.take().map(|mut ring| {
            ring.disarm();
            Retired::Rx(ring)
        });
        self.hold.retire(ring);
    }
}

/// One transmit queue.
#[derive(Debug)]
pub(super) struct PciTx {
    /// There until it is dropped.
    ring: Option<Box<dyn DriverTx>>,
    hold: Hold,
    /// The queue's own, to be had without it.
    counters: Arc<TxCounters>,
}

impl PciTx {
    pub(super) fn new(ring: Box<dyn DriverTx>, hold: Hold) -> Self {
        let counters = ring.counters().clone();
        Self { ring: Some(ring), hold, counters }
    }
}

impl TxQueue for PciTx {
    fn tx_burst(&mut self, pool: &mut Pool, burst: &mut Burst) -> usize {
        self.ring.as_mut().map_or(0, |ring| ring.tx_burst(pool, burst))
    }

    fn reclaim(&mut self, pool: &mut Pool) -> usize {
        self.ring.as_mut().map_or(0, |ring| ring.reclaim(pool))
    }

    fn in_flight(&self) -> usize {
        self.ring.as_ref().map_or(0, |ring| ring.in_flight())
    }

    fn counters(&self) -> &Arc<TxCounters> {
        &self.counters
    }
}

impl Drop for PciTx {
    fn drop(&mut self) {
        let ring = self.ring.take().map(|mut ring| {
            ring.disarm();
            Retired::Tx(ring)
        });
        self.hold.retire(ring);
    }
}

/// Both kinds are the same source but for their ring.
macro_rules! source {
    ($queue:ty) => {
        impl Source for $queue {
            fn label(&self) -> String {
                self.ring.as_ref().map_or_else(String::new, |ring| ring.label())
            }

            fn pending(&self) -> bool {
                self.ring.as_ref().is_some_and(|ring| ring.pending())
            }

            fn arm(&mut self) {
                if let Some(ring) = &mut self.ring {
                    // First the queue: what the line's arming takes from the device, the look that follows then sees.
                    ring.arm();
                    self.hold.arm();
                }
            }

            fn disarm(&mut self) {
                if let Some(ring) = &mut self.ring {
                    ring.disarm();
                    self.hold.disarm();
                }
            }

            fn wake(&self) -> Wake {
                match &self.hold.line {
                    Some(line) => Wake::Vector(line.vector.clone(), line.kind),
                    None => Wake::Never("the device has no interrupts".into()),
                }
            }

            fn fired(&mut self) {
                self.hold.fired();
            }

            fn watch(&self) -> Option<Watch<'_>> {
                self.ring.as_ref().and_then(|ring| ring.watch())
            }

            fn moderate(&mut self, interval: Duration) -> Option<Duration> {
                self.ring.as_mut().and_then(|ring| ring.moderate(interval))
            }
        }
    };
}
source!(PciRx);
source!(PciTx);
