//! Descriptors that lie.

use spinwake::port::{Offloads, PortConfig};
use spinwake_pmd::soft::Fault;

use crate::rig::Rig;

const LIES: u32 = 40;

fn with_lies(faults: &[Fault]) -> Rig {
    let offloads = Offloads { rx_checksum: true, rss_hash: true, ..Offloads::default() };
    let config = PortConfig { offloads, ..PortConfig::default() };
    let mut rig = Rig::with("soft:,rate=0,size=60-1514", config, None);
    for fault in faults {
        for _ in 0..LIES {
            rig.control.inject(*fault, 1);
            rig.pass(5);
        }
        assert_eq!(rig.made(*fault), u64::from(LIES), "{fault:?}");
    }
    rig
}

#[test]
fn impossible_lengths_are_dropped_and_counted() {
    let mut rig = with_lies(&[Fault::LieLength, Fault::LieZero]);
    let lies = 2 * u64::from(LIES);
    let stats = rig.port.stats();
    assert_eq!(stats.queues[0].rx_lies, lies, "{}", rig.describe());
    assert_eq!(stats.queues[0].rx_errors, 0);
    assert_eq!(rig.report().received, rig.report().sent - lies, "{}", rig.describe());
    rig.check();
}

#[test]
fn frames_that_are_marked_broken_are_dropped_and_counted() {
    let mut rig = with_lies(&[Fault::LieError]);
    let stats = rig.port.stats();
    assert_eq!((stats.queues[0].rx_errors, stats.queues[0].rx_lies), (LIES.into(), 0), "{}", rig.describe());
    assert_eq!(rig.report().received, rig.report().sent - u64::from(LIES), "{}", rig.describe());
    rig.check();
}

#[test]
fn garbage_about_a_frame_changes_nothing_in_it() {
    let mut rig = with_lies(&[Fault::LieMeta]);
    assert_eq!(rig.report().received, rig.report().sent, "{}", rig.describe());
    rig.check();
}

#[test]
fn a_descriptor_that_is_ours_may_say_done() {
    let mut rig = Rig::new("soft:,rate=0,size=60-1514");
    // A chance a doorbell, and doorbells come once in a while.
    for _ in 0..LIES {
        rig.control.inject(Fault::LieDone, 1);
        rig.pass(50);
    }
    assert!(rig.made(Fault::LieDone) > 0);
    assert_eq!(rig.report().received, rig.report().sent, "{}", rig.describe());
    rig.check();
}

/// A chain whose last descriptor says that more follow swallows what comes next: a driver sees a chain with a short
/// buffer inside, or one that is too long.
#[test]
fn a_chain_without_end_is_dropped_and_the_next_frame_is_whole() {
    let mut rig = Rig::new("soft:,rate=0,size=60-1514");
    for run in [1, 2, 5, 40, 300] {
        rig.control.inject(Fault::LieChain, run);
        rig.pass(run + 100);
        assert_eq!(rig.made(Fault::LieChain), rig.control.faults().made(Fault::LieChain));
    }
    let (report, stats) = (rig.report(), rig.port.stats());
    assert_eq!(rig.made(Fault::LieChain), 348);
    assert!(stats.queues[0].rx_lies > 0, "{}", rig.describe());
    // Each run swallows itself and one frame.
    assert!(report.received >= report.sent - 348 - 5 - 5, "{}", rig.describe());
    rig.check();
}

#[test]
fn all_lies_at_once_under_load() {
    let spec = "soft:,rate=max,fault=lie-len:1%+lie-zero:1%+lie-error:1%+lie-chain:1%+lie-dd:5%+lie-meta:1%";
    let mut rig = Rig::new(spec);
    rig.echo_until(|rig| rig.report().received >= 100_000);
    rig.control.set_rate(spinwake_pmd::soft::Rate::Silent);
    rig.quiet();
    let stats = rig.port.stats();
    let faults = rig.control.faults();
    // Some are swallowed by a chain that is being dropped already.
    let lies = faults.made(Fault::LieLength) + faults.made(Fault::LieZero) + faults.made(Fault::LieChain);
    assert!(stats.queues[0].rx_lies > lies / 2 && stats.queues[0].rx_lies <= lies, "{}", rig.describe());
    assert!(stats.queues[0].rx_errors <= faults.made(Fault::LieError), "{}", rig.describe());
    rig.check();
}
