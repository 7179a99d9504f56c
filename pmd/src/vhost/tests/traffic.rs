//! Frames both ways, of every size, in chains of every shape.

use std::collections::VecDeque;

use proptest::prelude::*;
use spinwake::frame::Burst;
use spinwake::port::{RxQueue, TxQueue};

use super::driver::TABLE_ENTRIES;
use super::machine::Machine;
use super::*;
use crate::virtio::header::HEADER_LEN;

/// Lengths as they come: mostly small, sometimes about a buffer's, sometimes as large as they get.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 1usize..300,
        3 => 2030usize..2070,
        2 => 300usize..10_000,
        1 => (LARGEST_FRAME - 5)..=LARGEST_FRAME,
    ]
}

/// What is done next.
#[derive(Debug, Clone)]
enum Step {
    /// The driver gives a frame, or a buffer, cut at these places (in 1,024ths).
    Give { len: usize, cuts: Vec<usize>, indirect: bool },
    /// The back end works, with room, or frames, for so many.
    Burst(usize),
    /// The driver takes back what was used.
    Reap,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let cuts = prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(0usize..1024, 0..6), 1 => prop::collection::vec(0usize..40, 0..4)];
    let give = (length(), cuts, any::<bool>()).prop_map(|(len, cuts, indirect)| Step::Give { len, cuts, indirect });
    let step = prop_oneof![5 => give, 2 => (1usize..=32).prop_map(Step::Burst), 1 => Just(Step::Reap)];
    prop::collection::vec(step, 1..80)
}

/// Room for `len` bytes in pieces, cut where `cuts` says, no more than `most`.
fn pieces(machine: &mut Machine, len: usize, cuts: &[usize], most: usize) -> Vec<(u64, u32)> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| len * cut / 1024).filter(|at| (1..len).contains(at)).collect();
    ends.sort_unstable();
    ends.dedup();
    ends.truncate(most - 1);
    ends.push(len);
    let mut start = 0;
    ends.into_iter()
        .map(|end| {
            let piece = (machine.room(end - start), (end - start) as u32);
            start = end;
            (machine.guest(piece.0), piece.1)
        })
        .collect()
}

fn fill(machine: &Machine, pieces: &[(u64, u32)], mut bytes: &[u8]) {
    for &(addr, len) in pieces {
        let (now, later) = bytes.split_at(len as usize);
        machine.write(machine.offset(addr), now);
        bytes = later;
    }
}

/// What a driver has in pieces.
fn contents(machine: &Machine, pieces: &[(u64, u32)], len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        pieces.iter().flat_map(|&(addr, len)| machine.read(machine.offset(addr), len as usize)).collect();
    bytes.truncate(len);
    bytes
}

/// The peer's side of receiving: what it sent and has not seen used.
struct Sender {
    sent: VecDeque<Vec<u8>>,
    unused: VecDeque<usize>,
}

impl Sender {
    fn reap(&mut self, bench: &mut Bench) {
        for (token, len) in bench.driver.take(&bench.machine) {
            assert_eq!((Some(token), len), (self.unused.pop_front(), 0));
        }
    }

    fn receive(&mut self, bench: &mut Bench, rx: &mut VhostRx, room: usize) {
        let mut burst = Burst::new();
        leave_room(&mut bench.pool, &mut burst, room);
        let before = burst.len();
        let n = rx.rx_burst(&mut bench.pool, &mut burst);
        assert_eq!(n, burst.len() - before);
        for frame in &burst[before..] {
            let expected = self.sent.pop_front().expect("no frame that was not sent");
            assert!(whole(frame) == expected, "a frame of {} bytes changed", expected.len());
        }
        bench.pool.give_burst(&mut burst);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_the_peer_sends_is_what_we_receive(shape in Shape::any(), steps in steps(), start in prop_oneof![Just(0usize), Just(0xf_e000)]) {
        let mut bench = Bench::new(shape);
        let mut rx = bench.rx();
        if start > 0 {
            bench.machine.seek(start);
        }
        let mut peer = Sender { sent: VecDeque::new(), unused: VecDeque::new() };
        let mut frames = 0;
        for step in steps {
            match step {
                Step::Give { len, cuts, indirect } => {
                    let indirect = indirect && shape.features.has(Features::INDIRECT_DESC);
                    let most = if indirect { TABLE_ENTRIES } else { shape.len.into() };
                    let pieces = pieces(&mut bench.machine, HEADER_LEN + len, &cuts, most);
                    let bytes = payload(frames, len);
                    fill(&bench.machine, &pieces, &[&[0; HEADER_LEN][..], &bytes].concat());
                    while bench.driver.room() < if indirect { 1 } else { pieces.len() } {
                        peer.receive(&mut bench, &mut rx, 32);
                        peer.reap(&mut bench);
                    }
                    bench.driver.add(&bench.machine, frames, &pieces, false, indirect);
                    peer.sent.push_back(bytes);
                    peer.unused.push_back(frames);
                    frames += 1;
                }
                Step::Burst(room) => peer.receive(&mut bench, &mut rx, room),
                Step::Reap => peer.reap(&mut bench),
            }
        }
        while !peer.sent.is_empty() {
            peer.receive(&mut bench, &mut rx, 32);
            prop_assert_eq!(bench.slot.take_lost(), None);
        }
        peer.reap(&mut bench);
        prop_assert!(peer.unused.is_empty() && bench.driver.outstanding() == 0);
        prop_assert_eq!(rx.counters().frames.get(), frames as u64);
        prop_assert_eq!((rx.counters().lies.get(), rx.counters().errors.get()), (0, 0));
        prop_assert_eq!(bench.pool.available(), FRAMES);
    }
}

/// The peer's side of sending: its buffers, what shall come, what has.
struct Receiver {
    buffers: VecDeque<(usize, Vec<(u64, u32)>)>,
    expected: VecDeque<Vec<u8>>,
    mergeable: bool,
    /// Of a frame whose other buffers have not come.
    begun: Vec<u8>,
    missing: u16,
}

impl Receiver {
    fn reap(&mut self, bench: &mut Bench) {
        for (token, len) in bench.driver.take(&bench.machine) {
            let (own, pieces) = self.buffers.pop_front().expect("no buffer that was not given");
            assert_eq!(own, token);
            let bytes = contents(&bench.machine, &pieces, len as usize);
            assert_eq!(bytes.len(), len as usize, "more was written than there is");
            if self.missing == 0 {
                assert_eq!(bytes[..10], [0; 10]);
                self.missing = u16::from_le_bytes([bytes[10], bytes[11]]);
                assert!(self.missing == 1 || self.mergeable && self.missing > 0);
                self.begun = bytes[HEADER_LEN..].into();
            } else {
                self.begun.extend(bytes);
            }
            self.missing -= 1;
            if self.missing == 0 {
                let expected = self.expected.pop_front().expect("no frame that was not sent");
                assert!(self.begun == expected, "a frame of {} bytes changed", expected.len());
            }
        }
    }
}

/// What becomes of a frame of `len` bytes with buffers of these sizes: how many it takes; `Err(true)`: it is refused.
fn judge(rooms: &[usize], len: usize, mergeable: bool, ring_len: usize) -> Result<usize, bool> {
    let mut sum = 0;
    for (i, room) in rooms.iter().enumerate() {
        sum += room;
        if sum >= len + HEADER_LEN {
            return Ok(i + 1);
        }
        if !mergeable || i + 1 == ring_len {
            return Err(true);
        }
    }
    Err(false)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_we_send_is_what_the_peer_receives(shape in Shape::any(), steps in steps(), lens in prop::collection::vec((length(), 600usize..=2048), 1..40), start in prop_oneof![Just(0usize), Just(0xf_e000)]) {
        let mut bench = Bench::new(shape);
        let mut tx = bench.tx();
        if start > 0 {
            bench.machine.seek(start);
        }
        let mergeable = shape.features.has(Features::MRG_RXBUF);
        let mut peer = Receiver { buffers: VecDeque::new(), expected: VecDeque::new(), mergeable, begun: Vec::new(), missing: 0 };
        let mut rooms: Vec<usize> = Vec::new();
        let mut lens = lens.into_iter().cycle();
        let (mut given, mut frames, mut refused) = (0, 0, 0);
        let steps = steps.into_iter().chain([Step::Burst(32), Step::Reap]);
        for step in steps {
            match step {
                Step::Give { len, cuts, indirect } => {
                    let indirect = indirect && shape.features.has(Features::INDIRECT_DESC);
                    let most = if indirect { TABLE_ENTRIES } else { shape.len.into() };
                    let pieces = pieces(&mut bench.machine, HEADER_LEN + len, &cuts, most);
                    if bench.driver.room() >= if indirect { 1 } else { pieces.len() } {
                        bench.driver.add(&bench.machine, given, &pieces, true, indirect);
                        peer.buffers.push_back((given, pieces));
                        rooms.push(HEADER_LEN + len);
                        given += 1;
                    }
                }
                Step::Burst(n) => {
                    let mut burst = Burst::new();
                    let mut full = false;
                    let (mut took, mut segments) = (0, 0);
                    for (len, most) in lens.by_ref().take(n) {
                        segments += len.div_ceil(most);
                        if segments > FRAMES {
                            break;
                        }
                        let bytes = payload(frames, len);
                        burst.push(bench.frame(&bytes, most));
                        frames += 1;
                        if !full {
                            match judge(&rooms, len, mergeable, shape.len.into()) {
                                Ok(used) => {
                                    rooms.drain(..used);
                                    peer.expected.push_back(bytes);
                                    took += 1;
                                }
                                Err(true) => {
                                    refused += 1;
                                    took += 1;
                                }
                                Err(false) => full = true,
                            }
                        }
                    }
                    let before = burst.len();
                    prop_assert_eq!(tx.tx_burst(&mut bench.pool, &mut burst), took);
                    prop_assert_eq!(burst.len(), before - took);
                    bench.pool.give_burst(&mut burst);
                    prop_assert_eq!(bench.pool.available(), FRAMES);
                }
                Step::Reap => peer.reap(&mut bench),
            }
            prop_assert_eq!(bench.slot.take_lost(), None);
        }
        prop_assert!(peer.expected.is_empty() && peer.missing == 0);
        prop_assert_eq!(tx.counters().refused.get(), refused);
    }
}
