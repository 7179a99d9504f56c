//! A wake-up whose eventfd may be exchanged while a worker sleeps on it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::irq::Vector;
use crate::sys::epoll::{Epoll, Trigger};

/// Wakes whoever waits for it when the vector that it follows fires, or when it is [signalled](Self::signal) itself.
///
/// An engine learns what to wait for when its sources change, a peer's connection brings a new eventfd at any time. So
/// the engine waits for the relay, an epoll instance with the present eventfd in it. Waited for by edges, it is never
/// read: each write to an eventfd in it tells whoever waits (`ep_poll_callback` in the kernel's fs/eventpoll.c passes
/// each one on, whether the last was taken or not), and a wake-up costs no system call but the one that slept.
#[derive(Debug)]
pub struct Relay {
    epoll: Epoll,
    own: Vector,
    followed: Mutex<Option<Arc<Vector>>>,
}

impl Relay {
    /// A relay that follows nothing yet.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let (epoll, own) = (Epoll::new()?, Vector::new()?);
        epoll.add(own.as_fd(), 0, Trigger::Edge)?;
        Ok(Self { epoll, own, followed: Mutex::new(None) })
    }

    /// Follows `vector` instead of the one before. One that has fired already fires here; so may the change itself.
    ///
    /// # Errors
    ///
    /// When the kernel cannot take one more into an epoll set; it follows nothing then.
    pub fn follow(&self, vector: Option<Arc<Vector>>) -> io::Result<()> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = followed.take() {
            // It was added, and is open: there is nothing that could fail.
            let _ = self.epoll.remove(before.as_fd());
            // An edge of it that nobody has taken yet is gone with it: whoever waits looks at what is in the relay only
            // then. Whoever fired it counts on a wake-up.
            self.own.signal(1);
        }
        if let Some(vector) = vector {
            self.epoll.add(vector.as_fd(), 1, Trigger::Edge)?;
            *followed = Some(vector);
        }
        Ok(())
    }

    /// Wakes whoever waits for it.
    pub fn signal(&self) {
        self.own.signal(1);
    }
}

/// For an event loop: to be waited for edge-triggered.
impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::epoll::{Events, Woken};

    fn fires(outer: &Epoll) -> bool {
        outer.wait(&mut Events::new(2), Duration::ZERO).is_ok_and(|woken| woken == Woken::Ready(1))
    }

    #[test]
    fn each_signal_is_told_once_although_nothing_is_ever_read() {
        for outer in [Epoll::new().unwrap(), Epoll::without_pwait2().unwrap()] {
            let relay = Relay::new().unwrap();
            outer.add(relay.as_fd(), 5, Trigger::Edge).unwrap();
            assert!(!fires(&outer));
            let kick = Arc::new(Vector::new().unwrap());
            relay.follow(Some(kick.clone())).unwrap();
            for _ in 0..3 {
                kick.signal(1);
                assert!(fires(&outer) && !fires(&outer));
                relay.signal();
                assert!(fires(&outer) && !fires(&outer));
            }
        }
    }

    #[test]
    fn it_follows_one_at_a_time_and_does_not_miss_what_came_before() {
        let (outer, relay) = (Epoll::new().unwrap(), Relay::new().unwrap());
        outer.add(relay.as_fd(), 0, Trigger::Edge).unwrap();
        let (old, new) = (Arc::new(Vector::new().unwrap()), Arc::new(Vector::new().unwrap()));
        relay.follow(Some(old.clone())).unwrap();
        new.signal(1);
        relay.follow(Some(new.clone())).unwrap();
        assert!(fires(&outer), "it had fired");
        old.signal(1);
        assert!(!fires(&outer), "it is followed no longer");
        relay.follow(None).unwrap();
        fires(&outer);
        new.signal(1);
        assert!(!fires(&outer));
        drop((old, new));
        relay.signal();
        assert!(fires(&outer));
    }

    #[test]
    fn an_edge_under_way_survives_the_exchange_of_its_vector() {
        let (outer, relay) = (Epoll::new().unwrap(), Relay::new().unwrap());
        outer.add(relay.as_fd(), 0, Trigger::Edge).unwrap();
        let (old, new) = (Arc::new(Vector::new().unwrap()), Arc::new(Vector::new().unwrap()));
        relay.follow(Some(old.clone())).unwrap();
        old.signal(1);
        relay.follow(Some(new.clone())).unwrap();
        assert!(fires(&outer), "the old one fired while it was followed");
        assert!(!fires(&outer));
        new.signal(1);
        assert!(fires(&outer));
    }
}
