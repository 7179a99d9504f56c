//! Sleeps of one thread, ended by another: how late each ends, and what it takes.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::cpu::{self, CpuSet, Topology};
use crate::sys::sched;

/// No single sleep takes longer.
const LIMIT: Duration = Duration::from_millis(100);
/// Sleeps that are made room for beforehand; a plan may say as many as there is time for.
const ROOM: usize = 4096;
/// Before this much of a sleep is left, a punctual waker sleeps, too: it sleeps no later than this.
const WAKER_SLACK: Duration = Duration::from_micros(300);

/// Which sleeps are measured.
#[derive(Debug, Clone, Copy)]
pub struct SleepPlan<'a> {
    /// How long sleeps last before they are ended, in turn; at least one.
    pub asleep: &'a [Duration],
    /// Sleeps that are measured, if there is time.
    pub rounds: usize,
    /// And at least, however long they take.
    pub rounds_min: usize,
    /// How long it may take.
    pub time: Duration,
    /// Whether the thread that ends the sleeps spins, so that they last as long as they shall and its own waking up does
    /// not matter. It takes a core meanwhile; without one to itself it does not spin.
    pub punctual: bool,
}

/// What sleeps cost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sleeps {
    /// From the moment that ended each sleep to the moment the sleeper noticed, in nanoseconds, ascending.
    pub latencies_ns: Vec<u64>,
    /// Processor time of each sleep, from before it to after it: the mean.
    pub cpu_ns: u64,
    /// Sleeps that the limit of 100 ms ended instead.
    pub missed: u64,
}

impl Sleeps {
    /// The latency that this share of sleeps stays within; `None` when none was measured.
    pub fn quantile_ns(&self, share: f64) -> Option<u64> {
        let n = self.latencies_ns.len();
        self.latencies_ns.get(((n as f64 * share) as usize).min(n.saturating_sub(1))).copied()
    }
}

/// Measures sleeps of the calling thread on the core that it is pinned to: another thread, on another core where there is
/// one, ends them.
///
/// `sleep` blocks until it is woken, or for as long as it is told, and says whether it was woken. `wake` ends it, from the
/// other thread; it may come just before the sleep has begun.
///
/// # Errors
///
/// Those of `sleep`, and when the process is out of threads.
///
/// # Panics
///
/// If the plan has no sleep.
pub fn measure_sleeps(
    plan: &SleepPlan<'_>,
    mut sleep: impl FnMut(Duration) -> io::Result<bool>,
    wake: impl Fn() + Send,
) -> io::Result<Sleeps> {
    assert!(!plan.asleep.is_empty(), "a plan without a sleep");
    let clock = Clock::get();
    let here = sched::current_core()?;
    let shared = Shared::default();
    let mut sleeps = Sleeps { latencies_ns: Vec::with_capacity(plan.rounds.min(ROOM)), ..Sleeps::default() };
    thread::scope(|scope| {
        let waker = thread::Builder::new().name("wake-cost".into());
        waker.spawn_scoped(scope, || shared.end_sleeps(clock, here, plan, wake))?;
        // However this ends, the other thread is told, or the scope would wait for it for ever.
        let _end = End(&shared.end);
        let (began, cpu_before) = (Instant::now(), sched::thread_cpu_time());
        let mut rounds = 0;
        let measured = |sleeps: &Sleeps| sleeps.latencies_ns.len();
        while measured(&sleeps) < plan.rounds_min || (measured(&sleeps) < plan.rounds && began.elapsed() < plan.time) {
            rounds += 1;
            shared.round.store(rounds, Ordering::Release);
            let woken = sleep(LIMIT)?;
            let back = clock.now();
            if woken {
                let at = shared.ended_at.load(Ordering::Acquire);
                sleeps.latencies_ns.push(clock.ticks_to_ns(back.saturating_sub(at)));
            } else {
                sleeps.missed += 1;
                if began.elapsed() > plan.time.saturating_mul(50) {
                    break; // the other thread gets no time to run: what is known has to do
                }
            }
        }
        let cpu = sched::thread_cpu_time().saturating_sub(cpu_before);
        sleeps.cpu_ns = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX) / rounds.max(1);
        io::Result::Ok(())
    })?;
    sleeps.latencies_ns.sort_unstable();
    Ok(sleeps)
}

/// The cores that this process may use, but for this one and those that share its execution units: work on these would keep it
/// from sleeping as deeply as it does otherwise.
pub(super) fn elsewhere(core: usize) -> CpuSet {
    let topology = Topology::read();
    let kin = topology.core(core).and_then(|core| core.siblings.clone()).unwrap_or_default();
    apart(&cpu::process_cores(), core, &kin)
}

fn apart(allowed: &CpuSet, core: usize, kin: &CpuSet) -> CpuSet {
    allowed.difference(kin).difference(&CpuSet::from_iter([core]))
}

/// What sleeper and waker tell each other.
#[derive(Debug, Default)]
struct Shared {
    /// The sleep that shall be ended next; the sleeper counts it up just before it blocks.
    round: AtomicU64,
    ended_at: AtomicU64,
    end: AtomicBool,
}

/// Ends the waker when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Shared {
    /// Ends each sleep a while after it began.
    fn end_sleeps(&self, clock: Clock, sleeper: usize, plan: &SleepPlan<'_>, wake: impl Fn()) {
        // At worst it ends sleeps from the sleeper's own core, which is then awake already.
        let others = cpu::process_cores().difference(&CpuSet::from_iter([sleeper]));
        let best = elsewhere(sleeper).iter().chain(others.iter()).next();
        let moved = best.is_some_and(|core| cpu::pin_current_thread(core).is_ok());
        let punctual = plan.punctual && moved;
        let mut done = 0;
        while !self.end.load(Ordering::Acquire) {
            let round = self.round.load(Ordering::Acquire);
            if round == done {
                if punctual {
                    std::hint::spin_loop();
                } else {
                    thread::sleep(Duration::from_micros(20));
                }
                continue;
            }
            done = round;
            self.pass(plan.asleep[round as usize % plan.asleep.len()], punctual);
            self.ended_at.store(clock.now(), Ordering::Release);
            wake();
        }
    }

    fn pass(&self, time: Duration, punctual: bool) {
        if !punctual {
            thread::sleep(time);
            return;
        }
        let began = Instant::now();
        if let Some(most) = time.checked_sub(WAKER_SLACK) {
            thread::sleep(most);
        }
        while began.elapsed() < time && !self.end.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn plan(punctual: bool) -> SleepPlan<'static> {
        const ASLEEP: [Duration; 2] = [Duration::from_micros(50), Duration::from_micros(700)];
        SleepPlan { asleep: &ASLEEP, rounds: 10, rounds_min: 10, time: Duration::from_millis(10), punctual }
    }

    #[test]
    fn each_sleep_is_measured_once() {
        for punctual in [false, true] {
            let woken = AtomicBool::new(false);
            let sleeper = thread::current();
            let wake = || {
                woken.store(true, Ordering::Release);
                sleeper.unpark();
            };
            let began = Instant::now();
            let sleeps = measure_sleeps(
                &plan(punctual),
                |limit| {
                    let until = Instant::now() + limit;
                    while !woken.swap(false, Ordering::AcqRel) {
                        match until.checked_duration_since(Instant::now()) {
                            Some(left) if !left.is_zero() => thread::park_timeout(left),
                            _ => return Ok(false),
                        }
                    }
                    Ok(true)
                },
                wake,
            )
            .unwrap();
            // Five sleeps of 50 us, five of 700 us: no less, if each was ended once and in its turn.
            assert!(began.elapsed() >= Duration::from_micros(5 * 750), "{:?}", began.elapsed());
            assert_eq!(sleeps.latencies_ns.len(), 10);
            assert!(sleeps.latencies_ns.is_sorted() && sleeps.quantile_ns(1.0) == sleeps.latencies_ns.last().copied());
        }
    }

    #[test]
    fn a_sleep_that_fails_ends_the_measurement() {
        let failed = measure_sleeps(&plan(true), |_| Err(io::ErrorKind::Unsupported.into()), || ());
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_plan_without_limits_is_one() {
        let plan = SleepPlan { rounds: usize::MAX, rounds_min: 2, time: Duration::from_millis(1), ..plan(false) };
        let sleep = |_| {
            thread::sleep(Duration::from_millis(1));
            Ok(true)
        };
        let sleeps = measure_sleeps(&plan, sleep, || ()).unwrap();
        assert!(sleeps.latencies_ns.len() >= 2);
        let plan = SleepPlan { rounds: 1, rounds_min: 1, time: Duration::MAX, ..plan };
        let mut woken = [false, true].into_iter();
        let sleeps = measure_sleeps(&plan, |_| Ok(woken.next().unwrap_or(true)), || ()).unwrap();
        assert_eq!((sleeps.latencies_ns.len(), sleeps.missed), (1, 1));
    }

    #[test]
    fn another_core_is_one_that_shares_nothing_with_this_one() {
        let set = |cores: &str| cores.parse::<CpuSet>().unwrap();
        assert_eq!(apart(&set("0-7"), 2, &set("2,6")), set("0-1,3-5,7"));
        assert_eq!(apart(&set("0-1"), 1, &CpuSet::new()), set("0"));
        assert!(apart(&set("2,6"), 2, &set("2,6")).is_empty() && apart(&set("1"), 1, &CpuSet::new()).is_empty());
    }

    #[test]
    fn nothing_measured_has_no_quantile() {
        assert_eq!(Sleeps::default().quantile_ns(0.5), None);
    }
}
