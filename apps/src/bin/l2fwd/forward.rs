//! The data path: burst in, burst out.

use std::sync::Arc;

use spinwake::frame::{Burst, Frame, Pool};
use spinwake::port::{MacAddr, Queues, RxQueue, TxQueue};
use spinwake::telemetry::Counter;
use spinwake::wait::Source;
use spinwake::worker::Task;
use spinwake_apps::perf::{PerfCounters, PerfReport};
use spinwake_apps::report::PoolReport;

/// The shortest frame on Ethernet (its check sequence aside): a UDP datagram of 18 bytes between two addresses that are
/// set aside for benchmarks (RFC 2544), port 9 (discard), after room for the Ethernet addresses.
#[rustfmt::skip]
const DATAGRAM: [u8; 60] = {
    let mut frame = [0; 60];
    let headers = [
        0x08, 0x00,
        0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0xee, 0x97, 198, 18, 0, 1, 198, 18, 0, 2,
        0, 9, 0, 9, 0, 26, 0, 0,
    ];
    let (_, room) = frame.split_at_mut(12);
    let (room, _) = room.split_at_mut(headers.len());
    room.copy_from_slice(&headers);
    frame
};

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
    /// The number of the port that they come in by.
    from: usize,
}

/// Forwards both ways between the queues of two ports, or back out of one.
#[derive(Debug)]
pub(crate) struct Forwarder {
    lanes: Vec<Lane>,
    txs: Vec<Box<dyn TxQueue>>,
    pool: Pool,
    burst: Burst,
    rewrite: Rewrite,
    /// The addresses that `Rewrite::Own` writes, destination first, by the port that frames come in by.
    addresses: Vec<[u8; 12]>,
    /// Frames that could not be sent on, by the port that they came in by.
    dropped: Arc<[Counter]>,
    perf: Option<PerfCounters>,
    perf_report: Option<PerfReport>,
}

impl Forwarder {
    /// A forwarder for one port or two, given as queues and own address.
    pub(crate) fn new(ports: Vec<(Queues, MacAddr)>, rewrite: Rewrite, pool: Pool, perf: bool) -> Self {
        let count = ports.len();
        let own = |from| {
            let to = partner(from, count);
            let mut pair = [0; 12];
            pair[0] = 2;
            pair[5] = to as u8;
            pair[6..].copy_from_slice(&ports[to].1.0);
            pair
        };
        let addresses = (0..count).map(own).collect();
        let (mut rxs, mut txs, mut own_txs) = (Vec::new(), Vec::new(), Vec::new());
        for (queues, _) in ports {
            rxs.push(queues.rx);
            // All transmit queues stand in one list, those of the first port first.
            own_txs.push(txs.len()..txs.len() + queues.tx.len());
            txs.extend(queues.tx);
        }
        let mut lanes = Vec::new();
        for (from, rxs) in rxs.into_iter().enumerate() {
            let to = &own_txs[partner(from, count)];
            lanes.extend(rxs.into_iter().zip(to.clone().cycle()).map(|(rx, tx)| Lane { rx, tx, from }));
        }
        Self {
            lanes,
            txs,
            pool,
            burst: Burst::new(),
            rewrite,
            addresses,
            dropped: (0..count).map(|_| Counter::default()).collect(),
            perf: perf.then(PerfCounters::default),
            perf_report: None,
        }
    }

    /// Sends `count` frames from each port, as far as its first ring takes them.
    pub(crate) fn send_first(&mut self, count: usize) {
        for from in 0..self.addresses.len() {
            let Some(tx) = self.lanes.iter().find(|lane| lane.from == from).map(|lane| lane.tx) else { return };
            for left in (0..count).rev() {
                let Some(mut frame) = self.pool.take() else { return };
                frame.copy_from(&DATAGRAM);
                set_addresses(&mut frame, &self.addresses[from]);
                self.burst.push(frame);
                if left == 0 || self.burst.is_full() {
                    self.txs[tx].tx_burst(&mut self.pool, &mut self.burst);
                    self.pool.give_burst(&mut self.burst);
                }
            }
        }
    }

    /// Frames dropped so far, by the port that they came in by, for any thread to read.
    pub(crate) fn dropped(&self) -> Arc<[Counter]> {
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
                    let pair = &self.addresses[lane.from];
                    self.burst.iter_mut().for_each(|frame| set_addresses(frame, pair));
                }
            }
            tx.tx_burst(&mut self.pool, &mut self.burst);
            if !self.burst.is_empty() {
                self.dropped[lane.from].add(self.burst.len() as u64);
                self.pool.give_burst(&mut self.burst);
            }
            moved += received;
        }
        moved
    }

    /// Receive queues alone: a frame that was sent keeps its buffer until the next turn, which costs nobody anything, as
    /// the pool has enough for all rings. An interrupt for each completion would double the wake-ups.
    fn sources(&mut self, each: &mut dyn FnMut(&mut dyn Source)) {
        self.lanes.iter_mut().for_each(|lane| each(&mut *lane.rx));
    }

    fn on_stop(&mut self) {
        self.perf_report = self.perf.as_mut().map(PerfCounters::read);
    }
}

/// The port by which frames leave that came in by port `from` of `count`: the other one, or the only one.
pub(crate) fn partner(from: usize, count: usize) -> usize {
    count - 1 - from
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
