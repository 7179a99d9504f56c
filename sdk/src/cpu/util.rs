//! How busy the scheduler takes a thread to be, which decides how fast its core runs.

use std::io;
use std::marker::PhantomData;

use crate::sys::sched;

/// Makes the calling thread count as busy, so that the frequency of its core does not fall while it sleeps and need not
/// rise once it wakes (utilisation clamping, kernel documentation scheduler/sched-util-clamp). Ends when dropped.
///
/// It belongs to the thread that acquired it and cannot leave it; of several, the last acquired is to be dropped first.
/// Only the `schedutil` frequency governor looks at it.
#[derive(Debug)]
#[must_use = "dropping it ends the hold"]
pub struct UtilHold {
    before: u32,
    /// Not `Send`: it would be another thread that is let go.
    _thread: PhantomData<*const ()>,
}

/// Why a thread could not count as busy.
#[derive(Debug, thiserror::Error)]
pub enum UtilError {
    /// More than a whole core.
    #[error("a utilisation of {min}/1024 does not exist; choose 0 to 1024 (all of the fastest core)")]
    Impossible {
        /// What was asked for.
        min: u16,
    },
    /// Not in this kernel.
    #[error(
        "cannot hold this thread's utilisation at {min}/1024: {source}. This kernel has no utilisation clamping (Linux 5.3 \
         and CONFIG_UCLAMP_TASK); the `performance` frequency governor keeps the core fast without it"
    )]
    Unsupported {
        /// What was asked for.
        min: u16,
        /// The meaning of errno.
        source: io::Error,
    },
    /// Someone has set an upper clamp below it.
    #[error(
        "cannot hold this thread's utilisation at {min}/1024: its upper clamp is {max}/1024; raise that (`uclampset -M`)"
    )]
    AboveMax {
        /// What was asked for.
        min: u16,
        /// The thread's upper clamp.
        max: u32,
    },
    /// The kernel refused.
    #[error(
        "cannot hold this thread's utilisation at {min}/1024 (sched_setattr): {source}; a seccomp filter may forbid the call"
    )]
    Refused {
        /// What was asked for.
        min: u16,
        /// The meaning of errno.
        source: io::Error,
    },
}

impl UtilHold {
    /// Makes the calling thread count as using at least `min` 1024ths of the fastest core: 1024 asks for full speed. A
    /// thread that counts as more already keeps that.
    ///
    /// # Errors
    ///
    /// When `min` is above 1024 or the thread's upper clamp, or the kernel has no utilisation clamping.
    pub fn acquire(min: u16) -> Result<Self, UtilError> {
        if min > 1024 {
            return Err(UtilError::Impossible { min });
        }
        let clamp = sched::util_clamp().map_err(|source| UtilError::Refused { min, source })?;
        sched::set_util_min(clamp.min.max(min.into())).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidInput if (1..u32::from(min)).contains(&clamp.max) => {
                UtilError::AboveMax { min, max: clamp.max }
            }
            io::ErrorKind::PermissionDenied => UtilError::Refused { min, source },
            // EOPNOTSUPP without CONFIG_UCLAMP_TASK; E2BIG or EINVAL from kernels that do not know the fields.
            _ => UtilError::Unsupported { min, source },
        })?;
        Ok(Self { before: clamp.min, _thread: PhantomData })
    }
}

impl Drop for UtilHold {
    fn drop(&mut self) {
        if let Err(error) = sched::set_util_min(self.before) {
            log::warn!("cannot set this thread's utilisation clamp back to {}/1024: {error}", self.before);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn more_than_a_core_is_refused() {
        for min in [1025, u16::MAX] {
            let error = UtilHold::acquire(min).unwrap_err();
            assert!(matches!(error, UtilError::Impossible { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_hold_lasts_until_it_is_dropped_or_says_what_the_kernel_lacks() {
        // In a thread of its own, which other tests do not see.
        let test = || {
            let before = sched::util_clamp().unwrap();
            match UtilHold::acquire(1024) {
                Ok(hold) => {
                    assert_eq!(sched::util_clamp().unwrap().min, 1024);
                    let weaker = UtilHold::acquire(100).unwrap();
                    assert_eq!(sched::util_clamp().unwrap().min, 1024, "a weaker one takes nothing away");
                    drop(weaker);
                    drop(hold);
                }
                Err(error) => {
                    println!("skipped: {error}");
                    assert!(matches!(error, UtilError::Unsupported { .. }), "{error:?}");
                    assert!(error.to_string().contains("CONFIG_UCLAMP_TASK"), "{error}");
                }
            }
            assert_eq!(sched::util_clamp().unwrap(), before);
        };
        thread::spawn(test).join().unwrap();
    }
}
