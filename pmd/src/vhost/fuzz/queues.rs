//! A queue of either direction, with what it must keep to.

use std::sync::Arc;

use spinwake::frame::{Burst, Frame, Pool};
use spinwake::port::{RxCounters, RxQueue, TxCounters, TxQueue};
use spinwake::wait::Source;

use super::super::rx::{LARGEST_FRAME, VhostRx};
use super::super::slot::RingSlot;
use super::super::tx::VhostTx;
use crate::fuzz::{Input, buffers};

/// Frames that a program keeps for a while at most.
const KEPT: usize = 40;

/// A queue, its counters, and what they must be.
pub(super) struct Queue {
    half: Half,
    slot: Arc<RingSlot>,
    rx: Arc<RxCounters>,
    tx: Arc<TxCounters>,
    frames: u64,
    bytes: u64,
}

enum Half {
    /// Between two queues of one slot.
    None,
    Rx(VhostRx),
    Tx(VhostTx),
}

impl Queue {
    pub(super) fn new(slot: &Arc<RingSlot>, receives: bool) -> Self {
        let (rx, tx) = (Arc::<RxCounters>::default(), Arc::<TxCounters>::default());
        let half = if receives {
            Half::Rx(VhostRx::new("fuzz rx".into(), slot.clone(), LARGEST_FRAME, rx.clone()))
        } else {
            Half::Tx(VhostTx::new("fuzz tx".into(), slot.clone(), LARGEST_FRAME, tx.clone()))
        };
        Self { half, slot: slot.clone(), rx, tx, frames: 0, bytes: 0 }
    }

    /// Drops the queue and makes another, as a stop and a start of the port do; `between` with none there.
    pub(super) fn renew(&mut self) {
        self.half = match std::mem::replace(&mut self.half, Half::None) {
            Half::Rx(old) => {
                drop(old);
                Half::Rx(VhostRx::new("fuzz rx".into(), self.slot.clone(), LARGEST_FRAME, self.rx.clone()))
            }
            Half::Tx(old) => {
                drop(old);
                Half::Tx(VhostTx::new("fuzz tx".into(), self.slot.clone(), LARGEST_FRAME, self.tx.clone()))
            }
            Half::None => Half::None,
        };
    }

    /// A burst, on whatever stands in the ring. Frames that came are put into `kept`.
    pub(super) fn burst(&mut self, pool: &mut Pool, input: &mut Input<'_>, kept: &mut Vec<Frame>) -> usize {
        let moved = match &mut self.half {
            Half::None => 0,
            Half::Rx(rx) => {
                let mut burst = Burst::new();
                let moved = rx.rx_burst(pool, &mut burst);
                assert_eq!(moved, burst.len());
                for frame in &burst {
                    assert!((1..=LARGEST_FRAME).contains(&frame.total_len()));
                    self.bytes += frame.total_len() as u64;
                    if let Some((l2_len, l3_len, ..)) = frame.requested_checksums() {
                        assert!(l2_len + l3_len + 8 <= frame.len(), "a checksum beyond the frame's first segment");
                    }
                }
                kept.extend(burst);
                moved
            }
            Half::Tx(tx) => {
                let mut burst = input.burst(pool);
                let all = burst.len();
                let moved = tx.tx_burst(pool, &mut burst);
                assert_eq!(moved + burst.len(), all);
                assert_eq!(tx.in_flight(), 0);
                pool.give_burst(&mut burst);
                tx.reclaim(pool);
                moved
            }
        };
        self.frames += moved as u64;
        while kept.len() > KEPT {
            pool.give(kept.remove(0));
        }
        assert_eq!(pool.available() + buffers(kept), pool.capacity());
        if let Half::Rx(_) = self.half {
            assert_eq!((self.rx.frames.get(), self.rx.bytes.get()), (self.frames, self.bytes));
        } else {
            assert_eq!(self.tx.frames.get() + self.tx.refused.get(), self.frames);
        }
        moved
    }

    /// What the engine does between bursts.
    pub(super) fn wait(&mut self, input: &mut Input<'_>) {
        let source: &mut dyn Source = match &mut self.half {
            Half::None => return,
            Half::Rx(rx) => rx,
            Half::Tx(tx) => tx,
        };
        match input.below(4) {
            0 => source.arm(),
            1 => source.disarm(),
            2 => source.fired(),
            _ => drop(source.watch()),
        }
        source.pending();
    }
}
