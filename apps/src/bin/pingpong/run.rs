//! A run from its first request to its summary.

use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use spinwake::port::Port;
use spinwake::telemetry::Gauge;
use spinwake_apps::console::EndRequest;
use spinwake_apps::file::OutputFile;
use spinwake_apps::links::Links;
use spinwake_apps::metrics::MetricsServer;
use spinwake_apps::output::Output;
use spinwake_apps::pace::{Pace, Tick};
use spinwake_apps::ports::introduce_servers;
use spinwake_apps::report::Rate;
use spinwake_apps::worker::{WorkerCounts, WorkerLine};

use crate::client::{Client, ClientCounters, PATIENCE, Request};
use crate::message::Load;
use crate::node::Node;
use crate::report::{self, ClientReport, ClientSecond, Report, ServerReport};
use crate::server::{Server, ServerCounters};

/// How long a worker may take to get to a request of ours.
const CALL: Duration = Duration::from_secs(10);

/// Nobody answered.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    #[error(
        "none of {sent} requests was answered: does `pingpong --serve` run on the node with the address {peer}, and do frames reach it?"
    )]
    ByPeer { sent: u64, peer: String },
    #[error(
        "none of {sent} requests was answered: is {near} connected to {far}? Embedded cards are by the same wire=, as in soft:a,wire=w \
         and soft:b,wire=w"
    )]
    ByLoop { sent: u64, near: String, far: String },
}

/// A node that asks.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) node: Node<Client>,
    pub(crate) request: Request,
    pub(crate) plot: Option<OutputFile>,
}

/// All nodes of this process, started: one that asks, one that answers, or both.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) output: Output,
    pub(crate) end: EndRequest,
    /// They answer until the program ends.
    pub(crate) servers: Vec<MetricsServer>,
    pub(crate) asker: Option<Asker>,
    pub(crate) server: Option<Node<Server>>,
}

/// What was watched.
struct Watched {
    time: Duration,
    /// What each worker did in that time, in the order of their ports.
    workers: Vec<WorkerCounts>,
}

impl Run {
    /// Asks and answers until `limit` has passed, all is asked, or the operator ends it; then stops all, and sums up.
    pub(crate) fn finish(self, limit: Option<Duration>) -> Result<(), Box<dyn Error>> {
        self.introduce();
        let mut links = Links::new(self.ports());
        if let Some(asker) = &self.asker {
            // What is sent before that is lost.
            links.await_up(self.ports().map(|(_, port)| port), limit, &self.output, &self.end)?;
            // Whoever ends it before there is a link has asked nothing.
            if !self.end.is_set() {
                asker.node.worker.call(CALL, Client::begin)?;
            }
        }
        let watched = self.watch(&mut links, limit)?;

        let Self { output, asker, server, .. } = self;
        let mut counts = watched.workers.iter().copied();
        let mut stop_counts = || (counts.next().unwrap_or_default(), watched.time);
        let mut report = Report::new(watched.time);
        let mut plot = None;
        if let Some(Asker { node, request, plot: file }) = asker {
            let counters = node.worker.call(CALL, |client| client.counters())?;
            let end = node.stop(stop_counts())?;
            report.client = Some(ClientReport::of(&request, &counters, end.worker.cpu_share));
            report.add(end);
            plot = file.filter(|_| counters.answered.get() > 0).map(|file| (file, report::plot(&request, &counters)));
        }
        if let Some(node) = server {
            let counters = node.worker.call(CALL, |server| server.counters())?;
            report.server = Some(ServerReport::of(&counters));
            report.add(node.stop(stop_counts())?);
        }
        output.finish(&report, &report)?;
        if let Some((file, svg)) = plot {
            file.finish(&svg?)?;
        }
        match &report.client {
            Some(client) if client.is_unheard() => {
                let sent = client.sent();
                Err(match &report.ports[..] {
                    [near, far] => Unheard::ByLoop { sent, near: near.spec.clone(), far: far.spec.clone() },
                    _ => Unheard::ByPeer { sent, peer: client.peer().into() },
                }
                .into())
            }
            _ => Ok(()),
        }
    }

    fn introduce(&self) {
        let output = &self.output;
        if let Some(asker) = &self.asker {
            asker.node.introduce(output, 0);
        }
        if let Some(node) = &self.server {
            node.introduce(output, usize::from(self.asker.is_some()));
        }
        introduce_servers(output, &self.servers);
        match (&self.asker, &self.server) {
            (Some(Asker { request, .. }), _) => {
                let Request { peer, size, gap, .. } = request;
                output.say(format_args!("asking  {peer}, frames of {size} bytes, due {gap}"));
            }
            (None, Some(node)) => {
                let mac = node.port.mac();
                output.say(format_args!("serving at {mac}; on the other node: pingpong --port SPEC --peer {mac}"));
            }
            (None, None) => {}
        }
    }

    /// Its ports with their specs, in the order of their numbers.
    fn ports(&self) -> impl Iterator<Item = (&str, &dyn Port)> + Clone {
        let near = self.asker.iter().map(|asker| (&*asker.node.spec, &*asker.node.port));
        near.chain(self.server.iter().map(|node| (&*node.spec, &*node.port)))
    }

    /// What its workers have counted, in the same order.
    fn counts(&self) -> Vec<WorkerCounts> {
        let near = self.asker.iter().map(|asker| asker.node.watch.counts());
        near.chain(self.server.iter().map(|node| node.watch.counts())).collect()
    }

    /// Says what happens until it is over, and waits for answers that are under way then.
    fn watch(&self, links: &mut Links, limit: Option<Duration>) -> Result<Watched, Box<dyn Error>> {
        let start = self.counts();
        let mut pace = Pace::start();
        let mut asking = self.asker.as_ref().map(|asker| Asking::new(&asker.node)).transpose()?;
        let mut answering = self.server.as_ref().map(Answering::new).transpose()?;
        pace.run(limit, &self.end, |tick| {
            links.look(self.ports().map(|(_, port)| port), tick.at, &self.output);
            // Answering first, as asking is where the line is made when there are both.
            let answered = answering.as_mut().and_then(|answering| answering.look(tick));
            let asked = asking.as_mut().and_then(|asking| asking.look(tick));
            if let Some(line) = asked.or(answered) {
                self.output.say(format_args!("{line}"));
            }
            let goes_on = asking.as_ref().is_none_or(Asking::goes_on);
            goes_on && answering.as_ref().is_none_or(Answering::goes_on)
        });
        let workers = self.counts().iter().zip(&start).map(|(now, then)| now.since(then)).collect();
        let watched = Watched { time: pace.at(), workers };
        if let Some(asking) = &asking {
            asking.node.worker.call(CALL, Client::wind_up)?;
            let begin = Instant::now();
            while asking.goes_on() && begin.elapsed() < 2 * PATIENCE {
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(watched)
    }
}

/// What is looked at while a node asks.
struct Asking<'a> {
    node: &'a Node<Client>,
    counters: Arc<ClientCounters>,
    last: ClientSecond,
    line: WorkerLine,
}

impl<'a> Asking<'a> {
    fn new(node: &'a Node<Client>) -> Result<Self, Box<dyn Error>> {
        let counters = node.worker.call(CALL, |client| client.counters())?;
        let last = ClientSecond::now(Duration::ZERO, &counters);
        Ok(Self { node, counters, last, line: WorkerLine::new(&node.watch, Duration::ZERO) })
    }

    /// The line of a second that has passed.
    fn look(&mut self, tick: Tick) -> Option<String> {
        tick.second.then(|| {
            self.node.tell();
            let now = ClientSecond::now(tick.at, &self.counters);
            let line = format!("{}  {}", now.since(&self.last), self.line.next(tick.at));
            self.last = now;
            with_verdict(line, &mut self.line)
        })
    }

    fn goes_on(&self) -> bool {
        self.counters.done.get() == 0 && self.node.worker.is_running()
    }
}

/// What is looked at while a node answers.
struct Answering<'a> {
    node: &'a Node<Server>,
    counters: Arc<ServerCounters>,
    load: Arc<Gauge>,
    begin: WorkerCounts,
    last: (Duration, u64),
    line: WorkerLine,
}

impl<'a> Answering<'a> {
    fn new(node: &'a Node<Server>) -> Result<Self, Box<dyn Error>> {
        let (counters, load) = node.worker.call(CALL, |server| (server.counters(), server.load()))?;
        let (begin, line) = (node.watch.counts(), WorkerLine::new(&node.watch, Duration::ZERO));
        Ok(Self { node, counters, load, begin, last: (Duration::ZERO, 0), line })
    }

    /// Tells the worker of its load, and returns the line of a second that has passed.
    fn look(&mut self, tick: Tick) -> Option<String> {
        if let Some(cpu) = self.node.watch.counts().since(&self.begin).cpu {
            let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
            self.load.set(Load { cpu_ms: ms(cpu), up_ms: ms(tick.at) }.pack());
        }
        tick.second.then(|| {
            self.node.tell();
            let (at, answered) = (tick.at, self.counters.answered.get());
            let rate = Rate((answered - self.last.1) as f64 / (at - self.last.0).as_secs_f64()).to_string();
            self.last = (at, answered);
            let line = format!("{:>4.0} s  answered {rate:>8}  {}", at.as_secs_f64(), self.line.next(at));
            with_verdict(line, &mut self.line)
        })
    }

    fn goes_on(&self) -> bool {
        self.node.worker.is_running()
    }
}

/// Adds what the policy says of its target, if that is new.
fn with_verdict(line: String, worker: &mut WorkerLine) -> String {
    match worker.verdict() {
        Some(verdict) => format!("{line}\ntarget  {verdict}"),
        None => line,
    }
}
