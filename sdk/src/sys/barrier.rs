//! Full fences of which one side pays: [`light`] costs nothing, [`heavy`] a system call.
//!
//! Two threads that each store and then look at what the other stored need a full fence between store and look, both of
//! them, or both may miss the other's store. Where one side does it millions of times a second (a producer that asks whether
//! its consumer sleeps) and the other seldom (the consumer about to sleep), membarrier(2) puts the whole price on the
//! seldom side: it returns once every thread of the process has passed through a full barrier, which on a running core is
//! an interrupt. So `light` is no instruction at all in place of tens of cycles. `heavy` is half a microsecond while no other
//! core runs the process. Each core that does is interrupted for about a microsecond, and `heavy` waits for that: a few
//! microseconds, about ten in a virtual machine (measured in one, on Zen 5). Who goes to sleep often beside busy workers of
//! the same process makes them pay.
//!
//! The pair orders threads of one process. Towards a device or another process (shared memory) `heavy` is a full fence as
//! any other, and `light` none.
//!
//! # Why it is sound
//!
//! `light` leaves its fence out only after it saw the flag `LIGHT_IS_FREE`. Of two sides L (`store x; light; load y`) and
//! H (`store y; heavy; load x`):
//!
//! - L did a full fence, because it saw the flag unset: `heavy` begins with a full fence whatever else happens, so the two
//!   are ordinary.
//! - The flag was seen, and H's membarrier succeeded: L passed through a full barrier at some point of its program, during
//!   H's call. If that was before L's store, L loads `y` after it: it sees H's store, which was visible before the call. If it was
//!   after the store, the store was visible before the call ended, and H's load sees it.
//! - The flag was seen, and H's membarrier failed because the process was not registered yet. Then registration came after
//!   that call, and so after H's store had become visible. [`register`] makes every thread pass through a full barrier after
//!   registration and before the flag is set. L saw the flag, so its load of `y` comes after that barrier: it sees H's
//!   store. This needs no order between the loads of flag and `y`, so the flag is read Relaxed.
//! - The flag was seen, the process is registered, and membarrier fails nevertheless. A kernel does not do that; a seccomp
//!   filter put up in the middle of a run may. `heavy` then takes the flag back and warns. A `light` that saw the flag just
//!   before may be missed this once, which whoever waits with a bound survives.
#![expect(unsafe_code, reason = "system calls")]

use std::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};

/// Every `heavy` from now on reaches into every thread, so a `light` needs no fence of its own.
static LIGHT_IS_FREE: AtomicBool = AtomicBool::new(false);

/// Registers the process for [`heavy`] and makes [`light`] free from now on; returns whether it is. Cheap when done
/// already; call it when the first pair that uses them is made.
///
/// `false` on kernels before 4.14, on those without CONFIG_MEMBARRIER, and where a seccomp filter forbids the call: then both are
/// ordinary full fences. The first call takes some milliseconds in a process with several threads.
pub fn register() -> bool {
    if LIGHT_IS_FREE.load(Ordering::Relaxed) {
        return true;
    }
    // The second call is the barrier between registration and flag; it shows that the command itself is permitted, too.
    let free = membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
        && membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    if free {
        LIGHT_IS_FREE.store(true, Ordering::Relaxed);
    }
    free
}

/// A full fence towards every [`heavy`] of this process. Not towards another `light`.
#[inline(always)]
pub fn light() {
    if LIGHT_IS_FREE.load(Ordering::Relaxed) {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// A full fence towards everyone, and every [`light`] of this process. One system call.
pub fn heavy() {
    // First, for lights that fence, for devices and for other processes: membarrier itself skips its own fence while the
    // process has one thread or the machine one core.
    fence(Ordering::SeqCst);
    // Always tried, whatever the flag says here: a light on another core may have seen it already.
    if membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED) || !LIGHT_IS_FREE.load(Ordering::Relaxed) {
        return;
    }
    // Registered in the moment between the two, or in a parent before fork: it works now.
    let again = membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
        && membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    if !again && LIGHT_IS_FREE.swap(false, Ordering::SeqCst) {
        log::warn!(
            "membarrier(2) worked and is now refused, probably by a seccomp filter; threads of this process use full \
             fences from now on. Let the filter permit membarrier, or put it up before the program starts"
        );
    }
}

/// Whether the command was carried out.
fn membarrier(command: libc::c_int) -> bool {
    let (flags, cpu): (libc::c_uint, libc::c_int) = (0, 0);
    // SAFETY: no pointers; the barrier commands change nothing but the order of memory accesses.
    unsafe { libc::syscall(libc::SYS_membarrier, command, flags, cpu) == 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn registration_works_where_the_kernel_offers_it() {
        // SAFETY: no pointers; asks for the mask of commands that the kernel knows.
        let known = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_QUERY, 0, 0) };
        let offered = known > 0 && known & libc::c_long::from(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED) != 0;
        assert_eq!(register(), offered);
        assert_eq!(register(), offered, "and again");
        assert_eq!(LIGHT_IS_FREE.load(Ordering::Relaxed), offered);
        heavy();
    }

    /// A cache line and its neighbour, which processors fetch in pairs.
    #[derive(Default)]
    #[repr(align(128))]
    struct Line(AtomicU32);

    /// Store buffering: in each round both threads store to a line of their own, fence, and load the other's. Returns the
    /// rounds that fit into `limit`, and those in which neither saw the other's store.
    fn store_buffering(fences: [fn(); 2], rounds: u32, limit: Duration) -> (usize, usize) {
        let stored: [Line; 2] = Default::default();
        let round_of: [Line; 2] = Default::default();
        let begin = Instant::now();
        let play = |me: usize| {
            let mut saw = Vec::with_capacity(rounds as usize);
            for round in 1..=rounds {
                // Nobody stores for this round before the other has looked in the last one.
                let over = me == 0 && begin.elapsed() > limit;
                round_of[me].0.store(if over { u32::MAX } else { round }, Ordering::Release);
                let mut looks = 0u32;
                let others = loop {
                    let others = round_of[1 - me].0.load(Ordering::Acquire);
                    if over || others >= round {
                        break others;
                    }
                    looks += 1;
                    // The other one may want this core.
                    if looks.is_multiple_of(1 << 14) { thread::yield_now() } else { std::hint::spin_loop() }
                };
                if over || others == u32::MAX {
                    break;
                }
                // Whoever came last starts first, by as long as a line travels: try many distances.
                for _ in 0..round % 128 * me as u32 {
                    std::hint::black_box(());
                }
                stored[me].0.store(round, Ordering::Relaxed);
                fences[me]();
                saw.push(stored[1 - me].0.load(Ordering::Relaxed) >= round);
            }
            saw
        };
        let (one, other) = thread::scope(|scope| {
            let other = scope.spawn(|| play(1));
            (play(0), other.join().unwrap())
        });
        assert_eq!(one.len(), other.len());
        (one.len(), one.iter().zip(&other).filter(|&(&one, &other)| !one && !other).count())
    }

    #[test]
    fn two_that_store_and_look_do_not_both_miss_the_other() {
        register();
        // The last pair is what a light fence is until the process is registered.
        let full = || fence(Ordering::SeqCst);
        for fences in [[light as fn(), heavy as fn()], [heavy, light], [full, heavy]] {
            let (rounds, missed) = store_buffering(fences, 100_000, Duration::from_secs(1));
            assert!(rounds > 0);
            assert_eq!(missed, 0, "of {rounds} rounds");
        }
    }
}
