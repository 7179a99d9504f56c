//! Two ports on one cable, and how to get them.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use spinwake::device::DeviceId;
use spinwake::dma::Domain;
use spinwake::frame::{Burst, Frame, Pool, PoolConfig};
use spinwake::pci::{Bdf, Sysfs};
use spinwake::port::{Link, Port, PortConfig, Queues, RxQueue, TxQueue};

/// For anything that must happen: generous, because the guest is emulated on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
const POOL_FRAMES: usize = 4096;
const VIRTIO_NET: DeviceId = DeviceId { vendor: 0x1af4, device: 0x1041 };

/// Keys for the ports of a test; the pair that has what they ask.
pub(crate) const PACKED: &str = "packed=on";
pub(crate) const SPLIT: &str = "packed=off";
pub(crate) const POOR: &str = "rx_ring=128";

/// Which pair of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pair {
    Rich,
    Poor,
    /// On a cable that carries unfinished checksums and large frames.
    Taps,
}

/// Two devices that are cabled to each other, and the keys to open them with.
pub(crate) struct Rig {
    pair: [Bdf; 2],
    keys: String,
}

impl Rig {
    /// The same cable with its ends changed over.
    pub(crate) fn turned(&self) -> Self {
        let [a, b] = self.pair;
        Self { pair: [b, a], keys: self.keys.clone() }
    }

    /// Both ports, opened in one domain with a pool.
    pub(crate) fn open(&self) -> (Box<dyn Port>, Box<dyn Port>, Pool) {
        let domain = Domain::new();
        let [a, b] = self.pair.map(|bdf| spinwake_pmd::open_in(&domain, &format!("pci:{bdf},{}", self.keys)).unwrap());
        let config = PoolConfig { frames: POOL_FRAMES, ..PoolConfig::default() };
        (a, b, Pool::new_in(&domain, &config).unwrap())
    }

    /// Both ports, started, with full receive rings.
    pub(crate) fn start(&self, config: impl Fn(PortConfig) -> PortConfig) -> (Side, Side, Pool) {
        self.start_each(&config, &config)
    }

    /// As [`start`](Self::start), each port with a configuration of its own.
    pub(crate) fn start_each(
        &self,
        first: impl Fn(PortConfig) -> PortConfig,
        second: impl Fn(PortConfig) -> PortConfig,
    ) -> (Side, Side, Pool) {
        let (mut a, mut b, mut pool) = self.open();
        a.configure(first(a.config().clone())).unwrap();
        b.configure(second(b.config().clone())).unwrap();
        let (mut a, mut b) = (Side::start(a), Side::start(b));
        a.prime(&mut pool);
        b.prime(&mut pool);
        (a, b, pool)
    }
}

/// One started port and its queues.
pub(crate) struct Side {
    pub(crate) rx: Vec<Box<dyn RxQueue>>,
    pub(crate) tx: Vec<Box<dyn TxQueue>>,
    pub(crate) port: Box<dyn Port>,
}

impl Side {
    pub(crate) fn start(mut port: Box<dyn Port>) -> Self {
        let Queues { rx, tx } = port.start().unwrap();
        assert_ne!(port.link(), Link::Down);
        Self { rx, tx, port }
    }

    /// Fills the receive rings.
    pub(crate) fn prime(&mut self, pool: &mut Pool) {
        let mut burst = Burst::new();
        for rx in &mut self.rx {
            rx.rx_burst(pool, &mut burst);
            pool.give_burst(&mut burst);
        }
    }

    /// Sends all of `frames`, in order.
    pub(crate) fn send(&mut self, pool: &mut Pool, frames: Vec<Frame>) {
        let mut frames = frames.into_iter();
        let mut burst: Burst = Burst::new();
        until("room to send", || {
            burst.extend(frames.by_ref().take(burst.remaining_capacity()));
            self.tx[0].tx_burst(pool, &mut burst);
            burst.is_empty() && frames.len() == 0
        });
        until("completion of what was sent", || {
            self.tx[0].reclaim(pool);
            self.tx[0].in_flight() == 0
        });
    }

    /// Receives until `count` frames are there.
    pub(crate) fn receive(&mut self, pool: &mut Pool, count: usize) -> Vec<Frame> {
        let mut got = Vec::new();
        let end = Instant::now() + LIMIT;
        while got.len() < count {
            assert!(Instant::now() < end, "{} of {count} frames came: {:?}", got.len(), self.port.stats());
            got.extend(self.poll(pool));
        }
        got
    }

    /// Whatever has come by now.
    pub(crate) fn poll(&mut self, pool: &mut Pool) -> Vec<Frame> {
        let mut got = Vec::new();
        let mut burst = Burst::new();
        for rx in &mut self.rx {
            rx.rx_burst(pool, &mut burst);
            got.extend(burst.drain(..));
        }
        got
    }

    /// Receives one frame, and the number of the queue that it came to.
    pub(crate) fn receive_one(&mut self, pool: &mut Pool) -> (usize, Frame) {
        let end = Instant::now() + LIMIT;
        let mut burst = Burst::new();
        loop {
            for (queue, rx) in self.rx.iter_mut().enumerate() {
                rx.rx_burst(pool, &mut burst);
                if let Some(frame) = burst.pop() {
                    assert!(burst.is_empty());
                    return (queue, frame);
                }
            }
            assert!(Instant::now() < end, "no frame came: {:?}", self.port.stats());
        }
    }

    /// Drops the queues and stops the port.
    pub(crate) fn stop(mut self) -> Box<dyn Port> {
        self.rx.clear();
        self.tx.clear();
        self.port.stop().unwrap();
        self.port
    }
}

/// Ends a test: everything is stopped, and every buffer must be home.
pub(crate) fn finish(sides: [Side; 2], mut pool: Pool) {
    for side in sides {
        side.stop();
    }
    assert_eq!(pool.available(), pool.capacity(), "buffers are missing");
}

/// Calls `done` until it holds.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "{what} did not come within {LIMIT:?}");
        std::thread::yield_now();
    }
}

/// Runs `scenario` on two cabled devices of the guest, if this is one, with ports opened with `keys`.
pub(crate) fn guest(keys: &str, scenario: impl FnOnce(&Rig)) {
    run(if keys.starts_with(POOR) { Pair::Poor } else { Pair::Rich }, keys, scenario);
}

/// As [`guest`], on the cable that carries unfinished checksums and large frames.
pub(crate) fn guest_taps(keys: &str, scenario: impl FnOnce(&Rig)) {
    run(Pair::Taps, keys, scenario);
}

fn run(pair: Pair, keys: &str, scenario: impl FnOnce(&Rig)) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    if !std::env::var("SPINWAKE_TEST_TIER").is_ok_and(|tiers| tiers.contains("guest")) {
        println!("skipped: needs the guest tier");
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let found: Vec<_> = Sysfs::default().find(VIRTIO_NET).unwrap().iter().map(|device| device.bdf()).collect();
    let at = 2 * pair as usize;
    let Some(&[a, b]) = found.get(at..at + 2) else {
        println!(
            "skipped: needs virtio-net-pci in pairs that are cabled to each other, of which this is the {pair:?} one"
        );
        return;
    };
    let pair = [a, b];
    pair.iter().for_each(|bdf| bind(*bdf));
    scenario(&Rig { pair, keys: keys.into() });
}

/// Hands a device to vfio-pci.
fn bind(bdf: Bdf) {
    let device = format!("/sys/bus/pci/devices/{bdf}");
    if fs::read_link(format!("{device}/driver")).is_ok_and(|driver| driver.ends_with("vfio-pci")) {
        return;
    }
    // No driver may be bound: then there is nothing to unbind.
    let _ = fs::write(format!("{device}/driver/unbind"), bdf.to_string());
    fs::write(format!("{device}/driver_override"), "vfio-pci").unwrap();
    fs::write("/sys/bus/pci/drivers_probe", bdf.to_string()).unwrap();
    until("the device node", || device_bound(&device));
}

fn device_bound(device: &str) -> bool {
    let Ok(group) = fs::read_link(format!("{device}/iommu_group")) else { return false };
    fs::exists(format!("/dev/vfio/{}", group.file_name().unwrap().to_str().unwrap())).unwrap()
}
