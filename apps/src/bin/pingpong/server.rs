//! The node that answers.

use std::sync::Arc;

use spinwake::frame::{Burst, Pool};
use spinwake::port::{MacAddr, Queues, RxQueue, TxQueue};
use spinwake::telemetry::{Counter, Gauge};
use spinwake::wait::Source;
use spinwake::worker::Task;
use spinwake_apps::report::PoolReport;

use crate::message::{self, Kind, Load, Refusal};
use crate::node::{Endpoint, home};

/// What a server counts. In cache lines of its own, so that readers do not disturb the worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ServerCounters {
    /// Requests answered.
    pub(crate) answered: Counter,
    /// Requests whose answers the transmit ring had no room for.
    pub(crate) refused: Counter,
    /// Frames that claimed to be requests to us and were not, or were changed on their way.
    pub(crate) spoiled: Counter,
    /// Frames of our protocol for somebody else.
    pub(crate) misaddressed: Counter,
    /// Frames of other protocols.
    pub(crate) foreign: Counter,
}

/// Sends each well-formed request back to its sender, in the buffer in which it came.
#[derive(Debug)]
pub(crate) struct Server {
    rxs: Vec<Box<dyn RxQueue>>,
    txs: Vec<Box<dyn TxQueue>>,
    pool: Pool,
    /// Both are empty between turns.
    received: Burst,
    answers: Burst,
    me: MacAddr,
    counters: Arc<ServerCounters>,
    /// This worker's load, packed: asking the kernel for it is for the thread that has time.
    load: Arc<Gauge>,
}

impl Server {
    pub(crate) fn new(queues: Queues, me: MacAddr, pool: Pool) -> Self {
        Self {
            rxs: queues.rx,
            txs: queues.tx,
            pool,
            received: Burst::new(),
            answers: Burst::new(),
            me,
            counters: Arc::default(),
            load: Arc::default(),
        }
    }

    /// What it counts, for any thread to read.
    pub(crate) fn counters(&self) -> Arc<ServerCounters> {
        self.counters.clone()
    }

    /// What it tells its clients of its load, for one thread to set.
    pub(crate) fn load(&self) -> Arc<Gauge> {
        self.load.clone()
    }

    /// Turns what was received into answers.
    fn answer(&mut self) {
        let Self { pool, received, answers, me, counters, load, .. } = self;
        let load = Load::unpack(load.get());
        for mut frame in received.drain(..) {
            match message::read(&frame, *me, Kind::Request) {
                Ok((from, request)) => {
                    message::trim(&mut frame);
                    let answer = message::Message { kind: Kind::Answer, load, ..request };
                    message::write(&mut frame, from, *me, &answer);
                    answers.push(frame);
                    continue;
                }
                Err(Refusal::Foreign) => counters.foreign.add(1),
                Err(Refusal::Misaddressed) => counters.misaddressed.add(1),
                Err(Refusal::Spoiled) => counters.spoiled.add(1),
            }
            pool.give(frame);
        }
    }
}

impl Task for Server {
    fn turn(&mut self) -> usize {
        let mut moved = 0;
        for queue in 0..self.rxs.len() {
            let received = self.rxs[queue].rx_burst(&mut self.pool, &mut self.received);
            self.answer();
            let to = queue % self.txs.len();
            let tx = &mut self.txs[to];
            if self.answers.is_empty() {
                tx.reclaim(&mut self.pool);
            } else {
                let sent = tx.tx_burst(&mut self.pool, &mut self.answers);
                self.counters.answered.add(sent as u64);
                self.counters.refused.add(self.answers.len() as u64);
                self.pool.give_burst(&mut self.answers);
            }
            moved += received;
        }
        moved
    }

    /// Not the transmit queues: nobody waits for a frame that has been sent.
    fn sources(&mut self, each: &mut dyn FnMut(&mut dyn Source)) {
        self.rxs.iter_mut().for_each(|rx| each(&mut **rx));
    }
}

impl Endpoint for Server {
    fn close(self) -> PoolReport {
        home((self.rxs, self.txs), self.pool)
    }
}
