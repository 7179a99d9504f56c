//! A port on a socket of its own, and what was logged of it.

use std::fs;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use spinwake::frame::{Burst, Pool, PoolConfig};
use spinwake::port::{Link, Port, Queues};

/// Far longer than anything takes that works.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Waits until `what` is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Tests that count the process's descriptors run alone.
static TURN: RwLock<()> = RwLock::new(());

#[expect(dead_code, reason = "held, not looked at")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

pub(crate) struct Rig {
    pub(crate) port: Box<dyn Port>,
    pub(crate) queues: Option<Queues>,
    pub(crate) pool: Pool,
    pub(crate) path: PathBuf,
    _dir: tempfile::TempDir,
    _turn: Turn,
}

impl Rig {
    /// A started port with these keys, `",queues=2"`.
    pub(crate) fn new(keys: &str) -> Self {
        Self::with(keys, Turn::Shared(TURN.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// The same, and no other at the same time.
    pub(crate) fn alone(keys: &str) -> Self {
        Self::with(keys, Turn::Alone(TURN.write().unwrap_or_else(PoisonError::into_inner)))
    }

    fn with(keys: &str, turn: Turn) -> Self {
        Log::start();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut port = spinwake_pmd::open(&format!("vhost:{}{keys}", path.display())).unwrap();
        let queues = Some(port.start().unwrap());
        let pool = Pool::new(&PoolConfig { frames: 512, ..PoolConfig::default() }).unwrap();
        Self { port, queues, pool, path, _dir: dir, _turn: turn }
    }

    /// A turn of each queue, as a worker takes them: so that they see what their slots want. What came is thrown away.
    pub(crate) fn turn(&mut self) {
        self.receive();
    }

    /// All frames that the queues have now.
    pub(crate) fn receive(&mut self) -> Vec<Vec<u8>> {
        let (mut burst, mut frames) = (Burst::new(), Vec::new());
        let Some(queues) = &mut self.queues else { return frames };
        for rx in &mut queues.rx {
            rx.rx_burst(&mut self.pool, &mut burst);
            for frame in burst.drain(..) {
                frames.push(frame.segments().flat_map(|segment| segment.data().to_vec()).collect());
                self.pool.give(frame);
            }
        }
        for tx in &mut queues.tx {
            tx.tx_burst(&mut self.pool, &mut burst);
        }
        frames
    }

    /// Sends `frames` by queue `queue`; returns how many went.
    pub(crate) fn send(&mut self, queue: usize, frames: &[&[u8]]) -> usize {
        let mut burst = Burst::new();
        for bytes in frames {
            let mut frame = self.pool.take().unwrap();
            frame.copy_from(bytes);
            burst.push(frame);
        }
        let queues = self.queues.as_mut().expect("started");
        let sent = queues.tx[queue].tx_burst(&mut self.pool, &mut burst);
        self.pool.give_burst(&mut burst);
        sent
    }

    pub(crate) fn is_up(&self) -> bool {
        self.port.link() != Link::Down
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        self.port.stats().extra(name).unwrap()
    }

    /// Runs `peer` in a thread of its own, with turns of the queues meanwhile.
    pub(crate) fn while_turning<T: Send>(&mut self, peer: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let peer = scope.spawn(peer);
            while !peer.is_finished() {
                self.turn();
                std::thread::sleep(Duration::from_micros(100));
            }
            peer.join().unwrap()
        })
    }

    /// The lines that were logged of this port.
    pub(crate) fn lines(&self) -> Vec<String> {
        let name = self.port.name();
        let lines = Log::lines().lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| line.contains(name)).cloned().collect()
    }

    /// Waits until this many connections were closed for an offence; the last line that says so.
    pub(crate) fn offence(&self, nth: u64) -> String {
        wait_until("an offence", || self.count("offences") == nth);
        let closed = self.lines().into_iter().filter(|line| line.contains("the peer's connection is closed: "));
        let mut closed: Vec<String> = closed.collect();
        assert_eq!(closed.len() as u64, nth, "one line each: {closed:#?}");
        closed.pop().unwrap()
    }
}

/// Everything that is logged.
struct Log;

impl Log {
    fn start() {
        static STARTED: OnceLock<()> = OnceLock::new();
        STARTED.get_or_init(|| {
            log::set_logger(&Self).unwrap();
            log::set_max_level(log::LevelFilter::Debug);
        });
    }

    fn lines() -> &'static Mutex<Vec<String>> {
        static LINES: LazyLock<Mutex<Vec<String>>> = LazyLock::new(Mutex::default);
        &LINES
    }
}

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{}: {}", record.level(), record.args());
        Self::lines().lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
    fn flush(&self) {}
}

/// How many descriptors the process has open.
pub(crate) fn open_fds() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
