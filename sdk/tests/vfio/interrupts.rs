//! Interrupts of all three kinds, and the bus's own notices.

use super::*;

#[test]
fn guest_msi_fires_its_eventfd() {
    let Some(_guest) = guest() else { return };
    let device = edu();
    let bar = device.bar(0).unwrap();
    assert_eq!((device.irq_count(IrqKind::Msi), device.irq_count(IrqKind::Msix)), (1, 0));
    device.set_bus_master(true).unwrap(); // a message is a write
    let vectors = [Vector::new().unwrap()];
    device.irq_enable(IrqKind::Msi, &fds(&vectors)).unwrap();
    for _ in 0..3 {
        bar.write(edu_regs::IRQ_RAISE, 0x4);
        assert_eq!(vectors[0].wait(LONG), 1);
        assert_eq!(bar.read(edu_regs::IRQ_STATUS), 0x4);
        bar.write(edu_regs::IRQ_ACK, 0x4);
        device.irq_unmask().unwrap(); // nothing to do, and no error
    }
    device.irq_disable().unwrap();
    bar.write(edu_regs::IRQ_RAISE, 0x4);
    bar.write(edu_regs::IRQ_ACK, 0x4);
    assert_eq!(vectors[0].wait(Duration::from_millis(200)), 0);
    assert!(device.irq_unmask().is_err(), "nothing is on");
}

#[test]
fn guest_a_vector_is_triggered_without_its_device() {
    let Some(_guest) = guest() else { return };
    let device = igb(0);
    assert!(device.irq_trigger(0).is_err(), "nothing is on");
    let vectors: Vec<Vector> = (0..3).map(|_| Vector::new().unwrap()).collect();
    device.irq_enable(IrqKind::Msix, &fds(&vectors)).unwrap();
    for _ in 0..2 {
        device.irq_trigger(2).unwrap();
        assert_eq!(vectors[2].wait(LONG), 1);
    }
    assert_eq!((vectors[0].take(), vectors[1].take()), (0, 0));
    assert!(device.irq_trigger(1 << 20).is_err());
    device.irq_disable().unwrap();
    assert!(device.irq_trigger(2).is_err(), "nothing is on any longer");
}

#[test]
fn guest_intx_is_masked_when_it_fires_until_it_is_unmasked() {
    let Some(_guest) = guest() else { return };
    let device = edu();
    let bar = device.bar(0).unwrap();
    assert_eq!(device.irq_count(IrqKind::Intx), 1);
    // From one kind to another without a stop between them.
    let other = [Vector::new().unwrap()];
    device.irq_enable(IrqKind::Msi, &fds(&other)).unwrap();
    let vectors = [Vector::new().unwrap()];
    device.irq_enable(IrqKind::Intx, &fds(&vectors)).unwrap();

    for _ in 0..3 {
        bar.write(edu_regs::IRQ_RAISE, 1);
        assert_eq!(vectors[0].wait(LONG), 1, "once, though the line stays up");
        bar.write(edu_regs::IRQ_ACK, 1);
        bar.write(edu_regs::IRQ_RAISE, 2);
        assert_eq!(vectors[0].wait(Duration::from_millis(200)), 0, "masked");
        device.irq_unmask().unwrap();
        assert_eq!(vectors[0].wait(LONG), 1, "the line is still up");
        bar.write(edu_regs::IRQ_ACK, 2);
        device.irq_unmask().unwrap();
    }
    assert_eq!(other[0].take(), 0);
}

#[test]
fn guest_msix_vectors_fire_each_its_own() {
    let Some(_guest) = guest() else { return };
    let device = igb(0);
    let bar = device.bar(0).unwrap();
    let most = device.irq_count(IrqKind::Msix);
    assert!(most >= 4, "{most}");
    let vectors: Vec<_> = (0..4).map(|_| Vector::new().unwrap()).collect();
    device.set_bus_master(true).unwrap();
    // Twice, the second time with fewer: what was on is replaced.
    for count in [4usize, 3] {
        device.irq_enable(IrqKind::Msix, &fds(&vectors[..count])).unwrap();
        // 82576 datasheet section 8.8: GPIE (multiple MSI-X), EIAC (auto-clear), EIMS (mask set), EICS (cause set).
        bar.write(Reg::<Rw>::at(0x1514), 1 << 4);
        bar.write(Reg::<Rw>::at(0x152c), 0xf);
        bar.write(Reg::<Rw>::at(0x1524), 0xf);
        for (i, vector) in vectors[..count].iter().enumerate() {
            bar.write(Reg::<Rw>::at(0x1520), 1 << i);
            assert!(vector.wait(LONG) > 0, "vector {i}");
            assert!(vectors.iter().all(|v| v.take() == 0), "no other vector fired");
        }
    }
    let many: Vec<_> = (0..=most).map(|_| Vector::new().unwrap()).collect();
    let error = device.irq_enable(IrqKind::Msix, &fds(&many)).unwrap_err().to_string();
    assert_says(&error, &[device.name(), "MSI-X", &format!("it has {most}")]);
    device.irq_enable(IrqKind::Msix, &[]).unwrap();
    bar.write(Reg::<Rw>::at(0x1520), 1);
    assert_eq!(vectors[0].wait(Duration::from_millis(200)), 0);
}

#[test]
fn guest_the_kernel_asks_for_a_device_back() {
    let Some(_guest) = guest() else { return };
    let found = &find(EDU)[0];
    let device = edu();
    assert_eq!(device.notices().unwrap().removal.take(), 0);
    let path = found.path().join("driver/unbind");
    let bdf = device.bdf().to_string();
    let unbind = std::thread::spawn(move || fs::write(path, bdf));
    assert!(device.notices().unwrap().removal.wait(LONG) > 0);
    drop(device);
    unbind.join().unwrap().unwrap();
    assert_eq!(found.driver(), None);
    edu();
}
