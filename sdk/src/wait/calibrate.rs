//! What a sleep costs on this core: measured, not assumed.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::policy::WakeCost;
use super::sleeps::{SleepPlan, measure_sleeps};
use crate::irq::Vector;
use crate::sys::epoll::{Epoll, Events, Trigger, Woken};

/// Sleeps that are measured, if there is time.
const ROUNDS: usize = 400;
/// And at least, however long they take.
const ROUNDS_MIN: usize = 16;
/// How long it may take.
const TIME: Duration = Duration::from_millis(150);
/// How long a sleep lasts before it is ended, in steps that fit no timer's period: long enough to be asleep, and now
/// and then long enough that the core, or the hypervisor under it, sleeps more deeply.
const ASLEEP: [Duration; 6] = [
    Duration::from_micros(83),
    Duration::from_micros(503),
    Duration::from_micros(131),
    Duration::from_micros(197),
    Duration::from_micros(997),
    Duration::from_micros(251),
];
/// Taken where nothing could be measured.
const FALLBACK_NS: u64 = 50_000;

/// Measures what a sleep costs the calling thread on the core that it is pinned to: another thread, on another core
/// where there is one, ends its sleeps by an eventfd, as an interrupt does.
///
/// # Errors
///
/// When the process is out of file descriptors or threads.
pub(super) fn wake_cost() -> io::Result<WakeCost> {
    let (epoll, vector) = (Epoll::new()?, Vector::new()?);
    epoll.add(vector.as_fd(), 0, Trigger::Edge)?;
    let mut events = Events::new(1);
    // Other workers may need the other cores: whoever ends the sleeps does not spin there.
    let plan = SleepPlan { asleep: &ASLEEP, rounds: ROUNDS, rounds_min: ROUNDS_MIN, time: TIME, punctual: false };
    let sleep = |limit| Ok(matches!(epoll.wait(&mut events, limit)?, Woken::Ready(_)));
    let sleeps = measure_sleeps(&plan, sleep, || vector.signal(1))?;
    let at = |share| sleeps.quantile_ns(share).unwrap_or(FALLBACK_NS);
    Ok(WakeCost { latency_ns: at(0.5), latency_p99_ns: at(0.99), cpu_ns: sleeps.cpu_ns })
}
