//! Options that every program with a worker takes.

use std::time::Duration;

use clap::Args;
use spinwake::cpu::CoreChoice;
use spinwake::wait::WaitPolicy;

use crate::metrics::{Metrics, MetricsAddress, MetricsServer, ServeError};

/// Where workers run and how they wait, for how long, and where one can look at it. A program flattens this into its own
/// options.
#[derive(Debug, Clone, Args)]
pub struct WorkerOptions {
    /// The worker's core: a number, or auto for an isolated one near its ports
    #[arg(long, value_name = "auto|N", default_value = "auto")]
    pub core: CoreChoice,

    /// What a worker does when there is nothing to do: poll, interrupt, adaptive, adaptive:wake=20us (a sleep may add that
    /// much) or adaptive:cpu=10% (of a core, while idle)
    #[arg(long, value_name = "POLICY", default_value = "adaptive")]
    pub wait: WaitPolicy,

    /// Stop after this many seconds; without it, at Ctrl-C
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<Duration>,

    /// Write the summary as JSON to PATH at the end; - is standard output, which then gets nothing else
    #[arg(long, value_name = "PATH|-")]
    pub json: Option<String>,

    /// Serve metrics for Prometheus at IP:PORT (port 0: any free one) or at unix:/path; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Vec<MetricsAddress>,

    /// Refuse to start when hugepages are short, where otherwise ordinary pages are used with a warning
    #[arg(long)]
    pub require_hugepages: bool,
}

impl WorkerOptions {
    /// Serves `metrics` wherever the operator asked for it, until the servers are dropped. To be called before any device is
    /// touched.
    ///
    /// # Errors
    ///
    /// When an address cannot be had; nothing is served then.
    pub fn serve(&self, metrics: &Metrics) -> Result<Vec<MetricsServer>, ServeError> {
        self.metrics.iter().map(|address| MetricsServer::start(address, metrics)).collect()
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be more than zero, and not beyond all bounds".into()),
    }
}
