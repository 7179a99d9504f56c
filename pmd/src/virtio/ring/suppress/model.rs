//! The handshakes of both ring kinds in every interleaving and with every value that weak memory allows, by loom's model
//! checker: nobody sleeps on work, and each fence is needed for that.
//!
//!     RUSTFLAGS="--cfg loom" cargo test -p spinwake-pmd --lib -- loom
//!
//! Sleeping has no bound here, so a notification that is lost is a deadlock, which loom reports. What the driver decides is
//! the real code; the device and the fences stand in.

use std::cell::Cell;
use std::sync::atomic::Ordering;

thread_local! {
    /// Loom runs all threads of a model on the thread that started it.
    static WITHOUT: Cell<bool> = const { Cell::new(false) };
}

/// The driver's fence between publishing and asking.
pub(super) fn fence(order: Ordering) {
    if !WITHOUT.get() {
        loom::sync::atomic::fence(order);
    }
}

#[cfg(test)]
mod loom_tests {
    use std::mem::ManuallyDrop;
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, fence};
    use loom::thread;
    use spinwake::wait::model::{Epoll, Vector};

    use super::super::{DISABLE, NONE, Shared, ask_packed, passes, publish_packed, publish_split, wants_packed};
    use super::*;

    const LEN: usize = 4;
    const AVAIL: u64 = 1 << 7 << 48;

    macro_rules! shared {
        ($($cell:ty: $value:ty),*) => {$(
            impl Shared<$value> for $cell {
                fn load(&self, order: Ordering) -> $value {
                    self.load(order)
                }

                fn store(&self, value: $value, order: Ordering) {
                    self.store(value, order);
                }
            }
        )*};
    }

    shared!(AtomicU16: u16, AtomicU32: u32, AtomicU64: u64);

    /// What is wrong with the side that sleeps.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Sleeper {
        Right,
        NoFence,
        LooksBeforeAsking,
        NoSecondLook,
    }

    /// Waits until `found`: asks by `ask` to be told, and sleeps.
    fn sleep_until(how: Sleeper, told: &Epoll, ask: impl Fn(), found: impl Fn() -> bool) {
        loop {
            let before = found();
            ask();
            if how != Sleeper::NoFence {
                fence(Ordering::SeqCst);
            }
            let work = match how {
                Sleeper::LooksBeforeAsking => before,
                Sleeper::NoSecondLook => false,
                _ => found(),
            };
            if work {
                return;
            }
            told.wait();
        }
    }

    /// The memory of both ring kinds, for two buffers.
    #[derive(Debug)]
    struct Ring {
        /// The index of the available ring, of the used ring, and who asks the other for what.
        available: AtomicU16,
        used: AtomicU16,
        asks_driver: AtomicU16,
        asks_device: AtomicU16,
        /// Of a packed ring, word 1 of the descriptors, and the event structures.
        words: [AtomicU64; 2],
        driver_events: AtomicU32,
        device_events: AtomicU32,
    }

    impl Ring {
        fn new(event_idx: bool) -> Arc<Self> {
            // Nobody sleeps at first: flags say so, or events that were just passed.
            let quiet = if event_idx { u16::MAX } else { NONE };
            Arc::new(Self {
                available: AtomicU16::new(0),
                used: AtomicU16::new(0),
                asks_driver: AtomicU16::new(quiet),
                asks_device: AtomicU16::new(quiet),
                words: [AtomicU64::new(0), AtomicU64::new(0)],
                driver_events: AtomicU32::new(DISABLE),
                device_events: AtomicU32::new(DISABLE),
            })
        }
    }

    /// Explores the part of another thread, which tells by a vector, against that of this one, which sleeps.
    fn explore(
        event_idx: bool,
        other: fn(&Ring, bool, &Vector),
        this: impl Fn(&Ring, bool, &Epoll) + Send + Sync + 'static,
    ) {
        loom::model(move || {
            // Loom's own objects must not be dropped while a deadlock unwinds.
            let ring = ManuallyDrop::new(Ring::new(event_idx));
            let (told, vector) = (Epoll::of_this_thread(), Vector::new().unwrap());
            vector.watch(&told);
            let its = ring.clone();
            let other = thread::spawn(move || other(&its, event_idx, &vector));
            this(&ring, event_idx, &told);
            told.close();
            other.join().unwrap();
            drop(ManuallyDrop::into_inner(ring));
        });
    }

    /// The driver publishes two buffers, one after another; the device sleeps until it has both.
    fn split_driver(ring: &Ring, event_idx: bool, device: &Vector) {
        for n in 0..2 {
            if publish_split(&ring.available, n, n + 1, &ring.asks_device, event_idx) {
                device.signal(1);
            }
        }
    }

    fn split_device(how: Sleeper) -> impl Fn(&Ring, bool, &Epoll) + Send + Sync + 'static {
        move |ring, event_idx, told| {
            for n in 0..2 {
                let ask = || ring.asks_device.store(if event_idx { n } else { 0 }, Ordering::Relaxed);
                sleep_until(how, told, ask, || ring.available.load(Ordering::Acquire) > n);
            }
        }
    }

    fn packed_driver(ring: &Ring, _: bool, device: &Vector) {
        for n in 0..2 {
            if publish_packed(&ring.words[n], AVAIL, &ring.device_events, (0, n + 1), LEN) {
                device.signal(1);
            }
        }
    }

    fn packed_device(how: Sleeper) -> impl Fn(&Ring, bool, &Epoll) + Send + Sync + 'static {
        move |ring, event_idx, told| {
            for n in 0..2 {
                let ask = || ring.device_events.store(ask_packed(n, LEN, event_idx), Ordering::Relaxed);
                sleep_until(how, told, ask, || ring.words[n].load(Ordering::Acquire) == AVAIL);
            }
        }
    }

    /// The device uses two buffers; the driver, as the wait engine makes it, sleeps until it has both.
    fn split_using(ring: &Ring, event_idx: bool, driver: &Vector) {
        for n in 0..2 {
            ring.used.store(n + 1, Ordering::Release);
            fence(Ordering::SeqCst);
            let wish = ring.asks_driver.load(Ordering::Relaxed);
            if if event_idx { passes(wish, n, n + 1) } else { wish & NONE == 0 } {
                driver.signal(1);
            }
        }
    }

    fn split_waiting(how: Sleeper) -> impl Fn(&Ring, bool, &Epoll) + Send + Sync + 'static {
        move |ring, event_idx, told| {
            for n in 0..2 {
                let ask = || ring.asks_driver.store(if event_idx { n } else { 0 }, Ordering::Relaxed);
                sleep_until(how, told, ask, || ring.used.load(Ordering::Relaxed) > n);
            }
        }
    }

    fn packed_using(ring: &Ring, _: bool, driver: &Vector) {
        for n in 0..2 {
            ring.words[n].store(AVAIL, Ordering::Release);
            fence(Ordering::SeqCst);
            if wants_packed(ring.driver_events.load(Ordering::Relaxed), 0, n + 1, LEN) {
                driver.signal(1);
            }
        }
    }

    fn packed_waiting(how: Sleeper) -> impl Fn(&Ring, bool, &Epoll) + Send + Sync + 'static {
        move |ring, event_idx, told| {
            for n in 0..2 {
                let ask = || ring.driver_events.store(ask_packed(n, LEN, event_idx), Ordering::Relaxed);
                sleep_until(how, told, ask, || ring.words[n].load(Ordering::Relaxed) == AVAIL);
            }
        }
    }

    #[test]
    fn nobody_sleeps_on_work() {
        for event_idx in [false, true] {
            explore(event_idx, split_driver, split_device(Sleeper::Right));
            explore(event_idx, packed_driver, packed_device(Sleeper::Right));
            explore(event_idx, split_using, split_waiting(Sleeper::Right));
            explore(event_idx, packed_using, packed_waiting(Sleeper::Right));
        }
    }

    /// Tests of mistakes: each must lose a notification.
    macro_rules! must_lose_a_notification {
        ($($name:ident: $explore:expr;)*) => {$(
            #[test]
            #[should_panic(expected = "deadlock")]
            fn $name() {
                $explore;
            }
        )*};
    }

    fn without_the_drivers_fence(event_idx: bool, driver: fn(&Ring, bool, &Vector), packed: bool) {
        WITHOUT.set(true);
        if packed {
            explore(event_idx, driver, packed_device(Sleeper::Right));
        } else {
            explore(event_idx, driver, split_device(Sleeper::Right));
        }
    }

    must_lose_a_notification! {
        split_flags_without_fence: without_the_drivers_fence(false, split_driver, false);
        split_events_without_fence: without_the_drivers_fence(true, split_driver, false);
        packed_flags_without_fence: without_the_drivers_fence(false, packed_driver, true);
        packed_events_without_fence: without_the_drivers_fence(true, packed_driver, true);
        split_device_without_fence: explore(true, split_driver, split_device(Sleeper::NoFence));
        packed_device_without_fence: explore(true, packed_driver, packed_device(Sleeper::NoFence));
        split_arming_without_fence: explore(true, split_using, split_waiting(Sleeper::NoFence));
        split_flags_arming_without_fence: explore(false, split_using, split_waiting(Sleeper::NoFence));
        packed_arming_without_fence: explore(true, packed_using, packed_waiting(Sleeper::NoFence));
        packed_flags_arming_without_fence: explore(false, packed_using, packed_waiting(Sleeper::NoFence));
        split_looking_before_arming: explore(true, split_using, split_waiting(Sleeper::LooksBeforeAsking));
        packed_looking_before_arming: explore(true, packed_using, packed_waiting(Sleeper::LooksBeforeAsking));
        split_without_second_look: explore(true, split_using, split_waiting(Sleeper::NoSecondLook));
        packed_without_second_look: explore(true, packed_using, packed_waiting(Sleeper::NoSecondLook));
    }
}
