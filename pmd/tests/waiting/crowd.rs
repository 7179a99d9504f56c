//! Four workers and twenty sources, with ports that stop and start, and requests of other threads, while they sleep.
//!
//! First everything at once, then one thing at a time with all workers asleep: there nothing else can make up for a wake-up
//! that was lost.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use spinwake::dma::Domain;
use spinwake::irq::IrqKind;
use spinwake::port::{Link, Port, Queues};
use spinwake::wait::{FdSource, Target, Timer, WaitPolicy};
use spinwake::worker::Task;
use spinwake_pmd::soft::{SoftNic, open};

use crate::mailbox::{Slot, mailbox};
use crate::party::{Lane, Letter, Line, Member, Party, STEP};
use crate::rig::{Chance, pool, seed, start_port};
use crate::watchdog::Watchdog;

const WORKERS: usize = 4;
/// The first waits for completions too, and has a vector a queue; the second has one vector for all workers.
const PORTS: usize = 2;
const POLICIES: [WaitPolicy; 2] = [WaitPolicy::Interrupt, WaitPolicy::Adaptive(Target::None)];
/// How long everything at once goes on, and one thing at a time.
const SPAN: Duration = Duration::from_millis(1500);

/// A port, and its frames.
struct Side {
    index: usize,
    nic: SoftNic,
    port: Box<dyn Port>,
    /// Frames that were under way when the port was stopped.
    lost: u64,
}

/// What the test holds of the workers' sources.
struct Ends {
    slots: Vec<Slot<Letter>>,
    /// The worker, and how often its timer was due.
    ticks: Vec<(usize, Arc<AtomicU64>)>,
    /// The worker, and the other end of its socket.
    lines: Vec<(usize, UnixStream)>,
}

fn lanes_of(queues: Queues, port: usize) -> impl Iterator<Item = Lane> {
    queues.rx.into_iter().zip(queues.tx).map(move |(rx, tx)| Lane { port, rx, tx, completions: port == 0 })
}

fn gather(shared: IrqKind, seed: u64) -> (Vec<Side>, Vec<Member>, Ends) {
    let domain = Domain::new();
    let (slots, mailboxes): (Vec<_>, Vec<_>) = (0..WORKERS).map(|n| mailbox(format!("mailbox {n}"), 64)).unzip();
    let mut ends = Ends { slots, ticks: Vec::new(), lines: Vec::new() };
    let mut members: Vec<_> = mailboxes
        .into_iter()
        .enumerate()
        .map(|(n, mailbox)| Member {
            lanes: Vec::new(),
            mailbox,
            next: ends.slots[(n + 1) % WORKERS].clone(),
            timer: None,
            ticks: Arc::default(),
            line: None,
            pool: pool(&domain),
            requests: 0,
        })
        .collect();
    for (n, member) in members.iter_mut().enumerate() {
        if n % 2 == 0 {
            member.timer = Some(Timer::new(format!("timer {n}")));
            ends.ticks.push((n, member.ticks.clone()));
        } else {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_read_timeout(Some(STEP)).unwrap();
            theirs.set_nonblocking(true).unwrap();
            member.line = Some(Line { source: FdSource::new(format!("socket {n}"), &theirs).unwrap(), stream: theirs });
            ends.lines.push((n, ours));
        }
    }
    let sides = (0..PORTS).map(|index| {
        let spec = format!("soft:,queues={WORKERS},rate=0,seed={}", seed + index as u64);
        let nic = open(&spec.parse().unwrap()).unwrap();
        let irq = if index == 0 { IrqKind::Msix } else { shared };
        let (port, queues) = start_port(&nic, &domain, irq, WORKERS as u16);
        lanes_of(queues, index).zip(&mut members).for_each(|(lane, member)| member.lanes.push(lane));
        Side { index, nic, port, lost: 0 }
    });
    (sides.collect(), members, ends)
}

impl Side {
    fn part(&self) -> String {
        format!("port {}", self.index)
    }

    /// Sends `n` frames, and waits until all are back.
    fn pass(&mut self, party: &Party, n: u32) {
        let part = self.part();
        party.await_that(&part, "the link coming up", || self.port.link() != Link::Down);
        self.nic.control().send(n);
        assert!(self.nic.control().settle(STEP), "{}", party.hung(&part, "the NIC sending"));
        let reporter = self.nic.reporter().unwrap();
        party.await_that(&part, "frames coming back", || {
            let report = reporter.report();
            report.received + self.lost >= report.sent
        });
        let report = reporter.report();
        self.lost = report.sent - report.received;
        assert_eq!((report.corrupt, report.duplicates), (0, 0), "{part}");
    }

    /// Takes the queues away from the workers, stops the port, starts it, and hands the queues out again. The turn that follows
    /// fills the rings, so that the first frames find room.
    fn restart(&mut self, party: &Party, chance: &mut Chance) {
        let (part, index) = (self.part(), self.index);
        if chance.below(4) == 0 {
            // With frames under way.
            self.nic.control().send(50);
        }
        for n in 0..WORKERS {
            let lanes = party.call(&part, n, "taking its queues away", move |member| {
                member.lanes.extract_if(.., |lane| lane.port == index).collect::<Vec<_>>()
            });
            assert_eq!(lanes.len(), 1, "{part}");
        }
        self.port.stop().unwrap();
        assert!(self.nic.control().settle(STEP), "{}", party.hung(&part, "the NIC standing still"));
        let report = self.nic.reporter().unwrap().report();
        self.lost = report.sent - report.received;
        thread::sleep(Duration::from_micros(chance.below(2000)));
        let queues = self.port.start().unwrap();
        for (n, lane) in lanes_of(queues, index).enumerate() {
            party.call(&part, n, "giving it its queues back", move |member| {
                member.lanes.push(lane);
                member.turn();
            });
        }
    }
}

/// One letter, over as many workers as it likes.
fn write_letter(party: &Party, slots: &mut [Slot<Letter>], chance: &mut Chance) {
    let (to, hops, arrived) = (chance.below(WORKERS as u64) as usize, chance.below(9), Arc::<AtomicU64>::default());
    slots[to].push(Letter { hops, arrived: arrived.clone() }).expect("room for every letter");
    let what = format!("a letter to worker-{to} arriving after {hops} more workers");
    party.await_that("letters", &what, || arrived.load(Ordering::SeqCst) == 1);
}

/// One deadline.
fn set_timer(party: &Party, (n, ticks): &(usize, Arc<AtomicU64>), chance: &mut Chance) {
    let (before, delay) = (ticks.load(Ordering::SeqCst), Duration::from_micros(chance.below(1000)));
    let part = format!("timer {n}");
    party.call(&part, *n, "setting its timer", move |member| {
        member.timer.as_mut().expect("it has one").set(delay);
    });
    party.await_that(&part, &format!("the timer of worker-{n} being due"), || ticks.load(Ordering::SeqCst) > before);
}

/// Some bytes there and back.
fn speak(party: &Party, (n, stream): &mut (usize, UnixStream), chance: &mut Chance) {
    let (part, what) = (format!("socket {n}"), format!("worker-{n} answering"));
    let mut bytes = vec![chance.below(256) as u8; 1 + chance.below(8) as usize];
    party.await_that(&part, &what, || true);
    stream.write_all(&bytes).unwrap();
    stream.read_exact(&mut bytes).unwrap_or_else(|error| panic!("{error}: {}", party.hung(&part, &what)));
}

/// One request; they are served one by one, and none twice.
fn request(party: &Party, part: &str, chance: &mut Chance) {
    let n = chance.below(WORKERS as u64) as usize;
    party.call(part, n, "counting", |member| member.requests += 1);
}

/// All at once, each on a thread of its own. Returns how many requests were made.
fn together(party: &Party, sides: &mut [Side], ends: &mut Ends, chance: &mut Chance) -> u64 {
    let until = Instant::now() + SPAN;
    let requests = AtomicU64::new(0);
    let mut fork = || Chance::new(chance.below(u64::MAX));
    thread::scope(|scope| {
        for side in sides {
            let mut chance = fork();
            scope.spawn(move || {
                while Instant::now() < until {
                    for _ in 0..chance.below(20) {
                        side.pass(party, 1 + chance.below(20) as u32);
                    }
                    side.restart(party, &mut chance);
                }
            });
        }
        let (slots, mut of_letters) = (&mut ends.slots, fork());
        scope.spawn(move || {
            while Instant::now() < until {
                write_letter(party, slots, &mut of_letters);
            }
        });
        for timer in &ends.ticks {
            let mut chance = fork();
            scope.spawn(move || {
                while Instant::now() < until {
                    set_timer(party, timer, &mut chance);
                }
            });
        }
        for line in &mut ends.lines {
            let mut chance = fork();
            scope.spawn(move || {
                while Instant::now() < until {
                    speak(party, line, &mut chance);
                }
            });
        }
        for caller in 0..2 {
            let (mut chance, requests) = (fork(), &requests);
            scope.spawn(move || {
                while Instant::now() < until {
                    request(party, &format!("caller {caller}"), &mut chance);
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    requests.into_inner()
}

/// Frames, while requests change what other workers wait for: those that share a vector have it in common with whoever is just being
/// woken. Returns how many requests were made.
fn frames_beside_requests(party: &Party, side: &mut Side, chance: &mut Chance) -> u64 {
    let (count, frames) = (1 + chance.below(8), 1 + chance.below(2) as u32);
    let mut of_requests = Chance::new(chance.below(u64::MAX));
    thread::scope(|scope| {
        scope.spawn(move || (0..count).for_each(|_| request(party, "requests beside frames", &mut of_requests)));
        side.pass(party, frames);
    });
    count
}

/// One at a time, while every worker sleeps. Returns how many requests were made.
fn alone(party: &Party, sides: &mut [Side], ends: &mut Ends, chance: &mut Chance) -> u64 {
    let until = Instant::now() + SPAN;
    let mut requests = 0;
    while Instant::now() < until {
        party.watchdog.clear();
        party.await_sleep("one at a time");
        thread::sleep(Duration::from_micros(chance.below(100)));
        match chance.below(14) {
            0 => sides[chance.below(PORTS as u64) as usize].restart(party, chance),
            1..=4 => sides[chance.below(PORTS as u64) as usize].pass(party, 1 + chance.below(3) as u32),
            5 | 6 => write_letter(party, &mut ends.slots, chance),
            7 => set_timer(party, &ends.ticks[chance.below(2) as usize], chance),
            8 | 9 => requests += frames_beside_requests(party, &mut sides[chance.below(PORTS as u64) as usize], chance),
            10 => speak(party, &mut ends.lines[chance.below(2) as usize], chance),
            _ => {
                request(party, "one at a time", chance);
                requests += 1;
            }
        }
    }
    requests
}

/// Four workers and twenty sources, with the second port's queues on one vector of kind `shared`.
fn crowd(test: &'static str, shared: IrqKind) {
    let seed = seed();
    println!("SPINWAKE_SEED={seed}");
    let mut chance = Chance::new(seed);
    let (mut sides, members, mut ends) = gather(shared, seed);
    let party = Party::new(members, &POLICIES, Watchdog::new(test, 10 * STEP));
    let sources = || party.workers.iter().map(|worker| worker.waits().sources().len() - 1).sum::<usize>();
    assert_eq!(sources(), 20, "but for the requests to each worker");

    for n in 0..WORKERS {
        // Fills the rings.
        party.call("start", n, "its first turn", |member| member.turn());
    }
    let mut requests = together(&party, &mut sides, &mut ends, &mut chance);
    requests += alone(&party, &mut sides, &mut ends, &mut chance);
    sides.iter_mut().for_each(|side| side.pass(&party, 20));

    assert_eq!(sources(), 20, "but for the requests to each worker");
    let waits: Vec<_> = party.workers.iter().map(|worker| worker.waits().clone()).collect();
    let asleep = party.asleep.load(Ordering::Relaxed);
    let members = party.stop();
    assert_eq!(members.iter().map(|member| member.requests).sum::<u64>(), requests);
    for (n, waits) in waits.iter().enumerate() {
        println!("worker-{n} {}", crate::rig::describe(waits));
        assert_eq!(waits.rescues.get(), 0, "worker-{n}");
    }
    println!("{asleep} requests found their worker asleep");
    assert!(asleep > 0);
    for (n, Member { lanes, mut pool, .. }) in members.into_iter().enumerate() {
        drop(lanes);
        assert_eq!(pool.available(), pool.capacity(), "worker-{n} has lost buffers");
    }
    sides.iter_mut().for_each(|side| side.port.stop().unwrap());
}

#[test]
fn four_workers_and_twenty_sources_with_a_shared_msi() {
    crowd("four_workers_and_twenty_sources_with_a_shared_msi", IrqKind::Msi);
}

#[test]
fn four_workers_and_twenty_sources_with_a_shared_line() {
    crowd("four_workers_and_twenty_sources_with_a_shared_line", IrqKind::Intx);
}
