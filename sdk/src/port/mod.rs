//! Ports: opened network devices of any kind, and the queues that workers drive.
//!
//! ```text
//! open(spec) ──▶ Port ──configure──▶ Port ──start──▶ Queues { rx: [RxQueue], tx: [TxQueue] } ──▶ workers
//!                 │                                                     │
//!                 └── link, MAC, statistics, filters      dropped = stopped, buffers home
//! ```
//!
//! [`Port`] is the control plane: it may block, allocate and fail. [`RxQueue`] and [`TxQueue`] are the data plane: they
//! never block, allocate, panic or return an error; what goes wrong there is counted.

mod config;
mod mac;
mod spec;
mod stats;

use std::fmt;
use std::sync::Arc;

pub use config::{Capabilities, ConfigError, Offloads, PortConfig};
pub use mac::{MacAddr, MacError};
pub use spec::{PortSpec, SpecError};
pub use stats::{GeneratorReport, PortStats, QueueStats, RxCounters, TxCounters};

use crate::device::DeviceError;
use crate::dma::DmaError;
use crate::frame::{Burst, Pool};
use crate::irq::{IrqKind, Vector};
use crate::mmio::NotReached;
use crate::wait::Source;

/// State of a port's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// No partner.
    Down,
    /// Frames flow.
    Up {
        /// Speed in megabits per second; zero where the device does not tell.
        mbps: u32,
        /// Both directions at once.
        full_duplex: bool,
    },
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("link down"),
            Self::Up { mbps, full_duplex } => {
                let duplex = if *full_duplex { "full" } else { "half" };
                match mbps {
                    0 => write!(f, "link up, speed unknown, {duplex} duplex"),
                    mbps => write!(f, "link up, {mbps} Mbit/s, {duplex} duplex"),
                }
            }
        }
    }
}

/// A port could not be opened, started, changed or stopped.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The device or its bus refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Memory for rings could not be had or mapped.
    #[error("{port}: {source}")]
    Dma {
        /// Which port.
        port: String,
        /// Why.
        source: DmaError,
    },
    /// The device did not do in time what it must.
    #[error("{port}: {what} did not happen: {source}; reset the device or look at the kernel log")]
    Timeout {
        /// Which port.
        port: String,
        /// What was waited for.
        what: &'static str,
        /// The register that never changed.
        source: NotReached,
    },
    /// The device is not what its driver needs.
    #[error("{port}: {why}")]
    Unsupported {
        /// Which port.
        port: String,
        /// What is wrong with it.
        why: String,
    },
    /// Started already.
    #[error("{port} is started; stop it first")]
    Started {
        /// Which port.
        port: String,
    },
    /// Queues of an earlier start still live.
    #[error("{port}: {alive} queues are still in use; drop them (end their workers) first")]
    QueuesAlive {
        /// Which port.
        port: String,
        /// How many.
        alive: usize,
    },
}

/// The queues of a started port, owned by whoever drives them.
#[derive(Debug)]
pub struct Queues {
    /// Receive queues, in order of their ids.
    pub rx: Vec<Box<dyn RxQueue>>,
    /// Transmit queues, in order of their ids.
    pub tx: Vec<Box<dyn TxQueue>>,
}

/// An opened network device of any kind: its control plane.
///
/// A port is stopped when it is made. Dropping it stops it; queues that still live then stop with it: they receive and
/// send nothing more, and give their buffers back when they are dropped.
pub trait Port: Send + fmt::Debug {
    /// Its name for people: the address of its device.
    fn name(&self) -> &str;

    /// The driver that drives it.
    fn driver(&self) -> &'static str;

    /// The NUMA node of its device, where known.
    fn node(&self) -> Option<usize>;

    /// Its own address.
    fn mac(&self) -> MacAddr;

    /// What it can do; asked before [`configure`](Self::configure).
    fn capabilities(&self) -> &Capabilities;

    /// What it is configured to do.
    fn config(&self) -> &PortConfig;

    /// Sets what it shall do from the next start on.
    ///
    /// # Errors
    ///
    /// When the port cannot do that, naming the value and what is possible, or when it is started; nothing changes then.
    fn configure(&mut self, config: PortConfig) -> Result<(), ConfigError>;

    /// Starts the device and hands out its queues. Receive rings are empty: each [`RxQueue::rx_burst`] fills its ring from
    /// the pool that it is given, the first one included.
    ///
    /// # Errors
    ///
    /// When it is started already, queues of an earlier start live, or the device does not come up.
    fn start(&mut self) -> Result<Queues, PortError>;

    /// Stops the device: no DMA and no interrupt afterwards. Its queues must have been dropped.
    ///
    /// # Errors
    ///
    /// When queues live, or the device does not stop in time.
    fn stop(&mut self) -> Result<(), PortError>;

    /// Whether it is connected, and how fast.
    fn link(&self) -> Link;

    /// The vector that fires when the link changes or the device reports an error; `None` when that must be polled.
    fn link_vector(&self) -> Option<Arc<Vector>>;

    /// How its queues interrupt; `None` when they can only be polled.
    fn irq_kind(&self) -> Option<IrqKind>;

    /// Receives all frames, not just those for its own address. Works at any time.
    fn set_promiscuous(&mut self, on: bool);

    /// Receives frames to these multicast addresses, and to no others. Works at any time.
    fn set_multicast(&mut self, groups: &[MacAddr]);

    /// Receives frames of these VLAN ids only; `None` receives all. Works at any time.
    fn set_vlan_filter(&mut self, ids: Option<&[u16]>);

    /// What it has done since it was opened, per queue and in all.
    fn stats(&self) -> PortStats;

    /// What its built-in traffic generator has sent and seen come back; `None` when it has none.
    fn generator(&self) -> Option<GeneratorReport> {
        None
    }
}

/// One receive queue, owned by one worker. As a [`Source`] it is pending while the next burst would find a frame.
///
/// Dropping it stops it in the device and sends its buffers home.
pub trait RxQueue: Source + fmt::Debug {
    /// Moves received frames into `burst` until it is full or the device has no more, and refills the ring from `pool`.
    /// Returns how many it added. Never blocks, never allocates, one doorbell at most.
    fn rx_burst(&mut self, pool: &mut Pool, burst: &mut Burst) -> usize;

    /// The vector that [`arm`](Source::arm) makes fire; `None` when the queue can only be polled. Several queues share one
    /// where the device has no more. Who waits for it by hand owes the queue a [`fired`](Source::fired) for each time.
    fn vector(&self) -> Option<&Arc<Vector>>;

    /// Its counters, for any thread to read.
    fn counters(&self) -> &Arc<RxCounters>;
}

/// One transmit queue, owned by one worker. As a [`Source`] it is pending while a frame that was sent can be given back.
///
/// Dropping it stops it in the device and sends its buffers home.
pub trait TxQueue: Source + fmt::Debug {
    /// Moves frames from the front of `burst` into the ring, as many as fit; the rest stays in `burst`. Gives completed
    /// ones back to `pool` as it needs room. Returns how many it took. Never blocks, never allocates, one doorbell at most.
    fn tx_burst(&mut self, pool: &mut Pool, burst: &mut Burst) -> usize;

    /// Gives all completed frames back to `pool`; returns how many there were.
    fn reclaim(&mut self, pool: &mut Pool) -> usize;

    /// Frames handed to the device and not given back yet.
    fn in_flight(&self) -> usize;

    /// Its counters, for any thread to read.
    fn counters(&self) -> &Arc<TxCounters>;
}
