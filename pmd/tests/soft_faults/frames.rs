//! Faults of the wire.

use spinwake::port::{Offloads, PortConfig};
use spinwake_pmd::soft::{Fault, Rate};

use crate::rig::Rig;

#[test]
fn without_faults_every_frame_comes_back_once() {
    let mut rig = Rig::new("soft:,rate=0,size=60-1514");
    rig.pass(3000);
    let report = rig.report();
    assert_eq!((report.sent, report.received), (3000, 3000), "{}", rig.describe());
    let stats = rig.port.stats();
    assert_eq!((stats.rx_frames, stats.tx_frames, stats.rx_missed, stats.rx_errors), (3000, 3000, 0, 0));
    assert_eq!((stats.queues[0].rx_frames, stats.queues[0].tx_frames), (3000, 3000));
    rig.check();
}

#[test]
fn jumbo_frames_and_several_queues_with_offloads() {
    let offloads = Offloads {
        rx_checksum: true,
        tx_checksum: true,
        vlan_strip: true,
        vlan_insert: true,
        rss_hash: true,
        ..Offloads::default()
    };
    let config = PortConfig { rx_queues: 4, tx_queues: 4, mtu: 9216 - 14, offloads, ..PortConfig::default() };
    let mut rig = Rig::with("soft:,rate=0,size=60-9216", config, None);
    for _ in 0..100 {
        // What the packet buffer and the rings hold for sure.
        rig.control.send(10);
        rig.quiet();
    }
    assert_eq!(rig.report().received, 1000, "{}", rig.describe());
    assert!(rig.port.stats().queues.iter().all(|q| q.rx_frames > 50), "{}", rig.describe());
    rig.check();
}

#[test]
fn dropped_doubled_late_and_reordered_frames() {
    let mut rig = Rig::new("soft:,rate=0,size=60-1514");
    for fault in [Fault::Drop, Fault::Duplicate, Fault::Delay, Fault::Reorder] {
        rig.control.inject(fault, 50);
        rig.pass(500);
        assert_eq!(rig.made(fault), 50);
    }
    let report = rig.report();
    assert_eq!((report.sent, report.received), (2000, 1950), "{}", rig.describe());
    assert_eq!(rig.control.faults().copies_seen, 50, "{}", rig.describe());
    assert_eq!(rig.port.stats().rx_frames, 2000);
    rig.check();
}

#[test]
fn a_generator_at_full_rate_loses_nothing_and_stops() {
    let mut rig = Rig::new("soft:,rate=max");
    rig.echo_until(|rig| rig.report().received >= 200_000);
    rig.control.set_rate(Rate::Silent);
    rig.quiet();
    let report = rig.report();
    // The ring of the one direction may be full while the other one's is not: what was dropped is counted.
    assert_eq!(report.sent, report.received + rig.dropped, "{}", rig.describe());
    rig.check();
}

#[test]
fn a_pace_is_kept_on_average() {
    let mut rig = Rig::new("soft:,rate=20000");
    let start = std::time::Instant::now();
    rig.echo_until(|rig| rig.report().received >= 10_000);
    // A machine that is slow lets frames go; none is sent before its time.
    assert!(start.elapsed().as_secs_f64() > 0.49);
    rig.control.set_rate(Rate::Silent);
    rig.quiet();
    rig.check();
}
