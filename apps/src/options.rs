//! Options that every program with a worker takes.

use clap::Args;
use spinwake::wait::WaitPolicy;

use crate::metrics::{Metrics, MetricsAddress, MetricsServer, ServeError};

/// How workers wait, and where one can look at it. A program flattens this into its own options.
#[derive(Debug, Clone, Args)]
pub struct WorkerOptions {
    /// What a worker does when there is nothing to do: poll, interrupt, adaptive, adaptive:wake=20us (a sleep may add that
    /// much) or adaptive:cpu=10% (of a core, while idle)
    #[arg(long, value_name = "POLICY", default_value = "adaptive")]
    pub wait: WaitPolicy,

    /// Serve metrics for Prometheus at IP:PORT (port 0: any free one) or at unix:/path; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Vec<MetricsAddress>,
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
