//! What the driver sends arrives, whatever the ring, the frames, and the order in which the device finishes them.

use std::collections::VecDeque;

use proptest::prelude::*;
use spinwake::frame::{Burst, Cut, DATA_ROOM, Frame, HEADROOM, L4Checksum, Pool, Segmentation};

use super::super::features::Features;
use super::super::header::HEADER_LEN;
use super::super::ring::RingKind;
use super::peer::Chain;
use super::rig::{Rig, bytes_of, pattern};

/// What happens next.
#[derive(Debug, Clone)]
enum Op {
    /// The driver sends frames of so many bytes, cut into segments of so many at most.
    Send(Vec<(usize, usize)>),
    /// The device takes up to so many.
    Pop(usize),
    /// The device is done with some frame that it took.
    Finish(usize),
    /// The device is done with so many at once, in order.
    FinishBatch(usize),
    /// The device sleeps until it is told.
    Sleep,
    /// The driver fetches what is finished.
    Reclaim,
    /// The driver sleeps until something is finished.
    Arm,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let lens = prop_oneof![8 => 14_usize..200, 1 => 14_usize..9000];
    let frame = (lens, prop_oneof![8 => Just(DATA_ROOM), 1 => 40_usize..2048]);
    let op = prop_oneof![
        4 => proptest::collection::vec(frame, 1..33).prop_map(Op::Send),
        3 => (1_usize..64).prop_map(Op::Pop),
        3 => (0_usize..64).prop_map(Op::Finish),
        3 => (1_usize..64).prop_map(Op::FinishBatch),
        1 => Just(Op::Sleep),
        1 => Just(Op::Reclaim),
        1 => Just(Op::Arm),
    ];
    proptest::collection::vec(op, 1..200)
}

pub(super) fn features() -> impl Strategy<Value = Features> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(event_idx, in_order, indirect)| {
        Features::VERSION_1
            .with(Features::EVENT_IDX.when(event_idx))
            .with(Features::IN_ORDER.when(in_order))
            .with(Features::INDIRECT_DESC.when(indirect))
    })
}

pub(super) fn kinds() -> impl Strategy<Value = RingKind> {
    prop_oneof![Just(RingKind::Split), Just(RingKind::Packed)]
}

/// A frame of these bytes in segments of up to `most`; `None` when the pool is dry.
fn frame_of(pool: &mut Pool, bytes: &[u8], most: usize) -> Option<Frame> {
    let mut whole: Option<Frame> = None;
    for part in bytes.chunks(most) {
        let mut frame = pool.take()?;
        frame.copy_from(part);
        match &mut whole {
            Some(whole) => whole.chain(frame),
            None => whole = Some(frame),
        }
    }
    whole
}

fn check(kind: RingKind, shift: u32, features: Features, ops: Vec<Op>) {
    let len = 1_u16 << shift;
    let mut rig = Rig::new(kind, len, features, 4096);
    let (mut tx, counters) = rig.tx(9000);
    let mut peer = rig.peer();
    let in_order = features.has(Features::IN_ORDER);
    let (mut sent, mut arrived): (VecDeque<Vec<u8>>, usize) = (VecDeque::new(), 0);
    let mut held: VecDeque<Chain> = VecDeque::new();
    let (mut number, mut refused, mut finished, mut reclaimed) = (0, 0, 0_usize, 0_usize);
    let (mut asleep, mut armed) = (false, false);
    peer.set_notification(&rig.memory, false);
    for op in ops {
        match op {
            Op::Send(specs) => {
                let mut burst = Burst::new();
                let mut expected = Vec::new();
                for (len, most) in specs {
                    let bytes = pattern(number, len);
                    number += 1;
                    let Some(frame) = frame_of(&mut rig.pool, &bytes, most) else { break };
                    burst.push(frame);
                    expected.push((bytes, len.div_ceil(most)));
                }
                let before = tx.in_flight();
                let taken = tx.tx_burst(&mut rig.pool, &mut burst);
                assert_eq!(taken + burst.len(), expected.len());
                let mut now = 0;
                for (bytes, segments) in expected.drain(..taken) {
                    if segments > usize::from(len).min(128) {
                        refused += 1;
                    } else {
                        sent.push_back(bytes);
                        now += 1;
                    }
                }
                assert_eq!(counters.refused.get(), refused);
                // It may have fetched some.
                reclaimed += before + now - tx.in_flight();
                let rings = rig.bell.take();
                if asleep && now > 0 {
                    assert_eq!(rings, 1, "the device sleeps and must be told");
                    asleep = false;
                    peer.set_notification(&rig.memory, false);
                } else {
                    assert_eq!(rings, 0, "the device does not want to be told");
                }
            }
            Op::Pop(n) if !asleep => {
                for _ in 0..n {
                    let Some(chain) = peer.pop(&rig.memory) else { break };
                    let mut bytes: Vec<u8> = Vec::new();
                    for &(address, len, write) in &chain.parts {
                        assert!(!write);
                        bytes.extend(rig.read(address, len));
                    }
                    let expected = sent.pop_front().expect("no frame arrives that was not sent");
                    assert_eq!(bytes[..HEADER_LEN], [0; HEADER_LEN]);
                    assert_eq!(bytes[HEADER_LEN..], expected);
                    arrived += 1;
                    held.push_back(chain);
                }
            }
            Op::Finish(which) if !held.is_empty() => {
                let which = if in_order { 0 } else { which % held.len() };
                let chain = held.remove(which).unwrap();
                peer.give_back(&rig.memory, &[(chain, 0)]);
                finished += 1;
                assert!(tx.pending());
                assert_eq!(peer.needs_interrupt(&rig.memory), armed);
                if std::mem::take(&mut armed) {
                    tx.disarm();
                }
            }
            Op::FinishBatch(n) if in_order && !held.is_empty() => {
                let chains: Vec<_> = held.drain(..n.min(held.len())).collect();
                peer.give_back_batch(&rig.memory, &chains, 0);
                finished += chains.len();
                assert!(tx.pending());
                let wanted = peer.needs_interrupt(&rig.memory);
                // The crate does not know of the batch.
                assert!(kind == RingKind::Split || wanted == armed);
                if std::mem::take(&mut armed) {
                    tx.disarm();
                }
            }
            Op::Sleep => {
                // It sleeps only when there is nothing.
                asleep = !peer.set_notification(&rig.memory, true);
                if !asleep {
                    peer.set_notification(&rig.memory, false);
                }
            }
            Op::Reclaim => {
                reclaimed += tx.reclaim(&mut rig.pool);
                if in_order {
                    assert_eq!(reclaimed, finished);
                }
                assert!(!tx.pending());
            }
            Op::Arm if !armed => {
                reclaimed += tx.reclaim(&mut rig.pool);
                peer.needs_interrupt(&rig.memory);
                tx.arm();
                armed = true;
            }
            _ => {}
        }
    }
    while let Some(chain) = peer.pop(&rig.memory) {
        sent.pop_front().expect("no frame arrives that was not sent");
        arrived += 1;
        held.push_back(chain);
    }
    assert_eq!((sent.len(), arrived as u64), (0, counters.frames.get()));
    for chain in held {
        peer.give_back(&rig.memory, &[(chain, 0)]);
    }
    reclaimed += tx.reclaim(&mut rig.pool);
    assert_eq!((tx.in_flight(), reclaimed), (0, arrived));
    assert_eq!((counters.lies.get(), rig.pool.available()), (0, 4096));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_sent_arrives_once_and_in_order(kind in kinds(), shift in 1_u32..11, features in features(), ops in ops()) {
        check(kind, shift, features, ops);
    }
}

/// A queue on a ring of 64 with these features besides VERSION_1, and a frame, sent and received.
fn one(kind: RingKind, features: Features, make: impl FnOnce(&mut Pool) -> Frame) -> Option<(Vec<u8>, usize)> {
    let mut rig = Rig::new(kind, 64, features.with(Features::VERSION_1), 64);
    let (mut tx, counters) = rig.tx(1518);
    let mut burst: Burst = std::iter::once(make(&mut rig.pool)).collect();
    assert_eq!(tx.tx_burst(&mut rig.pool, &mut burst), 1);
    let mut peer = rig.peer();
    let Some(chain) = peer.pop(&rig.memory) else {
        assert_eq!((counters.refused.get(), rig.pool.available()), (1, 64));
        return None;
    };
    let bytes = chain.parts.iter().flat_map(|&(address, len, _)| rig.read(address, len)).collect();
    let parts = chain.parts.len();
    peer.give_back(&rig.memory, &[(chain, 0)]);
    assert_eq!((tx.reclaim(&mut rig.pool), rig.pool.available()), (1, 64));
    Some((bytes, parts))
}

/// A large segment of TCP.
fn large(pool: &mut Pool) -> Frame {
    let mut frame = frame_of(pool, &pattern(1, 60_000), DATA_ROOM).unwrap();
    frame.request_checksums(14, 20, false, L4Checksum::Tcp);
    frame.request_segmentation(Some(Segmentation { cut: Cut::Tcp4, payload: 1448, ecn: false }));
    frame
}

#[test]
fn a_large_frame_goes_whole_with_its_wishes_in_the_header() {
    let all = Features::CSUM.with(Features::HOST_TSO4);
    for kind in [RingKind::Split, RingKind::Packed] {
        for features in [all, all.with(Features::INDIRECT_DESC), all.with(Features::IN_ORDER)] {
            let (bytes, parts) = one(kind, features, large).unwrap();
            assert_eq!((bytes.len(), parts), (60_000 + HEADER_LEN, 60_000_usize.div_ceil(DATA_ROOM)));
            assert_eq!((bytes[0], bytes[1], bytes[6], bytes[8]), (1, 1, 34, 16));
            assert_eq!(bytes[HEADER_LEN..], pattern(1, 60_000));
        }
        assert!(one(kind, Features::CSUM, large).is_none(), "the device cannot cut");
        assert!(one(kind, Features::NONE, large).is_none(), "the device fills in no checksums");
    }
}

#[test]
fn a_frame_without_headroom_gets_a_header_of_its_own() {
    for kind in [RingKind::Split, RingKind::Packed] {
        let (bytes, parts) = one(kind, Features::NONE, |pool| {
            let mut frame = pool.take().unwrap();
            frame.copy_from(&pattern(2, 100));
            frame.prepend(HEADROOM - 4).unwrap().fill(9);
            frame
        })
        .unwrap();
        assert_eq!((bytes.len(), parts), (12 + 124 + 100, 2));
        assert_eq!(bytes[12 + 124..], pattern(2, 100));
    }
}

#[test]
fn what_cannot_be_sent_is_refused() {
    for kind in [RingKind::Split, RingKind::Packed] {
        let of = |len: usize| move |pool: &mut Pool| frame_of(pool, &pattern(0, len), DATA_ROOM).unwrap();
        assert!(one(kind, Features::NONE, of(1518)).is_some());
        assert!(one(kind, Features::NONE, of(1519)).is_none());
        assert!(one(kind, Features::NONE, of(14)).is_some());
        assert!(one(kind, Features::NONE, of(13)).is_none());
        assert!(
            one(kind, Features::NONE, |pool| {
                let mut frame = of(100)(pool);
                frame.set_vlan(Some(5));
                frame
            })
            .is_none()
        );
    }
}

#[test]
fn a_reset_queue_begins_anew() {
    for kind in [RingKind::Split, RingKind::Packed] {
        let mut rig = Rig::new(kind, 8, Features::VERSION_1, 64);
        let (mut tx, _) = rig.tx(1518);
        for _ in 0..3 {
            let mut peer = rig.peer();
            for number in 0..5 {
                let frame = frame_of(&mut rig.pool, &pattern(number, 60), DATA_ROOM).unwrap();
                tx.tx_burst(&mut rig.pool, &mut std::iter::once(frame).collect());
                let chain = peer.pop(&rig.memory).unwrap();
                assert_eq!(rig.read(chain.parts[0].0 + 12, 60), pattern(number, 60));
                if number < 2 {
                    peer.give_back(&rig.memory, &[(chain, 0)]);
                    tx.reclaim(&mut rig.pool);
                }
            }
            assert_eq!((tx.reset(), tx.in_flight(), rig.pool.available()), (3, 0, 64));
        }
        // A frame that nobody changed on its way.
        let frame = frame_of(&mut rig.pool, &pattern(7, 60), DATA_ROOM).unwrap();
        assert_eq!(bytes_of(&frame), pattern(7, 60));
    }
}

#[test]
fn a_chain_as_long_as_the_ring_goes_once_the_device_has_finished_the_rest() {
    for kind in [RingKind::Split, RingKind::Packed] {
        let mut rig = Rig::new(kind, 8, Features::VERSION_1, 64);
        let (mut tx, _) = rig.tx(1518);
        let mut peer = rig.peer();
        let frame = frame_of(&mut rig.pool, &pattern(0, 60), DATA_ROOM).unwrap();
        tx.tx_burst(&mut rig.pool, &mut std::iter::once(frame).collect());
        let chain = peer.pop(&rig.memory).unwrap();
        peer.give_back(&rig.memory, &[(chain, 0)]);
        let frame = frame_of(&mut rig.pool, &pattern(1, 800), 100).unwrap();
        assert_eq!(tx.tx_burst(&mut rig.pool, &mut std::iter::once(frame).collect()), 1);
        assert_eq!(peer.pop(&rig.memory).unwrap().parts.len(), 8);
    }
}
