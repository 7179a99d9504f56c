//! The node that asks: sends requests on schedule, and takes the answers.

use std::sync::Arc;
use std::time::Duration;

use spinwake::clock::Clock;
use spinwake::frame::{Burst, Pool};
use spinwake::port::{MacAddr, Queues, RxQueue, TxQueue};
use spinwake::telemetry::{Counter, Gauge, LiveHistogram};
use spinwake::wait::{Source, Timer};
use spinwake::worker::Task;
use spinwake_apps::report::PoolReport;

use crate::flight::{Arrival, Flight};
use crate::gap::{self, Gap, Schedule};
use crate::message::{self, HEADER_LEN, Kind, Load, Message};
use crate::node::{Endpoint, home};

/// A request that has no answer after this time is lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// What to send, to whom, how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) peer: MacAddr,
    /// Bytes of a frame, without its check sequence.
    pub(crate) size: usize,
    pub(crate) gap: Gap,
    /// How many; `None` for no end.
    pub(crate) count: Option<u64>,
}

/// What a client counts. In cache lines of its own, so that readers do not disturb the worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ClientCounters {
    /// Requests sent.
    pub(crate) sent: Counter,
    /// Requests that the transmit ring had no room for when they were due.
    pub(crate) refused: Counter,
    /// Requests answered in time.
    pub(crate) answered: Counter,
    /// Requests that were not.
    pub(crate) lost: Counter,
    /// Answers to those, after all.
    pub(crate) late: Counter,
    /// Answers that came after that to a later request.
    pub(crate) reordered: Counter,
    /// Answers that came once more.
    pub(crate) duplicated: Counter,
    /// Frames that claimed to be answers to us and were not, or were changed on their way.
    pub(crate) spoiled: Counter,
    /// All other frames.
    pub(crate) foreign: Counter,
    /// From when a request was due to its answer, in nanoseconds.
    pub(crate) round_trip_ns: LiveHistogram,
    /// From when a request was due to when the worker sent it, in nanoseconds.
    pub(crate) lag_ns: LiveHistogram,
    /// The peer's load in its first answer, and in the latest one, packed.
    pub(crate) first_load: Gauge,
    pub(crate) last_load: Gauge,
    /// Not zero once all requests are sent, and answered or lost.
    pub(crate) done: Gauge,
}

/// Sends requests and takes answers.
#[derive(Debug)]
pub(crate) struct Client {
    rxs: Vec<Box<dyn RxQueue>>,
    txs: Vec<Box<dyn TxQueue>>,
    pool: Pool,
    /// Empty between turns.
    burst: Burst,
    me: MacAddr,
    request: Request,
    payload: Vec<u8>,
    session: u32,
    /// Requests that are still to be sent.
    left: u64,
    /// `None` until it begins.
    schedule: Option<Schedule>,
    flight: Flight,
    /// When there is something to do even if no frame comes.
    timer: Timer,
    counters: Arc<ClientCounters>,
    clock: Clock,
}

impl Client {
    pub(crate) fn new(queues: Queues, me: MacAddr, pool: Pool, request: Request) -> Self {
        let clock = Clock::get();
        let patience = clock.ns_to_ticks(PATIENCE.as_nanos() as u64);
        Self {
            rxs: queues.rx,
            txs: queues.tx,
            pool,
            burst: Burst::new(),
            me,
            request,
            payload: (HEADER_LEN..request.size).map(|at| at as u8).collect(),
            session: gap::random() as u32,
            left: request.count.unwrap_or(u64::MAX),
            schedule: None,
            flight: Flight::new(patience),
            timer: Timer::new("next request"),
            counters: Arc::default(),
            clock,
        }
    }

    /// What it counts, for any thread to read.
    pub(crate) fn counters(&self) -> Arc<ClientCounters> {
        self.counters.clone()
    }

    /// The first request is due now.
    pub(crate) fn begin(&mut self) {
        self.schedule = Some(Schedule::new(self.request.gap, self.clock, self.clock.now()));
    }

    /// No more requests: what is under way is waited for.
    pub(crate) fn wind_up(&mut self) {
        self.left = 0;
    }

    /// Takes what has come in; returns how many frames that were.
    fn receive(&mut self) -> usize {
        let mut received = 0;
        for queue in 0..self.rxs.len() {
            received += self.rxs[queue].rx_burst(&mut self.pool, &mut self.burst);
            if self.burst.is_empty() {
                continue;
            }
            let now = self.clock.now();
            for at in 0..self.burst.len() {
                let answer = message::read(&self.burst[at], self.me, Kind::Answer);
                match answer {
                    Ok((from, message)) if from == self.request.peer => self.take(&message, now),
                    Ok(_) | Err(message::Refusal::Spoiled) => self.counters.spoiled.add(1),
                    Err(message::Refusal::Foreign | message::Refusal::Misaddressed) => self.counters.foreign.add(1),
                }
            }
            self.pool.give_burst(&mut self.burst);
        }
        received
    }

    fn take(&mut self, answer: &Message, now: u64) {
        let (counters, clock) = (&self.counters, self.clock);
        let arrival = if answer.session == self.session {
            self.flight.arrive(answer.sequence, |due| clock.ticks_to_ns(due) == answer.due_ns)
        } else {
            Arrival::Unknown
        };
        match arrival {
            Arrival::Answer { due, reordered } => {
                counters.answered.add(1);
                counters.round_trip_ns.record(clock.ticks_to_ns(now.saturating_sub(due)));
                if reordered {
                    counters.reordered.add(1);
                } else {
                    note_load(counters, answer.load);
                }
            }
            Arrival::Duplicate => counters.duplicated.add(1),
            Arrival::Late => counters.late.add(1),
            Arrival::Unknown => counters.spoiled.add(1),
        }
    }

    /// Sends what is due; returns how many requests that were.
    fn send(&mut self) -> usize {
        let Some(schedule) = &mut self.schedule else { return 0 };
        while self.left > 0 && self.flight.has_room() && !self.burst.is_full() {
            let now = self.clock.now();
            let due = schedule.due();
            if now < due {
                break;
            }
            // The pool has enough for all rings, so one comes home soon.
            let Some(mut frame) = message::build(&mut self.pool, &self.payload) else { break };
            let message = Message {
                kind: Kind::Request,
                session: self.session,
                sequence: self.flight.next(),
                due_ns: self.clock.ticks_to_ns(due),
                load: Load::default(),
            };
            message::write(&mut frame, self.request.peer, self.me, &message);
            self.flight.send(due, now);
            self.burst.push(frame);
            schedule.advance();
            self.left -= 1;
        }
        let Some(tx) = self.txs.first_mut() else { return 0 };
        if self.burst.is_empty() {
            tx.reclaim(&mut self.pool);
            return 0;
        }
        let sent = tx.tx_burst(&mut self.pool, &mut self.burst);
        self.counters.sent.add(sent as u64);
        if !self.burst.is_empty() {
            let refused = self.burst.len() as u64;
            self.counters.refused.add(refused);
            self.flight.withdraw(refused);
            self.pool.give_burst(&mut self.burst);
        }
        for lag in self.flight.lags(sent as u64) {
            self.counters.lag_ns.record(self.clock.ticks_to_ns(lag));
        }
        sent
    }

    /// Says when the next turn must come at the latest.
    fn set_timer(&mut self) {
        let next = self.schedule.as_ref().filter(|_| self.left > 0 && self.flight.has_room()).map(Schedule::due);
        match next.into_iter().chain(self.flight.deadline()).min() {
            Some(ticks) => self.timer.set_at(ticks),
            None => {
                self.timer.clear();
                let done = self.left == 0 && self.flight.is_empty();
                self.counters.done.set(done.into());
            }
        }
    }
}

impl Task for Client {
    fn turn(&mut self) -> usize {
        let received = self.receive();
        let sent = self.send();
        let lost = self.flight.expire(self.clock.now());
        self.counters.lost.add(lost);
        self.set_timer();
        received + sent + lost as usize
    }

    /// Not the transmit queue: nobody waits for a frame that has been sent.
    fn sources(&mut self, each: &mut dyn FnMut(&mut dyn Source)) {
        self.rxs.iter_mut().for_each(|rx| each(&mut **rx));
        each(&mut self.timer);
    }
}

impl Endpoint for Client {
    fn close(self) -> PoolReport {
        home((self.rxs, self.txs), self.pool)
    }
}

/// Keeps the first and the latest load of a peer, which may have started anew in between.
fn note_load(counters: &ClientCounters, load: Load) {
    let last = counters.last_load.get();
    if last == 0 || load.up_ms < Load::unpack(last).up_ms {
        counters.first_load.set(load.pack());
    }
    counters.last_load.set(load.pack());
}
