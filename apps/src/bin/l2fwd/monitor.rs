//! What the operator sees: a line each second, a summary, and JSON.

use std::fmt;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use spinwake::cpu::Chosen;
use spinwake::port::{Port, PortStats};
use spinwake::telemetry::Counter;
use spinwake::wait::WaitPolicy;
use spinwake::worker::{Task, Worker};
use spinwake_apps::console::EndRequest;
use spinwake_apps::metrics::PortMetrics;
use spinwake_apps::perf::PerfReport;
use spinwake_apps::report::{BitRate, FrameRate, LatencyUs, PoolReport, PortReport, QueueReport, Report, WorkerReport};
use spinwake_apps::worker::{WorkerCounts, WorkerInterval, WorkerWatch};

use crate::json::{self, JsonError, JsonFile};

type Ports = [Box<dyn Port>; 2];

/// Where lines and JSON go.
#[derive(Debug)]
pub(crate) struct Monitor {
    json: Option<Json>,
}

#[derive(Debug)]
enum Json {
    Stdout,
    File(JsonFile),
}

/// The counts at one moment.
#[derive(Debug, Clone, Default)]
struct Snapshot {
    at: Duration,
    stats: [PortStats; 2],
    dropped: [u64; 2],
    worker: WorkerCounts,
}

/// What is looked at each second.
#[derive(Debug)]
pub(crate) struct Watched<'a> {
    pub(crate) ports: &'a Ports,
    /// What tells strangers of the ports: it hears of them when they are looked at, so what it tells is a second old at most.
    pub(crate) port_metrics: &'a [PortMetrics; 2],
    pub(crate) watch: &'a WorkerWatch,
    pub(crate) dropped: &'a [Counter; 2],
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

impl Monitor {
    /// A monitor that will write JSON to `json`, which is opened now so that a bad path is refused before any work.
    pub(crate) fn new(json: Option<&str>) -> Result<Self, JsonError> {
        let json = match json {
            None => None,
            Some("-") => Some(Json::Stdout),
            Some(path) => Some(Json::File(JsonFile::open(path)?)),
        };
        Ok(Self { json })
    }

    /// Prints a line for the operator: on standard output, unless the JSON goes there.
    pub(crate) fn say(&self, line: fmt::Arguments<'_>) {
        // A closed pipe must not end a forwarder.
        let _ = match self.json {
            Some(Json::Stdout) => writeln!(io::stderr(), "{line}"),
            _ => writeln!(io::stdout(), "{line}"),
        };
    }

    /// Reports each second until `limit` has passed, `end` is asked for, or the worker dies.
    pub(crate) fn watch<T: Task + 'static>(
        &self,
        watched: &Watched<'_>,
        worker: &Worker<T>,
        limit: Option<Duration>,
        end: &EndRequest,
    ) -> Account {
        let begin = Instant::now();
        let look = || watched.look(begin.elapsed());
        let start = look();
        let mut last = start.clone();
        // What it says of the policy before the first turn stands among the worker's notes.
        let mut said = watched.watch.waits().verdict().is_some();
        let mut next = Duration::from_secs(1);
        let mut done = false;
        while !done {
            let until = limit.map_or(next, |limit| limit.min(next));
            while begin.elapsed() < until && !end.is_set() && worker.is_running() {
                thread::sleep((until.saturating_sub(begin.elapsed())).min(Duration::from_millis(50)));
            }
            done = end.is_set() || !worker.is_running() || limit.is_some_and(|limit| begin.elapsed() >= limit);
            // The last fraction of a second is in the summary, not in a line of its own.
            if begin.elapsed() >= next {
                let now = look();
                let state = watched.watch.waits().state();
                let time = now.at - last.at;
                let worker = WorkerInterval { counts: now.worker.since(&last.worker), time, state };
                self.say(format_args!("{}", Interval { from: &last, to: &now, worker }));
                last = now;
                next += Duration::from_secs(1);
                // Its figures change from second to second; once is enough, and the summary has the last ones.
                if !said && let Some(verdict) = watched.watch.waits().verdict() {
                    self.say(format_args!("target  {verdict}"));
                    said = true;
                }
            }
        }
        Account { start, end: look() }
    }

    /// Prints the summary, and writes the JSON.
    pub(crate) fn finish(self, report: &Report) -> Result<(), JsonError> {
        self.say(format_args!("{}", Summary(report)));
        match self.json {
            None => Ok(()),
            Some(Json::Stdout) => {
                json::write(report, io::stdout()).map_err(|source| JsonError::new("standard output", source))
            }
            Some(Json::File(file)) => file.finish(report),
        }
    }
}

impl Watched<'_> {
    /// The counts now, and passes them on.
    fn look(&self, at: Duration) -> Snapshot {
        let stats = [self.ports[0].stats(), self.ports[1].stats()];
        for (metrics, stats) in self.port_metrics.iter().zip(&stats) {
            metrics.update(stats.clone());
        }
        Snapshot { at, stats, dropped: [self.dropped[0].get(), self.dropped[1].get()], worker: self.watch.counts() }
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
        for (from, to) in [(0, 1), (1, 0)] {
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
        specs: &[String; 2],
        ports: &Ports,
        worker: &WorkerEnd<'_>,
        pool: PoolReport,
    ) -> Report {
        let end = Snapshot { stats: [ports[0].stats(), ports[1].stats()], ..self.end.clone() };
        let generators = [ports[0].generator(), ports[1].generator()];
        let latency = generators.iter().flatten().map(|report| report.latency_ns.clone()).reduce(|mut all, other| {
            all += other;
            all
        });
        let port = |i: usize| {
            let stats = &end.stats[i];
            PortReport {
                spec: specs[i].clone(),
                driver: ports[i].driver(),
                mac: ports[i].mac().to_string(),
                rx_frames: stats.queues.iter().map(|q| q.rx_frames).sum(),
                rx_bytes: stats.queues.iter().map(|q| q.rx_bytes).sum(),
                tx_frames: end.sent(i).0,
                tx_bytes: end.sent(i).1,
                drops: end.drops(i),
                errors: stats.rx_errors + stats.queues.iter().map(|q| q.rx_errors + q.rx_lies).sum::<u64>(),
                generated: generators[i].as_ref().map(|g| g.sent),
                sunk: generators[i].as_ref().map(|g| g.received),
                queues: stats
                    .queues
                    .iter()
                    .map(|q| QueueReport { rx_frames: q.rx_frames, tx_frames: q.tx_frames })
                    .collect(),
            }
        };
        let watched = (&end.worker.since(&self.start.worker), end.at - self.start.at);
        Report {
            seconds: end.at.as_secs_f64(),
            ports: vec![port(0), port(1)],
            workers: vec![WorkerReport::new(worker.core, worker.wait, worker.watch, watched, worker.perf.clone())],
            pool,
            latency_us: latency.as_ref().and_then(LatencyUs::of),
        }
    }
}

/// The report, for people.
struct Summary<'a>(&'a Report);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let all: u64 = report.ports.iter().map(|port| port.tx_frames).sum();
        let rate = FrameRate(all as f64 / report.seconds);
        writeln!(f, "\nforwarded {all} frames in {:.1} s ({rate})", report.seconds)?;
        for (i, port) in report.ports.iter().enumerate() {
            let PortReport { spec, rx_frames, tx_frames, drops, errors, .. } = port;
            write!(f, "port {i}  {spec}  received {rx_frames}, sent {tx_frames}, dropped {drops}, broken {errors}")?;
            match port.generated.zip(port.sunk) {
                Some((sent, seen)) => writeln!(f, "; its generator sent {sent}, its sink saw {seen}")?,
                None => writeln!(f)?,
            }
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
