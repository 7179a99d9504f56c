//! A soft NIC with the igb driver, and a worker that sends back all it receives.

use std::time::{Duration, Instant};

use spinwake::dma::Domain;
use spinwake::frame::{Burst, Pool, PoolConfig};
use spinwake::irq::IrqKind;
use spinwake::port::{GeneratorReport, Port, PortConfig, Queues};
use spinwake_pmd::igb::{IgbPort, Options};
use spinwake_pmd::soft::{Control, Fault, SoftNic, open};

/// For anything that must happen at all, on a machine whose cores are all taken.
pub(crate) const LONG: Duration = Duration::from_secs(60);
const FRAMES: usize = 4096;

pub(crate) struct Rig {
    pub(crate) control: Control,
    pub(crate) port: Box<dyn Port>,
    pub(crate) queues: Queues,
    pub(crate) pool: Pool,
    pub(crate) echoed: u64,
    /// Frames that did not fit the transmit ring.
    pub(crate) dropped: u64,
    pub(crate) nic: SoftNic,
}

impl Rig {
    pub(crate) fn new(spec: &str) -> Self {
        Self::with(spec, PortConfig::default(), None)
    }

    pub(crate) fn with(spec: &str, config: PortConfig, irq: Option<IrqKind>) -> Self {
        let nic = open(&spec.parse().unwrap()).unwrap();
        let domain = Domain::new();
        let mut port = IgbPort::open(nic.device(), &domain, Options { irq, ..Options::default() }).unwrap();
        port.configure(config).unwrap();
        let pool = Pool::new_in(&domain, &PoolConfig { frames: FRAMES, ..PoolConfig::default() }).unwrap();
        let queues = port.start().unwrap();
        let mut rig = Self { control: nic.control(), port: Box::new(port), queues, pool, echoed: 0, dropped: 0, nic };
        // Rings are filled by the first burst: without it the first frames would find no room.
        rig.echo();
        rig
    }

    /// One look at every queue; what came in goes out. Returns how many frames came in.
    pub(crate) fn echo(&mut self) -> usize {
        let mut burst = Burst::new();
        let mut moved = 0;
        let Queues { rx, tx } = &mut self.queues;
        for (rx, tx) in rx.iter_mut().zip(tx.iter_mut()) {
            moved += rx.rx_burst(&mut self.pool, &mut burst);
            self.echoed += tx.tx_burst(&mut self.pool, &mut burst) as u64;
            self.dropped += burst.len() as u64;
            self.pool.give_burst(&mut burst);
            tx.reclaim(&mut self.pool);
        }
        moved
    }

    /// Echoes until `done` holds.
    #[track_caller]
    pub(crate) fn echo_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + LONG;
        while !done(self) {
            assert!(Instant::now() < deadline, "it did not happen within {LONG:?}: {}", self.describe());
            if self.echo() == 0 {
                std::thread::yield_now();
            }
        }
    }

    /// Sends `n` generator frames through, and waits until all that the wire let pass came back or were refused.
    #[track_caller]
    pub(crate) fn pass(&mut self, n: u32) {
        for _ in 0..n.div_ceil(100) {
            self.control.send(n.min(100));
            self.quiet();
        }
    }

    /// Waits until nothing is on its way any more.
    #[track_caller]
    pub(crate) fn quiet(&mut self) {
        let mut calm = 0;
        self.echo_until(|rig| {
            assert!(rig.control.settle(LONG));
            let before = rig.echoed;
            rig.echo();
            let in_flight: usize = rig.queues.tx.iter().map(|tx| tx.in_flight()).sum();
            // Frames may be late on the wire by design; a few looks apart in time cover that.
            calm = if rig.echoed == before && in_flight == 0 { calm + 1 } else { 0 };
            std::thread::sleep(Duration::from_micros(500));
            calm >= 6
        });
    }

    pub(crate) fn report(&self) -> GeneratorReport {
        self.nic.reporter().unwrap().report()
    }

    pub(crate) fn made(&self, fault: Fault) -> u64 {
        self.control.faults().made(fault)
    }

    /// The rule of the house: whatever went wrong, we duplicated and corrupted nothing, and every buffer is at home.
    #[track_caller]
    pub(crate) fn check(&mut self) {
        let report = self.report();
        assert_eq!((report.corrupt, report.duplicates), (0, 0), "{}", self.describe());
        let counts = self.control.counts();
        assert_eq!(
            (counts.dma_faults, counts.bad_descriptors, counts.unknown_registers),
            (0, 0, 0),
            "{}",
            self.describe()
        );
        self.stop();
    }

    /// Ends the queues, stops the port, and sees that the pool is whole.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.queues.rx.clear();
        self.queues.tx.clear();
        self.port.stop().unwrap();
        assert_eq!(self.pool.available(), self.pool.capacity(), "buffers were lost");
    }

    pub(crate) fn describe(&self) -> String {
        let report = self.report();
        format!(
            "sent {} received {} corrupt {} duplicates {}; echoed {} dropped {}; {:?}; {:?}; {:?}",
            report.sent,
            report.received,
            report.corrupt,
            report.duplicates,
            self.echoed,
            self.dropped,
            self.control.counts(),
            self.control.faults(),
            self.port.stats(),
        )
    }
}
