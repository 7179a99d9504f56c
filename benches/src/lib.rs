//! Shared pieces of the benchmarks: cycles, spreads and ratios, and DPDK as the peer on the same work.

pub mod compare;
pub mod dpdk;

use std::error::Error;

use spinwake::clock::Clock;
use spinwake::cpu::{self, CoreChoice, CpuSet, Topology};

/// Clock ticks (TSC cycles where there is a usable TSC) that `work` takes.
pub fn cycles(work: impl FnOnce()) -> u64 {
    let clock = Clock::get();
    let start = clock.now_ordered();
    work();
    clock.now_ordered().saturating_sub(start)
}

/// Pins this thread to the core that a worker would be given, and returns it.
///
/// # Errors
///
/// When there is none, or it cannot be had.
pub fn worker_core() -> Result<usize, Box<dyn Error>> {
    let core = cpu::choose(&Topology::read(), CoreChoice::Auto, None, &CpuSet::new())?.core;
    cpu::pin_current_thread(core)?;
    Ok(core)
}
