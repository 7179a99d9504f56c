//! What a worker may ask of the scheduler and the memory manager besides its core. All of it is optional.

use std::io;
use std::path::Path;

use super::cpuset::read_text;
use crate::sys::sched::{self, Limit};

/// Why a thread could not become a realtime thread.
#[derive(Debug, thiserror::Error)]
pub enum FifoError {
    /// No such priority.
    #[error("realtime priority {priority} does not exist; choose 1 (lowest) to 99")]
    Priority {
        /// The one asked for.
        priority: u8,
    },
    /// The kernel refused.
    #[error(
        "cannot give the thread realtime priority {priority} (SCHED_FIFO): {source}. The limit RLIMIT_RTPRIO is {limit}; \
         raise it (`ulimit -r {priority}`, LimitRTPRIO= of the service, rtprio in /etc/security/limits.conf), or give the \
         program CAP_SYS_NICE. If that is so already, its cgroup has no realtime time to give (cpu.rt_runtime_us)"
    )]
    Refused {
        /// The one asked for.
        priority: u8,
        /// The meaning of errno.
        source: io::Error,
        /// The limit, as text.
        limit: String,
    },
}

/// Puts the calling thread into `SCHED_FIFO` with `priority` (1 to 99): no ordinary task runs on its core while it does
/// not block.
///
/// Logs a warning when the kernel keeps part of each second for others.
///
/// # Errors
///
/// When there is no such priority, or the process may not.
pub fn set_fifo(priority: u8) -> Result<(), FifoError> {
    if !(1..=99).contains(&priority) {
        return Err(FifoError::Priority { priority });
    }
    sched::set_fifo(priority.into()).map_err(|source| FifoError::Refused {
        priority,
        source,
        limit: limit_text(sched::realtime_priority_limit(), ""),
    })?;
    // Kernel documentation, scheduler/sched-rt-group: -1 is no limit.
    let runtime = read_text(Path::new("/proc/sys/kernel/sched_rt_runtime_us"));
    if let Some(us) = runtime.and_then(|text| text.trim().parse::<i64>().ok()).filter(|&us| us >= 0) {
        log::warn!(
            "the kernel lets realtime threads run {us} us of each period and may stop a worker that never sleeps for the \
             rest of it; to prevent that, write -1 to /proc/sys/kernel/sched_rt_runtime_us"
        );
    }
    Ok(())
}

/// Why memory could not be locked.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot lock this process's memory (mlockall): {source}. The limit RLIMIT_MEMLOCK is {limit}; raise it (`ulimit -l \
     unlimited`, LimitMEMLOCK=infinity of the service, memlock in /etc/security/limits.conf), or give the program \
     CAP_IPC_LOCK"
)]
pub struct LockMemoryError {
    /// The meaning of errno.
    pub source: io::Error,
    /// The limit, as text.
    pub limit: String,
}

/// Keeps every page of this process in memory, those it maps later too, so that none is ever waited for.
///
/// Under a limit, a later mapping that would exceed it fails.
///
/// # Errors
///
/// When the process may not lock that much.
pub fn lock_memory() -> Result<(), LockMemoryError> {
    sched::lock_memory()
        .map_err(|source| LockMemoryError { source, limit: limit_text(sched::locked_memory_limit(), " bytes") })
}

/// Why a thread's timer slack could not be set.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot set the thread's timer slack to {slack_ns} ns (PR_SET_TIMERSLACK): {source}; bounded sleeps will end up to \
     50 us late. A seccomp filter may forbid the call"
)]
pub struct TimerSlackError {
    /// What was asked for.
    pub slack_ns: u64,
    /// The meaning of errno.
    pub source: io::Error,
}

/// Lets the calling thread's timers, and so its bounded sleeps, end at most `slack_ns` late. The kernel's default for an
/// ordinary thread is 50 000 ns; realtime threads have none. Zero asks for the least the kernel offers, 1 ns.
///
/// # Errors
///
/// When the kernel refuses.
pub fn set_timer_slack_ns(slack_ns: u64) -> Result<(), TimerSlackError> {
    // To the kernel, zero means "back to the default", the opposite of what it says.
    sched::set_timer_slack_ns(slack_ns.max(1)).map_err(|source| TimerSlackError { slack_ns, source })
}

fn limit_text(limit: io::Result<Limit>, unit: &str) -> String {
    let text = |value: Option<u64>| value.map_or("unlimited".to_owned(), |value| format!("{value}{unit}"));
    match limit {
        Ok(Limit { soft, hard }) if soft == hard => text(soft),
        Ok(Limit { soft, hard }) => format!("{} (the process may raise it to {})", text(soft), text(hard)),
        Err(error) => format!("unknown ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn priorities_that_do_not_exist_are_refused() {
        for priority in [0, 100, 255] {
            let error = set_fifo(priority).unwrap_err();
            assert!(matches!(error, FifoError::Priority { .. }), "{error:?}");
            assert!(error.to_string().contains("1 (lowest) to 99"), "{error}");
        }
    }

    #[test]
    fn a_refused_priority_names_the_limit() {
        // In a thread of its own, which ends at once where the process is allowed to.
        match thread::spawn(|| set_fifo(1)).join().unwrap() {
            Ok(()) => {}
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("RLIMIT_RTPRIO is ") && text.contains("CAP_SYS_NICE"), "{text}");
            }
        }
    }

    #[test]
    fn timer_slack_is_the_threads_own_and_zero_is_the_least() {
        let before = sched::timer_slack_ns().unwrap();
        let inside = thread::spawn(|| {
            set_timer_slack_ns(1234).unwrap();
            let set = sched::timer_slack_ns().unwrap();
            set_timer_slack_ns(0).unwrap();
            (set, sched::timer_slack_ns().unwrap())
        });
        assert_eq!(inside.join().unwrap(), (1234, 1));
        assert_eq!(sched::timer_slack_ns().unwrap(), before);
    }

    #[test]
    fn limits_are_told_in_words() {
        let limit = |soft, hard| limit_text(Ok(Limit { soft, hard }), " bytes");
        assert_eq!(limit(None, None), "unlimited");
        assert_eq!(limit(Some(0), Some(0)), "0 bytes");
        assert_eq!(limit(Some(8192), None), "8192 bytes (the process may raise it to unlimited)");
        assert_eq!(limit_text(Err(io::ErrorKind::Unsupported.into()), ""), "unknown (unsupported)");
        assert!(sched::locked_memory_limit().is_ok() && sched::realtime_priority_limit().is_ok());
    }
}
