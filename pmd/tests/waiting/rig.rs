//! A soft NIC, and a worker that sends back all it receives.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use spinwake::cpu::Topology;
use spinwake::dma::Domain;
use spinwake::frame::{Burst, Pool, PoolConfig};
use spinwake::irq::IrqKind;
use spinwake::port::{GeneratorReport, Port, PortConfig, Queues, TxQueue};
use spinwake::wait::{EngineConfig, Source, WaitCounters};
use spinwake::worker::{Task, Worker, WorkerConfig};
use spinwake_pmd::igb::{IgbPort, Options};
use spinwake_pmd::soft::{Control, SoftNic, open};

use crate::witness::{Drops, Witness};

/// For anything that must happen at all, on a machine whose cores are all taken.
pub(crate) const LONG: Duration = Duration::from_secs(60);
const FRAMES: usize = 2048;

/// Sends back what comes in.
#[derive(Debug)]
pub(crate) struct Echo {
    rx: Witness,
    tx: Box<dyn TxQueue>,
    /// It sleeps on completed transmits too.
    completions: bool,
    pool: Pool,
}

impl Task for Echo {
    fn turn(&mut self) -> usize {
        let mut burst = Burst::new();
        let received = self.rx.rx.rx_burst(&mut self.pool, &mut burst);
        self.tx.tx_burst(&mut self.pool, &mut burst);
        self.pool.give_burst(&mut burst);
        received + self.tx.reclaim(&mut self.pool)
    }

    fn sources(&mut self, each: &mut dyn FnMut(&mut dyn Source)) {
        each(&mut self.rx);
        if self.completions {
            each(&mut *self.tx);
        }
    }
}

/// How a worker shall be met.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Setup {
    pub(crate) irq: IrqKind,
    pub(crate) wait: EngineConfig,
    pub(crate) completions: bool,
    pub(crate) seed: u64,
}

/// A running worker and its NIC.
pub(crate) struct Rig {
    pub(crate) control: Control,
    pub(crate) worker: Worker<Echo>,
    port: Box<dyn Port>,
    nic: SoftNic,
}

impl Rig {
    pub(crate) fn start(setup: &Setup) -> Self {
        let core = *cores().last().unwrap();
        let nic = open(&format!("soft:,queues=1,rate=0,seed={}", setup.seed).parse().unwrap()).unwrap();
        let domain = Domain::new();
        let (port, mut queues) = start_port(&nic, &domain, setup.irq, 1);
        let echo = Echo {
            rx: Witness::new(queues.rx.remove(0), nic.control()),
            tx: queues.tx.remove(0),
            completions: setup.completions,
            pool: pool(&domain),
        };
        static NAMES: AtomicU32 = AtomicU32::new(0);
        let name = format!("sleeper-{}", NAMES.fetch_add(1, Ordering::Relaxed));
        let config = WorkerConfig { name, core, fifo: None, wait: setup.wait.clone() };
        let worker = Worker::spawn(config, echo).unwrap();
        Self { control: nic.control(), worker, port, nic }
    }

    pub(crate) fn waits(&self) -> &Arc<WaitCounters> {
        self.worker.waits()
    }

    pub(crate) fn report(&self) -> GeneratorReport {
        self.nic.reporter().unwrap().report()
    }

    /// How long its worker and the thread that plays the NICs have waited for a core so far, together: what a busy machine adds.
    pub(crate) fn starved(&self) -> Duration {
        starved(self.worker.name()) + starved("soft-fabric")
    }

    /// Waits until every frame that was sent has come back, stops everything, and sees that each was sent back once, unharmed,
    /// and that no buffer is missing. Returns what became of dropped interrupts, how many sleeps went on with work there until an
    /// interrupt came, and the last report.
    #[track_caller]
    pub(crate) fn stop(mut self) -> (Drops, u64, GeneratorReport) {
        await_that("every frame is back", &self, || {
            let report = self.report();
            report.received == report.sent
        });
        let report = self.report();
        assert_eq!((report.corrupt, report.duplicates), (0, 0), "{self:?}");
        let Echo { rx, tx, mut pool, .. } = self.worker.stop().unwrap();
        let (drops, overdue) = (rx.drops, rx.overdue);
        drop((rx, tx));
        self.port.stop().unwrap();
        assert_eq!(pool.available(), pool.capacity(), "buffers were lost");
        (drops, overdue, report)
    }
}

impl fmt::Debug for Rig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GeneratorReport { sent, received, corrupt, duplicates, .. } = self.report();
        write!(
            f,
            "{}; sent {sent} received {received} corrupt {corrupt} duplicates {duplicates}; {:?}; {:?}; {:?}",
            describe(self.waits()),
            self.control.loop_counts(),
            self.control.counts(),
            self.control.faults(),
        )
    }
}

/// Opens and starts the port of `nic`, with `queues` each way.
pub(crate) fn start_port(nic: &SoftNic, domain: &Domain, irq: IrqKind, queues: u16) -> (Box<dyn Port>, Queues) {
    let options = Options { irq: Some(irq), max_queues: Some(queues) };
    let mut port = IgbPort::open(nic.device(), domain, options).unwrap();
    port.configure(PortConfig { rx_queues: queues, tx_queues: queues, ..PortConfig::default() }).unwrap();
    let queues = port.start().unwrap();
    (Box::new(port), queues)
}

pub(crate) fn pool(domain: &Domain) -> Pool {
    Pool::new_in(domain, &PoolConfig { frames: FRAMES, ..PoolConfig::default() }).unwrap()
}

/// The cores that this process may use.
pub(crate) fn cores() -> Vec<usize> {
    let topology = Topology::read();
    let usable = topology.allowed().cloned().unwrap_or_else(|| topology.present());
    usable.iter().collect()
}

/// What a worker is doing and has done.
pub(crate) fn describe(waits: &WaitCounters) -> String {
    format!(
        "in state {}, {} parks, {} wakes, {} turned back, {} spurious, {} timeouts, {} rescues",
        waits.state(),
        waits.parks.get(),
        waits.wakes.get(),
        waits.turned_back.get(),
        waits.spurious.get(),
        waits.timeouts.get(),
        waits.rescues.get(),
    )
}

/// How long the thread of this process by this name was ready to run and did not (proc(5), schedstat).
fn starved(name: &str) -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let has_name = |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name);
    let ns = tasks.into_iter().find(has_name).and_then(|task| {
        let schedstat = fs::read_to_string(task.join("schedstat")).ok()?;
        schedstat.split_whitespace().nth(1)?.parse().ok()
    });
    Duration::from_nanos(ns.unwrap_or(0))
}

/// Waits until `done` holds; says otherwise that `what` did not come about, and what `who` was doing.
#[track_caller]
pub(crate) fn await_that(what: &str, who: &dyn fmt::Debug, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "\"{what}\" did not come about within {LONG:?}: {who:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A seed from the clock, or the one to repeat.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("SPINWAKE_SEED").ok().map(|seed| seed.parse().expect("SPINWAKE_SEED is a number"));
    given.unwrap_or_else(|| SystemTime::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64 % 1_000_000_000))
}

/// Chance (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `n`, which is not zero.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }
}
