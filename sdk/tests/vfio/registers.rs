//! Registers, configuration space, reset.

use super::*;

#[test]
fn guest_registers_are_read_and_written() {
    let Some(_guest) = guest() else { return };
    let device = edu();
    assert_eq!(device.id(), EDU);
    let bar = device.bar(0).unwrap();
    assert_eq!(bar.len(), 1 << 20);
    assert!(fs::read_to_string("/proc/self/maps").unwrap().contains("vfio"), "mapped, not reached by system calls");
    assert_eq!(bar.read(edu_regs::ID), EDU_ID);
    bar.write(edu_regs::LIVENESS, 0x1234_5678);
    assert_eq!(bar.read(edu_regs::LIVENESS), !0x1234_5678);
    bar.write(edu_regs::FACTORIAL, 6);
    bar.wait_for(edu_regs::STATUS, LONG, |status| status & 1 == 0).unwrap();
    assert_eq!(bar.read(edu_regs::FACTORIAL), 720);
    for index in [1, 5, 6, 99] {
        let error = device.bar(index).unwrap_err().to_string();
        assert_says(&error, &[device.name(), &format!("has no BAR {index}")]);
    }
}

#[test]
fn guest_a_bar_that_cannot_be_mapped_is_reached_through_the_file() {
    let Some(_guest) = guest() else { return };
    let device = igb(0);
    // BAR 2 of the 82576 is I/O space: IOADDR at 0 selects a register, IODATA at 4 is that register.
    let (memory, io) = (device.bar(0).unwrap(), device.bar(2).unwrap());
    let status = memory.read(Reg::<Ro>::at(0x8));
    assert_ne!(status, u32::MAX);
    io.write(Reg::<Rw>::at(0), 0x8);
    assert_eq!(io.read(Reg::<Rw>::at(4)), status);
    // BAR 3 holds the MSI-X table, all of whose entries are masked at first (bit 0 of the fourth word).
    let table = device.bar(3).unwrap();
    assert_eq!(table.read_at(12, Width::Dword) & 1, 1);
}

#[test]
fn guest_configuration_space_is_read_and_written_within_its_bounds() {
    let Some(_guest) = guest() else { return };
    let device = igb(0);
    let mut id = [0; 4];
    device.config_read(0, &mut id).unwrap();
    assert_eq!(id, [0x86, 0x80, 0xc9, 0x10]);
    device.config_read(4092, &mut id).unwrap();
    let error = device.config_read(4094, &mut id).unwrap_err().to_string();
    assert_says(&error, &[device.name(), "configuration space", "0xffe"]);
    // The cache line size register holds what is written and does nothing.
    device.config_write(0x0c, &[0x10]).unwrap();
    device.config_read(0x0c, &mut id[..1]).unwrap();
    assert_eq!(id[0], 0x10);
    assert!(device.config_write(u16::MAX, &[0]).is_err());
}

#[test]
fn guest_bus_mastering_and_reset() {
    let Some(_guest) = guest() else { return };
    let device = igb(0);
    let bar = device.bar(0).unwrap();
    let master = || {
        let mut command = [0; 2];
        device.config_read(4, &mut command).unwrap();
        command[0] >> 2 & 1 == 1
    };
    assert!(!master(), "a device is opened without DMA");
    device.set_bus_master(true).unwrap();
    assert!(master());
    device.set_bus_master(false).unwrap();
    assert!(!master());

    device.set_bus_master(true).unwrap();
    // Receive Descriptor Base Address Low of queue 0.
    let rdbal = Reg::<Rw>::at(0xc000);
    bar.write(rdbal, 0x1_0000);
    assert_eq!(bar.read(rdbal), 0x1_0000);
    device.reset().unwrap();
    assert!(!master(), "a reset device does no DMA");
    assert_eq!(bar.read(rdbal), 0);
    assert_ne!(bar.read(Reg::<Ro>::at(0x8)), u32::MAX, "registers answer after a reset");
}

#[test]
fn guest_a_device_that_cannot_be_reset_alone_says_so() {
    let Some(_guest) = guest() else { return };
    assert_says(&edu().reset().unwrap_err().to_string(), &["no way to be reset alone"]);
}
