//! A port with the worker that serves it.

use std::error::Error;
use std::slice;
use std::time::Duration;

use spinwake::cpu::{self, Chosen, CoreChoice, CoreError, CpuSet, Topology};
use spinwake::frame::Pool;
use spinwake::port::{MacAddr, Port, Queues};
use spinwake::wait::EngineConfig;
use spinwake::worker::{Task, Worker, WorkerConfig};
use spinwake_apps::metrics::{Metrics, PortMetrics};
use spinwake_apps::options::WorkerOptions;
use spinwake_apps::output::Output;
use spinwake_apps::ports::{introduce_port, introduce_worker, pool_for};
use spinwake_apps::report::{PoolReport, PortReport, WorkerReport};
use spinwake_apps::worker::{WorkerCounts, WorkerWatch};

/// What a node's worker runs.
pub(crate) trait Endpoint: Task + 'static {
    /// Drops all queues, and says whether all frames came home.
    fn close(self) -> PoolReport;
}

/// Drops `queues`, and counts the frames of their pool.
pub(crate) fn home<T>(queues: T, mut pool: Pool) -> PoolReport {
    drop(queues);
    let frames = pool.capacity();
    PoolReport { frames, missing: frames - pool.available() }
}

/// A started port and its worker.
#[derive(Debug)]
pub(crate) struct Node<T> {
    pub(crate) spec: String,
    pub(crate) port: Box<dyn Port>,
    pub(crate) core: Chosen,
    pub(crate) worker: Worker<T>,
    pub(crate) watch: WorkerWatch,
    metrics: PortMetrics,
    options: WorkerOptions,
}

/// What became of a node.
#[derive(Debug)]
pub(crate) struct NodeEnd {
    pub(crate) port: PortReport,
    pub(crate) worker: WorkerReport,
    pub(crate) pool: PoolReport,
}

impl<T: Endpoint> Node<T> {
    /// Starts `port`, which was opened by `spec`, and a worker named `name` on `core`, running what `endpoint` makes of the port's
    /// queues and address.
    pub(crate) fn start(
        (name, spec): (&str, &str),
        mut port: Box<dyn Port>,
        core: Chosen,
        options: &WorkerOptions,
        metrics: &Metrics,
        endpoint: impl FnOnce(Queues, MacAddr, Pool) -> T,
    ) -> Result<Self, Box<dyn Error>> {
        for warning in core.warnings() {
            log::warn!("{warning}");
        }
        let pool = pool_for(slice::from_ref(&port), port.node(), options.require_hugepages)?;
        let task = endpoint(port.start()?, port.mac(), pool);
        let wait = EngineConfig::new(options.wait);
        let config = WorkerConfig { name: name.into(), core: core.core, fifo: None, wait };
        let worker = Worker::spawn(config, task)?;
        let watch = WorkerWatch::new(&worker);
        metrics.add_worker(name, watch.sampler());
        let metrics = metrics.add_port(spec);
        Ok(Self { spec: spec.into(), port, core, worker, watch, metrics, options: options.clone() })
    }

    /// Says what it is.
    pub(crate) fn introduce(&self, output: &Output, number: usize) {
        introduce_port(output, number, &self.spec, &*self.port);
        introduce_worker(output, &self.core, self.options.wait, self.worker.notes());
    }

    /// Tells strangers what its port has done.
    pub(crate) fn tell(&self) {
        self.metrics.update(self.port.stats());
    }

    /// Stops the worker, then the port. `counts` is what the worker did in the `time` by which it is judged.
    pub(crate) fn stop(self, (counts, time): (WorkerCounts, Duration)) -> Result<NodeEnd, Box<dyn Error>> {
        let Self { spec, mut port, core, worker, watch, options, .. } = self;
        let pool = worker.stop()?.close();
        if pool.missing > 0 {
            log::error!("{} of {} frames did not come home from {spec}", pool.missing, pool.frames);
        }
        port.stop()?;
        let worker = WorkerReport::new(&core, options.wait, &watch, (&counts, time), None);
        Ok(NodeEnd { port: PortReport::of(&spec, &*port, 0), worker, pool })
    }
}

/// A core for a second worker beside one on `first`: another one, unless there is none.
pub(crate) fn second_core(topology: &Topology, first: &Chosen, node: Option<usize>) -> Result<Chosen, CoreError> {
    let taken = std::iter::once(first.core).collect::<CpuSet>();
    match cpu::choose(topology, CoreChoice::Auto, node, &taken) {
        Err(CoreError::NoneLeft { .. }) => {
            log::warn!("both workers share core {}, the only one there is: times will be far longer", first.core);
            cpu::choose(topology, CoreChoice::Core(first.core), node, &CpuSet::new())
        }
        other => other,
    }
}
