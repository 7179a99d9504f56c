//! What a port did, for people and for programs.

use std::fmt;

use serde::Serialize;
use spinwake::port::{Port, QueueStats};

/// What a port did.
#[derive(Debug, Serialize)]
pub struct PortReport {
    /// Its spec, as given.
    pub spec: String,
    /// The driver that drove it.
    pub driver: &'static str,
    /// Its own address.
    pub mac: String,
    /// Frames that it received.
    pub rx_frames: u64,
    /// Bytes that it received.
    pub rx_bytes: u64,
    /// Frames that it sent.
    pub tx_frames: u64,
    /// Bytes that it sent.
    pub tx_bytes: u64,
    /// Frames that arrived at it and got no further: those that its rings had no room for, and those that the program could not
    /// send on.
    pub drops: u64,
    /// Frames that arrived broken, or in descriptors that made no sense.
    pub errors: u64,
    /// What its generator sent; `None` when it has none.
    pub generated: Option<u64>,
    /// Generated frames that its sink received.
    pub sunk: Option<u64>,
    /// Its queues.
    pub queues: Vec<QueueReport>,
}

/// What a queue pair did.
#[derive(Debug, Serialize)]
pub struct QueueReport {
    /// Frames received.
    pub rx_frames: u64,
    /// Frames sent.
    pub tx_frames: u64,
}

impl PortReport {
    /// What `port`, opened by `spec`, has done. `dropped` is how many frames that it received could not be sent on.
    pub fn of(spec: &str, port: &dyn Port, dropped: u64) -> Self {
        let (stats, generator) = (port.stats(), port.generator());
        let sum = |count: fn(&QueueStats) -> u64| stats.queues.iter().map(count).sum::<u64>();
        Self {
            spec: spec.into(),
            driver: port.driver(),
            mac: port.mac().to_string(),
            rx_frames: sum(|queue| queue.rx_frames),
            rx_bytes: sum(|queue| queue.rx_bytes),
            tx_frames: sum(|queue| queue.tx_frames),
            tx_bytes: sum(|queue| queue.tx_bytes),
            drops: stats.rx_missed + dropped,
            errors: stats.rx_errors + sum(|queue| queue.rx_errors + queue.rx_lies),
            generated: generator.as_ref().map(|generator| generator.sent),
            sunk: generator.as_ref().map(|generator| generator.received),
            queues: stats.queues.iter().map(QueueReport::of).collect(),
        }
    }
}

impl QueueReport {
    fn of(queue: &QueueStats) -> Self {
        Self { rx_frames: queue.rx_frames, tx_frames: queue.tx_frames }
    }
}

/// After the port's number, on one line.
impl fmt::Display for PortReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spec, rx_frames, tx_frames, drops, errors, .. } = self;
        write!(f, "{spec}  received {rx_frames}, sent {tx_frames}, dropped {drops}, broken {errors}")?;
        match self.generated.zip(self.sunk) {
            Some((sent, seen)) => write!(f, "; its generator sent {sent}, its sink saw {seen}"),
            None => Ok(()),
        }
    }
}
