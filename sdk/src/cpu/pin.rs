//! Keeping a thread on one core.

use std::io;

use super::set::CpuSet;
use crate::sys::sched;

/// Ids that fit the fixed mask which `core_affinity` hands to the kernel (glibc's `CPU_SETSIZE`); it aborts above.
const PINNABLE_IDS: usize = 1024;

/// Why a thread could not be kept on a core.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The id is beyond what pinning can express.
    #[error("cannot pin a thread to core {core}: only cores 0-{} can be pinned to", PINNABLE_IDS - 1)]
    TooLarge {
        /// The core.
        core: usize,
    },
    /// The kernel refused.
    #[error(
        "cannot pin a thread to core {core}: {source}. The core is offline or outside the cpuset of this process's cgroup; \
         its affinity is {allowed}. Choose another core, or widen cpuset.cpus"
    )]
    Refused {
        /// The core.
        core: usize,
        /// The meaning of errno.
        source: io::Error,
        /// The thread's affinity, unchanged; empty if it cannot be read.
        allowed: CpuSet,
    },
    /// The kernel accepted, but the thread is elsewhere.
    #[error(
        "pinning a thread to core {core} did not take effect: it may run on {allowed} and runs on core {current}. Something \
         else is setting this process's affinity (a cgroup manager, taskset)"
    )]
    NoEffect {
        /// The core.
        core: usize,
        /// The thread's affinity now.
        allowed: CpuSet,
        /// Where it runs.
        current: usize,
    },
    /// Whether it took effect cannot be seen.
    #[error("cannot verify that the thread stays on core {core}: {source}")]
    Unverified {
        /// The core.
        core: usize,
        /// The meaning of errno.
        source: io::Error,
    },
}

/// Keeps the calling thread on `core` from now on, and makes sure that it is there.
///
/// # Errors
///
/// When the kernel refuses, or the thread is not there afterwards.
pub fn pin_current_thread(core: usize) -> Result<(), PinError> {
    if core >= PINNABLE_IDS {
        return Err(PinError::TooLarge { core });
    }
    if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        // The failed system call was its last, so errno is still that call's.
        let source = io::Error::last_os_error();
        let allowed = sched::affinity(0).unwrap_or_default().into_iter().collect();
        return Err(PinError::Refused { core, source, allowed });
    }
    let unverified = |source| PinError::Unverified { core, source };
    let allowed = sched::affinity(0).map_err(unverified)?;
    let current = sched::current_core().map_err(unverified)?;
    if allowed != [core] || current != core {
        return Err(PinError::NoEffect { core, allowed: allowed.into_iter().collect(), current });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::cpu::Topology;

    #[test]
    fn a_pinned_thread_stays_and_its_siblings_are_free() {
        let before = sched::affinity(0).unwrap();
        for &core in &before {
            thread::spawn(move || {
                pin_current_thread(core).unwrap();
                for _ in 0..100 {
                    thread::yield_now();
                    assert_eq!(sched::current_core().unwrap(), core);
                }
            })
            .join()
            .unwrap();
        }
        assert_eq!(sched::affinity(0).unwrap(), before);
    }

    #[test]
    fn a_core_that_is_not_there_is_refused_and_nothing_changes() {
        let present = Topology::read().present();
        let Some(absent) = (0..PINNABLE_IDS).find(|&id| !present.contains(id)) else { return };
        let before = sched::affinity(0).unwrap();
        let error = pin_current_thread(absent).unwrap_err();
        assert!(matches!(&error, PinError::Refused { core, .. } if *core == absent), "{error:?}");
        assert!(error.to_string().contains("Invalid argument"), "{error}");
        assert!(matches!(pin_current_thread(1024), Err(PinError::TooLarge { core: 1024 })));
        assert!(matches!(pin_current_thread(usize::MAX), Err(PinError::TooLarge { .. })));
        assert_eq!(sched::affinity(0).unwrap(), before);
    }
}
