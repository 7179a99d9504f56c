//! A back end's connection, against a peer that says what an honest one would, and then something else.

use std::cell::{OnceCell, RefCell};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spinwake::dma::Domain;
use spinwake::frame::{Frame, Pool, PoolConfig};
use spinwake::irq::Vector;
use spinwake::port::{Offloads, PortConfig};
use spinwake::sys::mem::Memfd;
use spinwake::sys::socket;

use super::super::connection::{Connection, End};
use super::super::device::Device;
use super::super::gate::HEADER;
use super::super::slot::RingKind;
use super::super::spec::VhostSpec;
use super::guest::{Driver, Guest, REGIONS, SIZE, USER};
use super::queues::Queue;
use crate::fuzz::{Input, STEPS};
use crate::virtio::features::Features;

const FRAMES: usize = 96;
/// Bytes of the log of dirty pages.
const LOG: usize = 4096;
/// Peers that connect one after the other.
const PEERS: usize = 3;

/// Requests of the protocol (vhost-user.rst, "Front-end message types").
mod request {
    pub(super) const GET_FEATURES: u32 = 1;
    pub(super) const SET_FEATURES: u32 = 2;
    pub(super) const SET_OWNER: u32 = 3;
    pub(super) const SET_MEM_TABLE: u32 = 5;
    pub(super) const SET_LOG_BASE: u32 = 6;
    pub(super) const SET_LOG_FD: u32 = 7;
    pub(super) const SET_VRING_NUM: u32 = 8;
    pub(super) const SET_VRING_ADDR: u32 = 9;
    pub(super) const SET_VRING_BASE: u32 = 10;
    pub(super) const GET_VRING_BASE: u32 = 11;
    pub(super) const SET_VRING_KICK: u32 = 12;
    pub(super) const SET_VRING_CALL: u32 = 13;
    pub(super) const SET_VRING_ERR: u32 = 14;
    pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
    pub(super) const NET_SET_MTU: u32 = 20;
    pub(super) const RESET_DEVICE: u32 = 34;
    pub(super) const ADD_MEM_REG: u32 = 37;
    pub(super) const REM_MEM_REG: u32 = 38;
    pub(super) const SET_STATUS: u32 = 39;
    /// What has a body of its own above, and some that have none or are not known.
    pub(super) const LAST: usize = 46;
}
use request::*;

/// What stays from run to run.
struct Bench {
    guest: Guest,
    log: Memfd,
    pool: Pool,
    events: [Vector; 3],
    null: File,
}

thread_local! {
    static BENCH: OnceCell<RefCell<Bench>> = const { OnceCell::new() };
}

impl Bench {
    fn new() -> Self {
        let config = PoolConfig { frames: FRAMES, ..PoolConfig::default() };
        let event = |_| Vector::new().expect("an eventfd");
        Self {
            guest: Guest::new(),
            log: Memfd::new(c"log", LOG, None).expect("a memfd"),
            pool: Pool::new_in(&Domain::new(), &config).expect("a pool"),
            events: [(); 3].map(event),
            null: File::open("/dev/null").expect("a device that is everywhere"),
        }
    }
}

/// Serves peers that say what `bytes` make of them, and runs what rings they give.
pub fn vhost_messages(bytes: &[u8]) {
    BENCH.with(|bench| {
        let bench = &mut *bench.get_or_init(|| Bench::new().into()).borrow_mut();
        bench.guest.clear();
        let before = descriptors();
        let mut input = Input::new(bytes);
        let shape = input.u8();
        let pairs = if shape & 1 == 0 { 1 } else { 2 };
        let spec = VhostSpec { path: "/fuzz".into(), server: true, packed: shape & 2 == 0, pairs };
        let all = Offloads { rx_checksum: true, tx_checksum: true, tcp_segmentation: true, ..Offloads::default() };
        let offloads =
            if shape & 4 == 0 { all } else { Offloads { udp_segmentation: true, large_receive: true, ..all } };
        let config = PortConfig { rx_queues: pairs, tx_queues: pairs, offloads, ..PortConfig::default() };
        let alarm = Arc::new(Vector::new().expect("an eventfd"));
        let device = Arc::new(Device::new(spec, &alarm, &config).expect("a device"));
        let queues = device.slots.iter().enumerate().map(|(index, slot)| Queue::new(slot, index % 2 == 1)).collect();
        let mut side = Side { device: &device, queues, kept: Vec::new() };
        for _ in 0..PEERS {
            if !input.is_empty() {
                Peer::connect(bench, &device, &mut input).talk(&mut side, &mut input);
            }
        }
        let Side { queues, kept, .. } = side;
        drop(queues);
        kept.into_iter().for_each(|frame| bench.pool.give(frame));
        drop((device, alarm));
        assert_eq!(bench.pool.available(), FRAMES);
        assert_eq!(descriptors(), before, "descriptors stay open");
    });
}

/// Open descriptors of this process.
fn descriptors() -> usize {
    // Other tests of the same process open and close theirs meanwhile.
    if cfg!(test) { 0 } else { std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) }
}

/// The port's side: the queues of its workers.
struct Side<'a> {
    device: &'a Device,
    queues: Vec<Queue>,
    kept: Vec<Frame>,
}

impl Side<'_> {
    /// One turn of every worker; returns how many frames moved.
    fn turn(&mut self, pool: &mut Pool, input: &mut Input<'_>) -> usize {
        self.queues.iter_mut().map(|queue| queue.burst(pool, input, &mut self.kept)).sum()
    }
}

/// A peer that is connected.
struct Peer<'a> {
    bench: &'a mut Bench,
    socket: UnixStream,
    connection: Connection,
    now: Instant,
    /// Its rings, as an honest driver runs them.
    drivers: Vec<Driver>,
    /// The protocol's features that it has chosen, so that it may ask for answers.
    acknowledges: bool,
}

impl<'a> Peer<'a> {
    fn connect(bench: &'a mut Bench, device: &Arc<Device>, input: &mut Input<'_>) -> Self {
        let (socket, here) = UnixStream::pair().expect("a pair of sockets");
        here.set_nonblocking(true).expect("a socket that can be made to");
        socket.set_nonblocking(true).expect("a socket that can be made to");
        let now = Instant::now();
        let connection = Connection::new(device.clone(), here, now).expect("descriptors");
        // Workers are this thread: one that has a ring will not let go while it is waited for.
        connection.messages().session.patience = Duration::ZERO;
        let kind = if input.flag() { RingKind::Split } else { RingKind::Packed };
        let len = input.pick(&[16, 1, 2, 4, 64, 128]);
        let drivers = (0..device.slots.len()).map(|index| Driver::new(kind, len, index)).collect();
        Self { bench, socket, connection, now, drivers, acknowledges: false }
    }

    /// All that it says and does until it is gone.
    fn talk(mut self, side: &mut Side<'_>, input: &mut Input<'_>) {
        let ended = self.bring_up(side, input).err().or_else(|| {
            for _ in 0..STEPS {
                if input.is_empty() {
                    break;
                }
                if let Err(end) = self.step(side, input) {
                    return Some(end);
                }
            }
            None
        });
        if let Some(End::Offence(offence)) = ended {
            assert!(!offence.to_string().is_empty());
        }
        let Self { bench, connection, .. } = self;
        if input.flag() {
            side.queues.iter_mut().for_each(Queue::renew);
        }
        drop(connection);
        assert!(!side.device.is_up());
        // Once all workers have looked, nobody touches its memory any longer.
        side.turn(&mut bench.pool, input);
        let memory = bench.guest.bytes();
        assert_eq!(side.turn(&mut bench.pool, input), 0);
        assert!(bench.guest.bytes() == memory, "memory of a peer that is gone is written to");
    }

    /// What a front end says first, as far as `input` has it do so.
    fn bring_up(&mut self, side: &mut Side<'_>, input: &mut Input<'_>) -> Result<(), End> {
        let how = input.u8();
        if how & 3 == 3 {
            return Ok(());
        }
        let offer = side.device.offer().features;
        let packed = Features::RING_PACKED.when(self.drivers[0].kind == RingKind::Packed);
        let some = Features::from_bits(u64::from(input.u8()) << 28 | u64::from(input.u16()))
            .with(Features::MRG_RXBUF.when(how & 4 != 0))
            .with(Features::EVENT_IDX.when(how & 8 != 0));
        let wanted = some.with(Features::VERSION_1).with(Features::PROTOCOL_FEATURES.when(how & 16 == 0));
        let features = wanted.common(offer).without(Features::RING_PACKED).with(packed.common(offer));
        self.say(side, SET_OWNER, &[], &[])?;
        self.say(side, GET_FEATURES, &[], &[])?;
        if features.has(Features::PROTOCOL_FEATURES) {
            self.say(side, GET_PROTOCOL_FEATURES, &[], &[])?;
            self.say(side, SET_PROTOCOL_FEATURES, &0x1_a01b_u64.to_le_bytes(), &[])?;
            self.acknowledges = how & 32 != 0;
        }
        self.say(side, SET_FEATURES, &features.bits().to_le_bytes(), &[])?;
        self.share(side, how & 64 != 0)?;
        for index in 0..self.drivers.len() {
            self.start(side, index)?;
        }
        Ok(())
    }

    /// Hands over the guest's memory, as one table or region by region.
    fn share(&mut self, side: &mut Side<'_>, singly: bool) -> Result<(), End> {
        let regions = REGIONS.map(|(at, len, guest)| words(&[guest, len as u64, guest ^ USER, at as u64]));
        if !singly {
            let body = [words(&[regions.len() as u64]), regions.concat()].concat();
            return self.say(side, SET_MEM_TABLE, &body, &[Fd::Memory; REGIONS.len()]);
        }
        regions
            .iter()
            .try_for_each(|region| self.say(side, ADD_MEM_REG, &[words(&[0]), region.clone()].concat(), &[Fd::Memory]))
    }

    /// Starts one ring from its beginning.
    fn start(&mut self, side: &mut Side<'_>, index: usize) -> Result<(), End> {
        let driver = &mut self.drivers[index];
        *driver = Driver::new(driver.kind, driver.len, index);
        let (number, len) = (index as u32, u32::from(driver.len));
        let [descriptors, available, used] = driver.areas().map(|(at, _)| self.bench.guest.address(at) ^ USER);
        let base = if driver.kind == RingKind::Packed { 0x8000_8000 } else { 0 };
        self.say(side, SET_VRING_NUM, &halves(&[number, len]), &[])?;
        self.say(side, SET_VRING_BASE, &halves(&[number, base]), &[])?;
        let addresses = words(&[u64::from(number), descriptors, used, available, 0]);
        self.say(side, SET_VRING_ADDR, &addresses, &[])?;
        self.say(side, SET_VRING_CALL, &words(&[u64::from(number)]), &[Fd::Event(0)])?;
        self.say(side, SET_VRING_KICK, &words(&[u64::from(number)]), &[Fd::Event(1)])?;
        self.say(side, SET_VRING_ENABLE, &halves(&[number, 1]), &[])
    }

    fn step(&mut self, side: &mut Side<'_>, input: &mut Input<'_>) -> Result<(), End> {
        let driver = input.below(self.drivers.len());
        // The peer receives by the even rings (5.1.2).
        let receives = driver.is_multiple_of(2);
        match input.below(16) {
            0..6 => {
                let guest = &self.bench.guest;
                let driver = &mut self.drivers[driver];
                match input.below(8) {
                    0 => driver.scribble(guest, input),
                    1 => driver.wish(guest, input),
                    2 => guest.spoil(input),
                    _ => driver.add(guest, input, receives),
                }
            }
            6..9 => _ = side.turn(&mut self.bench.pool, input),
            9 => side.queues[driver].wait(input),
            10 => side.queues[driver].renew(),
            11 => match input.below(8) {
                0 => self.now += Duration::from_secs(6),
                1 => return self.say_raw(side, input),
                2 => return self.share(side, true),
                3 => return self.share(side, false),
                _ => {
                    // So that a ring can be started anew.
                    self.say(side, GET_VRING_BASE, &halves(&[driver as u32, 0]), &[])?;
                    return self.start(side, driver);
                }
            },
            _ => return self.say_any(side, input),
        }
        self.connection.check(self.now).map_err(End::from)
    }

    /// One message with a body of the kind that its request has.
    fn say_any(&mut self, side: &mut Side<'_>, input: &mut Input<'_>) -> Result<(), End> {
        let request = input.below(LAST) as u32;
        // A worker whose queue is dropped leaves its ring to be taken back; the others are late.
        if input.flag() {
            side.queues.iter_mut().for_each(Queue::renew);
        }
        let index = u64::from(input.u8() % 6);
        let ring = self.drivers[index as usize % self.drivers.len()].clone();
        let guest = |at: usize| self.bench.guest.address(at % SIZE);
        let mut fds = Vec::new();
        let body = match request {
            SET_FEATURES => {
                let offer = side.device.offer().features.bits();
                words(&[match input.below(4) {
                    0 => input.u64(),
                    1 => offer & !(1 << input.below(64)),
                    2 => offer ^ 1 << input.below(64),
                    _ => offer,
                }])
            }
            SET_PROTOCOL_FEATURES => words(&[if input.flag() { 0x1_a01b } else { input.u64() }]),
            SET_MEM_TABLE => {
                let count = input.below(10);
                let regions = (0..count).flat_map(|_| self.region(input)).collect::<Vec<_>>();
                fds.extend((0..count).map(|_| Fd::of(input, Fd::Memory)));
                [words(&[count as u64]), regions].concat()
            }
            SET_LOG_BASE => {
                fds.push(Fd::of(input, Fd::Log));
                words(&[input.pick(&[LOG as u64, 1, 64, 0, u64::MAX]), input.pick(&[0, 64, 4096, 1])])
            }
            SET_VRING_NUM => {
                halves(&[index as u32, input.pick(&[16, 0, 1, 3, 64, 128, 256, 32_768, 32_769, u32::MAX])])
            }
            SET_VRING_BASE => halves(&[index as u32, input.u32()]),
            GET_VRING_BASE => halves(&[index as u32, input.u8().into()]),
            SET_VRING_ENABLE => halves(&[index as u32, u32::from(input.u8() & 3)]),
            SET_VRING_ADDR => {
                let mut addresses = ring.areas().map(|(at, _)| guest(at) ^ USER);
                match input.below(4) {
                    0 => addresses[input.below(3)] = guest(usize::from(input.u16()) * 2) ^ USER,
                    1 => addresses[input.below(3)] = input.u64(),
                    2 => addresses.swap(0, 2),
                    _ => {}
                }
                let [descriptors, available, used] = addresses;
                let flags = u64::from(input.u8() & 3);
                words(&[index | flags << 32, descriptors, used, available, if flags == 0 { 0 } else { guest(0) }])
            }
            SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => {
                let without = input.below(4) == 0;
                if !without {
                    fds.push(Fd::of(input, Fd::Event(2)));
                }
                words(&[index | u64::from(without) << 8])
            }
            ADD_MEM_REG | REM_MEM_REG => {
                fds.extend((request == ADD_MEM_REG).then(|| Fd::of(input, Fd::Memory)));
                [words(&[0]), self.region(input)].concat()
            }
            SET_STATUS => words(&[input.pick(&[0, 1, 3, 11, 15, 128, 256])]),
            NET_SET_MTU => words(&[input.u16().into()]),
            SET_LOG_FD => {
                fds.push(Fd::Event(0));
                Vec::new()
            }
            RESET_DEVICE => Vec::new(),
            _ => input.slice(usize::from(input.clone().u8() & 31)).to_vec(),
        };
        if input.below(8) == 0 {
            fds.push(Fd::of(input, Fd::Null));
        }
        self.say(side, request, &body, &fds)
    }

    /// A region of memory as a message has it: one that there is, or something else.
    fn region(&self, input: &mut Input<'_>) -> Vec<u8> {
        let (at, len, guest) = input.pick(&REGIONS);
        let mut region = [guest, len as u64, guest ^ USER, at as u64];
        match input.below(6) {
            0 => region[input.below(4)] = input.u64(),
            1 => region[input.below(4)] ^= u64::from(input.u16()) << 6,
            2 => region[input.below(4)] = input.pick(&[0, 1, 4096, u64::MAX, i64::MAX as u64]),
            _ => {}
        }
        words(&region)
    }

    /// Bytes that need not be a message, or a part of one.
    fn say_raw(&mut self, side: &mut Side<'_>, input: &mut Input<'_>) -> Result<(), End> {
        let count = input.pick(&[1, 4, 11, 12, 13, 20, 64]);
        let mut bytes = input.slice(count).to_vec();
        if input.flag() && bytes.len() >= HEADER {
            bytes[4..8].copy_from_slice(&[1, 0, 0, 0]);
            bytes[9..12].fill(0);
        }
        let fds: Vec<_> = (0..input.pick(&[0, 1, 2, 33])).map(|_| Fd::Null).collect();
        self.send(&bytes, &fds);
        self.serve(side)
    }

    /// One message, whole, and what comes of it.
    fn say(&mut self, side: &mut Side<'_>, request: u32, body: &[u8], fds: &[Fd]) -> Result<(), End> {
        let flags = if self.acknowledges { 1 | 8 } else { 1 };
        self.send(&[halves(&[request, flags, body.len() as u32]), body.to_vec()].concat(), fds);
        self.serve(side)
    }

    fn send(&self, bytes: &[u8], fds: &[Fd]) {
        let bench = &self.bench;
        let fds: Vec<OwnedFd> = fds
            .iter()
            .filter_map(|fd| match fd {
                Fd::Memory => bench.guest.fd().try_clone_to_owned().ok(),
                Fd::Log => bench.log.as_fd().try_clone_to_owned().ok(),
                Fd::Event(n) => bench.events[n % bench.events.len()].as_fd().try_clone_to_owned().ok(),
                Fd::Null => bench.null.as_fd().try_clone_to_owned().ok(),
                Fd::Socket => self.socket.as_fd().try_clone_to_owned().ok(),
            })
            .collect();
        // What the socket has no room for is not said.
        let _ = socket::send(self.socket.as_fd(), bytes, &fds);
    }

    /// The back end takes what was said; its answers must be messages.
    fn serve(&mut self, side: &mut Side<'_>) -> Result<(), End> {
        let served = self.connection.serve(self.now).and_then(|()| self.connection.check(self.now).map_err(End::from));
        let mut answers = [0; 8192];
        let count = self.socket.read(&mut answers).unwrap_or(0);
        let mut left = &answers[..count];
        while !left.is_empty() {
            assert!(left.len() >= HEADER, "an answer without a header");
            let word = |at: usize| u32::from_le_bytes([left[at], left[at + 1], left[at + 2], left[at + 3]]);
            assert_eq!(word(4) & 7, 5, "an answer with flags {:#x}", word(4));
            left = left.get(HEADER + word(8) as usize..).expect("an answer as long as it says");
        }
        let running = self.connection.messages().session.runs();
        assert!(served.is_err() || side.device.is_up() == running);
        served
    }
}

/// What may go along with a message.
#[derive(Debug, Clone, Copy)]
enum Fd {
    Memory,
    Log,
    Event(usize),
    Null,
    Socket,
}

impl Fd {
    /// Mostly the right one.
    fn of(input: &mut Input<'_>, right: Self) -> Self {
        match input.below(16) {
            0 => Self::Null,
            1 => Self::Socket,
            2 => Self::Event(0),
            3 => Self::Memory,
            4 => Self::Log,
            _ => right,
        }
    }
}

fn words(of: &[u64]) -> Vec<u8> {
    of.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn halves(of: &[u32]) -> Vec<u8> {
    of.iter().flat_map(|half| half.to_le_bytes()).collect()
}
