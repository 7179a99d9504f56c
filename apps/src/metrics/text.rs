//! Names, units and help of what is told, and its encoding as OpenMetrics text.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeLabelSet, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use spinwake::port::{PortStats, QueueStats};
use spinwake::telemetry::Snapshot;

use super::WorkerSample;

/// What the text is (OpenMetrics 1.0.0, section "Overall Structure").
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of histogram buckets: powers of two in nanoseconds, from 1.024 µs to 1.07 s. Each is where a bucket of a
/// [`Snapshot`] ends, so what is counted below it is exact.
const BOUNDS_LOG2_NS: std::ops::RangeInclusive<u32> = 10..=30;

/// What is told of some `T` as a counter.
struct Family<T> {
    name: &'static str,
    unit: Option<Unit>,
    help: &'static str,
    value: fn(&T) -> u64,
}

const fn family<T>(name: &'static str, help: &'static str, value: fn(&T) -> u64) -> Family<T> {
    Family { name, unit: None, help, value }
}

const fn bytes<T>(name: &'static str, help: &'static str, value: fn(&T) -> u64) -> Family<T> {
    Family { name, unit: Some(Unit::Bytes), help, value }
}

const WORKER: [Family<WorkerSample>; 6] = [
    family("worker_frames", "Frames moved", |w| w.frames),
    family("worker_drops", "Frames that it took and could not send on", |w| w.drops),
    family("worker_parks", "Sleeps", |w| w.parks),
    family("worker_spurious", "Sleeps that something ended without there being work", |w| w.spurious),
    family("worker_rescues", "Work that only the time limit of a sleep found: lost interrupts", |w| w.rescues),
    family("worker_regrets", "Sleeps that turned out to have been the wrong choice", |w| w.regrets),
];

const PORT: [Family<PortStats>; 6] = [
    family("port_rx_frames", "Frames received from the wire and given to queues", |p| p.rx_frames),
    bytes("port_rx", "Bytes of those, without frame check sequences", |p| p.rx_bytes),
    family("port_rx_missed", "Frames that the device had no room for", |p| p.rx_missed),
    family("port_rx_errors", "Frames that came broken", |p| p.rx_errors),
    family("port_tx_frames", "Frames put on the wire", |p| p.tx_frames),
    bytes("port_tx", "Bytes of those, without frame check sequences", |p| p.tx_bytes),
];

const QUEUE: [Family<QueueStats>; 9] = [
    family("queue_rx_frames", "Frames received", |q| q.rx_frames),
    bytes("queue_rx", "Bytes received", |q| q.rx_bytes),
    family("queue_rx_errors", "Received frames that were broken", |q| q.rx_errors),
    family("queue_rx_lies", "Receive descriptors that said something impossible", |q| q.rx_lies),
    family("queue_rx_no_buffer", "Times that the receive ring could not be refilled", |q| q.rx_no_buf),
    family("queue_tx_frames", "Frames sent", |q| q.tx_frames),
    bytes("queue_tx", "Bytes sent", |q| q.tx_bytes),
    family("queue_tx_refused", "Frames that could not be sent", |q| q.tx_refused),
    family("queue_tx_full", "Times that the transmit ring was full", |q| q.tx_full),
];

/// Workers and ports, by names that differ, as text.
pub(super) fn encode(workers: Vec<(String, WorkerSample)>, ports: Vec<(String, PortStats)>) -> String {
    let mut registry = Registry::with_prefix("spinwake");
    registry.register_collector(Box::new(Samples { workers, ports }));
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = text::encode(&mut out, &registry);
    out
}

#[derive(Debug)]
struct Samples {
    workers: Vec<(String, WorkerSample)>,
    ports: Vec<(String, PortStats)>,
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if !self.workers.is_empty() {
            self.workers(&mut encoder)?;
        }
        if !self.ports.is_empty() {
            self.ports(&mut encoder)?;
        }
        Ok(())
    }
}

impl Samples {
    fn workers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let workers = || self.workers.iter().map(|(name, worker)| ([("worker", name.as_str())], worker));
        for family in &WORKER {
            counters(encoder, family, workers())?;
        }
        let cpu = workers().filter_map(|(labels, worker)| Some((labels, worker.cpu?.as_secs_f64())));
        seconds(encoder, "worker_cpu", "Processor time as the kernel accounts for it", cpu)?;

        let states = self.workers.iter().flat_map(|(name, worker)| {
            let by_state = sums(worker.states.iter().map(|&(state, time)| (state, time)));
            by_state.into_iter().map(move |(state, time)| ([("worker", name.as_str()), ("state", state)], time))
        });
        let states = states.map(|(labels, time): (_, Duration)| (labels, time.as_secs_f64()));
        seconds(encoder, "worker", "Time spent in each state", states)?;

        let wakes = self.workers.iter().flat_map(|(name, worker)| {
            let by_source = sums(worker.wakes.iter().map(|(source, count)| (source.as_str(), *count)));
            by_source.into_iter().map(move |(source, count)| ([("worker", name.as_str()), ("source", source)], count))
        });
        write(encoder, "worker_wakes", "Sleeps ended, by what ended them", None, wakes)?;

        let wake = workers().map(|(labels, worker)| (labels, &worker.wake_ns));
        histograms(
            encoder,
            "worker_wake",
            "From the moment of a wake-up to the worker's return, where a thread or a timer caused it: devices do not tell",
            wake,
        )?;
        let gap = workers().map(|(labels, worker)| (labels, &worker.gap_ns));
        histograms(encoder, "worker_gap", "Time without work between two times with work", gap)
    }

    fn ports(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for family in &PORT {
            counters(encoder, family, self.ports.iter().map(|(name, port)| ([("port", name.as_str())], port)))?;
        }
        for family in &QUEUE {
            let queues = self.ports.iter().flat_map(|(name, port)| {
                let labels = move |id: usize| ([("port", name.as_str())], [("queue", id)]);
                port.queues.iter().enumerate().map(move |(id, queue)| (labels(id), queue))
            });
            counters(encoder, family, queues)?;
        }
        Ok(())
    }
}

fn counters<'a, T: 'a>(
    encoder: &mut DescriptorEncoder<'_>,
    family: &Family<T>,
    of: impl Iterator<Item = (impl EncodeLabelSet, &'a T)>,
) -> fmt::Result {
    let values = of.map(|(labels, it)| (labels, (family.value)(it)));
    write(encoder, family.name, family.help, family.unit.as_ref(), values)
}

fn seconds(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (impl EncodeLabelSet, f64)>,
) -> fmt::Result {
    write(encoder, name, help, Some(&Unit::Seconds), values)
}

/// One counter with all its values.
fn write(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    values: impl Iterator<Item = (impl EncodeLabelSet, impl EncodeCounterValue)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
    for (labels, value) in values {
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
    }
    Ok(())
}

/// One histogram in seconds with all its values.
fn histograms<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (impl EncodeLabelSet, &'a Snapshot)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for (labels, ns) in values {
        let sum = ns.sum() as f64 / 1e9;
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, ns.count(), &buckets(ns), None)?;
    }
    Ok(())
}

/// Upper bounds in seconds, and how many values lie between each and the one before.
fn buckets(ns: &Snapshot) -> Vec<(f64, u64)> {
    let bounds = BOUNDS_LOG2_NS.map(|log2| (1u64 << log2) as f64 / 1e9).chain([f64::INFINITY]);
    let mut buckets: Vec<_> = bounds.map(|bound| (bound, 0)).collect();
    for (highest, count) in ns.buckets() {
        let above = (highest >> BOUNDS_LOG2_NS.start()).checked_ilog2().map_or(0, |log2| log2 as usize + 1);
        let last = buckets.len() - 1;
        buckets[above.min(last)].1 += count;
    }
    buckets
}

/// Adds up what stands under one label.
fn sums<'a, T: std::ops::AddAssign + Default>(values: impl Iterator<Item = (&'a str, T)>) -> BTreeMap<&'a str, T> {
    let mut sums = BTreeMap::<_, T>::new();
    for (label, value) in values {
        *sums.entry(label).or_default() += value;
    }
    sums
}

#[cfg(test)]
mod tests {
    use spinwake::telemetry::LiveHistogram;

    use super::*;

    #[test]
    fn a_histogram_counts_each_value_below_its_bound() {
        let live = LiveHistogram::new();
        for ns in [0, 1023, 1024, 2047, 2048, (1 << 30) - 1, 1 << 30, u64::MAX] {
            live.record(ns);
        }
        let buckets = buckets(&live.snapshot());
        assert_eq!(buckets.len(), 22);
        let full: Vec<_> = buckets.into_iter().filter(|&(_, count)| count > 0).collect();
        assert_eq!(full, [(1.024e-6, 2), (2.048e-6, 2), (4.096e-6, 1), (1.073741824, 1), (f64::INFINITY, 2)]);
    }
}
