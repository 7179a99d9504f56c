//! Back ends that go and come back.

use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use spinwake::frame::Burst;

use crate::peer::{MRG_RXBUF, Peer, Traits};
use crate::rig::{Rig, open_fds, payload, socket};

/// Set in a process that runs one test alone, so that no other opens and closes descriptors.
const ALONE: &str = "SPINWAKE_TEST_ALONE";

#[test]
fn frames_flow_again_each_time_the_back_end_comes_back() {
    if std::env::var_os(ALONE).is_none() {
        let name = "reconnect::frames_flow_again_each_time_the_back_end_comes_back";
        let mut alone = Command::new(std::env::current_exe().unwrap());
        let output = alone.args([name, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
        print!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    const TIMES: usize = 20;
    let (_dir, path) = socket();
    let mut peer = Some(Peer::listen(&path, Traits::default()));
    let mut rig = Rig::open(&path, "");
    rig.circle(0, 64, 500);
    let (fds, mut outages) = (open_fds(), Vec::new());
    for _ in 0..TIMES {
        // With frames under way.
        let mut burst = Burst::new();
        while !burst.is_full() {
            let mut frame = rig.pool.take().unwrap();
            frame.copy_from(&payload(0, 64));
            burst.push(frame);
        }
        rig.queues.tx[0].tx_burst(&mut rig.pool, &mut burst);
        rig.pool.give_burst(&mut burst);
        drop(peer.take());
        rig.until_down();
        peer = Some(Peer::listen(&path, Traits::default()));
        let back = Instant::now();
        rig.until_up();
        rig.circle(0, 64, 200);
        outages.push(back.elapsed());
    }
    outages.sort();
    println!("frames flowed after {outages:?}");
    // A machine that is busy with other things may be late at times, not usually.
    assert!(outages[TIMES / 2] < Duration::from_millis(100), "{outages:?}");
    assert_eq!(rig.count("outages"), TIMES as u64);
    assert_eq!(open_fds(), fds, "descriptors leaked");
    rig.end();
}

#[test]
fn a_back_end_that_offers_less_cannot_take_the_place_of_another() {
    let (_dir, path) = socket();
    let all = Traits::default();
    let peer = Peer::listen(&path, all.clone());
    let mut rig = Rig::open(&path, ",mrg=on");
    rig.circle(0, 64, 100);
    drop(peer);
    rig.until_down();
    let less = Peer::listen(&path, Traits { features: all.features & !MRG_RXBUF, ..all.clone() });
    let end = Instant::now() + Duration::from_millis(300);
    while Instant::now() < end {
        rig.turn();
        assert!(!rig.is_up(), "it was taken");
    }
    drop(less);
    let fewer = Peer::listen(&path, Traits { pairs: 1, ..all.clone() });
    rig.until_up();
    rig.circle(0, 64, 100);
    drop(fewer);
    rig.until_down();
    rig.end();
}

#[test]
fn a_back_end_that_makes_our_descriptors_block_keeps_nobody_waiting() {
    let (_dir, path) = socket();
    let traits = Traits { blocks: true, ..Traits::default() };
    let peer = Peer::listen(&path, traits.clone());
    let mut rig = Rig::open(&path, "");
    rig.until_up();
    drop(peer);
    rig.until_down();
    // Nothing was sent, so the descriptor that says so has nothing to read.
    let _peer = Peer::listen(&path, traits);
    rig.until_up();
    rig.circle(0, 64, 100);
    rig.end();
}

#[test]
fn a_port_that_is_dropped_first_leaves_its_queues_idle() {
    let (_dir, path) = socket();
    let peer = Peer::listen(&path, Traits::default());
    let mut rig = Rig::open(&path, "");
    rig.circle(0, 64, 100);
    let Rig { mut queues, port, mut pool, .. } = rig;
    drop(port);
    assert_eq!(peer.account.stopped.load(Ordering::Acquire), 2, "the buffers that come home are nobody else's");
    let mut burst = Burst::new();
    assert_eq!(queues.rx[0].rx_burst(&mut pool, &mut burst), 0);
    burst.push(pool.take().unwrap());
    assert_eq!(queues.tx[0].tx_burst(&mut pool, &mut burst), 0);
    pool.give_burst(&mut burst);
    assert_eq!(queues.tx[0].in_flight(), 0);
    drop(queues);
    assert_eq!(pool.available(), pool.capacity());
}
