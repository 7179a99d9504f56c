//! What a sleep costs on this core: measured, not assumed.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::policy::WakeCost;
use crate::clock::Clock;
use crate::cpu;
use crate::irq::Vector;
use crate::sys::epoll::{Epoll, Events, Trigger, Woken};
use crate::sys::sched;

/// Sleeps that are measured, if there is time.
const ROUNDS: usize = 400;
/// And at least, however long they take.
const ROUNDS_MIN: usize = 16;
/// How long it may take.
const TIME: Duration = Duration::from_millis(150);
/// No single sleep takes longer.
const LIMIT: Duration = Duration::from_millis(100);
/// How long a sleep lasts before it is ended, in steps that fit no timer's period: long enough to be asleep, and now
/// and then long enough that the core, or the hypervisor under it, sleeps more deeply.
const ASLEEP_US: [u64; 6] = [83, 503, 131, 197, 997, 251];

/// Measures what a sleep costs the calling thread on the core that it is pinned to: another thread, on another core
/// where there is one, ends its sleeps by an eventfd, as an interrupt does.
///
/// # Errors
///
/// When the process is out of file descriptors or threads.
pub(super) fn wake_cost() -> io::Result<WakeCost> {
    let clock = Clock::get();
    let (epoll, vector) = (Epoll::new()?, Vector::new()?);
    epoll.add(vector.as_fd(), 0, Trigger::Edge)?;
    let shared = Arc::new(Shared {
        vector,
        round: AtomicU64::new(0),
        signalled_at: AtomicU64::new(0),
        end: AtomicBool::new(false),
    });
    let here = sched::current_core()?;
    let theirs = shared.clone();
    let signaller = thread::Builder::new().name("wake-cost".into()).spawn(move || theirs.signal_rounds(clock, here))?;

    let mut events = Events::new(1);
    let mut latencies = Vec::with_capacity(ROUNDS);
    let (began, cpu_before) = (Instant::now(), sched::thread_cpu_time());
    let mut rounds = 0;
    while latencies.len() < ROUNDS_MIN || (latencies.len() < ROUNDS && began.elapsed() < TIME) {
        rounds += 1;
        shared.round.store(rounds, Ordering::Release);
        let woken = epoll.wait(&mut events, LIMIT)?;
        let back = clock.now();
        if matches!(woken, Woken::Ready(_)) {
            let at = shared.signalled_at.load(Ordering::Acquire);
            latencies.push(clock.ticks_to_ns(back.saturating_sub(at)));
        } else if began.elapsed() > TIME * 50 {
            break; // the other thread gets no time to run: what is known has to do
        }
    }
    let cpu = sched::thread_cpu_time().saturating_sub(cpu_before);
    shared.end.store(true, Ordering::Release);
    // It has nothing to tell, and ends at its next look.
    drop(signaller.join());
    latencies.sort_unstable();
    let at = |share: f64| {
        latencies.get(((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1))).copied()
    };
    let cpu_ns = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX) / rounds;
    Ok(WakeCost { latency_ns: at(0.5).unwrap_or(FALLBACK_NS), latency_p99_ns: at(0.99).unwrap_or(FALLBACK_NS), cpu_ns })
}

/// Taken where nothing could be measured.
const FALLBACK_NS: u64 = 50_000;

struct Shared {
    vector: Vector,
    /// The sleep that shall be ended next; the sleeper counts it up just before it blocks.
    round: AtomicU64,
    signalled_at: AtomicU64,
    end: AtomicBool,
}

impl Shared {
    /// Ends each sleep a while after it began.
    fn signal_rounds(&self, clock: Clock, sleeper: usize) {
        // A thread inherits the mask of the one that made it, which is pinned.
        let allowed = sched::affinity(sched::process_id()).unwrap_or_default();
        if let Some(core) = allowed.into_iter().find(|&core| core != sleeper) {
            // Where it cannot move it measures on one core, which is right too: only slower than it might be.
            let _ = cpu::pin_current_thread(core);
        }
        let mut done = 0;
        while !self.end.load(Ordering::Acquire) {
            let round = self.round.load(Ordering::Acquire);
            if round == done {
                thread::sleep(Duration::from_micros(20));
                continue;
            }
            done = round;
            thread::sleep(Duration::from_micros(ASLEEP_US[round as usize % ASLEEP_US.len()]));
            self.signalled_at.store(clock.now(), Ordering::Release);
            self.vector.signal(1);
        }
    }
}
