//! Time cheap enough for the data path: a [`Clock`] reads the processor's time stamp counter (TSC) where that is right,
//! and `CLOCK_MONOTONIC` where it is not.
//!
//! The TSC is used only when the processor promises a constant rate through every power state, the kernel itself
//! trusts the counter to agree across cores, and its frequency could be found and repeated. Otherwise one tick is one
//! nanosecond of `CLOCK_MONOTONIC`, and [`Clock::source`] says why.
//!
//! What this module refuses: wall-clock time, and ticks of one machine on another.

use std::fmt;
use std::sync::OnceLock;

use crate::sys::sched;

#[cfg(target_arch = "x86_64")]
mod calibrate;
mod scale;
#[cfg(target_arch = "x86_64")]
mod tsc;

/// No counter that this module knows.
#[cfg(not(target_arch = "x86_64"))]
mod tsc {
    use super::{Frequency, NoTsc};

    pub(super) fn find() -> Result<(u64, Frequency), NoTsc> {
        Err(NoTsc::Architecture)
    }

    pub(super) fn read() -> u64 {
        unreachable!("`find` found no counter")
    }

    pub(super) use read as read_ordered;
}

use scale::Scale;

const NS_PER_SEC: u64 = 1_000_000_000;

/// The process's clock: counts ticks of a fixed rate, never backwards, the same on every core.
///
/// Copy it freely; it has no state of its own.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    use_tsc: bool,
    ticks_per_sec: u64,
    to_ns: Scale,
    to_ticks: Scale,
    source: ClockSource,
}

impl Clock {
    /// The clock of this process.
    ///
    /// The first call finds the frequency, which takes up to a second where it must be measured (usually well below a
    /// tenth); later calls cost a load. Call it once at start.
    pub fn get() -> Self {
        static CLOCK: OnceLock<Clock> = OnceLock::new();
        *CLOCK.get_or_init(|| {
            let clock = Self::new(tsc::find());
            if let ClockSource::Monotonic { reason } = clock.source {
                log::warn!("reading time costs a call of the kernel's clock instead of one instruction: {reason}");
            }
            clock
        })
    }

    fn new(found: Result<(u64, Frequency), NoTsc>) -> Self {
        let (use_tsc, ticks_per_sec, source) = match found {
            Ok((hz, frequency)) => (true, hz, ClockSource::Tsc { frequency }),
            Err(reason) => (false, NS_PER_SEC, ClockSource::Monotonic { reason }),
        };
        Self {
            use_tsc,
            ticks_per_sec,
            to_ns: Scale::new(NS_PER_SEC, ticks_per_sec),
            to_ticks: Scale::new(ticks_per_sec, NS_PER_SEC),
            source,
        }
    }

    /// Ticks since some moment before this process began.
    ///
    /// The processor may read the counter some tens of ticks before the instructions ahead of it are done. So of two
    /// readings on different cores, the one that is known to be later can be that much smaller: subtract with
    /// `saturating_sub`, or use [`now_ordered`](Self::now_ordered).
    #[inline(always)]
    pub fn now(self) -> u64 {
        if self.use_tsc { tsc::read() } else { sched::monotonic_ns() }
    }

    /// As [`now`](Self::now), read after everything ahead of it is done: a reading that is known to be later, on
    /// whichever core, is never smaller. Waits for earlier loads, so it costs more where they are slow.
    #[inline(always)]
    pub fn now_ordered(self) -> u64 {
        if self.use_tsc { tsc::read_ordered() } else { sched::monotonic_ns() }
    }

    /// Ticks in a second.
    pub fn ticks_per_sec(self) -> u64 {
        self.ticks_per_sec
    }

    /// A number of ticks as nanoseconds, to within one over decades; `u64::MAX` where it does not fit.
    #[inline]
    pub fn ticks_to_ns(self, ticks: u64) -> u64 {
        self.to_ns.apply(ticks)
    }

    /// Nanoseconds as a number of ticks, to within one over decades; `u64::MAX` where it does not fit.
    #[inline]
    pub fn ns_to_ticks(self, ns: u64) -> u64 {
        self.to_ticks.apply(ns)
    }

    /// What it reads, and how its rate is known.
    pub fn source(self) -> ClockSource {
        self.source
    }
}

/// What a [`Clock`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockSource {
    /// The processor's time stamp counter.
    Tsc {
        /// How its frequency is known.
        frequency: Frequency,
    },
    /// `CLOCK_MONOTONIC`, one tick a nanosecond.
    Monotonic {
        /// Why not the time stamp counter.
        reason: NoTsc,
    },
}

impl fmt::Display for ClockSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tsc { frequency } => write!(f, "TSC, frequency from {frequency}"),
            Self::Monotonic { reason } => write!(f, "CLOCK_MONOTONIC, because {reason}"),
        }
    }
}

/// How the frequency of the time stamp counter is known. What is stated is used only if a measurement agrees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frequency {
    /// CPUID leaf 15h: the crystal's frequency and its ratio to the counter's.
    Cpuid15,
    /// CPUID leaf 4000_0010h: the hypervisor states it in kHz.
    Hypervisor,
    /// Measured against `CLOCK_MONOTONIC_RAW`, repeatably.
    Measured,
}

impl fmt::Display for Frequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpuid15 => "CPUID leaf 15h",
            Self::Hypervisor => "the hypervisor (CPUID leaf 40000010h)",
            Self::Measured => "a measurement against CLOCK_MONOTONIC_RAW",
        })
    }
}

/// Why the time stamp counter is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTsc {
    /// Not an x86-64 processor.
    Architecture,
    /// `rdtsc` would kill the process (`PR_SET_TSC`).
    Forbidden,
    /// The counter's rate follows the processor's frequency or stops with it (CPUID 8000_0007h, EDX bit 8).
    NotInvariant,
    /// The kernel does not list it among the clock sources it trusts: the cores' counters do not agree.
    Untrusted,
    /// What the kernel thinks of it could not be read from `/sys/devices/system/clocksource`.
    TrustUnknown,
    /// Measurements of its frequency did not agree with each other.
    NotRepeatable,
}

impl fmt::Display for NoTsc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Architecture => "this processor has no time stamp counter that Spinwake reads",
            Self::Forbidden => "this process is forbidden to read the time stamp counter (PR_SET_TSC)",
            Self::NotInvariant => {
                "the processor does not promise a constant TSC rate (CPUID 80000007h, EDX bit 8); in a virtual machine, \
                 give it the host's invariant TSC (QEMU: -cpu host,+invtsc)"
            }
            Self::Untrusted => {
                "the kernel does not trust the TSC to agree across cores (it is not in \
                 /sys/devices/system/clocksource/clocksource0/available_clocksource; the kernel's log says why)"
            }
            Self::TrustUnknown => {
                "whether the kernel trusts the TSC could not be read from /sys/devices/system/clocksource/clocksource0"
            }
            Self::NotRepeatable => "measurements of the TSC's frequency did not agree with each other",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    fn pin(core: usize) {
        assert!(core_affinity::set_for_current(core_affinity::CoreId { id: core }));
    }

    /// Two threads, on two cores where there are two, hand a reading back and forth; each must find its own later.
    fn handed_over_readings_never_shrink(clock: Clock) {
        const HANDOVERS: u64 = 20_000;
        let cores = sched::affinity(0).unwrap();
        let (turn, latest, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let player = |me: u64| {
            pin(cores[me as usize % cores.len()]);
            let give_up = Instant::now() + Duration::from_secs(60);
            for handover in (me..HANDOVERS).step_by(2) {
                let mut looks = 0u32;
                while turn.load(Ordering::Acquire) != handover {
                    looks += 1;
                    // On one core (or two busy ones) the other player needs ours to get on.
                    if looks.is_multiple_of(1000) {
                        thread::yield_now();
                        assert!(Instant::now() < give_up, "the other thread never answered");
                    }
                }
                let now = clock.now_ordered();
                if now < latest.load(Ordering::Relaxed) {
                    failed.store(true, Ordering::Relaxed);
                }
                latest.store(now, Ordering::Relaxed);
                turn.store(handover + 1, Ordering::Release);
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| player(0));
            scope.spawn(|| player(1));
        });
        assert_eq!(turn.load(Ordering::Relaxed), HANDOVERS);
        assert!(!failed.load(Ordering::Relaxed), "a later reading on another core was smaller");
    }

    #[test]
    fn readings_handed_between_cores_never_shrink() {
        handed_over_readings_never_shrink(Clock::get());
        handed_over_readings_never_shrink(Clock::new(Err(NoTsc::Untrusted)));
    }

    #[test]
    fn readings_of_one_thread_never_shrink() {
        for clock in [Clock::get(), Clock::new(Err(NoTsc::NotInvariant))] {
            let mut last = clock.now();
            for _ in 0..100_000 {
                let now = clock.now();
                assert!(now >= last);
                last = now;
            }
        }
    }

    /// The clock's idea of a stretch of time lies between what the kernel's says just inside and just outside of it.
    #[test]
    fn it_agrees_with_the_kernel_about_how_long_something_took() {
        let clock = Clock::get();
        let outer = sched::monotonic_raw_ns();
        let start = clock.now_ordered();
        let inner = sched::monotonic_raw_ns();
        thread::sleep(Duration::from_millis(200));
        let inner = sched::monotonic_raw_ns() - inner;
        let took = clock.ticks_to_ns(clock.now_ordered() - start);
        let outer = sched::monotonic_raw_ns() - outer;
        // A thousandth for the frequency's error (and CLOCK_MONOTONIC's slewing, at most half of that).
        assert!(took + took / 1000 >= inner, "{took} ns, but the kernel says at least {inner}");
        assert!(took <= outer + outer / 1000, "{took} ns, but the kernel says at most {outer}");
    }

    #[test]
    fn it_is_the_same_clock_each_time() {
        assert_eq!(Clock::get().ticks_per_sec(), Clock::get().ticks_per_sec());
        assert_eq!(Clock::get().source(), Clock::get().source());
    }

    #[test]
    fn the_fallback_counts_nanoseconds_and_says_why() {
        let clock = Clock::new(Err(NoTsc::Untrusted));
        assert_eq!(
            (clock.ticks_per_sec(), clock.ticks_to_ns(u64::MAX), clock.ns_to_ticks(7)),
            (NS_PER_SEC, u64::MAX, 7)
        );
        assert!(clock.source().to_string().contains("available_clocksource"), "{}", clock.source());
        let before = sched::monotonic_ns();
        assert!((before..=before + 60 * NS_PER_SEC).contains(&clock.now()));
    }
}
