//! epoll: one wait for many file descriptors, bounded to the nanosecond.
#![expect(unsafe_code, reason = "system calls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::event;

/// File descriptors that one thread waits for at once: an epoll instance, closed on exec and when dropped.
///
/// A wait blocks in `epoll_pwait2`, one system call with a timeout in nanoseconds. A kernel older than 5.11 has no such
/// call (ENOSYS) and a seccomp filter may forbid it (EPERM): the first wait of the process that is told so makes all
/// later ones use `ppoll` on the epoll descriptor, as exact, and `epoll_wait` for what is ready: two calls a wake.
///
/// Its own descriptor ([`AsFd`]) is readable while something in it is ready, so it fits into another epoll or poll loop.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
    without_pwait2: bool,
}

/// When a file descriptor counts as ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// At each event: an eventfd at each signal, read or not; several before one wait count once. One that is readable
    /// when it is added counts, too.
    Edge,
    /// As long as it is readable.
    Level,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// This many descriptors are ready, at least one.
    Ready(usize),
    /// The time has passed, and none is.
    TimedOut,
    /// The wait ended early without any: the thread handled a signal or was stopped for a while, or what was ready was
    /// taken by another thread. Whoever has time left waits again.
    Interrupted,
}

/// `epoll_pwait2` is missing or forbidden. Set at the first wait that finds out, never cleared.
static NO_PWAIT2: AtomicBool = AtomicBool::new(false);

impl Epoll {
    /// An instance with nothing in it.
    ///
    /// # Errors
    ///
    /// When the process or the machine is out of file descriptors, or the kernel of memory.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just created and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, without_pwait2: false })
    }

    /// As [`new`](Self::new), and waits as on a kernel without `epoll_pwait2`.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn without_pwait2() -> io::Result<Self> {
        Ok(Self { without_pwait2: true, ..Self::new()? })
    }

    /// Waits for `fd` to become readable, too, and says `key` when it is. It is not owned: it must be
    /// [removed](Self::remove) before it is closed if anyone else (a `dup`, a child) holds it open.
    ///
    /// An error or hang-up of the file counts as readable: a read says which.
    ///
    /// # Errors
    ///
    /// EEXIST when it is in already, EPERM when such a file cannot be waited for (an ordinary file), ELOOP for an epoll
    /// instance that would wait for itself, ENOSPC above `/proc/sys/fs/epoll/max_user_watches`.
    pub fn add(&self, fd: BorrowedFd<'_>, key: u64, trigger: Trigger) -> io::Result<()> {
        let edge = match trigger {
            Trigger::Edge => libc::EPOLLET,
            Trigger::Level => 0,
        };
        let event = libc::epoll_event { events: (libc::EPOLLIN | edge) as u32, u64: key };
        self.control(libc::EPOLL_CTL_ADD, fd, event)
    }

    /// Waits for `fd` no longer.
    ///
    /// # Errors
    ///
    /// ENOENT when it is not in.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        // Kernels before 2.6.9 wanted an event here; none is read (epoll_ctl(2)).
        self.control(libc::EPOLL_CTL_DEL, fd, libc::epoll_event { events: 0, u64: 0 })
    }

    /// Blocks until a descriptor is ready or `timeout` has passed; zero only looks. The keys of the ready ones are then in
    /// `events`, as many as it holds; the rest stay ready for the next wait.
    ///
    /// Never ends early without saying so. How late it may end is the thread's timer slack
    /// ([`set_timer_slack_ns`](crate::cpu::set_timer_slack_ns)), and no less than a thousandth of `timeout`, 100 ms at most
    /// (`select_estimate_accuracy`, fs/select.c); nothing for a realtime thread.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the wait, which it does for no reason known here.
    pub fn wait(&self, events: &mut Events, timeout: Duration) -> io::Result<Woken> {
        events.ready = 0;
        if !self.without_pwait2 && !NO_PWAIT2.load(Ordering::Relaxed) {
            match self.pwait2(events, timeout) {
                // Neither is an error of the call itself: it is not there, or a filter stands before it.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                    NO_PWAIT2.store(true, Ordering::Relaxed);
                }
                done => return woken(done, Woken::TimedOut),
            }
        }
        if !timeout.is_zero() {
            let mut fds = [libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            let polled = woken(event::ppoll(&mut fds, timeout), Woken::TimedOut)?;
            if !matches!(polled, Woken::Ready(_)) {
                return Ok(polled);
            }
        }
        let nothing = if timeout.is_zero() { Woken::TimedOut } else { Woken::Interrupted };
        woken(self.collect(events), nothing)
    }

    fn pwait2(&self, events: &mut Events, timeout: Duration) -> io::Result<usize> {
        let timeout = KernelTimespec {
            sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            nsec: timeout.subsec_nanos().into(),
        };
        // By number: older C libraries have no name for it.
        // SAFETY: the buffer has room for the number of events told, and it and the timeout live through the call. No
        // signal mask is given.
        let n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                events.buffer.as_mut_ptr(),
                events.room(),
                &raw const timeout,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        events.filled(n)
    }

    /// What is ready now, without waiting.
    fn collect(&self, events: &mut Events) -> io::Result<usize> {
        // SAFETY: the buffer has room for the number of events told and lives through the call.
        let n = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events.buffer.as_mut_ptr(), events.room(), 0) };
        events.filled(n.into())
    }

    fn control(&self, operation: i32, fd: BorrowedFd<'_>, mut event: libc::epoll_event) -> io::Result<()> {
        // SAFETY: `event` lives through the call, and the kernel copies it.
        let rc = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where a wait puts the keys of what is ready: room for a fixed number, allocated once.
///
/// # Invariant
///
/// `ready <= buffer.len()`, which is at least 1 and at most [`Self::CAPACITY_MAX`].
pub struct Events {
    buffer: Box<[libc::epoll_event]>,
    ready: usize,
}

impl Events {
    /// The most that one wait tells.
    pub const CAPACITY_MAX: usize = 1 << 16;

    /// Room for `capacity` keys.
    ///
    /// # Panics
    ///
    /// If `capacity` is zero or above [`CAPACITY_MAX`](Self::CAPACITY_MAX).
    pub fn new(capacity: usize) -> Self {
        assert!((1..=Self::CAPACITY_MAX).contains(&capacity), "room for {capacity} events: 1 to 65536 are possible");
        Self { buffer: vec![libc::epoll_event { events: 0, u64: 0 }; capacity].into(), ready: 0 }
    }

    /// The keys that the last wait found ready, each once.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.buffer[..self.ready].iter().map(|event| event.u64)
    }

    fn room(&self) -> i32 {
        self.buffer.len() as i32
    }

    /// Takes note of what a system call returned.
    fn filled(&mut self, n: libc::c_long) -> io::Result<usize> {
        // Negative is an error; more than there is room for would be a broken kernel.
        self.ready = usize::try_from(n).map_err(|_| io::Error::last_os_error())?.min(self.buffer.len());
        Ok(self.ready)
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("keys", &self.keys().collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

/// The kernel's `struct __kernel_timespec`: 64 bits on every architecture, which the C library's is not.
#[repr(C)]
struct KernelTimespec {
    sec: i64,
    nsec: i64,
}

fn woken(done: io::Result<usize>, nothing: Woken) -> io::Result<Woken> {
    match done {
        Ok(0) => Ok(nothing),
        Ok(n) => Ok(Woken::Ready(n)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Woken::Interrupted),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::super::event::{eventfd, eventfd_add, eventfd_take};
    use super::super::sched::{process_id, thread_id};
    use super::*;

    /// Far longer than any wait that ends as it should.
    const LONG: Duration = Duration::from_secs(20);

    /// Both ways to wait.
    fn both(test: impl Fn(&dyn Fn() -> Epoll)) {
        test(&|| Epoll::new().unwrap());
        test(&|| Epoll::without_pwait2().unwrap());
    }

    fn keys(epoll: &Epoll, timeout: Duration) -> Vec<u64> {
        let mut events = Events::new(8);
        let woken = epoll.wait(&mut events, timeout).unwrap();
        let keys: Vec<u64> = events.keys().collect();
        match woken {
            Woken::Ready(n) => assert_eq!(n, keys.len()),
            Woken::TimedOut => assert!(keys.is_empty()),
            Woken::Interrupted => panic!("nobody interrupts this thread"),
        }
        keys
    }

    fn add(epoll: &Epoll, key: u64, trigger: Trigger) -> OwnedFd {
        let fd = eventfd().unwrap();
        epoll.add(fd.as_fd(), key, trigger).unwrap();
        fd
    }

    #[test]
    fn an_edge_is_told_once_for_each_signal_and_the_count_stays() {
        both(|make| {
            let epoll = make();
            let fd = add(&epoll, 7, Trigger::Edge);
            for n in 1..=3 {
                eventfd_add(fd.as_fd(), 1).unwrap();
                assert_eq!(keys(&epoll, LONG), [7], "signal {n}, the earlier ones unread");
                assert_eq!(keys(&epoll, Duration::from_micros(100)), [0; 0], "no signal since");
                assert_eq!(keys(&epoll, Duration::ZERO), [0; 0], "no signal since");
            }
            assert_eq!(eventfd_take(fd.as_fd()).unwrap(), 3);
            assert_eq!(keys(&epoll, Duration::ZERO), [0; 0]);
        });
    }

    #[test]
    fn what_is_signalled_before_it_is_added_is_told() {
        both(|make| {
            let epoll = make();
            let fd = eventfd().unwrap();
            eventfd_add(fd.as_fd(), 1).unwrap();
            epoll.add(fd.as_fd(), 1, Trigger::Edge).unwrap();
            assert_eq!(keys(&epoll, Duration::ZERO), [1]);
            assert_eq!(keys(&epoll, Duration::ZERO), [0; 0]);
        });
    }

    #[test]
    fn a_level_is_told_until_it_is_read() {
        both(|make| {
            let epoll = make();
            let fd = add(&epoll, u64::MAX, Trigger::Level);
            assert_eq!(keys(&epoll, Duration::ZERO), [0; 0]);
            eventfd_add(fd.as_fd(), 5).unwrap();
            for timeout in [Duration::ZERO, LONG, Duration::MAX] {
                assert_eq!(keys(&epoll, timeout), [u64::MAX]);
            }
            assert_eq!(eventfd_take(fd.as_fd()).unwrap(), 5);
            assert_eq!(keys(&epoll, Duration::from_micros(100)), [0; 0]);
        });
    }

    #[test]
    fn a_wait_is_as_long_as_asked() {
        both(|make| {
            let epoll = make();
            let _silent = add(&epoll, 1, Trigger::Edge);
            for timeout in [Duration::from_nanos(1), Duration::from_micros(50), Duration::from_millis(3)] {
                let start = Instant::now();
                assert_eq!(keys(&epoll, timeout), [0; 0]);
                assert!((timeout..LONG).contains(&start.elapsed()), "{timeout:?}: {:?}", start.elapsed());
            }
        });
    }

    #[test]
    fn microseconds_are_not_rounded_up_to_milliseconds() {
        both(|make| {
            let epoll = make();
            let begin = Instant::now();
            // Others may keep the core for longer; not each time.
            loop {
                let start = Instant::now();
                assert_eq!(keys(&epoll, Duration::from_micros(100)), [0; 0]);
                if start.elapsed() < Duration::from_micros(900) {
                    break;
                }
                assert!(begin.elapsed() < LONG, "no wait of 100 us took less than 900");
            }
        });
    }

    #[test]
    fn another_thread_ends_a_wait() {
        both(|make| {
            let epoll = make();
            let fd = add(&epoll, 3, Trigger::Edge);
            thread::scope(|scope| {
                let waiting = scope.spawn(|| keys(&epoll, LONG));
                thread::sleep(Duration::from_millis(5));
                eventfd_add(fd.as_fd(), 1).unwrap();
                assert_eq!(waiting.join().unwrap(), [3]);
            });
        });
    }

    #[test]
    fn more_than_there_is_room_for_comes_with_the_next_wait() {
        both(|make| {
            let epoll = make();
            let fds: Vec<OwnedFd> = (0..3).map(|key| add(&epoll, key, Trigger::Edge)).collect();
            fds.iter().for_each(|fd| eventfd_add(fd.as_fd(), 1).unwrap());
            let mut events = Events::new(2);
            let mut seen = Vec::new();
            for _ in 0..2 {
                assert!(matches!(epoll.wait(&mut events, LONG).unwrap(), Woken::Ready(1..=2)));
                seen.extend(events.keys());
            }
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2]);
            assert_eq!(epoll.wait(&mut events, Duration::ZERO).unwrap(), Woken::TimedOut);
            assert_eq!(events.keys().len(), 0);
        });
    }

    #[test]
    fn what_is_removed_is_silent() {
        both(|make| {
            let epoll = make();
            let fd = add(&epoll, 1, Trigger::Level);
            let other = add(&epoll, 2, Trigger::Level);
            assert_eq!(epoll.add(fd.as_fd(), 3, Trigger::Edge).unwrap_err().raw_os_error(), Some(libc::EEXIST));
            eventfd_add(fd.as_fd(), 1).unwrap();
            eventfd_add(other.as_fd(), 1).unwrap();
            epoll.remove(fd.as_fd()).unwrap();
            assert_eq!(keys(&epoll, LONG), [2]);
            assert_eq!(epoll.remove(fd.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        });
    }

    #[test]
    fn one_waits_for_another() {
        both(|make| {
            let (outer, inner) = (make(), make());
            outer.add(inner.as_fd(), 10, Trigger::Level).unwrap();
            let fd = add(&inner, 1, Trigger::Edge);
            assert_eq!(keys(&outer, Duration::ZERO), [0; 0]);
            assert!(!event::wait_readable(inner.as_fd(), Duration::ZERO).unwrap());
            eventfd_add(fd.as_fd(), 1).unwrap();
            assert_eq!(keys(&outer, LONG), [10]);
            assert!(event::wait_readable(inner.as_fd(), Duration::ZERO).unwrap());
            assert_eq!(keys(&inner, Duration::ZERO), [1]);
            assert_eq!(keys(&outer, Duration::ZERO), [0; 0], "the inner one has told it");
            let looped = inner.add(outer.as_fd(), 0, Trigger::Level).unwrap_err();
            assert_eq!(looped.raw_os_error(), Some(libc::ELOOP));
        });
    }

    #[test]
    fn a_signal_is_not_taken_for_the_timeout() {
        extern "C" fn nothing(_: libc::c_int) {}
        let handler: extern "C" fn(libc::c_int) = nothing;
        // SAFETY: the handler does nothing, which is safe at any moment; no other test uses the signal.
        let old = unsafe { libc::signal(libc::SIGUSR2, handler as *const () as libc::sighandler_t) };
        assert_ne!(old, libc::SIG_ERR);
        both(|make| {
            let epoll = make();
            let _silent = add(&epoll, 1, Trigger::Edge);
            let (tell, told) = std::sync::mpsc::channel();
            thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    tell.send(thread_id()).unwrap();
                    epoll.wait(&mut Events::new(1), LONG).unwrap()
                });
                let tid = told.recv().unwrap();
                // The first may come before the wait begins.
                while !waiting.is_finished() {
                    // SAFETY: no pointers. Ids go round: no new thread gets that of one that ended just now.
                    unsafe { libc::syscall(libc::SYS_tgkill, process_id(), tid, libc::SIGUSR2) };
                    thread::sleep(Duration::from_millis(1));
                }
                assert_eq!(waiting.join().unwrap(), Woken::Interrupted);
            });
        });
    }

    #[test]
    #[should_panic(expected = "room for 0 events")]
    fn no_room_is_refused() {
        Events::new(0);
    }
}
