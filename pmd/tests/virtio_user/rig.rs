//! A port with a pool, and frames that go out and come back.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use spinwake::dma::Domain;
use spinwake::frame::{Burst, Pool, PoolConfig};
use spinwake::port::{Link, Port, Queues};
use tempfile::TempDir;

/// For what is to happen; it happens in milliseconds, or not at all.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Frames that are out at once: fewer than a ring of 256 has room for, so that a back end has no reason to drop one.
const WINDOW: u32 = 192;

/// A folder of its own for a socket.
pub(crate) fn socket() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    (dir, path)
}

/// Waits until `holds`.
#[track_caller]
pub(crate) fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::yield_now();
    }
}

/// Descriptors that this process has open.
pub(crate) fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A pool in `domain`.
pub(crate) fn pool(domain: &Domain, frames: usize) -> Pool {
    Pool::new_in(domain, &PoolConfig { frames, ..PoolConfig::default() }).unwrap()
}

/// An opened, started port whose frames come back. Field order: queues before port.
pub(crate) struct Rig {
    pub(crate) queues: Queues,
    pub(crate) port: Box<dyn Port>,
    pub(crate) pool: Pool,
    pub(crate) domain: Domain,
    pub(crate) sent: u32,
}

impl Rig {
    pub(crate) fn open(path: &Path, keys: &str) -> Self {
        let domain = Domain::new();
        let port = spinwake_pmd::open_in(&domain, &format!("virtio-user:{}{keys}", path.display())).unwrap();
        Self::start(port, domain)
    }

    pub(crate) fn start(mut port: Box<dyn Port>, domain: Domain) -> Self {
        let queues = port.start().unwrap();
        let pool = pool(&domain, 2048);
        Self { queues, port, pool, domain, sent: 0 }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.port.link() != Link::Down
    }

    /// What the port has counted under this name.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.port.stats().extra(name).unwrap()
    }

    /// Lets the queues see whether there is a back end.
    pub(crate) fn turn(&mut self) {
        let mut burst = Burst::new();
        for rx in &mut self.queues.rx {
            rx.rx_burst(&mut self.pool, &mut burst);
            self.pool.give_burst(&mut burst);
        }
        for tx in &mut self.queues.tx {
            tx.reclaim(&mut self.pool);
        }
    }

    /// Turns until the link is up.
    #[track_caller]
    pub(crate) fn until_up(&mut self) {
        let end = Instant::now() + LONG;
        while !self.is_up() {
            assert!(Instant::now() < end, "no back end took the rings");
            self.turn();
        }
        self.turn();
    }

    /// Sends a frame now and then until one comes back: a back end may throw away what it gets before it has begun. Then
    /// waits for the rest.
    #[track_caller]
    pub(crate) fn until_circling(&mut self) {
        (0..self.queues.rx.len()).for_each(|q| self.until_queue_circles(q));
    }

    fn until_queue_circles(&mut self, q: usize) {
        let (end, mut last) = (Instant::now() + LONG, None);
        let mut burst = Burst::new();
        while last.is_none_or(|last: Instant| last.elapsed() < Duration::from_millis(300)) {
            assert!(Instant::now() < end, "no frame came back by queue {q}");
            if last.is_none() {
                burst.push(self.pool.take().unwrap());
                burst[0].copy_from(&[0; 60]);
                self.queues.tx[q].tx_burst(&mut self.pool, &mut burst);
                self.pool.give_burst(&mut burst);
            }
            std::thread::sleep(Duration::from_millis(5));
            if self.queues.rx[q].rx_burst(&mut self.pool, &mut burst) > 0 {
                last = Some(Instant::now());
            }
            self.pool.give_burst(&mut burst);
        }
    }

    /// Turns until the link is down.
    #[track_caller]
    pub(crate) fn until_down(&mut self) {
        let end = Instant::now() + LONG;
        while self.is_up() {
            assert!(Instant::now() < end, "the back end did not go");
            self.turn();
        }
        self.turn();
    }

    /// Sends `count` frames of `len` bytes on pair `q`, made of the own pool's buffers, and expects them back, in order.
    #[track_caller]
    pub(crate) fn circle(&mut self, q: usize, len: usize, count: usize) {
        let Self { queues, pool, sent, .. } = self;
        let (first, mut end) = (*sent, Instant::now() + LONG);
        let (mut burst, mut back) = (Burst::new(), Burst::new());
        let mut expected = first;
        while expected - first < count as u32 {
            while !burst.is_full() && *sent - first < count as u32 && *sent - expected < WINDOW {
                let Some(mut frame) = pool.take() else { break };
                frame.copy_from(&payload(*sent, len.min(1500)));
                burst.push(frame);
                *sent += 1;
            }
            queues.tx[q].tx_burst(pool, &mut burst);
            match queues.rx[q].rx_burst(pool, &mut back) {
                0 => std::thread::yield_now(),
                _ => end = Instant::now() + LONG,
            }
            for frame in back.drain(..) {
                assert_eq!(frame.data(), payload(expected, len.min(1500)), "frame {expected}");
                expected += 1;
                pool.give(frame);
            }
            assert!(Instant::now() < end, "{} of {count} frames came back, and then none", expected - first);
        }
        pool.give_burst(&mut burst);
    }

    /// Ends it; all frames are home then.
    pub(crate) fn end(self) -> Box<dyn Port> {
        let Self { queues, mut port, mut pool, .. } = self;
        drop(queues);
        assert_eq!(pool.available(), pool.capacity(), "frames that did not come home");
        port.stop().unwrap();
        port
    }
}

/// What frame `number` holds.
pub(crate) fn payload(number: u32, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number) as u8).collect();
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes
}
