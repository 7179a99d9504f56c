//! Faults do what they say, are counted, and the model stays within the driver's buffers.

use super::super::layout::{self as at, ctrl};
use super::super::nic::pending;
use super::super::{Control, Fault};
use super::driver::{Driver, RING};
use super::{LONG, nic, wait};

/// The generator's number of each frame.
fn sequence(frame: &[u8]) -> u64 {
    frame[46..52].iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

fn received(driver: &mut Driver, count: usize) -> Vec<u64> {
    (0..count).map(|_| sequence(&driver.expect(0).data)).collect()
}

fn silent() -> (Driver, Control) {
    let driver = Driver::start(nic("soft:,rate=0"), 1);
    let control = driver.control();
    (driver, control)
}

#[test]
fn frames_are_dropped_doubled_delayed_and_reordered() {
    let (mut driver, control) = silent();
    control.inject(Fault::Drop, 1);
    control.send(2);
    assert_eq!(received(&mut driver, 1), [1]);
    control.inject(Fault::Duplicate, 1);
    control.send(1);
    assert_eq!(received(&mut driver, 2), [2, 2]);
    control.inject(Fault::Delay, 1);
    control.send(2);
    assert_eq!(received(&mut driver, 2), [4, 3]);
    control.inject(Fault::Reorder, 1);
    control.send(2);
    assert_eq!(received(&mut driver, 2), [6, 5]);
    control.inject(Fault::Reorder, 1);
    control.send(1);
    assert_eq!(received(&mut driver, 1), [7], "nothing passes it: it comes by itself");
    let faults = control.faults();
    let made = [Fault::Drop, Fault::Duplicate, Fault::Delay, Fault::Reorder].map(|f| faults.made(f));
    assert_eq!(made, [1, 1, 1, 2]);
}

#[test]
fn a_copy_that_a_fault_made_is_no_duplicate_of_the_drivers() {
    let (mut driver, control) = silent();
    control.inject(Fault::Duplicate, 1);
    control.send(1);
    let frames = [driver.expect(0).data, driver.expect(0).data];
    driver.send(0, &frames[0]);
    driver.send(0, &frames[1]);
    wait(|| control.faults().copies_seen == 1);
    let reporter = driver.nic.reporter().unwrap();
    assert_eq!((reporter.report().received, reporter.report().duplicates), (1, 0));
    driver.send(0, &frames[0]);
    wait(|| reporter.report().duplicates == 1);
}

#[test]
fn descriptors_lie_and_the_data_stays_where_it_belongs() {
    let (mut driver, control) = silent();
    let mut lie = |fault| {
        control.inject(fault, 1);
        control.send(1);
        let got = driver.expect(0);
        (got.high >> 32 & 0xFFFF, got.high & 0x8000_0003)
    };
    assert_eq!(lie(Fault::LieLength), (2048 + 1 + 60, 3));
    assert_eq!(lie(Fault::LieZero), (0, 3));
    assert_eq!(lie(Fault::LieError), (60, 0x8000_0003));
    assert_eq!(lie(Fault::LieChain), (60, 1));
    assert_eq!(lie(Fault::LieMeta), (60, 3));
    control.inject(Fault::LieDone, 1);
    control.send(1);
    driver.expect(0);
    // The doorbell of that frame was the chance to lie: about the descriptor at the tail, which is ours.
    let tail = driver.get(at::rx(0, at::queue::TAIL)) as usize;
    let high = driver.queues[0].rx.load(tail, 1, std::sync::atomic::Ordering::Acquire);
    assert_eq!(high & 3, 3);
    assert_eq!(control.faults().made(Fault::LieDone), 1);
    assert_eq!(control.counts().dma_faults, 0);
}

#[test]
fn a_stalled_device_answers_with_ones_and_goes_on_later() {
    let (mut driver, control) = silent();
    control.stall(true);
    assert_eq!(driver.get(at::STATUS), u32::MAX);
    assert!(driver.device.reset().is_err());
    control.send(1);
    assert!(control.settle(LONG));
    assert!(driver.receive(0).is_none());
    control.stall(false);
    assert_eq!(control.counts().unlinked, 1);
    control.inject(Fault::Stall, 1);
    wait(|| driver.get(at::STATUS) == u32::MAX);
    wait(|| driver.get(at::STATUS) != u32::MAX);
    assert_eq!(control.faults().made(Fault::Stall), 1);
}

#[test]
fn what_a_device_was_told_before_it_stood_still_it_does_later() {
    let (driver, control) = silent();
    let nic = &driver.nic.nic;
    // As if it stopped between a write of CTRL.RST and the fabric's next look.
    nic.halted.store(true, std::sync::atomic::Ordering::Release);
    nic.registers.set(at::CTRL, ctrl::RST);
    nic.notify(pending::RESET);
    assert!(control.settle(LONG));
    control.stall(false);
    wait(|| driver.get(at::CTRL) & ctrl::RST == 0);
}

#[test]
fn the_link_flaps() {
    let (driver, control) = silent();
    control.inject(Fault::LinkFlap, 1);
    wait(|| driver.get(at::STATUS) & at::status::LU == 0);
    wait(|| driver.get(at::STATUS) & at::status::LU != 0);
    assert_eq!(control.faults().made(Fault::LinkFlap), 1);
}

#[test]
fn addresses_that_are_not_mapped_are_faults_and_nothing_else() {
    let (mut driver, control) = silent();
    // A receive buffer that is not there: the driver is told that the frame is broken.
    driver.queues[0].rx.store(0, 0, 0xdead_0000);
    control.send(1);
    let got = driver.expect(0);
    assert_eq!(got.high & 0x8000_0003, 0x8000_0003);
    assert_eq!(control.counts().dma_faults, 1);
    // A transmit buffer that is not there: nothing is sent, the descriptor is done.
    let command = 60 | 3 << 20 | 1 << 24 | 1 << 27 | 1 << 29;
    driver.queues[0].tx.store(0, 0, 0xdead_0000);
    driver.queues[0].tx.store(0, 1, command | 60 << 46);
    driver.set(at::tx(0, at::queue::TAIL), 1);
    let queue = &driver.queues[0];
    wait(|| queue.tx.load(0, 1, std::sync::atomic::Ordering::Acquire) & 1 << 32 != 0);
    assert_eq!(control.counts().bad_descriptors, 1);
    // No ring at all.
    driver.set(at::rx(0, at::queue::BAH), 0xFFFF_FFFF);
    control.send(2 * RING as u32);
    assert!(control.settle(LONG));
    assert!(control.counts().dma_faults > 2);
}

#[test]
fn without_bus_mastering_nothing_is_written() {
    let (mut driver, control) = silent();
    driver.device.set_bus_master(false).unwrap();
    assert_eq!(driver.get(at::STATUS) & at::status::GIO_MASTER_ENABLE, 0);
    control.send(1);
    assert!(control.settle(LONG));
    assert!(driver.receive(0).is_none());
    driver.device.set_bus_master(true).unwrap();
    driver.expect(0);
    assert_eq!(control.counts().dma_faults, 0);
}

#[test]
fn the_iommu_can_be_made_small() {
    let nic = nic("soft:,rate=0");
    nic.control().limit_mappings(Some(2));
    nic.control().restrict_iova(vec![0x10_0000..=0x1f_ffff]);
    let iommu = nic.device().iommu();
    assert_eq!((iommu.entries_left(), iommu.iova_ranges()), (Some(2), vec![0x10_0000..=0x1f_ffff]));
}

#[test]
fn a_driver_that_writes_nonsense_everywhere_stops_nobody() {
    let (mut driver, control) = silent();
    let other = Driver::start(nic("soft:,rate=1000"), 1);
    let mut rng = super::super::fault::Rng::new(11);
    for _ in 0..20_000 {
        let offset = rng.below(at::BAR_LEN as u64 / 4) as usize * 4;
        let value = rng.next() as u32;
        // A queue's registers half of the time: they do the most.
        let offset = if rng.below(2) == 0 { 0xC000 + offset % 0x2400 } else { offset };
        if at::canonical(offset) != at::CTRL {
            driver.set(offset, value & if rng.below(2) == 0 { u32::MAX } else { 0xFFF });
            driver.get(offset);
        }
        if rng.below(100) == 0 {
            control.send(3);
        }
    }
    assert!(control.settle(LONG));
    driver.set(at::CTRL, ctrl::RST);
    wait(|| driver.get(at::CTRL) & ctrl::RST == 0);
    other.get(at::stat::GPRC);
    wait(|| other.get(at::stat::GPRC) > 0);
    assert!(driver.receive(0).is_none() || control.counts().dma_faults > 0);
}
