//! Interrupts of all three kinds, and that none is lost between looking and arming.

use std::os::fd::AsFd;
use std::time::Duration;

use spinwake::irq::{IrqKind, Vector};

use super::super::layout::{self as at, gpie, icr};
use super::driver::Driver;
use super::{LONG, nic, wait};

fn with_vector(spec: &str, kind: IrqKind) -> (Driver, Vector) {
    let driver = Driver::start(nic(spec), 1);
    let vector = Vector::new().unwrap();
    driver.device.irq_enable(kind, &[vector.as_fd()]).unwrap();
    (driver, vector)
}

pub(super) fn msix(spec: &str) -> (Driver, Vector) {
    let (driver, vector) = with_vector(spec, IrqKind::Msix);
    driver.set(at::GPIE, gpie::MULTIPLE_MSIX | gpie::EIAME | gpie::NSICR);
    driver.set(at::IVAR, at::IVAR_VALID);
    driver.set(at::EIAC, 1);
    driver.set(at::EIAM, 1);
    (driver, vector)
}

#[test]
fn the_spec_limits_the_kinds() {
    let counts = |spec| {
        let device = nic(spec).device();
        [IrqKind::Intx, IrqKind::Msi, IrqKind::Msix].map(|kind| device.irq_count(kind))
    };
    assert_eq!(counts("soft:,rate=0"), [1, 1, 25]);
    assert_eq!(counts("soft:,rate=0,irq=msi"), [1, 1, 0]);
    assert_eq!(counts("soft:,rate=0,irq=intx"), [1, 0, 0]);
}

#[test]
fn a_frame_wakes_a_sleeper_by_every_kind() {
    for kind in [IrqKind::Intx, IrqKind::Msi, IrqKind::Msix] {
        let (mut driver, vector) =
            if kind == IrqKind::Msix { msix("soft:,rate=0") } else { with_vector("soft:,rate=0", kind) };
        for _ in 0..50 {
            if kind == IrqKind::Msix {
                driver.set(at::EIMS, 1);
            } else {
                driver.set(at::IMS, icr::RXDW);
            }
            driver.control().send(1);
            assert!(vector.wait(LONG) > 0, "{kind}");
            if kind != IrqKind::Msix {
                driver.set(at::IMC, u32::MAX);
                assert_ne!(driver.get(at::ICR) & icr::RXDW, 0);
            }
            driver.expect(0);
            if kind == IrqKind::Intx {
                driver.device.irq_unmask().unwrap();
            }
            vector.take();
        }
    }
}

#[test]
fn a_frame_exactly_between_the_empty_poll_and_arming_still_wakes() {
    let (mut driver, vector) = msix("soft:,rate=0");
    for _ in 0..20 {
        assert!(driver.receive(0).is_none(), "the empty poll");
        driver.control().race_arm(1);
        driver.set(at::EIMS, 1);
        assert!(vector.wait(LONG) > 0);
        driver.receive(0).unwrap();
    }
}

#[test]
fn sleeping_and_waking_for_long_loses_nothing() {
    let (mut driver, vector) = msix("soft:,rate=5000");
    let mut received = 0;
    while received < 3000 {
        let before = received;
        received += std::iter::from_fn(|| driver.receive(0)).count();
        if received == before {
            driver.set(at::EIMS, 1);
            if let Some(_frame) = driver.receive(0) {
                received += 1;
            } else {
                assert!(vector.wait(LONG) > 0);
            }
        }
    }
}

#[test]
fn the_link_going_down_and_up_interrupts() {
    let (driver, vector) = msix("soft:,rate=0");
    driver.set(at::IVAR_MISC, at::IVAR_VALID << 8);
    // The link came up before anybody asked for interrupts.
    assert_ne!(driver.get(at::ICR) & icr::LSC, 0);
    driver.set(at::IMS, icr::LSC);
    for up in [false, true] {
        driver.set(at::EIMS, 1);
        driver.control().set_link(up);
        assert!(vector.wait(LONG) > 0);
        assert_eq!(driver.get(at::STATUS) & at::status::LU != 0, up);
        assert_ne!(driver.get(at::ICR) & icr::LSC, 0);
    }
}

#[test]
fn nothing_fires_after_the_interrupts_were_turned_off() {
    let (driver, vector) = msix("soft:,rate=1000");
    driver.device.irq_disable().unwrap();
    driver.set(at::EIMS, 1);
    wait(|| driver.get(at::stat::GPRC) > 0);
    assert_eq!(vector.wait(Duration::from_millis(5)), 0);
    assert!(driver.device.irq_unmask().is_err());
}
