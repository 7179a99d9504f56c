//! Keeping a thread on one core, and others off it.

use std::cell::RefCell;
use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

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

/// Lets another thread, `tid`, run on `cores` only: one of the kernel's own, for example.
///
/// # Errors
///
/// When there is no such thread, it may not be moved, or none of the cores is online and within its cpuset.
pub fn set_thread_affinity(tid: i32, cores: &CpuSet) -> io::Result<()> {
    sched::set_affinity(tid, &cores.iter().collect::<Vec<_>>())
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
    FREE.get_or_init(|| sched::affinity(0).unwrap_or_default().into_iter().collect());
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
    PIN.with_borrow_mut(|pin| *pin = Some(Pin::note(core)));
    Ok(())
}

/// The cores that this process may use, whichever of its threads are pinned by now; empty if that cannot be known.
pub(crate) fn process_cores() -> CpuSet {
    match FREE.get() {
        Some(cores) => cores.clone(),
        None => sched::affinity(sched::process_id()).unwrap_or_default().into_iter().collect(),
    }
}

/// The cores that threads of this process are pinned to now: with [`pin_current_thread`], and not ended since.
pub fn pinned_cores() -> CpuSet {
    pinned().iter().copied().collect()
}

/// Keeps a helper thread off the cores that other threads of the process are pinned to.
///
/// Without it the kernel likes to put a thread that a worker wakes on that worker's core, where one of the two then waits
/// for the other.
#[derive(Debug)]
pub struct KeepOff {
    /// Where the thread could run at first.
    allowed: CpuSet,
    avoided: CpuSet,
}

impl KeepOff {
    /// For the calling thread. Where it may run now is where it may run from now on, but for the cores to keep off.
    pub fn new() -> Self {
        let allowed = sched::affinity(0).unwrap_or_default().into_iter().collect();
        Self { allowed, avoided: CpuSet::new() }
    }

    /// Keeps the calling thread, which must be the one that made this, off every core that is pinned to by now; to be
    /// called once in a while. When that leaves no core, or the kernel refuses, it runs wherever it could at first.
    pub fn look(&mut self) {
        let pinned = pinned_cores();
        if pinned == self.avoided {
            return;
        }
        let left: Vec<usize> = self.allowed.difference(&pinned).iter().collect();
        self.avoided = pinned;
        if left.is_empty() || sched::set_affinity(0, &left).is_err() {
            let all: Vec<usize> = self.allowed.iter().collect();
            if let Err(error) = sched::set_affinity(0, &all) {
                log::debug!("a helper thread cannot go back to cores {}: {error}", self.allowed);
            }
        }
    }
}

impl Default for KeepOff {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a thread of this process could run before the first of them was pinned: later, not even the main thread's mask may
/// tell.
static FREE: OnceLock<CpuSet> = OnceLock::new();

/// The core of each pinned thread.
static PINNED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

thread_local! {
    /// Ends with its thread.
    static PIN: RefCell<Option<Pin>> = const { RefCell::new(None) };
}

/// A thread's entry in [`PINNED`].
struct Pin(usize);

impl Pin {
    fn note(core: usize) -> Self {
        pinned().push(core);
        Self(core)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut cores = pinned();
        if let Some(index) = cores.iter().position(|core| *core == self.0) {
            cores.swap_remove(index);
        }
    }
}

fn pinned() -> MutexGuard<'static, Vec<usize>> {
    PINNED.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn a_helper_keeps_off_what_others_are_pinned_to_while_another_core_is_left() {
        let all: CpuSet = sched::affinity(0).unwrap().into_iter().collect();
        // Other tests of this process pin threads of theirs meanwhile: what counts is this core alone.
        let core = all.iter().last().unwrap();
        let (pinned_now, is_pinned) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let worker = thread::spawn(move || {
            pin_current_thread(core).unwrap();
            pinned_now.send(()).unwrap();
            let _ = ended.recv();
        });
        is_pinned.recv().unwrap();
        assert!(pinned_cores().contains(core));
        let helper = thread::spawn(move || {
            let mut keep_off = KeepOff::new();
            keep_off.look();
            let now: CpuSet = sched::affinity(0).unwrap().into_iter().collect();
            assert!(!now.is_empty());
            let avoided = keep_off.avoided.clone();
            assert!(avoided.contains(core));
            let left = keep_off.allowed.difference(&avoided);
            assert_eq!(now, if left.is_empty() { keep_off.allowed.clone() } else { left });
            drop(end);
            worker.join().unwrap();
            keep_off.look();
            let now: CpuSet = sched::affinity(0).unwrap().into_iter().collect();
            let left = keep_off.allowed.difference(&keep_off.avoided);
            assert_eq!(now, if left.is_empty() { keep_off.allowed } else { left });
        });
        helper.join().unwrap();
        let here: CpuSet = sched::affinity(0).unwrap().into_iter().collect();
        assert_eq!(here, all);
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
