//! What the guest offers, and how devices in it change hands.

use super::*;

/// The right to rebind devices, one test at a time; `None` where these tests do not run.
pub(crate) fn guest() -> Option<MutexGuard<'static, ()>> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    if !in_guest() || !has_iommu() {
        println!("skipped: needs the guest tier{}", if in_guest() { " with an IOMMU" } else { "" });
        return None;
    }
    Some(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner))
}

pub(crate) fn in_guest() -> bool {
    std::env::var("SPINWAKE_TEST_TIER").is_ok_and(|tiers| tiers.contains("guest"))
}

pub(crate) fn has_iommu() -> bool {
    fs::read_dir("/sys/kernel/iommu_groups").is_ok_and(|groups| groups.count() > 0)
}

pub(crate) fn find(id: DeviceId) -> Vec<PciDevice> {
    Sysfs::default().find(id).unwrap()
}

pub(crate) fn pci(bdf: Bdf) -> PciDevice {
    Sysfs::default().device(bdf).unwrap()
}

pub(crate) fn modprobe(module: &str) {
    let done = Command::new("modprobe").env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").arg(module).status().unwrap();
    assert!(done.success(), "modprobe {module}");
}

/// Binds the device to `driver`; to none for an empty name.
pub(crate) fn rebind(device: &PciDevice, driver: &str) -> Bdf {
    let (bdf, path) = (device.bdf(), device.path());
    if device.driver().as_deref().unwrap_or("") == driver {
        return bdf;
    }
    if device.driver().is_some() {
        fs::write(path.join("driver/unbind"), bdf.to_string()).unwrap();
    }
    if driver.is_empty() {
        fs::write(path.join("driver_override"), "\n").unwrap();
    } else {
        modprobe(driver);
        fs::write(path.join("driver_override"), driver).unwrap();
        fs::write("/sys/bus/pci/drivers_probe", bdf.to_string()).unwrap();
    }
    assert_eq!(device.driver().as_deref().unwrap_or(""), driver);
    bdf
}

pub(crate) fn open(device: &PciDevice) -> VfioDevice {
    VfioDevice::open(rebind(device, "vfio-pci")).unwrap()
}

pub(crate) fn edu() -> VfioDevice {
    open(&find(EDU)[0])
}

pub(crate) fn igb(index: usize) -> VfioDevice {
    open(&find(IGB)[index])
}

pub(crate) fn open_vfio_files() -> usize {
    let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
    files.filter(|f| fs::read_link(f.path()).is_ok_and(|t| t.to_string_lossy().contains("vfio"))).count()
}

pub(crate) fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

pub(crate) fn fds(vectors: &[Vector]) -> Vec<BorrowedFd<'_>> {
    vectors.iter().map(AsFd::as_fd).collect()
}
