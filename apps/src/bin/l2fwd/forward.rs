//! The data path: burst in, burst out.

use std::sync::Arc;

use spinwake::frame::{Burst, Frame, Pool};
use spinwake::port::{Counter, MacAddr, Queues, RxQueue, TxQueue};
use spinwake::worker::Task;
use spinwake_apps::perf::{PerfCounters, PerfReport};
use spinwake_apps::report::PoolReport;

/// What is done to a frame's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rewrite {
    /// Nothing.
    None,
    /// Source and destination change places.
    Swap,
    /// From the sending port's own address to 02:00:00:00:00:NN.
    Own,
}

/// One receive queue and the transmit queue that its frames leave by.
#[derive(Debug)]
struct Lane {
    rx: Box<dyn RxQueue>,
    tx: usize,
    /// 0 for frames from the first port to the second, 1 for the other way.
    direction: usize,
}

/// Forwards both ways between the queues of two ports.
#[derive(Debug)]
pub(crate) struct Forwarder {
    lanes: Vec<Lane>,
    txs: Vec<Box<dyn TxQueue>>,
    pool: Pool,
    burst: Burst,
    rewrite: Rewrite,
    /// The addresses that `Rewrite::Own` writes, destination first, by direction.
    addresses: [[u8; 12]; 2],
    /// Frames that the other port could not take, by direction.
    dropped: Arc<[Counter; 2]>,
    perf: Option<PerfCounters>,
    perf_report: Option<PerfReport>,
}

impl Forwarder {
    pub(crate) fn new(queues: [Queues; 2], macs: [MacAddr; 2], rewrite: Rewrite, pool: Pool, perf: bool) -> Self {
        let [a, b] = queues;
        let (a_txs, b_txs) = (a.tx.len(), b.tx.len());
        // All transmit queues stand in one list, those of the first port first.
        let to_b = a.rx.into_iter().enumerate().map(|(i, rx)| Lane { rx, tx: a_txs + i % b_txs, direction: 0 });
        let to_a = b.rx.into_iter().enumerate().map(|(i, rx)| Lane { rx, tx: i % a_txs, direction: 1 });
        let own = |to: usize| {
            let mut pair = [0; 12];
            pair[0] = 2;
            pair[5] = to as u8;
            pair[6..].copy_from_slice(&macs[to].0);
            pair
        };
        Self {
            lanes: to_b.chain(to_a).collect(),
            txs: a.tx.into_iter().chain(b.tx).collect(),
            pool,
            burst: Burst::new(),
            rewrite,
            addresses: [own(1), own(0)],
            dropped: Arc::default(),
            perf: perf.then(PerfCounters::default),
            perf_report: None,
        }
    }

    /// Sends `count` broadcast frames from the first port, as far as its ring takes them.
    pub(crate) fn send_first(&mut self, count: usize, from: MacAddr) {
        /// The least that Ethernet carries, without the frame check sequence.
        const LEN: usize = 60;
        /// An EtherType for local experiments (IEEE Std 802).
        const LOCAL_EXPERIMENT: [u8; 2] = [0x88, 0xb5];
        for _ in 0..count {
            let Some(mut frame) = self.pool.take() else { return };
            let mut data = [0; LEN];
            data[..6].copy_from_slice(&MacAddr::BROADCAST.0);
            data[6..12].copy_from_slice(&from.0);
            data[12..14].copy_from_slice(&LOCAL_EXPERIMENT);
            frame.copy_from(&data);
            self.burst.push(frame);
            if self.burst.is_full() {
                self.txs[0].tx_burst(&mut self.pool, &mut self.burst);
                self.pool.give_burst(&mut self.burst);
            }
        }
        self.txs[0].tx_burst(&mut self.pool, &mut self.burst);
        self.pool.give_burst(&mut self.burst);
    }

    /// Frames dropped so far, by direction, for any thread to read.
    pub(crate) fn dropped(&self) -> Arc<[Counter; 2]> {
        self.dropped.clone()
    }

    /// Drops all queues and returns how many frames the pool has, and how many of them did not come home.
    pub(crate) fn close(self) -> PoolReport {
        let Self { lanes, txs, mut pool, .. } = self;
        drop((lanes, txs));
        let frames = pool.capacity();
        PoolReport { frames, missing: frames - pool.available() }
    }

    /// What the processor counted, once the worker has stopped.
    pub(crate) fn perf(&self) -> Option<PerfReport> {
        self.perf_report.clone()
    }
}

impl Task for Forwarder {
    fn on_start(&mut self) {
        // A counter counts the thread that opens it.
        self.perf = self.perf.take().map(|_| PerfCounters::open());
    }

    fn turn(&mut self) -> usize {
        let mut moved = 0;
        for lane in &mut self.lanes {
            let tx = &mut self.txs[lane.tx];
            let received = lane.rx.rx_burst(&mut self.pool, &mut self.burst);
            if received == 0 {
                // Nothing to send: the time to fetch what was sent, so that no frame waits in a ring without need.
                tx.reclaim(&mut self.pool);
                continue;
            }
            match self.rewrite {
                Rewrite::None => {}
                Rewrite::Swap => self.burst.iter_mut().for_each(swap_addresses),
                Rewrite::Own => {
                    let pair = &self.addresses[lane.direction];
                    self.burst.iter_mut().for_each(|frame| set_addresses(frame, pair));
                }
            }
            tx.tx_burst(&mut self.pool, &mut self.burst);
            if !self.burst.is_empty() {
                self.dropped[lane.direction].add(self.burst.len() as u64);
                self.pool.give_burst(&mut self.burst);
            }
            moved += received;
        }
        moved
    }

    fn rx_queues(&mut self, each: &mut dyn FnMut(&mut dyn RxQueue)) {
        self.lanes.iter_mut().for_each(|lane| each(&mut *lane.rx));
    }

    fn on_stop(&mut self) {
        self.perf_report = self.perf.as_mut().map(PerfCounters::read);
    }
}

fn swap_addresses(frame: &mut Frame) {
    if let Some(pair) = frame.data_mut().first_chunk_mut::<12>() {
        pair.rotate_left(6);
    }
}

fn set_addresses(frame: &mut Frame, pair: &[u8; 12]) {
    if let Some(addresses) = frame.data_mut().first_chunk_mut::<12>() {
        *addresses = *pair;
    }
}
