//! What a run showed, for people and for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use spinwake::telemetry::Snapshot;
use spinwake_apps::plot::{self, Axis, Frame, PlotError, Series};
use spinwake_apps::report::{PercentilesUs, PoolReport, PortReport, Rate, Share, WorkerReport};

use crate::client::{ClientCounters, PATIENCE, Request};
use crate::message::Load;
use crate::node::NodeEnd;
use crate::server::ServerCounters;

/// A run, as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// How long it sent, or answered, in seconds.
    pub(crate) seconds: f64,
    /// What it asked; `None` when it only answered.
    pub(crate) client: Option<ClientReport>,
    /// What it answered; `None` when it only asked.
    pub(crate) server: Option<ServerReport>,
    /// Its ports, the client's first.
    pub(crate) ports: Vec<PortReport>,
    /// Their workers.
    pub(crate) workers: Vec<WorkerReport>,
    /// Their pools, after the end.
    pub(crate) pools: Vec<PoolReport>,
}

/// What a client saw.
#[derive(Debug, Serialize)]
pub(crate) struct ClientReport {
    /// Whom it asked.
    peer: String,
    /// Bytes of each frame, without its check sequence.
    size_bytes: usize,
    /// When requests were due: the gap as `--gap` takes it.
    gap: String,
    /// Requests sent.
    sent: u64,
    /// Requests answered in time.
    answered: u64,
    /// Requests that were not answered within a second.
    lost: u64,
    /// Requests that the transmit ring had no room for when they were due; they are not among those sent.
    refused: u64,
    /// Answers to lost requests, after all.
    late: u64,
    /// Answers that came after that to a later request.
    reordered: u64,
    /// Answers that came once more.
    duplicated: u64,
    /// Frames that claimed to be answers and were not, or were changed on their way.
    spoiled: u64,
    /// Other frames that came in.
    foreign: u64,
    /// From when a request was due to its answer; `None` without any.
    round_trip_us: Option<PercentilesUs>,
    /// The first part of that: from when a request was due to when the worker sent it.
    lag_us: Option<PercentilesUs>,
    /// The share of a core that the client's worker used, by the kernel's account.
    cpu_share: Option<f64>,
    /// The server's, as it told; `None` when the run was too short to say.
    peer_cpu_share: Option<f64>,
}

/// What a server did.
#[derive(Debug, Serialize)]
pub(crate) struct ServerReport {
    /// Requests answered.
    answered: u64,
    /// Requests whose answers the transmit ring had no room for.
    refused: u64,
    /// Frames that claimed to be requests and were not, or were changed on their way.
    spoiled: u64,
    /// Requests and answers for another address.
    misaddressed: u64,
    /// Frames of other protocols.
    foreign: u64,
}

impl Report {
    /// Nothing yet of a run that took this long.
    pub(crate) fn new(time: Duration) -> Self {
        let (ports, workers, pools) = (Vec::new(), Vec::new(), Vec::new());
        Self { seconds: time.as_secs_f64(), client: None, server: None, ports, workers, pools }
    }

    /// Adds what became of a node.
    pub(crate) fn add(&mut self, end: NodeEnd) {
        self.ports.push(end.port);
        self.workers.push(end.worker);
        self.pools.push(end.pool);
    }
}

impl ClientReport {
    pub(crate) fn of(request: &Request, counters: &ClientCounters, cpu_share: Option<f64>) -> Self {
        Self {
            peer: request.peer.to_string(),
            size_bytes: request.size,
            gap: request.gap.to_string(),
            sent: counters.sent.get(),
            answered: counters.answered.get(),
            lost: counters.lost.get(),
            refused: counters.refused.get(),
            late: counters.late.get(),
            reordered: counters.reordered.get(),
            duplicated: counters.duplicated.get(),
            spoiled: counters.spoiled.get(),
            foreign: counters.foreign.get(),
            round_trip_us: PercentilesUs::of(&counters.round_trip_ns.snapshot()),
            lag_us: PercentilesUs::of(&counters.lag_ns.snapshot()),
            cpu_share,
            peer_cpu_share: share(Load::unpack(counters.first_load.get()), Load::unpack(counters.last_load.get())),
        }
    }

    /// Whom it asked.
    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// Requests sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether it asked, and nobody answered.
    pub(crate) fn is_unheard(&self) -> bool {
        self.sent > 0 && self.answered == 0
    }
}

impl ServerReport {
    pub(crate) fn of(counters: &ServerCounters) -> Self {
        Self {
            answered: counters.answered.get(),
            refused: counters.refused.get(),
            spoiled: counters.spoiled.get(),
            misaddressed: counters.misaddressed.get(),
            foreign: counters.foreign.get(),
        }
    }
}

/// The share of a core between two loads of one worker, which is anybody's word.
fn share(first: Load, last: Load) -> Option<f64> {
    /// Loads are a twentieth of a second old at most.
    const LEAST_MS: u32 = 500;
    let (cpu, up) = (last.cpu_ms.checked_sub(first.cpu_ms)?, last.up_ms.checked_sub(first.up_ms)?);
    (up >= LEAST_MS).then(|| (f64::from(cpu) / f64::from(up)).min(1.0))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(client) = &self.client {
            client.describe(f, self.seconds)?;
        }
        if let Some(server) = &self.server {
            let ServerReport { answered, refused, spoiled, misaddressed, foreign } = server;
            let rate = Rate(*answered as f64 / self.seconds);
            writeln!(f, "\nanswered {answered} requests in {:.1} s ({rate})", self.seconds)?;
            let ignored = [(spoiled, "spoiled"), (misaddressed, "for others"), (foreign, "foreign")];
            for (count, what) in ignored.into_iter().filter(|(count, _)| **count > 0) {
                writeln!(f, "ignored {count} frames that were {what}")?;
            }
            if *refused > 0 {
                writeln!(f, "dropped {refused} answers for which a ring had no room")?;
            }
        }
        for (number, (port, worker)) in self.ports.iter().zip(&self.workers).enumerate() {
            write!(f, "\nport {number}  {port}\n{worker}")?;
        }
        Ok(())
    }
}

impl ClientReport {
    fn describe(&self, f: &mut fmt::Formatter<'_>, seconds: f64) -> fmt::Result {
        let Self { peer, size_bytes, gap, sent, answered, lost, refused, late, reordered, duplicated, .. } = self;
        let rate = Rate(*answered as f64 / seconds);
        writeln!(
            f,
            "\n{answered} round trips of {size_bytes} bytes with {peer} in {seconds:.1} s ({rate}), due {gap}"
        )?;
        if let Some(times) = &self.round_trip_us {
            writeln!(f, "latency {times}")?;
        }
        if let Some(times) = &self.lag_us {
            writeln!(f, "lag     {times}: how late requests left, as part of the latency")?;
        }
        write!(f, "sent    {sent}; lost {lost}, reordered {reordered}, duplicated {duplicated}")?;
        let odd = [
            (*late, "late"),
            (*refused, "refused by a full ring"),
            (self.spoiled, "spoiled"),
            (self.foreign, "foreign"),
        ];
        for (count, what) in odd.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {what} {count}")?;
        }
        if *lost > 0 {
            write!(f, " (lost: no answer within {PATIENCE:?})")?;
        }
        let known = |share: Option<f64>| share.map_or_else(|| "not known".into(), |share| Share(share).to_string());
        writeln!(f, "\ncpu     of a core: {} here, {} there", known(self.cpu_share), known(self.peer_cpu_share))
    }
}

/// What happened in a second, from the client's counters at its ends.
#[derive(Debug)]
pub(crate) struct ClientSecond {
    at: Duration,
    answered: u64,
    lost: u64,
    times: Snapshot,
}

impl ClientSecond {
    /// The counts now.
    pub(crate) fn now(at: Duration, counters: &ClientCounters) -> Self {
        let (answered, lost) = (counters.answered.get(), counters.lost.get() + counters.refused.get());
        Self { at, answered, lost, times: counters.round_trip_ns.snapshot() }
    }

    /// The line for the time since `earlier`, but for its end.
    pub(crate) fn since(&self, earlier: &Self) -> String {
        let seconds = (self.at - earlier.at).as_secs_f64();
        let rate = Rate((self.answered - earlier.answered) as f64 / seconds).to_string();
        let times = self.times.since(&earlier.times);
        let us = |quantile| match times.count() {
            0 => "-".into(),
            _ => format!("{:.1}", times.quantile(quantile) as f64 / 1e3),
        };
        let (p50, p99, lost) = (us(0.5), us(0.99), self.lost - earlier.lost);
        format!("{:>4.0} s  {rate:>8}  p50 {p50:>6} p99 {p99:>6} µs  lost {lost}", self.at.as_secs_f64())
    }
}

/// The distribution of round trips and lags as a plot, up to the slowest.
pub(crate) fn plot(request: &Request, counters: &ClientCounters) -> Result<String, PlotError> {
    let title = format!("Round trips of {} bytes, due {}", request.size, request.gap);
    let frame = Frame {
        title: &title,
        x: Axis { label: "of so many round trips, one took longer", log: true },
        y: Axis { label: "time, µs", log: true },
    };
    let series = [("round trip", &counters.round_trip_ns), ("send lag", &counters.lag_ns)];
    let series = series.map(|(name, times)| Series { name: name.into(), points: tail(&times.snapshot()) });
    plot::lines_svg(frame, &series)
}

/// How long at most all but one of so many took, in microseconds.
fn tail(ns: &Snapshot) -> Vec<(f64, f64)> {
    const STEPS_A_DECADE: f64 = 20.0;
    let decades = (ns.count().max(1) as f64).log10();
    let steps = (decades * STEPS_A_DECADE).ceil() as u32;
    let point = |step| {
        let one_of = 10_f64.powf(f64::from(step) / STEPS_A_DECADE);
        (one_of, ns.quantile(1.0 - 1.0 / one_of) as f64 / 1e3)
    };
    (0..=steps).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_share_is_told_only_if_it_can_be() {
        let load = |cpu_ms, up_ms| Load { cpu_ms, up_ms };
        assert_eq!(share(load(100, 1000), load(350, 2000)), Some(0.25));
        assert_eq!(share(load(0, 0), load(5000, 1000)), Some(1.0));
        for (first, last) in [(load(0, 0), load(0, 100)), (load(2, 0), load(1, 1000)), (load(0, 9), load(1, 8))] {
            assert_eq!(share(first, last), None);
        }
    }

    #[test]
    fn the_tail_reaches_the_slowest() {
        let counters = ClientCounters::default();
        (1..=1000).for_each(|us| counters.round_trip_ns.record(us * 1000));
        let tail = tail(&counters.round_trip_ns.snapshot());
        let (one_of, slowest) = tail.last().copied().unwrap();
        assert!((one_of - 1000.0).abs() < 1.0 && slowest > 960.0, "{one_of} {slowest}");
    }
}
