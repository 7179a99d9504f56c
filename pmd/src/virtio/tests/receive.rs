//! What the device receives reaches the program, whatever the ring, the frames, and the order in which buffers are used.

use std::collections::VecDeque;

use proptest::prelude::*;
use spinwake::frame::{Burst, Checksum, Cut, DATA_ROOM, HEADROOM, L4Checksum};
use vm_memory::{Bytes, GuestAddress};

use super::super::features::Features;
use super::super::header::HEADER_LEN;
use super::super::ring::RingKind;
use super::peer::{Chain, Peer};
use super::rig::{Rig, bytes_of, pattern};
use super::transmit::{features, kinds};

/// What happens next.
#[derive(Debug, Clone)]
enum Op {
    /// The program looks for frames, with room for so many.
    Poll(usize),
    /// The device receives frames of so many bytes.
    Receive(Vec<usize>),
    /// The device takes buffers without using them yet.
    Hold(usize),
    /// The device uses one that it holds.
    UseHeld(usize),
    /// The device sleeps until there are buffers.
    Sleep,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let lens = prop_oneof![8 => 1_usize..200, 2 => 1_usize..9000, 1 => Just(9000_usize)];
    let op = prop_oneof![
        4 => (1_usize..=32).prop_map(Op::Poll),
        4 => proptest::collection::vec(lens, 1..40).prop_map(Op::Receive),
        1 => (1_usize..20).prop_map(Op::Hold),
        2 => any::<usize>().prop_map(Op::UseHeld),
        1 => Just(Op::Sleep),
    ];
    proptest::collection::vec(op, 1..200)
}

/// The device's side, and what it has put in.
struct Device {
    peer: Peer,
    features: Features,
    /// Buffers taken from the ring.
    held: VecDeque<Chain>,
    number: usize,
    delivered: VecDeque<Vec<u8>>,
}

/// The header of a frame without wishes that takes so many buffers.
fn header(buffers: usize) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[10..].copy_from_slice(&(buffers as u16).to_le_bytes());
    bytes
}

impl Device {
    fn new(rig: &Rig) -> Self {
        let mut peer = rig.peer();
        peer.set_notification(&rig.memory, false);
        Self { peer, features: rig.features, held: VecDeque::new(), number: 0, delivered: VecDeque::new() }
    }

    fn hold(&mut self, rig: &Rig, n: usize) {
        while self.held.len() < n {
            let Some(chain) = self.peer.pop(&rig.memory) else { return };
            assert!(matches!(chain.parts[..], [(_, len, true)] if len as usize == HEADER_LEN + DATA_ROOM));
            self.held.push_back(chain);
        }
    }

    /// Writes `bytes`, header included, into these buffers; returns them with what each holds.
    fn fill(rig: &Rig, bytes: &[u8], buffers: Vec<Chain>) -> Vec<(Chain, u32)> {
        let parts = bytes.chunks(HEADER_LEN + DATA_ROOM);
        assert_eq!(parts.len(), buffers.len());
        buffers
            .into_iter()
            .zip(parts)
            .map(|(chain, part)| {
                rig.memory.write_slice(part, GuestAddress(chain.parts[0].0)).unwrap();
                (chain, part.len() as u32)
            })
            .collect()
    }

    /// Receives a frame if there are buffers for it; those that it held for long stay held, but in order.
    fn receive(&mut self, rig: &Rig, len: usize) -> bool {
        let mergeable = self.features.has(Features::MRG_RXBUF);
        let len = if mergeable { len } else { len.min(DATA_ROOM) };
        let need = (HEADER_LEN + len).div_ceil(HEADER_LEN + DATA_ROOM);
        let in_order = self.features.has(Features::IN_ORDER);
        let before = if in_order { 0 } else { self.held.len() };
        self.hold(rig, before + need);
        if self.held.len() < before + need {
            return false;
        }
        let buffers: Vec<_> = self.held.drain(before..before + need).collect();
        let data = pattern(self.number, len);
        let bytes = [&header(need)[..], &data].concat();
        let filled = Self::fill(rig, &bytes, buffers);
        if in_order && need > 1 && self.number.is_multiple_of(2) {
            // All but the last are full, so one entry tells it all.
            let chains: Vec<_> = filled.iter().map(|(chain, _)| chain.clone()).collect();
            self.peer.give_back_batch(&rig.memory, &chains, filled[need - 1].1);
        } else {
            self.peer.give_back(&rig.memory, &filled);
        }
        self.number += 1;
        self.delivered.push_back(data);
        true
    }

    /// Uses a buffer that it has held, for a small frame.
    fn use_held(&mut self, rig: &Rig, which: usize) {
        if self.held.is_empty() {
            return;
        }
        let which = if self.features.has(Features::IN_ORDER) { 0 } else { which % self.held.len() };
        let chain = self.held.remove(which).unwrap();
        let data = pattern(self.number, 1 + self.number % DATA_ROOM);
        let bytes = [&header(1)[..], &data].concat();
        let filled = Self::fill(rig, &bytes, vec![chain]);
        self.peer.give_back(&rig.memory, &filled);
        self.number += 1;
        self.delivered.push_back(data);
    }
}

fn check(kind: RingKind, shift: u32, features: Features, frames: usize, ops: Vec<Op>) {
    let mut rig = Rig::new(kind, 1 << shift, features, frames);
    let max_frame = if features.has(Features::MRG_RXBUF) { 9000 } else { DATA_ROOM };
    let (mut rx, counters) = rig.rx(max_frame);
    let mut device = Device::new(&rig);
    let mut asleep = true;
    // It sleeps at first, as nothing is there yet.
    device.peer.set_notification(&rig.memory, true);
    let mut poll = |rig: &mut Rig, device: &mut Device, room: usize, asleep: &mut bool| {
        let mut burst = Burst::new();
        while burst.remaining_capacity() > room
            && let Some(frame) = rig.pool.take()
        {
            burst.push(frame);
        }
        let padded = burst.len();
        let received = rx.rx_burst(&mut rig.pool, &mut burst);
        assert_eq!(received, burst.len() - padded);
        for frame in &burst[padded..] {
            let expected = device.delivered.pop_front().expect("no frame that the device did not deliver");
            assert_eq!(bytes_of(frame), expected);
        }
        rig.pool.give_burst(&mut burst);
        let rings = rig.bell.take();
        assert!(rings == 0 || *asleep, "the device does not want to be told");
        if rings > 0 {
            assert_eq!(rings, 1);
            *asleep = false;
            device.peer.set_notification(&rig.memory, false);
        }
        (received, rx.pending())
    };
    for op in ops {
        match op {
            Op::Poll(room) => {
                poll(&mut rig, &mut device, room, &mut asleep);
            }
            Op::Receive(lens) => {
                for len in lens {
                    if asleep || !device.receive(&rig, len) {
                        break;
                    }
                }
            }
            Op::Hold(n) => {
                if !asleep {
                    device.hold(&rig, n);
                }
            }
            Op::UseHeld(which) => device.use_held(&rig, which),
            Op::Sleep => {
                asleep = asleep || !device.peer.set_notification(&rig.memory, true);
                if !asleep {
                    device.peer.set_notification(&rig.memory, false);
                }
            }
        }
    }
    // Whatever is in the ring comes out.
    for _ in 0..2000 {
        let (received, pending) = poll(&mut rig, &mut device, 32, &mut asleep);
        if received == 0 && !pending && device.delivered.is_empty() {
            break;
        }
    }
    assert_eq!(device.delivered.len(), 0);
    drop(rx);
    assert_eq!((counters.frames.get(), counters.lies.get()), (device.number as u64, 0));
    assert_eq!(rig.pool.available(), frames);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_the_device_receives_comes_once_and_in_order(
        kind in kinds(),
        shift in 1_u32..11,
        features in features(),
        mergeable: bool,
        scarce: bool,
        ops in ops(),
    ) {
        let features = features.with(Features::MRG_RXBUF.when(mergeable && shift >= 3));
        let frames = if scarce { (3 << shift) / 2 + 8 } else { (2 << shift) + 64 };
        check(kind, shift, features, frames, ops);
    }
}

/// A queue whose ring is full of buffers, and a device that has taken them.
fn filled(
    kind: RingKind,
    features: Features,
    max_frame: usize,
) -> (Rig, Box<dyn super::super::queue::DriverRx>, Device) {
    let mut rig = Rig::new(kind, 64, features.with(Features::VERSION_1), 256);
    let (mut rx, _) = rig.rx(max_frame);
    rx.rx_burst(&mut rig.pool, &mut Burst::new());
    let device = Device::new(&rig);
    rig.bell.take();
    (rig, rx, device)
}

#[test]
fn an_armed_queue_is_woken_by_the_next_frame_and_a_polling_one_by_none() {
    for kind in [RingKind::Split, RingKind::Packed] {
        for features in [Features::NONE, Features::EVENT_IDX] {
            let (mut rig, mut rx, mut device) = filled(kind, features, 1518);
            for round in 0..200 {
                let mut burst = Burst::new();
                device.receive(&rig, 100);
                assert!(!device.peer.needs_interrupt(&rig.memory), "{round}: it polls");
                assert!(rx.pending());
                assert_eq!(rx.rx_burst(&mut rig.pool, &mut burst), 1);
                assert!(!rx.pending());
                rx.arm();
                device.receive(&rig, 100);
                assert!(rx.pending());
                assert!(device.peer.needs_interrupt(&rig.memory), "{round}: it sleeps");
                rx.disarm();
                assert_eq!(rx.rx_burst(&mut rig.pool, &mut burst), 1);
                rig.pool.give_burst(&mut burst);
            }
        }
    }
}

#[test]
fn an_event_out_of_reach_stays_so_lap_after_lap() {
    for kind in [RingKind::Split, RingKind::Packed] {
        let (mut rig, mut rx, mut device) = filled(kind, Features::EVENT_IDX, 1518);
        for _ in 0..3 * 65_536 / 32 {
            (0..32).for_each(|_| assert!(device.receive(&rig, 60)));
            assert!(!device.peer.needs_interrupt(&rig.memory));
            let mut burst = Burst::new();
            assert_eq!(rx.rx_burst(&mut rig.pool, &mut burst), 32);
            rig.pool.give_burst(&mut burst);
        }
    }
}

#[test]
fn data_begins_behind_the_headroom_and_wishes_are_noted() {
    for kind in [RingKind::Split, RingKind::Packed] {
        for mergeable in [Features::NONE, Features::MRG_RXBUF] {
            let features = Features::GUEST_CSUM.with(Features::GUEST_TSO4).with(mergeable);
            let (mut rig, mut rx, mut device) = filled(kind, features, 2000);
            let mut deliver = |rig: &Rig, words: &[(usize, u8)], len: usize| {
                device.hold(rig, 1);
                let mut data = pattern(0, len);
                data[12..14].copy_from_slice(&[8, 0]);
                let mut header = header(1);
                words.iter().for_each(|&(at, byte)| header[at] = byte);
                let chain = device.held.pop_front().unwrap();
                let filled = Device::fill(rig, &[&header[..], &data].concat(), vec![chain]);
                device.peer.give_back(&rig.memory, &filled);
            };
            deliver(&rig, &[(0, 2)], 60);
            deliver(&rig, &[(0, 1), (6, 34), (8, 16)], 100);
            deliver(&rig, &[(0, 1), (1, 1), (4, 200), (6, 34), (8, 16)], 1500);
            // No such place for a checksum.
            deliver(&rig, &[(0, 1), (6, 34), (8, 99)], 100);
            deliver(&rig, &[], 60);
            let mut burst = Burst::new();
            assert_eq!(rx.rx_burst(&mut rig.pool, &mut burst), 4);
            assert_eq!(rx.counters().lies.get(), 1);
            assert!(
                burst
                    .iter_mut()
                    .all(|frame| frame.prepend(HEADROOM + 1).is_none() && frame.prepend(HEADROOM).is_some())
            );
            let sums: Vec<_> = burst.iter().map(|frame| frame.l4_checksum()).collect();
            assert_eq!(sums, [Checksum::Good, Checksum::Good, Checksum::Good, Checksum::Unknown]);
            let asked = Some((14, 20, false, L4Checksum::Tcp));
            let wishes: Vec<_> = burst.iter().map(|frame| frame.requested_checksums()).collect();
            assert_eq!(wishes, [None, asked, asked, None]);
            let cut = burst[2].requested_segmentation().unwrap();
            assert_eq!((cut.cut, cut.payload, cut.ecn), (Cut::Tcp4, 200, false));
            assert_eq!(burst[1].requested_segmentation(), None);
        }
    }
}

#[test]
fn frames_longer_than_a_buffer_need_mergeable_buffers() {
    let rig = Rig::new(RingKind::Split, 64, Features::VERSION_1, 64);
    let error = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rig.rx(9018)));
    assert!(error.is_err());
}

#[test]
fn a_reset_queue_begins_anew() {
    for kind in [RingKind::Split, RingKind::Packed] {
        let (mut rig, mut rx, _) = filled(kind, Features::MRG_RXBUF, 9000);
        for _ in 0..3 {
            rx.rx_burst(&mut rig.pool, &mut Burst::new());
            let mut device = Device::new(&rig);
            let mut burst = Burst::new();
            (0..5).for_each(|_| assert!(device.receive(&rig, 5000)));
            assert_eq!(rx.rx_burst(&mut rig.pool, &mut burst), 5);
            assert!(burst.iter().zip(&device.delivered).all(|(frame, bytes)| bytes_of(frame) == *bytes));
            rig.pool.give_burst(&mut burst);
            assert!(rx.reset() >= 64 - 15);
            assert_eq!(rig.pool.available(), 256);
        }
    }
}

#[test]
fn the_longest_frame_finds_room_in_the_smallest_ring_whatever_came_before() {
    const LONGEST: usize = 65_550;
    for kind in [RingKind::Split, RingKind::Packed] {
        let mut rig = Rig::new(kind, 32, Features::VERSION_1.with(Features::MRG_RXBUF), 256);
        let (mut rx, _) = rig.rx(LONGEST);
        rx.rx_burst(&mut rig.pool, &mut Burst::new());
        let mut device = Device::new(&rig);
        for round in 0..20 {
            for len in [60, LONGEST] {
                assert!(device.receive(&rig, len), "{round}: a frame of {len} bytes waits for ever");
                let mut burst = Burst::new();
                assert_eq!(rx.rx_burst(&mut rig.pool, &mut burst), 1);
                rig.pool.give_burst(&mut burst);
            }
        }
    }
}
