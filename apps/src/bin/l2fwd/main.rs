//! Forwards frames both ways between two ports, or back out of one, on one pinned worker.
//!
//! Reads top to bottom: open the ports, choose a core, start the ports, give their queues to a worker, report each second,
//! stop in the reverse order. The forwarding itself is `forward.rs`.

mod forward;
mod monitor;
mod offload;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use spinwake::cpu::{self, Chosen, CpuSet, Topology};
use spinwake::port::Port;
use spinwake::telemetry::Counter;
use spinwake::wait::EngineConfig;
use spinwake::worker::{Worker, WorkerConfig};
use spinwake_apps::console::{self, EndRequest};
use spinwake_apps::links::Links;
use spinwake_apps::metrics::{Metrics, MetricsServer, PortMetrics, WorkerSample};
use spinwake_apps::options::WorkerOptions;
use spinwake_apps::output::Output;
use spinwake_apps::ports::{introduce_port, introduce_servers, introduce_worker, open, pool_for};
use spinwake_apps::worker::WorkerWatch;

use forward::{Forwarder, Rewrite, partner};
use monitor::{Summary, Watched, WorkerEnd};

/// How long a worker may take to get to a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Forwards frames both ways between two ports, or back out of one, on one pinned worker.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Without --port it forwards between two embedded NICs with built-in traffic generators."
)]
struct Args {
    /// A port, as KIND:ADDRESS[,key=value]...; give two, or one to send frames back out where they came in
    #[arg(long = "port", value_name = "SPEC")]
    ports: Vec<String>,

    /// Swap source and destination address of each frame
    #[arg(long, conflicts_with = "mac_rewrite")]
    mac_swap: bool,

    /// Send each frame from the sending port's own address to 02:00:00:00:00:NN, NN being that port's number
    #[arg(long)]
    mac_rewrite: bool,

    /// Let frames pass with unfinished checksums, and large ones uncut, where the port they leave by can finish them: less
    /// work for virtual machines, a little more for each frame here
    #[arg(long)]
    offload: bool,

    #[command(flatten)]
    worker: WorkerOptions,

    /// Send this many frames of 60 bytes from each port once all have a link: between two cabled ports they circle
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=256))]
    tx_first: u16,

    /// Count the worker's cycles, instructions, cache and TLB misses and context switches
    #[arg(long)]
    perf: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    console::show_warnings();
    let running = match Running::start(&args) {
        Ok(running) => running,
        Err(error) => return console::refuse(&*error),
    };
    match running.finish(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => console::fail(&*error),
    }
}

/// The ports and the worker between them.
struct Running {
    specs: Vec<String>,
    core: Chosen,
    output: Output,
    end: EndRequest,
    dropped: Arc<[Counter]>,
    worker: Worker<Forwarder>,
    watch: WorkerWatch,
    ports: Vec<Box<dyn Port>>,
    port_metrics: Vec<PortMetrics>,
    /// They answer until the program ends.
    servers: Vec<MetricsServer>,
}

impl Running {
    /// Starts all, or leaves everything as it was. What can be refused without touching a device is refused first.
    fn start(args: &Args) -> Result<Self, Box<dyn Error>> {
        let specs = specs(&args.ports)?;
        spinwake_pmd::check(&specs)?;
        let topology = Topology::read();
        let options = &args.worker;
        cpu::choose(&topology, options.core, None, &CpuSet::new())?;
        let output = Output::new(options.json.as_deref())?;
        let end = EndRequest::listen()?;
        let metrics = Metrics::new();
        let servers = options.serve(&metrics)?;

        // A forwarder takes what is on the wire, whomever it is for.
        let promiscuous = |spec: &String| open(spec, |config, _| config.promiscuous = true);
        let mut ports = specs.iter().map(promiscuous).collect::<Result<Vec<_>, _>>()?;
        if args.offload {
            share_work(&mut ports)?;
        }
        let node = ports.iter().find_map(|port| port.node());
        let core = cpu::choose(&topology, options.core, node, &CpuSet::new())?;
        for warning in core.warnings() {
            log::warn!("{warning}");
        }
        let pool = pool_for(&ports, node, options.require_hugepages)?;

        let started = ports.iter_mut().map(|port| Ok((port.start()?, port.mac())));
        let queues = started.collect::<Result<Vec<_>, Box<dyn Error>>>()?;
        let rewrite = match (args.mac_swap, args.mac_rewrite) {
            (true, _) => Rewrite::Swap,
            (_, true) => Rewrite::Own,
            _ => Rewrite::None,
        };
        let forwarder = Forwarder::new(queues, rewrite, pool, args.perf);
        let dropped = forwarder.dropped();
        let wait = EngineConfig::new(options.wait);
        let config = WorkerConfig { name: "l2fwd".into(), core: core.core, fifo: None, wait };
        let worker = Worker::spawn(config, forwarder)?;
        let watch = WorkerWatch::new(&worker);
        let (sample, drops) = (watch.sampler(), dropped.clone());
        metrics.add_worker(worker.name(), move || WorkerSample {
            drops: drops.iter().map(Counter::get).sum(),
            ..sample()
        });
        let port_metrics = specs.iter().map(|spec| metrics.add_port(spec)).collect();
        Ok(Self { specs, core, output, end, dropped, worker, watch, ports, port_metrics, servers })
    }

    /// Reports each second until it is over, stops all, and sums up.
    fn finish(self, args: &Args) -> Result<(), Box<dyn Error>> {
        let Self { specs, core, output, end, dropped, worker, watch, mut ports, port_metrics, servers } = self;
        let wait = args.worker.wait;
        for (number, (spec, port)) in specs.iter().zip(&ports).enumerate() {
            introduce_port(&output, number, spec, &**port);
            if args.offload {
                output.say(format_args!("port {number}  offloads: {}", offload::named(port.config().offloads)));
            }
        }
        introduce_worker(&output, &core, wait, worker.notes());
        introduce_servers(&output, &servers);
        let mut links = Links::new(specs.iter().map(String::as_str).zip(ports.iter().map(|port| &**port)));
        let count = usize::from(args.tx_first);
        if count > 0 {
            // What is sent before that is lost.
            links.await_up(ports.iter().map(|port| &**port), args.worker.seconds, &output, &end)?;
            if !end.is_set() {
                worker.call(PATIENCE, move |forwarder| forwarder.send_first(count))?;
            }
        }
        let watched = Watched { ports: &ports, port_metrics: &port_metrics, watch: &watch, dropped: &dropped };
        let account = watched.report(&output, &worker, &mut links, args.worker.seconds, &end);

        let forwarder = worker.stop()?;
        let worker = WorkerEnd { core: &core, wait, watch: &watch, perf: forwarder.perf() };
        // Its queues give their buffers back, and the devices may stop.
        let pool = forwarder.close();
        if pool.missing > 0 {
            log::error!("{} of {} frames did not come home from the ports", pool.missing, pool.frames);
        }
        for port in &mut ports {
            port.stop()?;
        }
        let report = account.report(&specs, &ports, &worker, pool);
        output.finish(Summary(&report), &report)?;
        Ok(())
    }
}

/// The ports to forward between.
fn specs(given: &[String]) -> Result<Vec<String>, String> {
    match given {
        [] => Ok(vec!["soft:".into(), "soft:".into()]),
        [_] | [_, _] => Ok(given.to_vec()),
        more => {
            Err(format!("{} ports are given; give two, or one to send frames back out where they came in", more.len()))
        }
    }
}

/// Asks each port to do what the other can finish.
fn share_work(ports: &mut [Box<dyn Port>]) -> Result<(), Box<dyn Error>> {
    let can: Vec<_> = ports.iter().map(|port| port.capabilities().clone()).collect();
    for (number, port) in ports.iter_mut().enumerate() {
        let partner = &can[partner(number, can.len())];
        let config = offload::configured(port.config(), &can[number], partner);
        port.configure(config)?;
    }
    Ok(())
}
