//! What the processor counted while a worker ran: cycles, instructions, misses, context switches.
//!
//! A counter counts the thread that opens it, so a worker opens its own when it starts. Machines without a performance
//! monitoring unit (most virtual ones) have only the software counters, and the report says so.

use std::io;

use perf_event::events::{Cache, CacheOp, CacheResult, Event, Hardware, Software, WhichCache};
use perf_event::{Builder, Counter};
use serde::Serialize;

/// The counters of one thread.
#[derive(Debug, Default)]
pub struct PerfCounters {
    open: Vec<(&'static str, Counter)>,
    missing: Vec<(&'static str, String)>,
}

/// What the counters showed.
#[derive(Debug, Clone, Serialize)]
pub struct PerfReport {
    /// Name and count since the start.
    pub counts: Vec<PerfCount>,
    /// Names of counters that cannot be had, and why.
    pub missing: Vec<(String, String)>,
}

/// One counter.
#[derive(Debug, Clone, Serialize)]
pub struct PerfCount {
    /// Its name.
    pub name: String,
    /// Its count, scaled up where the kernel had to share the hardware counter.
    pub count: u64,
}

impl PerfCounters {
    /// Opens and starts every counter that this machine has, for the calling thread.
    pub fn open() -> Self {
        let cache = |which, result| Event::from(Cache { which, operation: CacheOp::READ, result });
        let wanted = [
            ("cycles", Event::from(Hardware::CPU_CYCLES)),
            ("instructions", Hardware::INSTRUCTIONS.into()),
            ("cache misses", Hardware::CACHE_MISSES.into()),
            ("L1 data misses", cache(WhichCache::L1D, CacheResult::MISS)),
            ("data TLB misses", cache(WhichCache::DTLB, CacheResult::MISS)),
            ("context switches", Software::CONTEXT_SWITCHES.into()),
            ("page faults", Software::PAGE_FAULTS.into()),
        ];
        let mut counters = Self::default();
        for (name, event) in wanted {
            match start(event) {
                Ok(counter) => counters.open.push((name, counter)),
                Err(error) => counters.missing.push((name, reason(&error))),
            }
        }
        counters
    }

    /// What they show now.
    pub fn read(&mut self) -> PerfReport {
        let mut missing: Vec<_> = self.missing.iter().map(|(name, why)| ((*name).to_owned(), why.clone())).collect();
        let mut counts = Vec::new();
        for (name, counter) in &mut self.open {
            match counter.read_count_and_time() {
                Ok(read) => {
                    let share = read.time_running.max(1) as f64 / read.time_enabled.max(1) as f64;
                    counts.push(PerfCount { name: (*name).into(), count: (read.count as f64 / share) as u64 });
                }
                Err(error) => missing.push(((*name).into(), error.to_string())),
            }
        }
        PerfReport { counts, missing }
    }
}

fn start(event: Event) -> io::Result<Counter> {
    let build = |kernel: bool| {
        let mut builder = Builder::new().kind(event.clone());
        if kernel {
            builder.include_kernel();
        }
        builder.build()
    };
    // The kernel's side is counted too where that is allowed. Context switches happen there alone: without it none would show.
    let mut counter = match build(true) {
        Err(_) if event != Event::Software(Software::CONTEXT_SWITCHES) => build(false)?,
        other => other?,
    };
    counter.enable()?;
    Ok(counter)
}

/// Why an event is not counted, with the way out where there is one.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{error}; root may, or anyone with sysctl kernel.perf_event_paranoid=1")
        }
        io::ErrorKind::NotFound => "this machine has no such counter".into(),
        _ => error.to_string(),
    }
}
