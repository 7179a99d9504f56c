//! Measures round trips of raw Ethernet frames between two nodes, on any two ports.
//!
//! One node serves: it sends each request back. The other one asks: it sends requests on a schedule that does not wait for
//! answers, and takes times from when a request was due. So a node that stands still for a while shows in every request
//! that was due meanwhile, not in one alone. What stands in the frames is in `message.rs`.

mod checksum;
mod client;
mod flight;
mod gap;
mod message;
mod node;
mod options;
mod report;
mod run;
mod server;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use spinwake::cpu::{self, Chosen, CoreError, CpuSet, Topology};
use spinwake::port::{MacAddr, Port};
use spinwake_apps::console::{self, EndRequest};
use spinwake_apps::file::{OutputFile, Purpose};
use spinwake_apps::metrics::Metrics;
use spinwake_apps::output::Output;
use spinwake_apps::ports::open;

use client::{Client, Request};
use node::{Node, second_core};
use options::{Args, Plan};
use run::{Asker, Run};
use server::Server;

const PLOT: Purpose = Purpose { what: "plot", remedy: "give --plot a file that can be written" };

fn main() -> ExitCode {
    let args = Args::parse();
    console::show_warnings();
    let run = match start(&args) {
        Ok(run) => run,
        Err(error) => return console::refuse(&*error),
    };
    match run.finish(args.worker.seconds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => console::fail(&*error),
    }
}

/// Starts all, or leaves everything as it was. What can be refused without touching a device is refused first.
fn start(args: &Args) -> Result<Run, Box<dyn Error>> {
    let plan = args.plan()?;
    spinwake_pmd::check(&plan.specs())?;
    let topology = Topology::read();
    cpu::choose(&topology, args.worker.core, None, &CpuSet::new())?;
    let output = Output::new(args.worker.json.as_deref())?;
    let plot = args.plot.as_deref().map(|path| OutputFile::open(path, PLOT)).transpose()?;
    let end = EndRequest::listen()?;
    let metrics = Metrics::new();
    let servers = args.worker.serve(&metrics)?;
    let mut starter = Starter { args, topology: &topology, metrics: &metrics, first: None };
    let (asker, server) = match &plan {
        Plan::Serve { spec } => (None, Some(starter.serve(spec, as_it_is(spec)?)?)),
        Plan::Ask { spec, peer } => (Some(starter.ask(spec, as_it_is(spec)?, *peer)?), None),
        Plan::Both { near, far } => {
            let (near_port, far_port) = (as_it_is(near)?, as_it_is(far)?);
            args.fits(far, &*far_port)?;
            let client = starter.ask(near, near_port, far_port.mac())?;
            (Some(client), Some(starter.serve(far, far_port)?))
        }
    };
    let asker = asker.map(|(node, request)| Asker { node, request, plot });
    Ok(Run { output, end, servers, asker, server })
}

/// Opens a port, configured as its spec says.
fn as_it_is(spec: &str) -> Result<Box<dyn Port>, Box<dyn Error>> {
    open(spec, |_, _| {})
}

/// Starts nodes, each on a core of its own.
struct Starter<'a> {
    args: &'a Args,
    topology: &'a Topology,
    metrics: &'a Metrics,
    /// Where the first one runs.
    first: Option<Chosen>,
}

impl Starter<'_> {
    fn ask(
        &mut self,
        spec: &str,
        port: Box<dyn Port>,
        peer: MacAddr,
    ) -> Result<(Node<Client>, Request), Box<dyn Error>> {
        let request = self.args.request(spec, &*port, peer)?;
        let core = self.core(&*port)?;
        let make = |queues, mac, pool| Client::new(queues, mac, pool, request);
        let node = Node::start(("ping", spec), port, core, &self.args.worker, self.metrics, make)?;
        Ok((node, request))
    }

    fn serve(&mut self, spec: &str, port: Box<dyn Port>) -> Result<Node<Server>, Box<dyn Error>> {
        let core = self.core(&*port)?;
        Node::start(("pong", spec), port, core, &self.args.worker, self.metrics, Server::new)
    }

    /// The core that was asked for, and for a second node another one.
    fn core(&mut self, port: &dyn Port) -> Result<Chosen, CoreError> {
        let core = match &self.first {
            None => cpu::choose(self.topology, self.args.worker.core, port.node(), &CpuSet::new())?,
            Some(first) => second_core(self.topology, first, port.node())?,
        };
        self.first.get_or_insert_with(|| core.clone());
        Ok(core)
    }
}
