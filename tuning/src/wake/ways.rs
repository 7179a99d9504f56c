//! The ways in which a thread can sleep.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};
use spinwake::clock::{Clock, ClockSource};
use spinwake::irq::Vector;
use spinwake::sys::epoll::{Epoll, Events, Trigger, Woken};
use spinwake::sys::relax::{Relax, RelaxKind, Watch};
use spinwake::sys::sched;
use spinwake::wait::{SleepPlan, Sleeps, measure_sleeps};

use super::SLEEPS;
use crate::units::nanoseconds;

/// How a thread sleeps, and what ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// It does not: it looks at memory until that is written. What the others are measured against.
    Spin,
    /// UMWAIT until memory is written (Intel).
    Umwait,
    /// MWAITX until memory is written (AMD).
    Mwaitx,
    /// epoll, until an eventfd is signalled: how Spinwake's workers sleep.
    Eventfd,
    /// A futex, until it is woken: how mutexes and channels sleep.
    Futex,
    /// epoll, until its own timeout: how workers bound a sleep.
    Timeout,
    /// epoll, until a timerfd fires.
    Timerfd,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Spin => "spinning",
            Self::Umwait => "umwait",
            Self::Mwaitx => "mwaitx",
            Self::Eventfd => "eventfd",
            Self::Futex => "futex",
            Self::Timeout => "epoll timeout",
            Self::Timerfd => "timerfd",
        })
    }
}

impl Way {
    /// Those that this machine has, and a sentence for those it has not.
    pub fn here() -> (Vec<Self>, Vec<String>) {
        let watching = match (Clock::get().source(), Relax::detect().kind()) {
            (ClockSource::Tsc { .. }, RelaxKind::Umwait) => Ok(Self::Umwait),
            (ClockSource::Tsc { .. }, RelaxKind::Mwaitx) => Ok(Self::Mwaitx),
            (ClockSource::Tsc { .. }, RelaxKind::Pause) => {
                Err("umwait, mwaitx: this processor has neither, or its hypervisor hides them".to_owned())
            }
            (source, _) => Err(format!("umwait, mwaitx: they need the time stamp counter, and time is from {source}")),
        };
        let mut ways = vec![Self::Spin];
        ways.extend(watching.as_ref().ok());
        ways.extend([Self::Eventfd, Self::Futex, Self::Timeout, Self::Timerfd]);
        (ways, watching.err().into_iter().collect())
    }

    /// Measures sleeps of this length, for about `time`, on the calling thread.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors or threads.
    pub(super) fn measure(self, idle: Duration, time: Duration) -> io::Result<Sleeps> {
        let asleep = [idle];
        let plan = plan(&asleep, time);
        match self {
            Self::Spin => watching(&plan, Relax::pause()),
            Self::Umwait | Self::Mwaitx => watching(&plan, Relax::detect()),
            Self::Eventfd => {
                let vector = Vector::new()?;
                eventfd(&plan, &vector, || vector.signal(1))
            }
            Self::Futex => futex(&plan),
            Self::Timeout => {
                let (epoll, mut events) = (Epoll::new()?, Events::new(1));
                until_due(&plan, || epoll.wait(&mut events, idle).map(drop))
            }
            Self::Timerfd => timerfd(&plan),
        }
    }
}

/// A plan for sleeps of one length.
pub(super) fn plan(asleep: &[Duration; 1], time: Duration) -> SleepPlan<'_> {
    SleepPlan { asleep, rounds: SLEEPS.0, rounds_min: SLEEPS.1, time, punctual: true }
}

/// Sleeps in epoll that another thread ends: it makes `vector` fire by `wake`.
pub(super) fn eventfd(plan: &SleepPlan<'_>, vector: &Vector, wake: impl Fn() + Send) -> io::Result<Sleeps> {
    let (epoll, mut events) = (Epoll::new()?, Events::new(1));
    epoll.add(vector.as_fd(), 0, Trigger::Edge)?;
    measure_sleeps(plan, |limit| Ok(matches!(epoll.wait(&mut events, limit)?, Woken::Ready(_))), wake)
}

/// Watches memory that another thread writes.
fn watching(plan: &SleepPlan<'_>, relax: Relax) -> io::Result<Sleeps> {
    let clock = Clock::get();
    let written = AtomicU64::new(0);
    let mut seen = 0;
    let sleep = |limit| {
        let until = clock.now().saturating_add(clock.ns_to_ticks(nanoseconds(limit)));
        loop {
            let now = written.load(Ordering::Acquire);
            if now != seen {
                seen = now;
                return Ok(true);
            }
            if clock.now() >= until {
                return Ok(false);
            }
            relax.until_write(Watch::on(&written), until, || written.load(Ordering::Acquire) == seen);
        }
    };
    measure_sleeps(plan, sleep, || {
        written.fetch_add(1, Ordering::Release);
    })
}

/// The standard library parks threads in a futex.
fn futex(plan: &SleepPlan<'_>) -> io::Result<Sleeps> {
    let woken = AtomicBool::new(false);
    let sleeper = thread::current();
    let sleep = |limit| {
        let began = Instant::now();
        // Parking may end for no reason.
        while !woken.swap(false, Ordering::AcqRel) {
            match Duration::checked_sub(limit, began.elapsed()) {
                Some(left) if !left.is_zero() => thread::park_timeout(left),
                _ => return Ok(false),
            }
        }
        Ok(true)
    };
    measure_sleeps(plan, sleep, || {
        woken.store(true, Ordering::Release);
        sleeper.unpark();
    })
}

fn timerfd(plan: &SleepPlan<'_>) -> io::Result<Sleeps> {
    let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let (epoll, mut events) = (Epoll::new()?, Events::new(1));
    epoll.add(fd.as_fd(), 0, Trigger::Edge)?;
    let idle = plan.asleep.first().copied().unwrap_or_default();
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let value = Timespec { tv_sec: idle.as_secs() as i64, tv_nsec: idle.subsec_nanos().into() };
    until_due(plan, || {
        timerfd_settime(&fd, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: zero, it_value: value })?;
        epoll.wait(&mut events, idle + Duration::from_millis(100)).map(drop)
    })
}

/// Sleeps that end by themselves: how late.
fn until_due(plan: &SleepPlan<'_>, mut sleep: impl FnMut() -> io::Result<()>) -> io::Result<Sleeps> {
    let clock = Clock::get();
    let idle = clock.ns_to_ticks(nanoseconds(plan.asleep.first().copied().unwrap_or_default()));
    let mut sleeps = Sleeps::default();
    let (began, cpu_before) = (Instant::now(), sched::thread_cpu_time());
    let measured = |sleeps: &Sleeps| sleeps.latencies_ns.len();
    while measured(&sleeps) < plan.rounds_min || (measured(&sleeps) < plan.rounds && began.elapsed() < plan.time) {
        let due = clock.now().saturating_add(idle);
        sleep()?;
        sleeps.latencies_ns.push(clock.ticks_to_ns(clock.now().saturating_sub(due)));
    }
    let cpu = nanoseconds(sched::thread_cpu_time().saturating_sub(cpu_before));
    sleeps.cpu_ns = cpu / sleeps.latencies_ns.len().max(1) as u64;
    sleeps.latencies_ns.sort_unstable();
    Ok(sleeps)
}
