//! What the operator sees: a line each second, and a summary.

use std::fmt;
use std::time::Duration;

use spinwake::cpu::Chosen;
use spinwake::port::{Port, PortStats};
use spinwake::telemetry::Counter;
use spinwake::wait::WaitPolicy;
use spinwake::worker::Worker;
use spinwake_apps::console::EndRequest;
use spinwake_apps::links::Links;
use spinwake_apps::metrics::PortMetrics;
use spinwake_apps::output::Output;
use spinwake_apps::pace::Pace;
use spinwake_apps::perf::PerfReport;
use spinwake_apps::report::{BitRate, FrameRate, LatencyUs, PoolReport, PortReport, Report, WorkerReport};
use spinwake_apps::worker::{WorkerCounts, WorkerInterval, WorkerLine, WorkerWatch};

use crate::forward::{Forwarder, partner};

/// The counts at one moment.
#[derive(Debug, Clone, Default)]
struct Snapshot {
    at: Duration,
    stats: Vec<PortStats>,
    dropped: Vec<u64>,
    worker: WorkerCounts,
}

/// What is looked at each second.
#[derive(Debug)]
pub(crate) struct Watched<'a> {
    pub(crate) ports: &'a [Box<dyn Port>],
    /// What tells strangers of the ports: it hears of them when they are looked at, so what it tells is a second old at most.
    pub(crate) port_metrics: &'a [PortMetrics],
    pub(crate) watch: &'a WorkerWatch,
    pub(crate) dropped: &'a [Counter],
}

/// What happened from the first second to the last.
#[derive(Debug)]
pub(crate) struct Account {
    start: Snapshot,
    end: Snapshot,
}

/// Where a worker ran, how it waited, and what was counted of it.
#[derive(Debug)]
pub(crate) struct WorkerEnd<'a> {
    pub(crate) core: &'a Chosen,
    pub(crate) wait: WaitPolicy,
    pub(crate) watch: &'a WorkerWatch,
    pub(crate) perf: Option<PerfReport>,
}

impl Watched<'_> {
    /// Reports each second, and each change of a link, until `limit` has passed, `end` is asked for, or the worker dies.
    pub(crate) fn report(
        &self,
        output: &Output,
        worker: &Worker<Forwarder>,
        links: &mut Links,
        limit: Option<Duration>,
        end: &EndRequest,
    ) -> Account {
        let mut pace = Pace::start();
        let start = self.look(pace.at());
        let mut last = start.clone();
        let mut line = WorkerLine::new(self.watch, start.at);
        pace.run(limit, end, |tick| {
            links.look(self.ports.iter().map(|port| &**port), tick.at, output);
            // The last fraction of a second is in the summary, not in a line of its own.
            if tick.second {
                let now = self.look(tick.at);
                output.say(format_args!("{}", Interval { from: &last, to: &now, worker: line.next(tick.at) }));
                last = now;
                if let Some(verdict) = line.verdict() {
                    output.say(format_args!("target  {verdict}"));
                }
            }
            worker.is_running()
        });
        Account { start, end: self.look(pace.at()) }
    }

    /// The counts now, and passes them on.
    fn look(&self, at: Duration) -> Snapshot {
        let stats: Vec<_> = self.ports.iter().map(|port| port.stats()).collect();
        for (metrics, stats) in self.port_metrics.iter().zip(&stats) {
            metrics.update(stats.clone());
        }
        let dropped = self.dropped.iter().map(Counter::get).collect();
        Snapshot { at, stats, dropped, worker: self.watch.counts() }
    }
}

impl Snapshot {
    /// Frames and bytes that left by `port`.
    fn sent(&self, port: usize) -> (u64, u64) {
        let queues = &self.stats[port].queues;
        (queues.iter().map(|q| q.tx_frames).sum(), queues.iter().map(|q| q.tx_bytes).sum())
    }

    /// Frames that came to `port` and got no further.
    fn drops(&self, port: usize) -> u64 {
        self.stats[port].rx_missed + self.dropped[port]
    }
}

/// What happened between two moments, on one line.
struct Interval<'a> {
    from: &'a Snapshot,
    to: &'a Snapshot,
    worker: WorkerInterval,
}

impl fmt::Display for Interval<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = (self.to.at - self.from.at).as_secs_f64();
        write!(f, "{:>4.0} s", self.to.at.as_secs_f64())?;
        let count = self.to.stats.len();
        for (from, to) in (0..count).map(|from| (from, partner(from, count))) {
            let (now, before) = (self.to.sent(to), self.from.sent(to));
            let rate = FrameRate((now.0 - before.0) as f64 / seconds);
            let bits = BitRate((now.1 - before.1) as f64 * 8.0 / seconds);
            write!(f, "  {from}→{to} {rate:>9} {bits:>11}")?;
            match self.to.drops(from) - self.from.drops(from) {
                0 => {}
                drops => write!(f, " {drops} DROPPED")?,
            }
        }
        write!(f, "  {}", self.worker)
    }
}

impl Account {
    /// The whole run, with what the ports counted up to their stop.
    pub(crate) fn report(
        &self,
        specs: &[String],
        ports: &[Box<dyn Port>],
        worker: &WorkerEnd<'_>,
        pool: PoolReport,
    ) -> Report {
        let generators = ports.iter().filter_map(|port| port.generator());
        let latency = generators.map(|report| report.latency_ns).reduce(|mut all, other| {
            all += other;
            all
        });
        let ports = specs.iter().zip(ports).zip(&self.end.dropped);
        let watched = (&self.end.worker.since(&self.start.worker), self.end.at - self.start.at);
        Report {
            seconds: self.end.at.as_secs_f64(),
            ports: ports.map(|((spec, port), dropped)| PortReport::of(spec, &**port, *dropped)).collect(),
            workers: vec![WorkerReport::new(worker.core, worker.wait, worker.watch, watched, worker.perf.clone())],
            pool,
            latency_us: latency.as_ref().and_then(LatencyUs::of),
        }
    }
}

/// The report, for people.
pub(crate) struct Summary<'a>(pub(crate) &'a Report);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let all: u64 = report.ports.iter().map(|port| port.tx_frames).sum();
        let rate = FrameRate(all as f64 / report.seconds);
        writeln!(f, "\nforwarded {all} frames in {:.1} s ({rate})", report.seconds)?;
        for (number, port) in report.ports.iter().enumerate() {
            writeln!(f, "port {number}  {port}")?;
        }
        for worker in &report.workers {
            write!(f, "{worker}")?;
        }
        match &report.latency_us {
            Some(latency) => write!(f, "\nlatency {latency} ({} frames)", latency.frames),
            None => Ok(()),
        }
    }
}
