//! Opening and closing.

use super::*;

#[test]
fn guest_a_device_is_opened_again_at_once_fifty_times() {
    let Some(_guest) = guest() else { return };
    for found in [&find(EDU)[0], &find(IGB)[0]] {
        let bdf = rebind(found, "vfio-pci");
        for round in 0..50 {
            let device = VfioDevice::open(bdf).unwrap_or_else(|e| panic!("round {round}: {e}"));
            let bar = device.bar(0).unwrap();
            device.set_bus_master(true).unwrap();
            let vectors = [Vector::new().unwrap()];
            device.irq_enable(IrqKind::Msi, &fds(&vectors)).unwrap();
            let page = Page::new();
            page.map(&device.iommu(), 0x1000).unwrap();
            assert_ne!(bar.read(Reg::<Ro>::at(0)), u32::MAX);
            drop(bar);
            drop(device);
        }
    }
    assert_eq!(open_vfio_files(), 0);
}

#[test]
fn guest_a_device_has_one_owner_and_stays_open_with_its_bar() {
    let Some(_guest) = guest() else { return };
    let device = edu();
    let bdf = device.bdf();
    let error = VfioDevice::open(bdf).unwrap_err();
    assert!(matches!(error, OpenError::AlreadyOpen { .. }), "{error}");
    let bar = device.bar(0).unwrap();
    drop(device);
    assert!(matches!(VfioDevice::open(bdf), Err(OpenError::AlreadyOpen { .. })));
    assert_eq!(bar.read(edu_regs::ID), EDU_ID);
    drop(bar);
    assert_eq!(open_vfio_files(), 0);
    VfioDevice::open(bdf).unwrap();
}
