//! Faults of interrupts, with a worker that sleeps whenever it sees no frame.

use std::time::{Duration, Instant};

use spinwake::irq::IrqKind;
use spinwake::port::PortConfig;
use spinwake_pmd::soft::Fault;

use crate::rig::{LONG, Rig};

const KINDS: [IrqKind; 3] = [IrqKind::Msix, IrqKind::Msi, IrqKind::Intx];

/// A sleep's bound where interrupts are lost by design, and where none may be: so long there that a busy machine cannot
/// be mistaken for a lost wake-up.
const SHORT: Duration = Duration::from_millis(20);
const BOUND: Duration = Duration::from_secs(20);

/// How the sleeps ended.
#[derive(Debug, Default)]
struct Sleeps {
    /// By the vector, with frames there.
    woken: u64,
    /// By the vector, with no frame there.
    spurious: u64,
    /// By the bound alone, with a frame there: its interrupt was lost.
    rescued: u64,
}

/// Sleeps and echoes until `count` frames have come back in all.
#[track_caller]
fn sleep_and_echo(rig: &mut Rig, count: u64, bound: Duration, sleeps: &mut Sleeps) {
    let deadline = Instant::now() + LONG;
    while rig.report().received < count {
        assert!(Instant::now() < deadline, "{sleeps:?} {}", rig.describe());
        if rig.echo() > 0 || rig.echoed >= count {
            // What was sent needs no interrupt to arrive.
            std::thread::yield_now();
            continue;
        }
        let rx = &mut rig.queues.rx[0];
        rx.arm();
        if !rx.pending() {
            let fired = rx.vector().unwrap().wait(bound) > 0;
            match (fired, rx.pending()) {
                (true, true) => sleeps.woken += 1,
                (true, false) => sleeps.spurious += 1,
                (false, true) => sleeps.rescued += 1,
                (false, false) => {}
            }
        }
        // What fired until here belongs to this sleep.
        let rx = &mut rig.queues.rx[0];
        rx.disarm();
        rx.vector().unwrap().take();
        rx.fired();
    }
}

/// Frames one by one, each of which has to wake the worker.
fn one_by_one(kind: IrqKind, fault: Option<Fault>) -> (Rig, Sleeps) {
    let mut rig = Rig::with("soft:,rate=0", PortConfig::default(), Some(kind));
    let mut sleeps = Sleeps::default();
    let bound = if fault == Some(Fault::IrqLost) { SHORT } else { BOUND };
    for n in 0..100 {
        if let Some(fault) = fault.filter(|_| n % 10 == 0) {
            rig.control.inject(fault, 1);
        }
        rig.control.send(1);
        sleep_and_echo(&mut rig, n + 1, bound, &mut sleeps);
    }
    (rig, sleeps)
}

#[test]
fn every_kind_wakes_and_nothing_is_rescued() {
    for kind in KINDS {
        let (mut rig, sleeps) = one_by_one(kind, None);
        assert_eq!(rig.port.irq_kind(), Some(kind));
        assert_eq!(sleeps.rescued, 0, "{kind} {sleeps:?}");
        rig.check();
    }
}

#[test]
fn lost_interrupts_are_rescued_by_the_bound() {
    for kind in KINDS {
        let (mut rig, mut sleeps) = one_by_one(kind, Some(Fault::IrqLost));
        // A frame that the worker saw before it slept needed no interrupt, so perhaps no fault had its chance. One has it
        // when the worker is armed before the frame comes, and looks after its interrupt should have.
        assert!(rig.control.settle(LONG));
        rig.control.inject(Fault::IrqLost, 1);
        rig.queues.rx[0].arm();
        rig.control.send(1);
        assert!(rig.control.settle(LONG));
        sleep_and_echo(&mut rig, 101, SHORT, &mut sleeps);
        assert!(rig.made(Fault::IrqLost) > 0, "{kind} {}", rig.describe());
        assert_eq!(rig.report().received, 101);
        rig.check();
    }
}

#[test]
fn late_doubled_and_spurious_interrupts_cost_time_and_nothing_else() {
    for kind in KINDS {
        for fault in [Fault::IrqLate, Fault::IrqDuplicate, Fault::IrqSpurious] {
            let (mut rig, sleeps) = one_by_one(kind, Some(fault));
            assert_eq!(sleeps.rescued, 0, "{kind} {fault:?} {sleeps:?}");
            assert!(fault != Fault::IrqSpurious || rig.made(fault) == 10, "{kind} {sleeps:?}");
            rig.check();
        }
    }
}

#[test]
fn a_frame_exactly_between_the_empty_poll_and_arming_is_not_slept_on() {
    for kind in KINDS {
        let mut rig = Rig::with("soft:,rate=0", PortConfig::default(), Some(kind));
        for n in 0..100 {
            assert_eq!(rig.echo(), 0);
            rig.control.race_arm(1);
            let rx = &mut rig.queues.rx[0];
            rx.arm();
            // The frame came before the mask took effect: the second look sees it, or the vector fires.
            assert!(rx.pending() || rx.vector().unwrap().wait(LONG) > 0, "{kind}");
            rx.disarm();
            rx.vector().unwrap().take();
            rx.fired();
            rig.echo_until(|rig| rig.report().received == n + 1);
        }
        rig.check();
    }
}

#[test]
fn steady_traffic_at_a_sleepers_pace_needs_no_rescue() {
    for kind in KINDS {
        let mut rig = Rig::with("soft:,rate=3000", PortConfig::default(), Some(kind));
        let mut sleeps = Sleeps::default();
        sleep_and_echo(&mut rig, 1500, BOUND, &mut sleeps);
        assert_eq!(sleeps.rescued, 0, "{kind} {sleeps:?}");
        rig.control.set_rate(spinwake_pmd::soft::Rate::Silent);
        rig.quiet();
        rig.check();
    }
}
