//! Threads and time as the kernel keeps them: affinity, scheduling class, limits, clocks.
#![expect(unsafe_code, reason = "system calls")]

use std::io;
use std::time::Duration;

/// Cores the largest affinity mask asked for can hold: far above any kernel's `NR_CPUS`.
const MASK_BITS_MAX: usize = 1 << 16;

/// The cores thread `tid` may run on, ascending; `0` means the calling thread.
///
/// The mask grows until the kernel's fits, so ids of 1024 and more are seen.
///
/// # Errors
///
/// When there is no such thread, or it may not be looked at.
pub fn affinity(tid: i32) -> io::Result<Vec<usize>> {
    const WORD_BITS: usize = libc::c_ulong::BITS as usize;
    let mut bits = 1024;
    loop {
        let mut mask: Vec<libc::c_ulong> = vec![0; bits / WORD_BITS];
        // SAFETY: the kernel writes at most `bits / 8` bytes, which is the length of `mask`.
        let rc = unsafe { libc::sched_getaffinity(tid, bits / 8, mask.as_mut_ptr().cast()) };
        if rc == 0 {
            let set = |id: &usize| mask[id / WORD_BITS] >> (id % WORD_BITS) & 1 == 1;
            return Ok((0..bits).filter(set).collect());
        }
        let error = io::Error::last_os_error();
        // EINVAL: the kernel's own mask is longer than ours (sched_setaffinity(2)).
        if error.raw_os_error() != Some(libc::EINVAL) || bits >= MASK_BITS_MAX {
            return Err(error);
        }
        bits *= 2;
    }
}

/// Lets thread `tid` run on these cores only; `0` means the calling thread.
///
/// # Errors
///
/// When there is no such thread, it may not be moved, none of the cores is online and allowed by the cpuset of its process,
/// or an id is 65536 or more.
pub fn set_affinity(tid: i32, cores: &[usize]) -> io::Result<()> {
    const WORD_BITS: usize = libc::c_ulong::BITS as usize;
    let bits = cores.iter().max().map_or(WORD_BITS, |last| (last + 1).next_multiple_of(WORD_BITS));
    if bits > MASK_BITS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut mask: Vec<libc::c_ulong> = vec![0; bits / WORD_BITS];
    for core in cores {
        mask[core / WORD_BITS] |= 1 << (core % WORD_BITS);
    }
    // SAFETY: the kernel reads `bits / 8` bytes, which is the length of `mask`.
    let rc = unsafe { libc::sched_setaffinity(tid, bits / 8, mask.as_ptr().cast()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The core the calling thread runs on at this moment.
///
/// # Errors
///
/// When the kernel does not implement the call.
pub fn current_core() -> io::Result<usize> {
    // SAFETY: no arguments; the result is checked.
    let core = unsafe { libc::sched_getcpu() };
    usize::try_from(core).map_err(|_| io::Error::last_os_error())
}

/// The kernel's id of the calling thread.
pub fn thread_id() -> i32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::gettid() }
}

/// Sends `signal` to thread `tid` of this process.
///
/// # Errors
///
/// When there is no such thread or signal.
pub fn signal_thread(tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers; the result is checked.
    let rc = unsafe { libc::syscall(libc::SYS_tgkill, process_id(), tid, signal) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The kernel's id of this process, which is its main thread's too.
pub fn process_id() -> i32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::getpid() }
}

/// Puts the calling thread into `SCHED_FIFO` with `priority` (1 to 99).
///
/// # Errors
///
/// When the priority is out of range or the process may not.
pub fn set_fifo(priority: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` lives through the call; 0 names the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) })
}

/// Whether the calling thread is scheduled by a realtime class (`SCHED_FIFO`, `SCHED_RR`, `SCHED_DEADLINE`).
pub fn is_realtime() -> bool {
    // SAFETY: no pointers; 0 names the calling thread, which exists.
    let policy = unsafe { libc::sched_getscheduler(0) };
    matches!(policy & !libc::SCHED_RESET_ON_FORK, libc::SCHED_FIFO | libc::SCHED_RR | libc::SCHED_DEADLINE)
}

/// Locks every page this process has mapped, and every one it maps later.
///
/// # Errors
///
/// When the process may not, or not that much.
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: no pointers; the result is checked.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) })
}

/// How late the calling thread's timers may fire, in nanoseconds; 0 means the default of the thread that made it.
///
/// # Errors
///
/// When the kernel was built without it.
pub fn set_timer_slack_ns(slack_ns: libc::c_ulong) -> io::Result<()> {
    // SAFETY: PR_SET_TIMERSLACK takes one number and no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack_ns, 0, 0, 0) })
}

/// How late the calling thread's timers may fire, in nanoseconds.
///
/// # Errors
///
/// When the kernel was built without it.
pub fn timer_slack_ns() -> io::Result<u64> {
    // SAFETY: PR_GET_TIMERSLACK takes no argument.
    let slack = unsafe { libc::prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0, 0) };
    u64::try_from(slack).map_err(|_| io::Error::last_os_error())
}

/// What the calling thread has told the scheduler of its utilisation, in 1024ths of the fastest core's capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UtilClamp {
    /// It counts as using at least this much.
    pub min: u32,
    /// It counts as using at most this much. Zero where the kernel has no such clamps.
    pub max: u32,
}

/// The calling thread's utilisation clamps.
///
/// # Errors
///
/// When the kernel is older than 3.14, or a seccomp filter forbids `sched_getattr`.
pub fn util_clamp() -> io::Result<UtilClamp> {
    let mut attr = SchedAttr::default();
    // SAFETY: the kernel writes at most `size` bytes through the pointer, which is `attr`'s own; 0 is the calling thread.
    let rc = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, attr.size, 0) };
    check(rc as libc::c_int)?;
    Ok(UtilClamp { min: attr.util_min, max: attr.util_max })
}

/// Makes the calling thread count as using at least `min` 1024ths of the fastest core; changes nothing else of it.
///
/// # Errors
///
/// EOPNOTSUPP on a kernel without CONFIG_UCLAMP_TASK, E2BIG or EINVAL before 5.3; EINVAL also above the thread's
/// upper clamp. EPERM where a seccomp filter forbids it.
pub fn set_util_min(min: u32) -> io::Result<()> {
    let flags = libc::SCHED_FLAG_KEEP_ALL | libc::SCHED_FLAG_UTIL_CLAMP_MIN;
    let attr = SchedAttr { flags: flags as u64, util_min: min, ..SchedAttr::default() };
    // SAFETY: the kernel reads `size` bytes through the pointer, which is `attr`'s own; 0 is the calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) } as libc::c_int)
}

/// The kernel's `struct sched_attr` (include/uapi/linux/sched/types.h), as of SCHED_ATTR_SIZE_VER1.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

const _: () = assert!(size_of::<SchedAttr>() == 56);

impl Default for SchedAttr {
    fn default() -> Self {
        Self {
            size: size_of::<Self>() as u32,
            policy: 0,
            flags: 0,
            nice: 0,
            priority: 0,
            runtime: 0,
            deadline: 0,
            period: 0,
            util_min: 0,
            util_max: 0,
        }
    }
}

/// Whether the calling thread may execute `rdtsc` without being killed for it (`PR_GET_TSC`; x86 only).
#[cfg(target_arch = "x86_64")]
pub fn tsc_permitted() -> bool {
    let mut mode: libc::c_int = 0;
    // SAFETY: PR_GET_TSC writes one int through the pointer, which is `mode`'s own.
    let rc = unsafe { libc::prctl(libc::PR_GET_TSC, &raw mut mode, 0, 0, 0) };
    rc == 0 && mode == libc::PR_TSC_ENABLE
}

/// What a process may have of something: a soft limit and the hard one it may be raised to. `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The limit that applies.
    pub soft: Option<u64>,
    /// The limit up to which the process may raise the soft one itself.
    pub hard: Option<u64>,
}

/// The highest realtime priority the process may take without `CAP_SYS_NICE` (`RLIMIT_RTPRIO`).
///
/// # Errors
///
/// Never on a Linux that knows the limit.
pub fn realtime_priority_limit() -> io::Result<Limit> {
    limit(libc::RLIMIT_RTPRIO)
}

/// Bytes the process may lock without `CAP_IPC_LOCK` (`RLIMIT_MEMLOCK`).
///
/// # Errors
///
/// Never on a Linux that knows the limit.
pub fn locked_memory_limit() -> io::Result<Limit> {
    limit(libc::RLIMIT_MEMLOCK)
}

fn limit(resource: libc::__rlimit_resource_t) -> io::Result<Limit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit` through the pointer, which is `limit`'s own.
    check(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
    let finite = |value: libc::rlim_t| (value != libc::RLIM_INFINITY).then_some(value);
    Ok(Limit { soft: finite(limit.rlim_cur), hard: finite(limit.rlim_max) })
}

/// CPU time the calling thread has used, as the kernel accounts it (`CLOCK_THREAD_CPUTIME_ID`).
pub fn thread_cpu_time() -> Duration {
    Duration::from_nanos(clock_ns(libc::CLOCK_THREAD_CPUTIME_ID))
}

/// CPU time all threads of this process have used, those that ended included (`CLOCK_PROCESS_CPUTIME_ID`).
pub fn process_cpu_time() -> Duration {
    Duration::from_nanos(clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID))
}

/// CPU time that thread `tid` of this process has used, read from any of its threads without disturbing that one.
///
/// # Errors
///
/// ESRCH when this process has no such thread, or no longer.
pub fn thread_cpu_time_of(tid: i32) -> io::Result<Duration> {
    // A clock's id has room for 29 bits of thread id; the kernel's ids end at 2^22 (PID_MAX_LIMIT).
    if !(1..1 << 28).contains(&tid) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // include/linux/posix-timers.h, make_thread_cpuclock: CPUCLOCK_PERTHREAD_MASK (4) and CPUCLOCK_SCHED (2).
    let id = !tid << 3 | 4 | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec` through the pointer, which is `time`'s own.
    check(unsafe { libc::clock_gettime(id, &raw mut time) }).map_err(|error| match error.raw_os_error() {
        // The kernel says EINVAL for the clock of a thread that is not there (pid_for_clock, posix-cpu-timers.c).
        Some(libc::EINVAL) => io::Error::from_raw_os_error(libc::ESRCH),
        _ => error,
    })?;
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Nanoseconds of `CLOCK_MONOTONIC`: since some fixed moment, at the rate that time servers correct.
#[inline]
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds of `CLOCK_MONOTONIC_RAW`: as [`monotonic_ns`], at the rate of the hardware alone.
pub fn monotonic_raw_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC_RAW)
}

#[inline]
fn clock_ns(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec` through the pointer, which is `time`'s own.
    let rc = unsafe { libc::clock_gettime(id, &raw mut time) };
    // The clocks read here exist in every Linux since 2.6.28 and are never negative; u64 holds 584 years of them.
    debug_assert_eq!(rc, 0, "clock_gettime");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_may_run_where_it_runs() {
        let allowed = affinity(0).unwrap();
        assert!(allowed.is_sorted() && !allowed.is_empty());
        assert!(allowed.contains(&current_core().unwrap()));
        assert_eq!(affinity(thread_id()).unwrap(), allowed);
        assert_eq!(affinity(i32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn work_costs_this_thread_cpu_time_and_no_other() {
        let start = thread_cpu_time();
        while thread_cpu_time() < start + Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        assert!(std::thread::spawn(thread_cpu_time).join().unwrap() < thread_cpu_time());
    }

    #[test]
    fn another_threads_cpu_time_is_told_until_it_ends() {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            while thread_cpu_time() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
            tell.send((thread_id(), thread_cpu_time())).unwrap();
            let _ = ended.recv();
        });
        let (tid, used) = told.recv().unwrap();
        assert_ne!(tid, thread_id());
        let seen = thread_cpu_time_of(tid).unwrap();
        assert!(seen >= used && seen < used + Duration::from_secs(10), "{seen:?}, {used:?} by its own account");
        assert!(process_cpu_time() >= seen);
        let own = thread_cpu_time();
        assert!(thread_cpu_time_of(thread_id()).unwrap() >= own);
        drop(end);
        thread.join().unwrap();
        // The kernel forgets a thread a moment after it can be joined.
        let deadline = monotonic_ns() + 20_000_000_000;
        let gone = loop {
            match thread_cpu_time_of(tid) {
                Err(error) => break error,
                Ok(_) => assert!(monotonic_ns() < deadline, "thread {tid} has ended and still has a clock"),
            }
        };
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn threads_of_others_have_no_clock_here() {
        for tid in [1, 0, -1, i32::MIN, i32::MAX, 1 << 28] {
            if tid != process_id() {
                assert_eq!(thread_cpu_time_of(tid).unwrap_err().raw_os_error(), Some(libc::ESRCH), "{tid}");
            }
        }
    }

    #[test]
    fn the_clocks_do_not_run_backwards() {
        let (mono, raw) = (monotonic_ns(), monotonic_raw_ns());
        assert!(monotonic_ns() >= mono && monotonic_raw_ns() >= raw);
        assert!(mono > 0 && raw > 0);
    }
}
