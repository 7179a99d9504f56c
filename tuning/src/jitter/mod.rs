//! What the machine does to a worker: a thread spins on one core and takes down every moment in which it did not get on.
//!
//! ```text
//! spin ──▶ Gaps ─┐
//! Counts (before, after) ──▶ Blame ─┼──▶ JitterReport ──▶ text, JSON, a page
//! Tracing (if asked) ───────────────┘
//! ```

mod advice;
mod blame;
mod compare;
mod gaps;
mod guard;
mod show;
mod spin;
mod trace;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spinwake::clock::Clock;
use spinwake::cpu::CpuSet;

pub use blame::{Blame, Event, Ran};
pub use compare::{Comparison, Row, Unit};
pub use gaps::{Bucket, Gap, Gaps};
pub use spin::SpinError;
pub use trace::Traced;

use crate::host::Host;
use crate::output::Report;
use crate::units::{Ns, nanoseconds, parse_seconds, parse_time};
use advice::Told;
use blame::Counts;
use spin::Plan;
use trace::Tracing;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The core to spin on; it is taken whole for the time
    #[arg(long)]
    pub core: usize,
    /// How long to measure
    #[arg(long, default_value = "10", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// Gaps longer than this are counted
    #[arg(long, value_name = "TIME", default_value = "1us", value_parser = parse_time)]
    pub threshold: Duration,
    /// Keeps the result, to compare with later
    #[arg(long, value_name = "FILE.json")]
    pub save: Option<PathBuf>,
    /// Compares with an earlier result
    #[arg(long, value_name = "FILE.json")]
    pub against: Option<PathBuf>,
    /// Asks the kernel's tracers, too (as root): osnoise or plain events meanwhile, hwlat and timerlat afterwards
    #[arg(long)]
    pub trace: bool,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JitterReport {
    /// What this is, and its version: a file that says otherwise is refused.
    pub kind: String,
    /// The core.
    pub core: usize,
    /// What told the time.
    pub clock: String,
    /// The kernel's version; empty where unknown.
    pub kernel: String,
    /// The kernel's command line; empty where unknown.
    pub command_line: String,
    /// Whether it was ended before its time.
    pub ended_early: bool,
    /// The gaps.
    pub gaps: Gaps,
    /// Who took the core.
    pub blame: Blame,
    /// What it means, and what mends it.
    pub advice: Vec<String>,
    /// Against an earlier measurement, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<Comparison>,
}

/// It could not be measured, or the result not be kept.
#[derive(Debug, thiserror::Error)]
pub enum JitterError {
    /// The core cannot be had.
    #[error(transparent)]
    Spin(#[from] SpinError),
    /// An earlier result cannot be read.
    #[error("{path}: {why}; `spinwake-tune jitter --core N --save {path}` makes such a file")]
    Earlier {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The result was not kept.
    #[error("{path}: the result could not be written ({source}); does its folder exist?")]
    Save {
        /// The file.
        path: PathBuf,
        /// The meaning of errno.
        source: io::Error,
    },
    /// Ctrl-C could not be taken over.
    #[error("Ctrl-C could not be made to end the measurement: {0}")]
    Signal(io::Error),
}

/// What a saved result calls itself.
const KIND: &str = "spinwake-tune jitter 1";
/// No saved result is longer.
const LONGEST: u64 = 16 << 20;

/// Measures, compares and keeps what was measured.
///
/// # Errors
///
/// When the earlier result cannot be read, the core cannot be had, or the result cannot be kept.
pub fn run(args: &Args, host: &Host) -> Result<JitterReport, JitterError> {
    // Before the measurement: nobody wants to learn after an hour that a file was misspelt.
    let earlier = args.against.as_deref().map(load).transpose()?;
    if let Some(path) = &args.save {
        // Left as it is, or as absent: it may be what is compared with, and the measurement may fail.
        let is_there = path.exists();
        let writable = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        writable.map_err(|source| JitterError::Save { path: path.clone(), source })?;
        if !is_there {
            let _ = std::fs::remove_file(path);
        }
    }
    let stop = ended_by_signals()?;
    let mut report = measure(args, host, &stop)?;
    if let (Some(earlier), Some(path)) = (&earlier, &args.against) {
        let after = (report.core, &report.gaps);
        report.against = Some(Comparison::new(&path.display().to_string(), (earlier.core, &earlier.gaps), after));
    }
    if let Some(path) = &args.save {
        save(path, &report)?;
    }
    Ok(report)
}

/// A flag that Ctrl-C and SIGTERM set from now on, instead of ending the process. A second one ends it.
///
/// # Errors
///
/// When the kernel refuses.
pub fn ended_by_signals() -> Result<Arc<AtomicBool>, JitterError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // In this order, so that the first finds the flag unset. Shells tell a death by a signal as 128 and its number.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())
            .map_err(JitterError::Signal)?;
        signal_hook::flag::register(signal, stop.clone()).map_err(JitterError::Signal)?;
    }
    Ok(stop)
}

/// Measures until the time is over or `stop` is set.
///
/// # Errors
///
/// When the core cannot be had.
pub fn measure(args: &Args, host: &Host, stop: &AtomicBool) -> Result<JitterReport, JitterError> {
    let core = args.core;
    let clock = Clock::get();
    let plan = Plan { core, length: args.seconds, threshold: args.threshold, live: true };
    let mut unknown = Vec::new();
    let mut note = |why| unknown.push(why);
    let spun = spin::spin(
        &plan,
        stop,
        |tid| {
            let tracing = args.trace.then(|| Tracing::start(host, core));
            (Counts::read(host, core, tid), tracing)
        },
        |tid| Counts::read(host, core, tid),
    )?;
    let (before, tracing) = spun.before;
    let mut blame = before.until(&spun.after, core);
    let mut gaps = spun.gaps;
    match tracing {
        Some(Ok(tracing)) => {
            let alone = tracing.alone();
            // A trace may be written in whole microseconds.
            let us = clock.ns_to_ticks(1_000);
            let around = |&(from, to): &(u64, u64)| (from.saturating_sub(us), to.saturating_add(us));
            let (traced, during) = tracing.stop(&spun.worst_ticks.iter().map(around).collect::<Vec<_>>());
            blame.traced = traced;
            gaps.worst.iter_mut().zip(during).for_each(|(gap, during)| gap.during = during);
            for missing in ["hwlat", "timerlat"].into_iter().filter(|name| !alone.contains(name)) {
                note(format!("the {missing} tracer: this kernel was built without it"));
            }
            for tracer in alone {
                match Tracing::run_alone(host, core, tracer, args.seconds, stop) {
                    Ok(traced) => blame.traced.extend(traced),
                    Err(why) => note(why),
                }
            }
        }
        Some(Err(why)) => note(why),
        None => {}
    }
    // By more than what is lost in turning a time into ticks and back.
    if gaps.threshold_ns > nanoseconds(args.threshold) + 1 {
        note(format!("gaps shorter than {}: a look at the clock takes a quarter of that here", Ns(gaps.threshold_ns)));
    }
    blame.unknown.extend(unknown);
    let topology = host.topology();
    let among = |cores: Option<&CpuSet>| cores.is_some_and(|cores| cores.contains(core));
    let told = Told { isolated: among(topology.isolated()), tickless: among(topology.nohz_full()) };
    Ok(JitterReport {
        kind: KIND.into(),
        core,
        clock: clock.source().to_string(),
        kernel: host.read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        command_line: host.read("/proc/cmdline").unwrap_or_default(),
        ended_early: stop.load(std::sync::atomic::Ordering::Relaxed),
        advice: advice::advice(core, told, &gaps, &blame),
        gaps,
        blame,
        against: None,
    })
}

/// Reads a result that was kept.
///
/// # Errors
///
/// When it cannot be read, or is something else.
pub fn load(path: &Path) -> Result<JitterReport, JitterError> {
    let wrong = |why: String| JitterError::Earlier { path: path.into(), why };
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    read.map_err(|error| wrong(error.to_string()))?;
    let report: JitterReport =
        serde_json::from_str(&text).map_err(|error| wrong(format!("this is no result of `jitter`: {error}")))?;
    if report.kind != KIND {
        return Err(wrong(format!("this is \"{}\", not \"{KIND}\"", report.kind)));
    }
    Ok(report)
}

fn save(path: &Path, report: &JitterReport) -> Result<(), JitterError> {
    let failed = |source| JitterError::Save { path: path.into(), source };
    let text = serde_json::to_string_pretty(report).map_err(|error| failed(error.into()))?;
    std::fs::write(path, text + "\n").map_err(failed)
}

impl Report for JitterReport {}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(path: &Path) -> Args {
        Args {
            core: spinwake::sys::sched::affinity(0).unwrap()[0],
            seconds: Duration::from_millis(200),
            threshold: Duration::from_micros(1),
            save: Some(path.into()),
            against: None,
            trace: false,
        }
    }

    #[test]
    fn a_short_run_measures_its_time_and_compares_with_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("before.json");
        let host = Host::default();
        let first = run(&args(&path), &host).unwrap();
        let gaps = &first.gaps;
        assert!(gaps.measured_ns >= 200_000_000 && gaps.looks > 1_000, "{gaps:?}");
        assert!(gaps.lost_ns <= gaps.measured_ns && gaps.p50_ns <= gaps.p99_ns && gaps.p99_ns <= gaps.max_ns);
        assert_eq!(gaps.histogram.iter().map(|bucket| bucket.count).sum::<u64>(), gaps.count);
        assert!(gaps.worst.iter().all(|gap| gap.gap_ns + 1 > gaps.threshold_ns && gap.at_ns < gaps.measured_ns));
        assert!(!first.ended_early && !first.advice.is_empty());
        // It spun all the time, so whatever kernel this is ticked, or told so.
        assert!(!first.blame.interrupts.is_empty() || !first.blame.unknown.is_empty());
        assert_eq!(load(&path).unwrap(), first);
        let second = run(&Args { against: Some(path.clone()), save: None, ..args(&path) }, &host).unwrap();
        assert_eq!(second.against.unwrap().rows.len(), 6);
    }

    #[test]
    fn it_ends_early_when_told_and_says_so() {
        let stop = AtomicBool::new(true);
        let report = measure(&args(Path::new("unused")), &Host::default(), &stop).unwrap();
        assert!(report.ended_early && report.gaps.measured_ns < 200_000_000);
        assert!(report.to_string().contains("ended early"), "{report}");
    }

    #[test]
    fn what_cannot_be_read_or_kept_is_refused_before_anything_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.json");
        let other = Args { against: Some(path.clone()), seconds: Duration::from_secs(3_600), ..args(&path) };
        for text in ["", "{}", "[1, 2]", "{\"kind\": 7}"] {
            std::fs::write(&path, text).unwrap();
            let error = run(&other, &Host::default()).unwrap_err().to_string();
            assert!(error.contains("no result of `jitter`") && error.contains("--save"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(run(&other, &Host::default()), Err(JitterError::Earlier { .. })));
        let nowhere = Args { save: Some(folder.path().join("no/after.json")), against: None, ..other };
        assert!(matches!(run(&nowhere, &Host::default()), Err(JitterError::Save { .. })));
    }

    #[test]
    fn a_core_that_is_not_there_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("unused.json");
        let error = run(&Args { core: 5_000, ..args(&path) }, &Host::default()).unwrap_err();
        assert!(error.to_string().contains("core 5000") && !path.exists(), "{error}");
    }

    #[test]
    fn tracers_that_are_not_there_are_told() {
        let empty = tempfile::tempdir().unwrap();
        let asked = Args { trace: true, seconds: Duration::from_millis(50), ..args(Path::new("unused")) };
        let report = measure(&asked, &Host::at(empty.path()), &AtomicBool::new(false)).unwrap();
        assert!(report.blame.unknown.iter().any(|why| why.contains("tracefs")), "{:?}", report.blame.unknown);
    }
}
