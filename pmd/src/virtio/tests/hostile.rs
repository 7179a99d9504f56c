//! A device that says anything at all: no panic, no frame twice, no frame lost.

use std::collections::HashSet;

use proptest::prelude::*;
use spinwake::frame::{Burst, DATA_ROOM, Frame, HEADROOM};
use vm_memory::{Bytes, GuestAddress};

use super::super::features::Features;
use super::super::header::HEADER_LEN;
use super::super::ring::{Fault, RingKind};
use super::peer::Chain;
use super::rig::Rig;
use super::transmit::{features, kinds};

/// What happens next.
#[derive(Debug, Clone)]
enum Op {
    /// The queue's owner does so much.
    Burst(usize),
    /// The device takes buffers.
    Pop(usize),
    /// It uses one properly, but for the length.
    Use(usize, u32),
    /// It claims anything.
    Lie(u32, u32, u16),
    /// It writes a byte somewhere in the ring.
    Scribble(usize, u8),
    /// It writes the header of a buffer that it has.
    Header(usize, [u8; HEADER_LEN]),
    /// The port resets the queue.
    Reset,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let len = prop_oneof![4 => 12_u32..3000, 1 => any::<u32>(), 2 => Just((HEADER_LEN + DATA_ROOM) as u32)];
    let id = prop_oneof![8 => 0_u32..16, 1 => any::<u32>()];
    let header = prop_oneof![
        Just([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
        (0_u8..5).prop_map(|n| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n, 0]),
        any::<[u8; HEADER_LEN]>(),
    ];
    let op = prop_oneof![
        6 => (1_usize..=32).prop_map(Op::Burst),
        4 => (1_usize..64).prop_map(Op::Pop),
        8 => (any::<usize>(), len.clone()).prop_map(|(which, len)| Op::Use(which, len)),
        1 => (id, len, prop_oneof![4 => 1_u16..4, 1 => any::<u16>()]).prop_map(|(id, len, by)| Op::Lie(id, len, by)),
        1 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Op::Scribble(at, byte)),
        6 => (any::<usize>(), header).prop_map(|(which, header)| Op::Header(which, header)),
        1 => Just(Op::Reset),
    ];
    proptest::collection::vec(op, 1..200)
}

/// Frames in the program's hands, each of which must be its own.
#[derive(Default)]
struct Hands(Vec<Frame>);

impl Hands {
    fn take(&mut self, rig: &mut Rig, frames: impl IntoIterator<Item = Frame>) {
        self.0.extend(frames);
        let mut places = HashSet::new();
        for segment in self.0.iter().flat_map(Frame::segments) {
            assert!(segment.len() <= HEADROOM + DATA_ROOM);
            // Which buffer it is, whatever its headroom.
            let place = segment.data().as_ptr().addr() - (HEADROOM + DATA_ROOM - segment.room());
            assert!(places.insert(place), "a buffer twice");
        }
        while self.0.len() > 40 {
            rig.pool.give(self.0.remove(0));
        }
    }
}

/// The device's side of one op.
fn act(rig: &Rig, peer: &mut super::peer::Peer, held: &mut Vec<Chain>, op: &Op) {
    match *op {
        Op::Pop(n) => {
            for _ in 0..n {
                // What it scribbled into the ring may be nonsense to itself.
                let Ok(Some(chain)) = peer.try_pop(&rig.memory) else { break };
                held.push(chain);
            }
        }
        Op::Use(which, len) if !held.is_empty() => {
            let chain = held.remove(if rig.features.has(Features::IN_ORDER) { 0 } else { which % held.len() });
            // What it scribbled itself may be beyond what the crate takes back.
            if chain.id < rig.len {
                peer.give_back(&rig.memory, &[(chain, len)]);
            }
        }
        Op::Lie(id, len, ahead) => peer.lie(&rig.memory, id, len, ahead),
        Op::Scribble(at, byte) => {
            let (ring, bytes) = rig.ring();
            rig.memory.write_obj(byte, GuestAddress(ring + (at % bytes) as u64)).unwrap();
        }
        Op::Header(which, header) if !held.is_empty() => {
            if let Some(&(address, _, _)) = held[which % held.len()].parts.first() {
                // A scribbled address may be anywhere.
                let _ = rig.memory.write_slice(&header, GuestAddress(address));
            }
        }
        _ => {}
    }
}

fn receive(kind: RingKind, shift: u32, features: Features, ops: &[Op]) {
    let frames = (4 << shift) + 128;
    let mut rig = Rig::new(kind, 1 << shift, features, frames);
    let (mut rx, counters) = rig.rx(if features.has(Features::MRG_RXBUF) { 9000 } else { 1518 });
    let (mut peer, mut held, mut hands) = (rig.peer(), Vec::new(), Hands::default());
    for op in ops {
        match op {
            Op::Burst(_) => {
                let mut burst = Burst::new();
                rx.rx_burst(&mut rig.pool, &mut burst);
                rx.pending();
                hands.take(&mut rig, burst);
            }
            Op::Reset => {
                rx.reset();
                assert_eq!(rx.health().fault(), None);
                (peer, held) = (rig.peer(), Vec::new());
            }
            op => act(&rig, &mut peer, &mut held, op),
        }
        assert!(rx.health().fault().is_none() || (counters.lies.get() > 0 && !rx.pending()));
    }
    drop((rx, hands));
    assert_eq!(rig.pool.available(), frames);
}

fn transmit(kind: RingKind, shift: u32, features: Features, ops: &[Op]) {
    let frames = (4 << shift) + 128;
    let mut rig = Rig::new(kind, 1 << shift, features, frames);
    let (mut tx, counters) = rig.tx(9000);
    let (mut peer, mut held) = (rig.peer(), Vec::new());
    for op in ops {
        match op {
            Op::Burst(n) => {
                let mut burst = Burst::new();
                for i in 0..*n {
                    let Some(mut frame) = rig.pool.take() else { break };
                    frame.set_len(60);
                    if i % 5 == 4
                        && let Some(mut tail) = rig.pool.take()
                    {
                        tail.set_len(60);
                        frame.chain(tail);
                    }
                    burst.push(frame);
                }
                tx.tx_burst(&mut rig.pool, &mut burst);
                tx.pending();
                rig.pool.give_burst(&mut burst);
                // Taking all that there is finds each buffer once.
                let all: Vec<_> = std::iter::from_fn(|| rig.pool.take()).collect();
                let places: HashSet<_> = all.iter().map(|frame| rig.pool.iova(frame)).collect();
                assert_eq!(places.len(), all.len(), "a buffer twice");
                all.into_iter().for_each(|frame| rig.pool.give(frame));
            }
            Op::Reset => {
                tx.reset();
                assert_eq!(tx.health().fault(), None);
                (peer, held) = (rig.peer(), Vec::new());
            }
            op => act(&rig, &mut peer, &mut held, op),
        }
        assert!(tx.health().fault().is_none() || (counters.lies.get() > 0 && !tx.pending()));
    }
    drop(tx);
    assert_eq!(rig.pool.available(), frames);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_that_a_device_writes_hurts(
        kind in kinds(),
        shift in 1_u32..6,
        features in features(),
        mergeable: bool,
        offloads: bool,
        ops in ops(),
    ) {
        let features = features.with(Features::MRG_RXBUF.when(mergeable)).with(Features::GUEST_CSUM.when(offloads));
        receive(kind, shift, features, &ops);
        transmit(kind, shift, features, &ops);
    }
}

#[test]
fn what_no_device_has_ends_a_queue_and_is_told() {
    for kind in [RingKind::Split, RingKind::Packed] {
        let mut rig = Rig::new(kind, 8, Features::VERSION_1, 64);
        let (mut rx, counters) = rig.rx(1518);
        rx.rx_burst(&mut rig.pool, &mut Burst::new());
        let mut peer = rig.peer();
        peer.lie(&rig.memory, 9, 72, 1);
        assert!(rx.pending());
        assert_eq!(rx.rx_burst(&mut rig.pool, &mut Burst::new()), 0);
        assert_eq!((rx.health().fault(), counters.lies.get()), (Some(Fault::NotInFlight), 1));
        assert!(!rx.pending());
        rx.reset();
        assert_eq!(rx.health().fault(), None);
        rx.rx_burst(&mut rig.pool, &mut Burst::new());
        if kind == RingKind::Split {
            rig.peer().lie(&rig.memory, 0, 72, 9);
            assert_eq!(rx.rx_burst(&mut rig.pool, &mut Burst::new()), 0);
            assert_eq!(rx.health().fault(), Some(Fault::UsedIndex));
        }
        let (mut tx, counters) = rig.tx(1518);
        let mut frame = rig.pool.take().unwrap();
        frame.set_len(60);
        tx.tx_burst(&mut rig.pool, &mut std::iter::once(frame).collect());
        rig.peer().lie(&rig.memory, 3, 0, 2);
        assert_eq!(tx.reclaim(&mut rig.pool), 0);
        assert_eq!((tx.in_flight(), counters.lies.get()), (1, 1));
        assert!(tx.health().fault().is_some());
    }
}

#[test]
fn a_batch_larger_than_the_index_says_ends_a_queue() {
    let mut rig = Rig::new(RingKind::Split, 4, Features::VERSION_1.with(Features::IN_ORDER), 64);
    let (mut rx, counters) = rig.rx(1518);
    rx.rx_burst(&mut rig.pool, &mut Burst::new());
    rig.peer().lie(&rig.memory, 2, 72, 1);
    assert_eq!(rx.rx_burst(&mut rig.pool, &mut Burst::new()), 0);
    assert_eq!((rx.health().fault(), counters.lies.get()), (Some(Fault::NotInFlight), 1));
}

#[test]
fn a_length_that_cannot_be_costs_one_frame() {
    for kind in [RingKind::Split, RingKind::Packed] {
        for features in [Features::VERSION_1, Features::VERSION_1.with(Features::MRG_RXBUF)] {
            let mut rig = Rig::new(kind, 64, features, 128);
            let (mut rx, counters) = rig.rx(1518);
            rx.rx_burst(&mut rig.pool, &mut Burst::new());
            let mut peer = rig.peer();
            let lens = [72, 0, 11, 12, 13, 2060, 2061, u32::MAX, 72];
            for len in lens {
                let chain = peer.pop(&rig.memory).unwrap();
                rig.memory.write_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], GuestAddress(chain.parts[0].0)).unwrap();
                peer.give_back(&rig.memory, &[(chain, len)]);
            }
            let mut burst = Burst::new();
            assert_eq!(rx.rx_burst(&mut rig.pool, &mut burst), 4);
            assert_eq!(burst.iter().map(Frame::len).collect::<Vec<_>>(), [60, 1, 2048, 60]);
            assert_eq!((counters.lies.get(), rx.health().fault()), (5, None));
        }
    }
}
