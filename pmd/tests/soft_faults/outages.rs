//! A link that goes, a device that stops answering, everything at once, and starting again after it.

use std::time::{Duration, Instant};

use spinwake::dma::Domain;
use spinwake::frame::{Pool, PoolConfig};
use spinwake::port::{Link, Port, PortConfig};
use spinwake_pmd::igb::{IgbPort, Options};
use spinwake_pmd::soft::{Fault, Rate, open};

use crate::rig::{LONG, Rig};

#[test]
fn the_link_goes_and_comes_and_frames_flow_again() {
    let mut rig = Rig::new("soft:,rate=5000");
    rig.echo_until(|rig| rig.report().received >= 100);
    for _ in 0..3 {
        rig.control.set_link(false);
        rig.echo_until(|rig| rig.port.link() == Link::Down);
        if let Some(vector) = rig.port.link_vector() {
            assert!(vector.wait(LONG) > 0);
        }
        rig.control.set_link(true);
        rig.echo_until(|rig| rig.port.link() != Link::Down);
        let before = rig.report().received;
        rig.echo_until(|rig| rig.report().received > before + 100);
    }
    rig.control.inject(Fault::LinkFlap, 1);
    rig.echo_until(|rig| rig.made(Fault::LinkFlap) == 1);
    rig.control.set_rate(Rate::Silent);
    rig.echo_until(|rig| rig.port.link() != Link::Down);
    rig.quiet();
    rig.check();
}

#[test]
fn a_device_that_stands_still_for_a_while_is_survived() {
    let mut rig = Rig::new("soft:,rate=20000");
    rig.echo_until(|rig| rig.report().received >= 100);
    rig.control.stall(true);
    let until = Instant::now() + Duration::from_millis(20);
    rig.echo_until(|_| Instant::now() > until);
    rig.control.stall(false);
    let before = rig.report().received;
    // Doorbells that rang meanwhile were lost; later ones say the same and more. If none comes, a restart helps.
    let until = Instant::now() + Duration::from_secs(2);
    rig.echo_until(|rig| Instant::now() > until || rig.report().received > before + 100);
    rig.control.set_rate(Rate::Silent);
    assert!(rig.control.settle(LONG));
    let report = rig.report();
    assert_eq!((report.corrupt, report.duplicates), (0, 0), "{}", rig.describe());
}

#[test]
fn a_device_that_never_answers_again_is_left_in_time_and_nothing_is_freed_under_it() {
    let mut rig = Rig::new("soft:,rate=20000");
    rig.echo_until(|rig| rig.report().received >= 100);
    rig.control.stall(true);
    let start = Instant::now();
    rig.queues.rx.clear();
    rig.queues.tx.clear();
    // Whether that is an error or not is the driver's to say; it must come to an end.
    let _ = rig.port.stop();
    assert!(start.elapsed() < LONG);
    assert!(rig.port.start().is_err(), "it does not answer");
    // When it wakes up, it must not find a way into memory that was freed.
    rig.control.stall(false);
    rig.control.send(100);
    assert!(rig.control.settle(LONG));
    assert_eq!(rig.control.counts().dma_faults, 0);
}

#[test]
fn stopping_and_starting_under_load() {
    let mut rig = Rig::new("soft:,rate=max,fault=random");
    for _ in 0..10 {
        let before = rig.report().received;
        rig.echo_until(|rig| rig.report().received > before + 2000);
        rig.stop();
        rig.queues = rig.port.start().unwrap();
        rig.echo();
    }
    rig.control.set_rate(Rate::Silent);
    rig.echo_until(|rig| rig.port.link() != Link::Down);
    rig.quiet();
    rig.check();
}

#[test]
fn everything_at_once() {
    let config = PortConfig { rx_queues: 4, tx_queues: 4, ..PortConfig::default() };
    let mut rig = Rig::with("soft:,rate=50000,size=60-1514,fault=random+link-flap:300ms,seed=5", config, None);
    let until = Instant::now() + Duration::from_secs(3);
    rig.echo_until(|rig| Instant::now() > until && rig.report().received > 5000);
    rig.control.set_rate(Rate::Silent);
    rig.echo_until(|rig| rig.port.link() != Link::Down);
    rig.quiet();
    assert!(rig.made(Fault::LinkFlap) > 0);
    rig.check();
}

#[test]
fn an_iommu_that_is_full_or_too_small_is_an_error_that_changes_nothing() {
    let nic = open(&"soft:,rate=0".parse().unwrap()).unwrap();
    nic.control().limit_mappings(Some(1));
    let domain = Domain::new();
    let config = PoolConfig { frames: 64, ..PoolConfig::default() };
    let _pool = Pool::new_in(&domain, &config).unwrap();
    let mut port = IgbPort::open(nic.device(), &domain, Options::default()).unwrap();
    let error = port.start().unwrap_err().to_string();
    assert!(error.contains("no more DMA mappings"), "{error}");
    nic.control().limit_mappings(None);
    drop(port.start().unwrap());
    port.stop().unwrap();
    drop(port);
    nic.control().restrict_iova(vec![0..=0xFF_FFFF]);
    let error = IgbPort::open(nic.device(), &domain, Options::default()).unwrap_err().to_string();
    assert!(error.contains("cannot reach"), "{error}");
}
