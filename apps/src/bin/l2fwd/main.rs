//! Forwards frames both ways between two ports, on one pinned worker.
//!
//! Reads top to bottom: open two ports, choose a core, start the ports, give their queues to a worker, report each second,
//! stop in the reverse order. The forwarding itself is `forward.rs`.

mod forward;
mod json;
mod monitor;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use spinwake::cpu::{self, Chosen, CoreChoice, CpuSet, Topology};
use spinwake::frame::{Pool, PoolConfig};
use spinwake::port::{Link, Port};
use spinwake::telemetry::Counter;
use spinwake::wait::{EngineConfig, WaitPolicy};
use spinwake::worker::{Worker, WorkerConfig};
use spinwake_apps::console::{self, EndRequest};
use spinwake_apps::metrics::{Metrics, MetricsAddress, MetricsServer, PortMetrics};
use spinwake_apps::options::WorkerOptions;
use spinwake_apps::worker::WorkerWatch;

use forward::{Forwarder, Rewrite};
use monitor::{Monitor, Watched, WorkerEnd};

/// Forwards frames both ways between two ports, on one pinned worker.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Without --port it forwards between two embedded NICs with built-in traffic generators."
)]
struct Args {
    /// A port, as KIND:ADDRESS[,key=value]...; give two of them
    #[arg(long = "port", value_name = "SPEC")]
    ports: Vec<String>,

    /// The worker's core: a number, or auto for an isolated one near the ports
    #[arg(long, value_name = "auto|N", default_value = "auto")]
    core: CoreChoice,

    /// Stop after this many seconds; without it, at Ctrl-C
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<Duration>,

    /// Swap source and destination address of each frame
    #[arg(long, conflicts_with = "mac_rewrite")]
    mac_swap: bool,

    /// Send each frame from the sending port's own address to 02:00:00:00:00:NN, NN being that port's number
    #[arg(long)]
    mac_rewrite: bool,

    #[command(flatten)]
    worker: WorkerOptions,

    /// Send this many frames of 60 bytes from each port before forwarding: between two cabled ports they circle
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=256))]
    tx_first: u16,

    /// Write the summary as JSON to PATH at the end; - is standard output, which then gets nothing else
    #[arg(long, value_name = "PATH|-")]
    json: Option<String>,

    /// Refuse to start when hugepages are short, where otherwise ordinary pages are used with a warning
    #[arg(long)]
    require_hugepages: bool,

    /// Count the worker's cycles, instructions, cache and TLB misses and context switches
    #[arg(long)]
    perf: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be more than zero, and not beyond all bounds".into()),
    }
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

/// Two ports and the worker between them.
struct Running {
    specs: [String; 2],
    core: Chosen,
    monitor: Monitor,
    end: EndRequest,
    dropped: Arc<[Counter; 2]>,
    worker: Worker<Forwarder>,
    watch: WorkerWatch,
    ports: [Box<dyn Port>; 2],
    port_metrics: [PortMetrics; 2],
    /// They answer until the program ends.
    servers: Vec<MetricsServer>,
}

impl Running {
    /// Starts all, or leaves everything as it was. What can be refused without touching a device is refused first.
    fn start(args: &Args) -> Result<Self, Box<dyn Error>> {
        let specs = specs(&args.ports)?;
        spinwake_pmd::check(&specs)?;
        let topology = Topology::read();
        cpu::choose(&topology, args.core, None, &CpuSet::new())?;
        let monitor = Monitor::new(args.json.as_deref())?;
        let end = EndRequest::listen()?;
        let metrics = Metrics::new();
        let servers = args.worker.serve(&metrics)?;

        let mut ports = [open(&specs[0])?, open(&specs[1])?];
        let node = ports.iter().find_map(|port| port.node());
        let core = cpu::choose(&topology, args.core, node, &CpuSet::new())?;
        for warning in core.warnings() {
            log::warn!("{warning}");
        }
        let require_hugepages = args.require_hugepages;
        let pool = Pool::new(&PoolConfig { frames: frames_for(&ports), node, require_hugepages })?;

        let [a, b] = &mut ports;
        let queues = [a.start()?, b.start()?];
        let rewrite = match (args.mac_swap, args.mac_rewrite) {
            (true, _) => Rewrite::Swap,
            (_, true) => Rewrite::Own,
            _ => Rewrite::None,
        };
        let mut forwarder = Forwarder::new(queues, [a.mac(), b.mac()], rewrite, pool, args.perf);
        if args.tx_first > 0 {
            await_links(&ports)?;
            forwarder.send_first(args.tx_first.into());
        }
        let dropped = forwarder.dropped();
        let wait = EngineConfig::new(args.worker.wait);
        let config = WorkerConfig { name: "l2fwd".into(), core: core.core, fifo: None, wait };
        let worker = Worker::spawn(config, forwarder)?;
        let watch = WorkerWatch::new(&worker);
        metrics.add_worker(worker.name(), watch.sampler());
        let port_metrics = specs.each_ref().map(|spec| metrics.add_port(spec));
        Ok(Self { specs, core, monitor, end, dropped, worker, watch, ports, port_metrics, servers })
    }

    /// Reports each second until it is over, stops all, and sums up.
    fn finish(self, args: &Args) -> Result<(), Box<dyn Error>> {
        let Self { specs, core, monitor, end, dropped, worker, watch, mut ports, port_metrics, servers } = self;
        let wait = args.worker.wait;
        introduce_ports(&monitor, &specs, &ports);
        introduce_worker(&monitor, &core, wait, worker.notes());
        for server in &servers {
            introduce_server(&monitor, server.address());
        }
        let watched = Watched { ports: &ports, port_metrics: &port_metrics, watch: &watch, dropped: &dropped };
        let account = monitor.watch(&watched, &worker, args.seconds, &end);

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
        monitor.finish(&report)?;
        Ok(())
    }
}

/// The two ports to forward between.
fn specs(given: &[String]) -> Result<[String; 2], String> {
    match given {
        [] => Ok(["soft:".into(), "soft:".into()]),
        [a, b] => Ok([a.clone(), b.clone()]),
        [one] => Err(format!("only one port is given ({one}); forwarding needs two: give --port twice")),
        more => Err(format!("{} ports are given; forwarding needs two", more.len())),
    }
}

fn open(spec: &str) -> Result<Box<dyn Port>, Box<dyn Error>> {
    let mut port = spinwake_pmd::open(spec)?;
    // A forwarder takes what is on the wire, whomever it is for.
    let config = spinwake::port::PortConfig { promiscuous: true, ..port.config().clone() };
    port.configure(config)?;
    Ok(port)
}

/// Enough frames to fill every ring, and as many again as the worker can hold in its hands.
fn frames_for(ports: &[Box<dyn Port>; 2]) -> usize {
    let rings = ports.iter().map(|port| {
        let config = port.config();
        usize::from(config.rx_queues) * usize::from(config.rx_ring_len)
            + usize::from(config.tx_queues) * usize::from(config.tx_ring_len)
    });
    rings.sum::<usize>() + 1024
}

/// Waits until both ports have a link: what is sent before that is lost.
fn await_links(ports: &[Box<dyn Port>; 2]) -> Result<(), String> {
    /// Copper negotiates for two or three seconds.
    const LIMIT: Duration = Duration::from_secs(10);
    let start = Instant::now();
    for port in ports {
        while port.link() == Link::Down {
            if start.elapsed() > LIMIT {
                let name = port.name();
                return Err(format!("{name} has had no link for {LIMIT:?}; is its cable plugged in at both ends?"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

fn introduce_ports(monitor: &Monitor, specs: &[String; 2], ports: &[Box<dyn Port>; 2]) {
    for (index, (spec, port)) in specs.iter().zip(ports).enumerate() {
        let config = port.config();
        let irq = port.irq_kind().map_or_else(|| "no interrupts".into(), |kind| kind.to_string());
        monitor.say(format_args!(
            "port {index}  {spec}  driver {}, {}, {}, {} queue{}, MTU {}, {irq}",
            port.driver(),
            port.mac(),
            port.link(),
            config.rx_queues,
            if config.rx_queues == 1 { "" } else { "s" },
            config.mtu,
        ));
    }
}

fn introduce_worker(monitor: &Monitor, core: &Chosen, wait: WaitPolicy, notes: &[String]) {
    let isolated = if core.isolated == Some(true) { "isolated" } else { "shared with the system" };
    monitor.say(format_args!("worker  core {} ({isolated}), wait policy {wait}", core.core));
    for note in notes {
        monitor.say(format_args!("wait    {note}"));
    }
}

fn introduce_server(monitor: &Monitor, address: &MetricsAddress) {
    match address {
        MetricsAddress::Tcp(address) => monitor.say(format_args!("metrics http://{address}/metrics")),
        MetricsAddress::Unix(_) => monitor.say(format_args!("metrics {address}")),
    }
}
