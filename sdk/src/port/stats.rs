//! Counters of queues and ports.

use hdrhistogram::Histogram;

use crate::telemetry::Counter;

/// What a receive queue counts. In cache lines of its own, so that readers do not disturb the worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct RxCounters {
    /// Frames handed to the application.
    pub frames: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// Frames that the device marked as broken, dropped by the driver.
    pub errors: Counter,
    /// Descriptors that said something impossible (a length beyond the buffer, a chain without end), dropped.
    pub lies: Counter,
    /// Times that the ring could not be refilled because the pool was dry.
    pub no_buf: Counter,
}

/// What a transmit queue counts. In cache lines of its own, so that readers do not disturb the worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct TxCounters {
    /// Frames handed to the device.
    pub frames: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// Frames that the device cannot send (empty, too long, too many segments), dropped by the driver.
    pub refused: Counter,
    /// Times that the ring was full.
    pub full: Counter,
    /// Times that the device returned what it did not have, or more than it had.
    pub lies: Counter,
}

/// What one queue pair has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Received frames that were broken.
    pub rx_errors: u64,
    /// Receive descriptors that said something impossible.
    pub rx_lies: u64,
    /// Times that the receive ring could not be refilled.
    pub rx_no_buf: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames that could not be sent.
    pub tx_refused: u64,
    /// Times that the transmit ring was full.
    pub tx_full: u64,
}

impl QueueStats {
    /// What the counters of a pair of queues say now.
    pub fn read(rx: &RxCounters, tx: &TxCounters) -> Self {
        Self {
            rx_frames: rx.frames.get(),
            rx_bytes: rx.bytes.get(),
            rx_errors: rx.errors.get(),
            rx_lies: rx.lies.get(),
            rx_no_buf: rx.no_buf.get(),
            tx_frames: tx.frames.get(),
            tx_bytes: tx.bytes.get(),
            tx_refused: tx.refused.get(),
            tx_full: tx.full.get(),
        }
    }
}

/// What a port has done since it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames that the device received from the wire and gave to its queues.
    pub rx_frames: u64,
    /// Their bytes, without the frame check sequence.
    pub rx_bytes: u64,
    /// Frames that the device had no room for: its queues were not emptied or refilled in time.
    pub rx_missed: u64,
    /// Frames that came broken (checksum of the frame, length).
    pub rx_errors: u64,
    /// Frames that the device put on the wire.
    pub tx_frames: u64,
    /// Their bytes, without the frame check sequence.
    pub tx_bytes: u64,
    /// Each queue, by id.
    pub queues: Vec<QueueStats>,
    /// What only this kind of port counts, by name.
    pub extra: Vec<(&'static str, u64)>,
}

impl PortStats {
    /// The count of [`extra`](Self::extra) with this name.
    pub fn extra(&self, name: &str) -> Option<u64> {
        self.extra.iter().find(|(known, _)| *known == name).map(|(_, count)| *count)
    }
}

/// What a built-in traffic generator has sent, and what its sink has seen come in.
#[derive(Debug, Clone)]
pub struct GeneratorReport {
    /// Frames put on the wire towards the port.
    pub sent: u64,
    /// Frames of some generator that the port sent back out, as seen by the sink.
    pub received: u64,
    /// Frames that the sink could not make sense of: changed on their way, or not a generator's.
    pub corrupt: u64,
    /// Frames that the sink saw a second time.
    pub duplicates: u64,
    /// Time from when a frame was put on its first wire to its arrival at this sink, in nanoseconds: the devices' part is
    /// in it, also when the thread that plays them was late.
    pub latency_ns: Histogram<u64>,
    /// The drivers' part of that, in nanoseconds: from the moment when the frame became visible to the first driver (just
    /// before its descriptor was written back) to the doorbell by which it was sent to this sink. However late the thread
    /// is that plays the devices, this is not: only when it missed several doorbells does the last one count for all.
    pub response_ns: Histogram<u64>,
    /// The same, but only of the first frame that each doorbell sent: how often a driver came late, and not how many frames
    /// met that.
    pub first_response_ns: Histogram<u64>,
}
