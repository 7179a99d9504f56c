//! How a thread that spins waits for a moment without taking from whoever shares its core.
//!
//! | kind | what it does | where |
//! |---|---|---|
//! | pause | holds the thread's instructions back for tens of cycles | everywhere |
//! | umwait | stops the thread until a cache line is written or a moment comes | CPUID.7.0:ECX.WAITPKG |
//! | mwaitx | the same | CPUID 8000_0001h:ECX.MONITORX |
//!
//! The last two spare a hyperthread's sibling, and power, for as long as nothing comes, and notice a write by another core
//! or a device as soon as a look would. Which one there is is found at run time. Hypervisors mostly hide both.
//!
//! What this module refuses: a wait without a bound, and promises of what ended it. Whoever waits looks for itself.
#![expect(unsafe_code, reason = "an address to watch may come without a lifetime")]

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

#[cfg(target_arch = "x86_64")]
mod x86;

/// A processor without instructions that this module knows.
#[cfg(not(target_arch = "x86_64"))]
mod x86 {
    use super::{Relax, RelaxKind, Watch};

    pub(super) fn find() -> RelaxKind {
        RelaxKind::Pause
    }

    pub(super) fn monitor(_: Relax, _: Watch<'_>) {}

    pub(super) fn wait_for_write(_: Relax, _: u64) {
        std::hint::spin_loop();
    }

    pub(super) fn wait(_: Relax, _: u64) {
        std::hint::spin_loop();
    }
}

/// How a processor relaxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelaxKind {
    /// With `pause`, or what the architecture has in its place.
    Pause,
    /// With UMONITOR, UMWAIT and TPAUSE: Intel's WAITPKG.
    Umwait,
    /// With MONITORX and MWAITX: AMD's.
    Mwaitx,
}

impl fmt::Display for RelaxKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Umwait => "umwait",
            Self::Mwaitx => "mwaitx",
        })
    }
}

/// A place in memory to wait for a write to: its whole cache line, so that a write nearby counts, too.
///
/// # Invariant
///
/// The byte at `at` can be read throughout `'a`.
#[derive(Debug, Clone, Copy)]
pub struct Watch<'a> {
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "no instruction to give it to"))]
    at: NonNull<u8>,
    live: PhantomData<&'a ()>,
}

impl<'a> Watch<'a> {
    /// Where `value` begins. It makes sense only for what others write while it is borrowed: an atomic.
    ///
    /// Does not compile for a type without size, which may be nowhere.
    #[inline(always)]
    pub fn on<T>(value: &'a T) -> Self {
        const { assert!(size_of::<T>() > 0, "there is nothing to watch") };
        Self { at: NonNull::from(value).cast(), live: PhantomData }
    }

    /// An address, for memory that no Rust reference may point at.
    ///
    /// # Safety
    ///
    /// The byte can be read throughout `'a`. For a write to be noticed it must be ordinary cached memory, but that is no
    /// question of safety.
    #[inline(always)]
    pub const unsafe fn at(address: NonNull<u8>) -> Self {
        Self { at: address, live: PhantomData }
    }
}

/// How a spinning thread waits for a moment: as well as the processor can.
///
/// # Invariant
///
/// `kind` is `Pause`, or what the processor offers and this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relax {
    kind: RelaxKind,
}

impl Relax {
    /// The best that this processor has. Asking it costs microseconds under a hypervisor: ask once.
    ///
    /// The waits read the time stamp counter. A process that may not gets `Pause`; one that gives up the right later
    /// (`PR_SET_TSC`) must not wait with what it detected before.
    pub fn detect() -> Self {
        Self { kind: x86::find() }
    }

    /// `pause` alone, whatever else there is: for who has no deadline in ticks of the time stamp counter.
    pub const fn pause() -> Self {
        Self { kind: RelaxKind::Pause }
    }

    /// What it is.
    pub fn kind(self) -> RelaxKind {
        self.kind
    }

    /// Gives the other hyperthread tens of cycles (140 on Intel's cores since Skylake), between one look and the next.
    #[inline(always)]
    pub fn brief(self) {
        std::hint::spin_loop();
    }

    /// Waits until `watch` is written, but no later than the time stamp counter reads `deadline_ticks`. Waits only if
    /// `still_idle`, asked after watching has begun, finds nothing to do: no write is missed between the last look and the
    /// wait.
    ///
    /// Returns at any moment and for any reason: a write nearby, an interrupt, a limit of the system
    /// (`/sys/devices/system/cpu/umwait_control/max_time`, 100 000 ticks by default); `Pause` after one `pause`. A deadline
    /// that has passed is no wait.
    ///
    /// Only a processor with UMWAIT or MWAITX runs the code for it, so only there do the project's tests reach it.
    #[inline]
    pub fn until_write(self, watch: Watch<'_>, deadline_ticks: u64, still_idle: impl FnOnce() -> bool) {
        x86::monitor(self, watch);
        if still_idle() {
            x86::wait_for_write(self, deadline_ticks);
        }
    }

    /// Waits, watching nothing, no later than the time stamp counter reads `deadline_ticks`: for work that may come from several
    /// places. With TPAUSE where `kind` is `Umwait`; elsewhere one `pause`. Returns early as
    /// [`until_write`](Self::until_write) does.
    #[inline]
    pub fn until(self, deadline_ticks: u64) {
        x86::wait(self, deadline_ticks);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32};
    use std::time::{Duration, Instant};

    use super::*;

    /// Far longer than any wait that ends as it should.
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn detection_is_stable_and_has_a_name() {
        let kind = Relax::detect().kind();
        assert_eq!(Relax::detect().kind(), kind);
        assert!(["pause", "umwait", "mwaitx"].contains(&kind.to_string().as_str()));
        assert_eq!(Relax::pause().kind(), RelaxKind::Pause);
    }

    #[test]
    fn it_looks_once_more_and_does_not_wait_for_what_has_come() {
        let written = AtomicU32::new(0);
        for relax in [Relax::pause(), Relax::detect()] {
            let mut looks = 0;
            let start = Instant::now();
            relax.until_write(Watch::on(&written), u64::MAX, || {
                looks += 1;
                false
            });
            assert_eq!(looks, 1);
            assert!(start.elapsed() < LONG);
        }
    }

    #[test]
    fn a_deadline_that_has_passed_is_no_wait() {
        let never = AtomicBool::new(false);
        for relax in [Relax::pause(), Relax::detect()] {
            let start = Instant::now();
            for _ in 0..1000 {
                relax.until_write(Watch::on(&never), 0, || true);
                relax.until(0);
                relax.brief();
            }
            assert!(start.elapsed() < LONG);
        }
    }
}
