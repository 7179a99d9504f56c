//! Closed loops against a driver that sleeps after every frame.

use std::time::{Duration, Instant};

use spinwake::irq::Vector;

use super::super::layout as at;
use super::super::{After, ClosedLoop, Fault, LoopCounts};
use super::driver::Driver;
use super::interrupts::msix;
use super::{LONG, wait};

/// Echoes frames until the loop is over, and sleeps at most `bound` whenever there is none. Returns how many sleeps ran
/// into that bound with a frame waiting.
fn echo(driver: &mut Driver, vector: &Vector, bound: Duration, total: u64) -> u64 {
    let control = driver.control();
    let mut rescues = 0;
    let deadline = Instant::now() + LONG;
    loop {
        let counts = control.loop_counts();
        if counts.returned + counts.given_up == total {
            return rescues;
        }
        assert!(Instant::now() < deadline, "{counts:?}, {rescues} rescues");
        let mut found = driver.receive(0);
        if found.is_none() {
            driver.set(at::EICR, 1);
            driver.set(at::EIMS, 1);
            found = driver.receive(0);
            if found.is_none() {
                let fired = vector.wait(bound) > 0;
                found = driver.receive(0);
                rescues += u64::from(!fired && found.is_some() && vector.take() == 0);
            }
            driver.set(at::EIMC, 1);
            vector.take();
        }
        if let Some(frame) = found {
            driver.send(0, &frame.data);
        }
    }
}

#[test]
fn frames_come_one_at_a_time_and_every_one_comes_back() {
    for after in [After::Return, After::Arm] {
        let (mut driver, vector) = msix("soft:,rate=0");
        driver.control().slow_arming(Duration::from_micros(3));
        driver.control().start_loop(ClosedLoop { frames: 3000, after, gap_ns: 0..=10_000 });
        let rescues = echo(&mut driver, &vector, LONG, 3000);
        let control = driver.control();
        assert_eq!(control.loop_counts(), LoopCounts { sent: 3000, returned: 3000, given_up: 0 }, "{after:?}");
        assert_eq!(rescues, 0);
        let report = driver.nic.reporter().unwrap().report();
        assert_eq!((report.received, report.response_ns.len(), report.duplicates), (3000, 3000, 0));
    }
}

#[test]
fn a_lost_interrupt_leaves_its_frame_to_the_bound() {
    let (mut driver, vector) = msix("soft:,rate=0");
    driver.control().inject(Fault::IrqLost, 5);
    driver.control().start_loop(ClosedLoop { frames: 200, after: After::Return, gap_ns: 100_000..=200_000 });
    let rescues = echo(&mut driver, &vector, Duration::from_millis(2), 200);
    let lost = driver.control().faults().made(Fault::IrqLost);
    assert_eq!(lost, 5);
    // What the second look finds needs no rescue.
    assert!(rescues <= lost, "{rescues} rescues, {lost} lost");
}

#[test]
fn a_loop_outlives_lost_frames_and_can_be_stopped() {
    let (mut driver, vector) = msix("soft:,rate=0");
    driver.control().inject(Fault::Drop, 1);
    driver.control().start_loop(ClosedLoop { frames: 10, after: After::Return, gap_ns: 0..=0 });
    echo(&mut driver, &vector, Duration::from_millis(10), 10);
    assert_eq!(driver.control().loop_counts(), LoopCounts { sent: 10, returned: 9, given_up: 1 });

    driver.control().start_loop(ClosedLoop { frames: u64::MAX, after: After::Return, gap_ns: 0..=0 });
    let control = driver.control();
    wait(|| control.loop_counts().sent == 1);
    control.stop_loop();
    assert_eq!(control.loop_counts(), LoopCounts::default());
    let frame = driver.expect(0);
    driver.send(0, &frame.data);
    assert!(control.settle(LONG));
    assert!(driver.receive(0).is_none(), "nothing follows");
}
