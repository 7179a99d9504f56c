//! A soft port whose frames a worker sends back, and what one policy makes of some traffic in one slice of time.

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use spinwake::clock::Clock;
use spinwake::cpu::{self, CoreChoice, CpuSet, Topology};
use spinwake::dma::Domain;
use spinwake::frame::{Burst, Pool, PoolConfig};
use spinwake::port::{Port, RxQueue, TxQueue};
use spinwake::telemetry::{Gauge, Snapshot};
use spinwake::wait::{EngineConfig, Source, WaitPolicy};
use spinwake::worker::{Task, Worker, WorkerConfig};
use spinwake_pmd::igb::{IgbPort, Options};
use spinwake_pmd::soft::{self, Control, Gap, Rate, SoftNic};

/// Before a slice, at least: what adaptive learns first is not what it does later.
const WARM_UP: Duration = Duration::from_millis(300);
/// After a slice: what is still under way comes back, and the machine does what it could not do meanwhile.
const REST: Duration = Duration::from_millis(200);

/// How long a policy is looked at, in pieces of one length, and what is left unlooked at around them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    pub(crate) windows: u32,
    pub(crate) rest: Duration,
}

impl Timing {
    /// One after another, with the usual time before and after.
    pub(crate) fn windows(window: Duration, windows: u32) -> Self {
        Self { warm_up: WARM_UP, window, windows, rest: REST }
    }
}

/// Frames at a mean rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) gap_us: u32,
    pub(crate) pattern: Gap,
}

/// One port and whoever serves it.
pub(crate) struct Rig {
    control: Control,
    nic: SoftNic,
    /// Kept open.
    _port: IgbPort,
    /// `None` while a worker has it.
    echo: Option<Echo>,
    core: usize,
    other: usize,
    fifo: Option<u8>,
}

/// Sends back what it receives.
#[derive(Debug)]
struct Echo {
    rx: Box<dyn RxQueue>,
    tx: Box<dyn TxQueue>,
    pool: Pool,
    burst: Burst,
}

impl Task for Echo {
    fn turn(&mut self) -> usize {
        let received = self.rx.rx_burst(&mut self.pool, &mut self.burst);
        if received == 0 {
            self.tx.reclaim(&mut self.pool);
            return 0;
        }
        self.tx.tx_burst(&mut self.pool, &mut self.burst);
        self.pool.give_burst(&mut self.burst);
        received
    }

    fn sources(&mut self, each: &mut dyn FnMut(&mut dyn Source)) {
        each(&mut *self.rx);
    }
}

/// What was measured of one policy in one slice.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    /// From a frame's becoming visible to the driver to the doorbell that sent it back, in nanoseconds.
    pub(crate) response_ns: Histogram<u64>,
    /// The same of the first frame that each doorbell sent: one for each time that the worker came to look.
    pub(crate) first_response_ns: Histogram<u64>,
    pub(crate) time: Duration,
    /// Processor time of the worker's thread, by the kernel's account.
    pub(crate) cpu: Duration,
    /// Of it, in turns that moved frames.
    pub(crate) busy: Duration,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) parks: u64,
    /// Sleeps that work ended.
    pub(crate) wakes: u64,
    pub(crate) rescues: u64,
    pub(crate) regrets: u64,
    pub(crate) spurious: u64,
    /// Looks after arming that found work.
    pub(crate) turned_back: u64,
    /// Time asleep, and with arming and disarming.
    pub(crate) sleeping: Duration,
    pub(crate) arming: Duration,
    pub(crate) wake_ns: Histogram<u64>,
    /// What a sleep costs by the worker's own measurements, in the end: latency at the median and at p99, and processor time, in
    /// nanoseconds.
    pub(crate) cost_ns: [u64; 3],
    /// How long it looked before it slept, in the end, in nanoseconds.
    pub(crate) spin_ns: u64,
    /// How far apart it kept wake-ups, in the end, in nanoseconds.
    pub(crate) hold_ns: u64,
    /// Why the worker could not keep its target in the end, if it could not.
    pub(crate) verdict: Option<String>,
}

impl Rig {
    /// Uses two cores: one for the worker, one for everything else.
    pub(crate) fn new(fifo: Option<u8>) -> Result<Self, Box<dyn Error>> {
        let topology = Topology::read();
        let core = cpu::choose(&topology, CoreChoice::Auto, None, &CpuSet::new())?.core;
        let other = topology.allowed().and_then(|allowed| allowed.iter().find(|other| *other != core));
        let other = other.ok_or("this needs two cores: one for the worker, one for the device that it serves")?;
        // The threads that the device and the calibration make inherit it.
        cpu::pin_current_thread(other)?;
        fifo.map_or(Ok(()), cpu::set_fifo)?;
        let nic = soft::open(&"soft:,queues=1,rate=0".parse()?)?;
        let domain = Domain::new();
        let mut port = IgbPort::open(nic.device(), &domain, Options::default())?;
        let pool = Pool::new_in(&domain, &PoolConfig::default())?;
        let mut queues = port.start()?;
        let (Some(rx), Some(tx)) = (queues.rx.pop(), queues.tx.pop()) else {
            return Err("the port has no queues".into());
        };
        let echo = Echo { rx, tx, pool, burst: Burst::new() };
        Ok(Self { control: nic.control(), nic, _port: port, echo: Some(echo), core, other, fifo })
    }

    /// The worker's core, and that of everything else.
    pub(crate) fn cores(&self) -> (usize, usize) {
        (self.core, self.other)
    }

    /// Runs a worker that waits by `policy` under `traffic`, for `time` after it has warmed up.
    pub(crate) fn run(
        &mut self,
        policy: WaitPolicy,
        traffic: Traffic,
        time: Duration,
    ) -> Result<Slice, Box<dyn Error>> {
        let mut slices = self.run_windows(policy, traffic, Timing::windows(time, 1))?;
        slices.pop().ok_or_else(|| "nothing was measured".into())
    }

    /// The same, with what was measured in each window of `timing`.
    pub(crate) fn run_windows(
        &mut self,
        policy: WaitPolicy,
        traffic: Traffic,
        timing: Timing,
    ) -> Result<Vec<Slice>, Box<dyn Error>> {
        let echo = self.echo.take().ok_or("an earlier worker did not give the port back")?;
        let config =
            WorkerConfig { name: "echo".into(), core: self.core, fifo: self.fifo, wait: EngineConfig::new(policy) };
        let worker = Worker::spawn(config, echo)?;
        self.control.set_traffic(Rate::PerSecond(1_000_000 / traffic.gap_us), traffic.pattern);
        thread::sleep(timing.warm_up);
        let mut readings = vec![Reading::of(&self.nic, &worker)?];
        for _ in 0..timing.windows {
            thread::sleep(timing.window);
            readings.push(Reading::of(&self.nic, &worker)?);
        }
        self.control.set_traffic(Rate::Silent, Gap::Even);
        thread::sleep(timing.rest);
        self.echo = Some(worker.stop()?);
        readings.windows(2).map(|pair| pair[1].since(&pair[0])).collect()
    }
}

/// What was measured of one policy in short windows, by whoever disturbs as little as possible.
pub(crate) struct Windows {
    /// The p99 of response times in each window in which frames came, in microseconds.
    pub(crate) p99_us: Vec<f64>,
    /// Of all windows together, as in a [`Slice`].
    pub(crate) response_ns: Histogram<u64>,
    pub(crate) time: Duration,
    pub(crate) cpu: Duration,
    pub(crate) parks: u64,
}

impl Rig {
    /// As [`run_windows`](Self::run_windows), but for what happens between two windows: a [`Slice`] takes half a
    /// millisecond to read, in which no frame comes, and after which adaptive is asleep.
    pub(crate) fn run_closely(
        &mut self,
        policy: WaitPolicy,
        traffic: Traffic,
        timing: Timing,
    ) -> Result<Windows, Box<dyn Error>> {
        let mut times = Vec::new();
        for _ in 0..=timing.windows {
            let mut empty = new_histogram()?;
            // Its pages are there from now on.
            empty.reset();
            times.push(empty);
        }
        let echo = self.echo.take().ok_or("an earlier worker did not give the port back")?;
        let config =
            WorkerConfig { name: "echo".into(), core: self.core, fifo: self.fifo, wait: EngineConfig::new(policy) };
        let worker = Worker::spawn(config, echo)?;
        let reporter = self.nic.reporter().ok_or("the port has no generator")?;
        let light = || {
            let cpu = worker.cpu_time().ok_or("the worker has ended")?;
            Ok::<_, Box<dyn Error>>((Instant::now(), cpu, worker.waits().parks.get()))
        };
        self.control.set_traffic(Rate::PerSecond(1_000_000 / traffic.gap_us), traffic.pattern);
        thread::sleep(timing.warm_up);
        reporter.exchange_response_times(&mut times[0]);
        let before = light()?;
        for window in &mut times[1..] {
            thread::sleep(timing.window);
            reporter.exchange_response_times(window);
        }
        let after = light()?;
        self.control.set_traffic(Rate::Silent, Gap::Even);
        thread::sleep(timing.rest);
        self.echo = Some(worker.stop()?);
        // The first one is what came before.
        let p99_us = times[1..].iter().filter_map(|times| response_us(times, 0.99)).collect();
        let mut response_ns = new_histogram()?;
        times[1..]
            .iter()
            .try_for_each(|times| response_ns.add(times))
            .map_err(|error| format!("two histograms differ: {error}"))?;
        let (time, cpu, parks) = (after.0 - before.0, after.1.saturating_sub(before.1), after.2 - before.2);
        Ok(Windows { p99_us, response_ns, time, cpu, parks })
    }
}

/// All counters at one moment.
struct Reading {
    at: Instant,
    slice: Slice,
}

impl Reading {
    fn of(nic: &SoftNic, worker: &Worker<Echo>) -> Result<Self, Box<dyn Error>> {
        let at = Instant::now();
        let cpu = worker.cpu_time().ok_or("the worker has ended")?;
        let report = nic.reporter().ok_or("the port has no generator")?.report();
        let (waits, counters) = (worker.waits(), worker.counters());
        let time = |ticks| Duration::from_nanos(Clock::get().ticks_to_ns(ticks));
        let busy = time(counters.busy_ticks.get());
        let slice = Slice {
            response_ns: report.response_ns,
            first_response_ns: report.first_response_ns,
            time: Duration::ZERO,
            cpu,
            busy,
            sent: report.sent,
            received: report.received,
            parks: waits.parks.get(),
            wakes: waits.wakes.get(),
            rescues: waits.rescues.get(),
            regrets: waits.regrets.get(),
            spurious: waits.spurious.get(),
            turned_back: waits.turned_back.get(),
            sleeping: time(waits.sleep_ticks.get()),
            arming: time(waits.arm_ticks.get()),
            wake_ns: histogram(&waits.wake_ns.snapshot())?,
            cost_ns: [&waits.cost_ns, &waits.cost_p99_ns, &waits.cost_cpu_ns].map(Gauge::get),
            spin_ns: waits.spin_ns.get(),
            hold_ns: waits.hold_ns.get(),
            verdict: waits.verdict(),
        };
        Ok(Self { at, slice })
    }

    fn since(&self, before: &Self) -> Result<Slice, Box<dyn Error>> {
        let (now, then) = (&self.slice, &before.slice);
        let since = |now: &Histogram<u64>, then: &Histogram<u64>| {
            let mut since = now.clone();
            since.subtract(then).map_err(|error| format!("a histogram shrank: {error}"))?;
            Ok::<_, String>(since)
        };
        Ok(Slice {
            response_ns: since(&now.response_ns, &then.response_ns)?,
            first_response_ns: since(&now.first_response_ns, &then.first_response_ns)?,
            time: self.at - before.at,
            cpu: now.cpu.saturating_sub(then.cpu),
            busy: now.busy.saturating_sub(then.busy),
            sent: now.sent - then.sent,
            received: now.received - then.received,
            parks: now.parks - then.parks,
            wakes: now.wakes - then.wakes,
            rescues: now.rescues - then.rescues,
            regrets: now.regrets - then.regrets,
            spurious: now.spurious - then.spurious,
            turned_back: now.turned_back - then.turned_back,
            sleeping: now.sleeping.saturating_sub(then.sleeping),
            arming: now.arming.saturating_sub(then.arming),
            wake_ns: since(&now.wake_ns, &then.wake_ns)?,
            cost_ns: now.cost_ns,
            spin_ns: now.spin_ns,
            hold_ns: now.hold_ns,
            verdict: now.verdict.clone(),
        })
    }
}

impl Slice {
    /// Processor time as a share of a core.
    pub(crate) fn cpu_share(&self) -> f64 {
        self.cpu.as_secs_f64() / self.time.as_secs_f64()
    }

    /// Of the time in which there was nothing to do, the share in which the processor was used.
    pub(crate) fn idle_share(&self) -> f64 {
        let idle = self.time.saturating_sub(self.busy).as_secs_f64();
        self.cpu.saturating_sub(self.busy).as_secs_f64() / idle
    }

    /// What its worker was doing, and what it knew, in words.
    pub(crate) fn describe(&self) -> String {
        let part = |time: Duration| 100.0 * time.as_secs_f64() / self.time.as_secs_f64();
        let [median, p99, cpu] = self.cost_ns.map(|ns| ns as f64 / 1e3);
        format!(
            "busy {:.1}%, asleep {:.1}%, arming {:.1}%; {} parks, {} spurious, turned back {}; a sleep costs {median:.1} us (p99 {p99:.1} us), \
             {cpu:.1} us of processor time; spin {:.1} us, hold {:.1} us",
            part(self.busy),
            part(self.sleeping),
            part(self.arming),
            self.parks,
            self.spurious,
            self.turned_back,
            self.spin_ns as f64 / 1e3,
            self.hold_ns as f64 / 1e3,
        )
    }

    /// See [`response_us`].
    pub(crate) fn response_us(&self, q: f64) -> Option<f64> {
        response_us(&self.response_ns, q)
    }

    /// All slices of one policy in one.
    pub(crate) fn sum(slices: &[Self]) -> Result<Self, Box<dyn Error>> {
        let mut sum = slices.first().cloned().ok_or("nothing was measured")?;
        slices.iter().skip(1).try_for_each(|slice| sum.add(slice))?;
        Ok(sum)
    }

    /// Joins what another slice of the same policy measured.
    pub(crate) fn add(&mut self, other: &Self) -> Result<(), Box<dyn Error>> {
        for (sum, more) in [
            (&mut self.response_ns, &other.response_ns),
            (&mut self.first_response_ns, &other.first_response_ns),
            (&mut self.wake_ns, &other.wake_ns),
        ] {
            sum.add(more).map_err(|error| format!("two histograms differ: {error}"))?;
        }
        self.time += other.time;
        self.cpu += other.cpu;
        self.busy += other.busy;
        self.sleeping += other.sleeping;
        self.arming += other.arming;
        for (sum, more) in [
            (&mut self.sent, other.sent),
            (&mut self.received, other.received),
            (&mut self.parks, other.parks),
            (&mut self.wakes, other.wakes),
            (&mut self.rescues, other.rescues),
            (&mut self.regrets, other.regrets),
            (&mut self.spurious, other.spurious),
            (&mut self.turned_back, other.turned_back),
        ] {
            *sum += more;
        }
        Ok(())
    }
}

/// How many times are longer than this, and their share.
pub(crate) fn later_than(times: &Histogram<u64>, limit_ns: u64) -> (u64, f64) {
    let late = times.len() - times.count_between(0, limit_ns);
    (late, late as f64 / times.len().max(1) as f64)
}

/// An empty histogram, as the port's own.
fn new_histogram() -> Result<Histogram<u64>, Box<dyn Error>> {
    Ok(Histogram::new_with_bounds(1, 100_000_000_000, 3)?)
}

/// Response time that a share `q` of all frames does not exceed, in microseconds; `None` if so few came that it is one frame's.
pub(crate) fn response_us(times: &Histogram<u64>, q: f64) -> Option<f64> {
    let beyond = (1.0 - q) * times.len() as f64;
    (beyond >= 1.0).then(|| times.value_at_quantile(q) as f64 / 1e3)
}

/// A live histogram's values in one that can be added to others.
fn histogram(values: &Snapshot) -> Result<Histogram<u64>, Box<dyn Error>> {
    let mut histogram = new_histogram()?;
    for (value, count) in values.buckets() {
        histogram.saturating_record_n(value.max(1), count);
    }
    Ok(histogram)
}
