//! `--metrics ADDRESS`: what workers and ports count, as text for Prometheus.
//!
//! ```text
//! worker counters ◀─ read ─┐
//!                          ├─ Metrics ── text at most 50 times a second ──▶ MetricsServer ──▶ GET /metrics
//! PortMetrics ◀─ update ─ program
//! ```
//!
//! One thread of ordinary priority answers, on the cores of the thread that starts it. Clients are strangers: how many are
//! served at a time, how much they may send and how long they may take is bounded, and none of them holds up another.
//! There is no authentication and no encryption: whoever reaches the address may read.
//!
//! ```no_run
//! use spinwake_apps::metrics::{Metrics, MetricsAddress, MetricsServer, WorkerSample};
//!
//! let metrics = Metrics::new();
//! let address: MetricsAddress = "127.0.0.1:9464".parse()?; // or unix:/run/l2fwd.sock
//! let server = MetricsServer::start(&address, &metrics)?; // before any device is touched
//! metrics.add_worker("l2fwd", || WorkerSample { parks: 1, ..WorkerSample::default() });
//! let port = metrics.add_port("soft:");
//! // Each second: port.update(stats).
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod connection;
mod http;
mod listener;
mod sample;
mod server;
mod text;

pub use address::{AddressError, MetricsAddress};
pub use listener::ServeError;
pub use sample::{Metrics, PortMetrics, WorkerSample};
pub use server::MetricsServer;
