//! What is refused, and how it is explained.

use super::*;

/// The refusal, after which nothing is open and the device has the driver it had.
fn refusal(bdf: Bdf) -> String {
    let driver = || Sysfs::default().device(bdf).and_then(|device| device.driver());
    let before = driver();
    let error = VfioDevice::open(bdf).unwrap_err();
    assert_eq!((open_vfio_files(), driver()), (0, before));
    println!("{error}");
    error.to_string()
}

#[test]
fn guest_a_device_of_the_kernel_is_refused() {
    let Some(_guest) = guest() else { return };
    let found = &find(IGB)[0];
    let bdf = rebind(found, "igb");
    let deadline = Instant::now() + LONG;
    let interface = loop {
        if let [interface] = &found.net_interfaces()[..] {
            break interface.name.clone();
        }
        assert!(Instant::now() < deadline, "igb made no interface");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_says(&refusal(bdf), &["kernel driver igb", &interface, "not in use", "spinwake-tune bind"]);
    rebind(found, "");
    assert_says(&refusal(bdf), &["not bound to any driver", "drivers_probe"]);
    rebind(found, "vfio-pci");
    assert_says(&refusal(Bdf::new(0, 0xee, 0, 0)), &["no PCI device 0000:ee:00.0", &bdf.to_string()]);
}

#[test]
fn guest_a_group_that_the_kernel_uses_is_refused_until_it_does_not() {
    let Some(_guest) = guest() else { return };
    // The chipset's SATA controller, in one group with its SMBus and LPC functions.
    let all = Sysfs::default().devices().unwrap();
    let is_sata = |d: &&PciDevice| d.class().is_some_and(|c| (c.base(), c.sub()) == (0x01, 0x06));
    let sata = all.iter().find(is_sata).expect("a SATA controller");
    let group = sata.iommu_group().unwrap();
    let others: Vec<_> = group.others(&sata.bdf().to_string()).map(|m| pci(m.name.parse().unwrap())).collect();
    let smbus = others.iter().find(|d| d.class().unwrap().base() == 0x0c).expect("an SMBus controller in its group");
    rebind(smbus, "uio_pci_generic");
    let bdf = rebind(sata, "vfio-pci");

    let text = refusal(bdf);
    assert_says(&text, &[&format!("IOMMU group {}", group.number), "not viable"]);
    for other in &others {
        let driver = other.driver().unwrap_or_else(|| "no driver".into());
        assert_says(&text, &[&format!("{} ({driver})", other.bdf())]);
    }
    for other in &others {
        rebind(other, "");
    }
    VfioDevice::open(bdf).unwrap();
}

#[test]
fn guest_missing_nodes_are_named() {
    let Some(_guest) = guest() else { return };
    let bdf = edu().bdf();
    let group = format!("/dev/vfio/{}", pci(bdf).iommu_group().unwrap().number);
    for (path, advice) in [("/dev/vfio/vfio", "modprobe vfio-pci"), (group.as_str(), "container")] {
        let aside = format!("{path}.aside");
        fs::rename(path, &aside).unwrap();
        let text = refusal(bdf);
        fs::rename(aside, path).unwrap();
        assert_says(&text, &[path, "does not exist", advice]);
    }
    VfioDevice::open(bdf).unwrap();
}

#[test]
fn guest_a_group_held_by_another_process_is_refused_and_its_holder_named() {
    let Some(_guest) = guest() else { return };
    let bdf = edu().bdf();
    let mut holder = child("hold", bdf, 0).stdin(Stdio::piped()).spawn().unwrap();
    assert_eq!(said(&mut holder), "opened");
    assert_says(&refusal(bdf), &["is in use by process", &format!("process {} (", holder.id())]);
    // Killed, it leaves nothing behind.
    holder.kill().unwrap();
    holder.wait().unwrap();
    VfioDevice::open(bdf).unwrap();
}

#[test]
fn guest_an_ordinary_user_needs_permission_and_a_memlock_limit() {
    let Some(_guest) = guest() else { return };
    let bdf = edu().bdf();
    let node = format!("/dev/vfio/{}", pci(bdf).iommu_group().unwrap().number);
    let mut refused = child("hold", bdf, 0).uid(NOBODY).gid(NOBODY).spawn().unwrap();
    let text = said(&mut refused);
    refused.wait().unwrap();
    assert_says(&text, &["no permission to open", &node, "mode 0600", "as user 65534", "chown 65534", "udev"]);

    chown(&node, Some(NOBODY), None).unwrap();
    let mut limited = child("map", bdf, 64).uid(NOBODY).gid(NOBODY).spawn().unwrap();
    let text = said(&mut limited);
    limited.wait().unwrap();
    assert_says(&text, &["VFIO_IOMMU_MAP_DMA", "RLIMIT_MEMLOCK is 65536 bytes", "ulimit -l", "LimitMEMLOCK="]);

    let mut enough = child("map", bdf, 2048).uid(NOBODY).gid(NOBODY).spawn().unwrap();
    assert_eq!(said(&mut enough), "mapped");
    enough.wait().unwrap();
    chown(&node, Some(0), None).unwrap();
}

#[test]
fn guest_without_an_iommu_no_device_is_opened() {
    if !in_guest() || has_iommu() {
        println!("skipped: needs the guest tier, with intel_iommu=off");
        return;
    }
    for id in [EDU, IGB] {
        let text = refusal(find(id)[0].bdf());
        assert_says(&text, &["no IOMMU group", "intel_iommu=on", "amd_iommu=on"]);
    }
}
