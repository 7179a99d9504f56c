//! A back end that answers anything, from bytes: see [`crate::fuzz`].
//!
//! Its answers are all in the socket before they are asked for, in the order in which an honest back end would be asked.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use spinwake::dma::{DmaCells, Domain, MemoryTable};
use spinwake::frame::{Burst, Pool, PoolConfig};
use spinwake::mem::{MemRequest, PageSize};
use spinwake::port::{MacAddr, PortConfig, RxCounters, RxQueue, TxCounters, TxQueue};
use spinwake::wait::Source;

use super::follower::Follower;
use super::message::{REPLY, Request, VERSION, protocol};
use super::remote::Remote;
use super::run::{Run, ring_bytes};
use super::rx::UserRx;
use super::session::Session;
use super::spec::UserSpec;
use super::tx::UserTx;
use crate::fuzz::Input;
use crate::virtio::features::Features;

const FRAMES: usize = 96;
/// Back ends that come one after the other, and steps of each.
const BACK_ENDS: usize = 2;
const STEPS: usize = 32;

/// Connects to back ends that answer what `bytes` make of it, and runs queues on their rings.
pub fn virtio_user_replies(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let shape = input.u8();
    let (domain, remote) = (Domain::new(), Arc::new(Remote::new("fuzz", false).expect("eventfds")));
    let table = Arc::new(MemoryTable::new("fuzz", remote.clone()));
    let attachment = domain.attach_space("fuzz", table, 64).expect("a space for the back end");
    let spec = UserSpec {
        path: "/fuzz".into(),
        server: false,
        packed: shape & 1 == 0,
        mergeable: shape & 2 == 0,
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        pairs: 1,
    };
    let config = PortConfig { rx_ring_len: 32, tx_ring_len: 32, ..PortConfig::default() };
    let request = MemRequest::new(ring_bytes(&spec, &config)).page(PageSize::Ordinary);
    let cells = Arc::new(DmaCells::new(attachment.alloc(&request).expect("memory for rings")));
    let mut front = Front { domain: &domain, remote: &remote, cells: &cells, pool: pool(&domain, FRAMES) };
    for _ in 0..BACK_ENDS {
        let run = Run::new("fuzz", &spec, &config, &cells, remote.generation()).expect("eventfds");
        front.meet(run, &mut input);
        assert!(!remote.is_up());
        assert_eq!(front.pool.available(), FRAMES);
    }
    remote.end();
    assert!(!remote.attend());
}

fn pool(domain: &Domain, frames: usize) -> Pool {
    Pool::new_in(domain, &PoolConfig { frames, ..PoolConfig::default() }).expect("a pool")
}

/// What outlives a back end.
struct Front<'a> {
    domain: &'a Domain,
    remote: &'a Arc<Remote>,
    cells: &'a Arc<DmaCells>,
    pool: Pool,
}

impl Front<'_> {
    /// One back end, from its coming to its going.
    fn meet(&mut self, run: Run, input: &mut Input<'_>) {
        let (mut far, near) = UnixStream::pair().expect("a pair of sockets");
        near.set_nonblocking(true).expect("a socket that can be made to");
        let mut answers = Answers::default();
        let more_memory = answers.write(input);
        far.write_all(&answers.bytes).expect("a socket with room");
        // Nobody waits for more than there is.
        far.shutdown(Shutdown::Write).expect("a socket that is open");
        let session = match Session::open(near) {
            Ok(session) => session,
            Err(failure) => {
                assert!(!failure.to_string().is_empty());
                return self.remote.refuse(&failure);
            }
        };
        if self.remote.arrive(session).is_none() {
            return;
        }
        let (rx_counters, tx_counters) = (Arc::<RxCounters>::default(), Arc::<TxCounters>::default());
        let run = run.counting(std::slice::from_ref(&rx_counters), std::slice::from_ref(&tx_counters));
        let (rx_seat, tx_seat) = (run.rx[0].clone(), run.tx[0].clone());
        let generation = self.remote.generation();
        if self.remote.start(run).is_ok() {
            let follower = Follower::new(self.remote.clone(), rx_seat, generation);
            let mut rx = UserRx { follower, counters: rx_counters };
            let follower = Follower::new(self.remote.clone(), tx_seat, generation);
            let mut tx = UserTx { follower, counters: tx_counters };
            self.work(&mut rx, &mut tx, more_memory, input);
        }
        drop(self.remote.stop());
        self.remote.attend();
        assert!(!self.remote.attend(), "a back end that is gone is still there");
    }

    fn work(&mut self, rx: &mut UserRx, tx: &mut UserTx, more_memory: bool, input: &mut Input<'_>) {
        let more = more_memory.then(|| Pool::new_in(self.domain, &PoolConfig { frames: 8, ..PoolConfig::default() }));
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            match input.below(8) {
                0..2 => {
                    let mut burst = Burst::new();
                    rx.rx_burst(&mut self.pool, &mut burst);
                    self.pool.give_burst(&mut burst);
                }
                2..4 => {
                    let mut burst = input.burst(&mut self.pool);
                    tx.tx_burst(&mut self.pool, &mut burst);
                    self.pool.give_burst(&mut burst);
                }
                4..7 => {
                    let at = usize::from(input.u16()) * 2 % self.cells.len();
                    self.cells.u16s(at, 1)[0].store(input.u16(), Ordering::Release);
                }
                _ => {
                    // Its answers that nobody asked for, or its end, are found at the first look.
                    assert!(!self.remote.attend());
                }
            }
            rx.pending();
            tx.pending();
        }
        drop(more);
    }
}

/// All that a back end says.
#[derive(Default)]
struct Answers {
    bytes: Vec<u8>,
    /// What asks for no answer gets none.
    acknowledges: bool,
}

impl Answers {
    /// Answers in order; returns whether there are some for memory that comes later.
    fn write(&mut self, input: &mut Input<'_>) -> bool {
        let all = Features::from_bits(u64::MAX).without(Features::PROTOCOL_FEATURES);
        let offered = match input.below(4) {
            0 => Features::from_bits(input.u64()),
            1 => all.without(Features::from_bits(1 << input.below(64))),
            _ => all,
        };
        let offered = offered.with(Features::PROTOCOL_FEATURES.when(input.below(8) != 0));
        self.answer(input, Request::GET_FEATURES, offered.bits());
        let mut chosen = 0;
        if offered.has(Features::PROTOCOL_FEATURES) {
            chosen = if input.flag() { u64::MAX } else { input.u64() };
            self.answer(input, Request::GET_PROTOCOL_FEATURES, chosen);
            self.acknowledges = chosen & protocol::REPLY_ACK != 0;
        }
        self.done(input, Request::SET_OWNER);
        if chosen & protocol::MQ != 0 {
            let pairs = input.pick(&[1, 1, 1, 2, 0, u64::MAX]);
            self.answer(input, Request::GET_QUEUE_NUM, pairs);
        }
        let slotted = chosen & protocol::CONFIGURE_MEM_SLOTS != 0;
        if slotted {
            let slots = input.pick(&[8, 8, 2, 1, 0, u64::MAX]);
            self.answer(input, Request::GET_MAX_MEM_SLOTS, slots);
        }
        let status = |answers: &mut Self, input: &mut Input<'_>| {
            if chosen & protocol::STATUS != 0 {
                answers.done(input, Request::SET_STATUS);
            }
        };
        status(self, input);
        status(self, input);
        self.done(input, Request::SET_FEATURES);
        status(self, input);
        if offered.has(Features::MTU) && chosen & protocol::NET_MTU != 0 {
            self.done(input, Request::NET_SET_MTU);
        }
        let (share, unshare) = if slotted {
            (Request::ADD_MEM_REG, Request::REM_MEM_REG)
        } else {
            (Request::SET_MEM_TABLE, Request::SET_MEM_TABLE)
        };
        // Rings and a pool.
        for _ in 0..if slotted { 2 } else { 1 } {
            self.done(input, share);
        }
        for _ in 0..2 {
            use Request::{SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_KICK, SET_VRING_NUM};
            for request in [SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ADDR, SET_VRING_CALL, SET_VRING_KICK] {
                self.done(input, request);
            }
        }
        if offered.has(Features::PROTOCOL_FEATURES) {
            self.done(input, Request::SET_VRING_ENABLE);
            self.done(input, Request::SET_VRING_ENABLE);
        }
        status(self, input);
        let more_memory = input.flag();
        if more_memory {
            self.done(input, share);
            self.done(input, unshare);
        }
        // The queues are dropped, the last one first.
        for index in [1, 0] {
            let position = u64::from(input.u16()) << 32;
            self.answer(input, Request::GET_VRING_BASE, index | position);
        }
        more_memory
    }

    /// The answer that it was done.
    fn done(&mut self, input: &mut Input<'_>, request: Request) {
        if self.acknowledges {
            self.answer(input, request, 0);
        }
    }

    /// An answer; now and then another one.
    fn answer(&mut self, input: &mut Input<'_>, request: Request, value: u64) {
        let (mut words, mut value) = ([request as u32, VERSION | REPLY, 8], value);
        match input.u8() {
            0xf0 => words[input.below(3)] = input.u32(),
            0xf1 => words[2] = input.u8().into(),
            0xf2 => words[0] = input.u8().into(),
            0xf3 => value = input.u64(),
            0xf4 => value = 1,
            0xf5 => {
                let count = usize::from(input.u8());
                self.bytes.extend(input.slice(count));
            }
            0xf6 => return,
            _ => {}
        }
        self.bytes.extend(words.into_iter().flat_map(u32::to_le_bytes));
        self.bytes.extend(value.to_le_bytes());
    }
}
