//! What a sleep costs on this core: measured, not assumed.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::policy::WakeCost;
use super::sleeps::{SleepPlan, Sleeps, elsewhere, measure_sleeps};
use crate::irq::Vector;
use crate::sys::epoll::{Epoll, Events, Trigger, Woken};
use crate::sys::sched;

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

/// Measures what a sleep costs the calling thread on the core that it is pinned to: another thread, on another core,
/// ends its sleeps by an eventfd, as an interrupt does. Where the process may use no other core, or only one that shares
/// execution units with this one, time limits end them: a thread beside it would keep the core awake, and show no more
/// than a change of threads.
///
/// # Errors
///
/// When the process is out of file descriptors or threads.
pub(super) fn wake_cost() -> io::Result<WakeCost> {
    let (epoll, vector) = (Epoll::new()?, Vector::new()?);
    epoll.add(vector.as_fd(), 0, Trigger::Edge)?;
    let mut events = Events::new(1);
    let sleeps = if elsewhere(sched::current_core()?).is_empty() {
        timed(|limit| Ok(epoll.wait(&mut events, limit)? == Woken::TimedOut))?
    } else {
        // Other workers may need the other cores: whoever ends the sleeps does not spin there.
        let plan = SleepPlan { asleep: &ASLEEP, rounds: ROUNDS, rounds_min: ROUNDS_MIN, time: TIME, punctual: false };
        let sleep = |limit| Ok(matches!(epoll.wait(&mut events, limit)?, Woken::Ready(_)));
        measure_sleeps(&plan, sleep, || vector.signal(1))?
    };
    let at = |share| sleeps.quantile_ns(share).unwrap_or(FALLBACK_NS);
    Ok(WakeCost { latency_ns: at(0.5), latency_p99_ns: at(0.99), cpu_ns: sleeps.cpu_ns })
}

/// Sleeps until a time limit. `sleep` says whether that ended it: signal handlers may.
fn timed(mut sleep: impl FnMut(Duration) -> io::Result<bool>) -> io::Result<Sleeps> {
    let slack = if sched::is_realtime() { 0 } else { sched::timer_slack_ns().unwrap_or(0) };
    let (began, cpu_before) = (Instant::now(), sched::thread_cpu_time());
    let mut latencies_ns = Vec::with_capacity(ROUNDS);
    while latencies_ns.len() < ROUNDS_MIN || (latencies_ns.len() < ROUNDS && began.elapsed() < TIME) {
        let limit = ASLEEP[latencies_ns.len() % ASLEEP.len()];
        let before = Instant::now();
        if !sleep(limit)? {
            continue;
        }
        let late = before.elapsed().saturating_sub(limit + Duration::from_nanos(slack));
        latencies_ns.push(u64::try_from(late.as_nanos()).unwrap_or(u64::MAX));
    }
    let cpu = sched::thread_cpu_time().saturating_sub(cpu_before);
    let cpu_ns = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX) / latencies_ns.len() as u64;
    latencies_ns.sort_unstable();
    Ok(Sleeps { latencies_ns, cpu_ns, missed: 0 })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_sleep_costs_something_with_other_cores_and_without() {
        let with_others = wake_cost().expect("descriptors and threads");
        let mut lasted = Vec::new();
        let alone = timed(|limit| {
            thread::sleep(limit);
            lasted.push(limit);
            Ok(true)
        })
        .expect("it only sleeps");
        assert_eq!(alone.latencies_ns.len(), lasted.len());
        assert!(lasted.len() >= ROUNDS_MIN && lasted[..6] == ASLEEP);
        assert!(with_others.cpu_ns > 0 && alone.cpu_ns > 0 && with_others.latency_p99_ns >= with_others.latency_ns);
    }
}
