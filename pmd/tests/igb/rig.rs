//! Two ports on one cable, and how to get them.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use spinwake::device::{Device, DeviceId};
use spinwake::dma::Domain;
use spinwake::frame::{Burst, Frame, Pool, PoolConfig};
use spinwake::irq::{IrqKind, Vector};
use spinwake::pci::{Bdf, Sysfs};
use spinwake::port::{Link, Port, PortConfig, Queues, RxQueue, TxQueue};
use spinwake::vfio::VfioDevice;
use spinwake::wait::Source;
use spinwake_pmd::igb::{IgbPort, Options};
use spinwake_pmd::soft::{self, Control};

/// For anything that must happen: generous, because the guest is emulated on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// How long to look for something that must not come.
pub(crate) const QUIET: Duration = Duration::from_millis(300);
const POOL_FRAMES: usize = 8192;
const I82576: DeviceId = DeviceId { vendor: 0x8086, device: 0x10c9 };
const E1000E: DeviceId = DeviceId { vendor: 0x8086, device: 0x10d3 };

/// Two devices that are cabled to each other, and what opens them.
pub(crate) struct Rig {
    open: Box<dyn Fn() -> [Arc<dyn Device>; 2]>,
    /// Pulls the cable out of the first device, or puts it back, where the test can do that.
    pub(crate) plug: Option<Box<dyn Fn(bool)>>,
}

impl Rig {
    /// Both ports, opened in one domain with a pool.
    pub(crate) fn open(&self, irq: Option<IrqKind>) -> (IgbPort, IgbPort, Pool) {
        let domain = Domain::new();
        let [a, b] = (self.open)();
        let [a, b] =
            [a, b].map(|device| IgbPort::open(device, &domain, Options { irq, ..Options::default() }).unwrap());
        let config = PoolConfig { frames: POOL_FRAMES, ..PoolConfig::default() };
        (a, b, Pool::new_in(&domain, &config).unwrap())
    }

    /// Both ports, configured alike, started, with link.
    pub(crate) fn start(&self, config: &PortConfig) -> (Side, Side, Pool) {
        let (a, b, pool) = self.open(None);
        let (mut a, mut b) = (Side::start(a, config), Side::start(b, config));
        a.await_link();
        b.await_link();
        let mut pool = pool;
        a.prime(&mut pool);
        b.prime(&mut pool);
        (a, b, pool)
    }
}

/// One started port and its queues.
pub(crate) struct Side {
    pub(crate) rx: Vec<Box<dyn RxQueue>>,
    pub(crate) tx: Vec<Box<dyn TxQueue>>,
    pub(crate) port: IgbPort,
}

impl Side {
    pub(crate) fn start(mut port: IgbPort, config: &PortConfig) -> Self {
        port.configure(config.clone()).unwrap();
        let Queues { rx, tx } = port.start().unwrap();
        Self { rx, tx, port }
    }

    pub(crate) fn await_link(&mut self) {
        until("link", || matches!(self.port.link(), Link::Up { .. }));
    }

    /// Fills the receive rings.
    pub(crate) fn prime(&mut self, pool: &mut Pool) {
        let mut burst = Burst::new();
        for rx in &mut self.rx {
            rx.rx_burst(pool, &mut burst);
            pool.give_burst(&mut burst);
        }
    }

    /// Sends all of `frames`, in order, through queue 0.
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

    /// Receives until `count` frames are there, over all queues.
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

    /// Whatever comes in a while in which nothing need come.
    pub(crate) fn linger(&mut self, pool: &mut Pool) -> Vec<Frame> {
        let end = Instant::now() + QUIET;
        let mut got = Vec::new();
        while Instant::now() < end {
            got.extend(self.poll(pool));
        }
        got
    }

    /// Drops the queues and stops the port.
    pub(crate) fn stop(mut self) -> IgbPort {
        self.rx.clear();
        self.tx.clear();
        self.port.stop().unwrap();
        self.port
    }
}

/// Arms `source` with nothing left of its vector's count: what fired before is no wake-up. Returns that count, which is to
/// be zero where nothing should have fired.
///
/// The kernel masks INTx before it is seen here, so whatever is taken makes another arming necessary.
pub(crate) fn arm(source: &mut (impl Source + ?Sized), vector: &Vector) -> u64 {
    let mut stale = 0;
    loop {
        source.arm();
        let taken = vector.take();
        if taken == 0 {
            return stale;
        }
        stale += taken;
        source.disarm();
        source.fired();
    }
}

/// Disarms `source`, and takes what its vector fired until here.
pub(crate) fn disarm(source: &mut (impl Source + ?Sized), vector: &Vector) {
    source.disarm();
    vector.take();
    source.fired();
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

/// Runs `scenario` on two cabled controllers of the guest, if this is one.
pub(crate) fn guest(scenario: impl FnOnce(&Rig)) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    if !std::env::var("SPINWAKE_TEST_TIER").is_ok_and(|tiers| tiers.contains("guest")) {
        println!("skipped: needs the guest tier");
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(pair) = cabled_pair() else {
        println!("skipped: needs two igb that are cabled to each other");
        return;
    };
    pair.iter().for_each(|bdf| bind(*bdf));
    let open = move || pair.map(|bdf| Arc::new(VfioDevice::open(bdf).unwrap()) as Arc<dyn Device>);
    scenario(&Rig { open: Box::new(open), plug: None });
}

/// Runs `scenario` on two soft NICs on a cable of their own.
pub(crate) fn soft(scenario: impl FnOnce(&Rig)) {
    static CABLES: AtomicUsize = AtomicUsize::new(0);
    let spec = format!("soft:,queues=16,wire=igb-{}", CABLES.fetch_add(1, Ordering::Relaxed)).parse().unwrap();
    let control: Rc<RefCell<Option<Control>>> = Rc::default();
    let opened = control.clone();
    let open = move || {
        let [a, b] = [(); 2].map(|()| soft::open(&spec).unwrap());
        *opened.borrow_mut() = Some(a.control());
        [a, b].map(|nic| nic.device())
    };
    let plug = move |on| control.borrow().as_ref().unwrap().set_link(on);
    scenario(&Rig { open: Box::new(open), plug: Some(Box::new(plug)) });
}

/// The two last controllers. A guest whose only two are cabled to the kernel's e1000e has no such pair.
fn cabled_pair() -> Option<[Bdf; 2]> {
    let sysfs = Sysfs::default();
    let found: Vec<_> = sysfs.find(I82576).unwrap().iter().map(|device| device.bdf()).collect();
    let for_the_kernel = sysfs.find(E1000E).unwrap().len();
    let pair = found.last_chunk::<2>().copied();
    pair.filter(|_| found.len() >= for_the_kernel + 2)
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
