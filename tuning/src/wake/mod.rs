//! What sleeping costs here: every way in which a worker can sleep, from shallow to deep idle.

mod advice;
mod device;
mod show;
mod ways;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spinwake::cpu::{PinError, pin_current_thread, set_timer_slack_ns};
use spinwake::pci::Bdf;
use spinwake::wait::Sleeps;

pub use advice::Advice;
pub use device::{DeviceError, DeviceWake};
pub use ways::Way;

use crate::host::Host;
use crate::output::Report;
use crate::units::parse_seconds;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The core to sleep on
    #[arg(long)]
    pub core: usize,
    /// How long to measure, in all
    #[arg(long, default_value = "10", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// A device bound to vfio-pci, whose interrupts are measured, too
    #[arg(long, value_name = "BDF")]
    pub device: Option<Bdf>,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WakeReport {
    /// The core.
    pub core: usize,
    /// What each way to sleep costs, for each length of sleep.
    pub cells: Vec<Cell>,
    /// Ways that this machine does not have, and why.
    pub absent: Vec<String>,
    /// A device's interrupts, if asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceWake>,
    /// What to make of it.
    pub advice: Advice,
}

/// Sleeps of one length in one way. All times are in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// How it slept.
    pub way: Way,
    /// How long it slept before it was woken.
    pub idle_ns: u64,
    /// How many sleeps were measured. Of fewer than a hundred, p99 is the longest.
    pub sleeps: u64,
    /// What a sleep adds to the latency of what ends it: half of the sleeps, no more.
    pub p50_ns: u64,
    /// 99 of 100 sleeps, no more.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Processor time of one sleep, from before it to after it.
    pub cpu_ns: u64,
}

/// It could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum WakeError {
    /// The core cannot be had.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A system call failed.
    #[error("measuring {what} failed: {source}; is the process out of file descriptors or threads (ulimit -n, -u)?")]
    Os {
        /// What was measured.
        what: String,
        /// The meaning of errno.
        source: io::Error,
    },
    /// The device cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// How long sleeps last, from shallow to deep idle, and what share of the time each is given.
const IDLE: [(Duration, u32); 4] = [
    (Duration::from_micros(20), 1),
    (Duration::from_micros(100), 1),
    (Duration::from_millis(1), 2),
    (Duration::from_millis(10), 4),
];
/// Of all [`IDLE`].
const PARTS: u32 = 8;
/// Sleeps of one kind: no more, if there is time, and no fewer, however long they take.
const SLEEPS: (usize, usize) = (5_000, 8);

/// Measures every way to sleep that there is, and says what to make of it.
///
/// # Errors
///
/// When the core or the device cannot be had, or the kernel runs out of something.
pub fn run(args: &Args, _host: &Host) -> Result<WakeReport, WakeError> {
    run_until(args, &AtomicBool::new(false))
}

/// As [`run`], but begins no other kind of sleep once `stop` is set.
///
/// # Errors
///
/// As those of [`run`].
pub fn run_until(args: &Args, stop: &AtomicBool) -> Result<WakeReport, WakeError> {
    // A thread of its own: the pin ends with it.
    let measured = thread::scope(|scope| scope.spawn(|| measure(args, stop)).join());
    match measured {
        Ok(report) => report,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn measure(args: &Args, stop: &AtomicBool) -> Result<WakeReport, WakeError> {
    // First, so that a device that cannot be had does not cost the time of everything else.
    let mut device = args.device.map(device::Interrupting::open).transpose()?;
    pin_current_thread(args.core)?;
    let mut absent = Vec::new();
    // Timers are late by a thread's slack, which workers take away, too.
    if let Err(error) = set_timer_slack_ns(1) {
        absent.push(format!("timers without slack: {error}"));
    }
    let (ways, missing) = Way::here();
    absent.extend(missing);
    let kinds = ways.len() as u32 + u32::from(device.is_some());
    let part = args.seconds / (kinds * PARTS);
    let mut cells = Vec::new();
    for (way, (idle, parts)) in ways.iter().flat_map(|&way| IDLE.map(|idle| (way, idle))) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let failed = |source| WakeError::Os { what: way.to_string(), source };
        let sleeps = way.measure(idle, part * parts).map_err(failed)?;
        cells.extend(Cell::new(way, idle, &sleeps));
    }
    let going_on = |_: &&mut device::Interrupting| !stop.load(Ordering::Relaxed);
    let device = device.as_mut().filter(going_on).map(|device| device.measure(part)).transpose()?;
    if stop.load(Ordering::Relaxed) {
        absent.push("what was not measured yet: it was ended early".into());
    }
    let advice = Advice::of(args.core, &cells, device.as_ref());
    Ok(WakeReport { core: args.core, cells, absent, device, advice })
}

impl Cell {
    /// `None` when not one sleep was measured.
    fn new(way: Way, idle: Duration, sleeps: &Sleeps) -> Option<Self> {
        Some(Self {
            way,
            idle_ns: crate::units::nanoseconds(idle),
            sleeps: sleeps.latencies_ns.len() as u64,
            p50_ns: sleeps.quantile_ns(0.5)?,
            p99_ns: sleeps.quantile_ns(0.99)?,
            max_ns: sleeps.quantile_ns(1.0)?,
            cpu_ns: sleeps.cpu_ns,
        })
    }
}

impl Report for WakeReport {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_measures_each_way_at_each_depth() {
        let core = spinwake::sys::sched::affinity(0).unwrap()[0];
        let args = Args { core, seconds: Duration::from_millis(200), device: None };
        let report = run(&args, &Host::default()).unwrap();
        let (ways, absent) = Way::here();
        assert!(ways.len() >= 5 && report.cells.len() == ways.len() * IDLE.len(), "{report:?}");
        assert!(report.absent.len() >= absent.len());
        for cell in &report.cells {
            // Fewer than the plan's least where the thread that ends them gets no time to run.
            assert!(cell.sleeps > 0 && cell.sleeps <= SLEEPS.0 as u64, "{cell:?}");
            assert!(cell.p50_ns <= cell.p99_ns && cell.p99_ns <= cell.max_ns, "{cell:?}");
        }
        let text = report.to_string();
        for way in ways {
            assert!(text.contains(&way.to_string()), "{way} is not in {text}");
        }
        assert!(text.contains("--wait "), "{text}");
    }

    #[test]
    fn once_told_to_stop_it_measures_nothing_more_and_says_so() {
        let core = spinwake::sys::sched::affinity(0).unwrap()[0];
        let args = Args { core, seconds: Duration::from_secs(3_600), device: None };
        let report = run_until(&args, &AtomicBool::new(true)).unwrap();
        assert!(report.cells.is_empty() && report.to_string().contains("ended early"), "{report}");
    }

    #[test]
    fn a_core_or_device_that_is_not_there_is_refused() {
        let args = Args { core: 5_000, seconds: Duration::from_millis(50), device: None };
        assert!(matches!(run(&args, &Host::default()), Err(WakeError::Pin(_))));
        let args = Args { core: 0, device: Some("ffff:1f:1f.7".parse().unwrap()), ..args };
        let error = run(&args, &Host::default()).unwrap_err();
        assert!(error.to_string().contains("ffff:1f:1f.7"), "{error}");
    }
}
