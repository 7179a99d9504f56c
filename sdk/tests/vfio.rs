//! VFIO for real: a kernel, an IOMMU and devices, in a throwaway guest whose devices these tests rebind as they like.
//!
//! They run when `SPINWAKE_TEST_TIER` contains `guest`, and need QEMU's `edu` and two `igb` behind an IOMMU.
#![expect(unsafe_code, reason = "memory that a device writes")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spinwake::device::{Device, DeviceError, Iommu};
use spinwake::irq::{IrqKind, Vector};
use spinwake::mmio::{Bar, Reg, Ro, Rw, Width, Wo};
use spinwake::pci::{Bdf, DeviceId, PciDevice, Sysfs};
use spinwake::sys::mem::Mapping;
use spinwake::vfio::{OpenError, VfioDevice};

const EDU: DeviceId = DeviceId { vendor: 0x1234, device: 0x11e8 };
const IGB: DeviceId = DeviceId { vendor: 0x8086, device: 0x10c9 };
const NOBODY: u32 = 65534;
/// Far longer than anything takes: emulation on a busy machine is slow.
const LONG: Duration = Duration::from_secs(60);

// ---- The guest ----

/// The right to rebind devices, one test at a time; `None` where these tests do not run.
fn guest() -> Option<MutexGuard<'static, ()>> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    if !in_guest() || !has_iommu() {
        println!("skipped: needs the guest tier{}", if in_guest() { " with an IOMMU" } else { "" });
        return None;
    }
    Some(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner))
}

fn in_guest() -> bool {
    std::env::var("SPINWAKE_TEST_TIER").is_ok_and(|tiers| tiers.contains("guest"))
}

fn has_iommu() -> bool {
    fs::read_dir("/sys/kernel/iommu_groups").is_ok_and(|groups| groups.count() > 0)
}

fn find(id: DeviceId) -> Vec<PciDevice> {
    Sysfs::default().find(id).unwrap()
}

fn pci(bdf: Bdf) -> PciDevice {
    Sysfs::default().device(bdf).unwrap()
}

fn modprobe(module: &str) {
    let done = Command::new("modprobe").env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").arg(module).status().unwrap();
    assert!(done.success(), "modprobe {module}");
}

/// Binds the device to `driver`; to none for an empty name.
fn rebind(device: &PciDevice, driver: &str) -> Bdf {
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

fn open(device: &PciDevice) -> VfioDevice {
    VfioDevice::open(rebind(device, "vfio-pci")).unwrap()
}

fn edu() -> VfioDevice {
    open(&find(EDU)[0])
}

fn igb(index: usize) -> VfioDevice {
    open(&find(IGB)[index])
}

fn open_vfio_files() -> usize {
    let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
    files.filter(|f| fs::read_link(f.path()).is_ok_and(|t| t.to_string_lossy().contains("vfio"))).count()
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

fn fds(vectors: &[Vector]) -> Vec<BorrowedFd<'_>> {
    vectors.iter().map(AsFd::as_fd).collect()
}

// ---- The edu device (QEMU's docs/specs/edu.rst) ----

mod edu_regs {
    use super::{Reg, Ro, Rw, Wo};
    pub(super) const ID: Reg<Ro> = Reg::at(0x00);
    pub(super) const LIVENESS: Reg<Rw> = Reg::at(0x04);
    pub(super) const FACTORIAL: Reg<Rw> = Reg::at(0x08);
    pub(super) const STATUS: Reg<Rw> = Reg::at(0x20);
    pub(super) const IRQ_STATUS: Reg<Ro> = Reg::at(0x24);
    pub(super) const IRQ_RAISE: Reg<Wo> = Reg::at(0x60);
    pub(super) const IRQ_ACK: Reg<Wo> = Reg::at(0x64);
    pub(super) const DMA_SRC: Reg<Rw> = Reg::at(0x80);
    pub(super) const DMA_DST: Reg<Rw> = Reg::at(0x88);
    pub(super) const DMA_COUNT: Reg<Rw> = Reg::at(0x90);
    pub(super) const DMA_CMD: Reg<Rw> = Reg::at(0x98);
}

const EDU_ID: u32 = 0x0100_00ed;
/// The device's own buffer, as its DMA engine addresses it.
const EDU_BUFFER: u32 = 0x40000;

fn edu_dma(bar: &Bar, src: u32, dst: u32, to_memory: bool) {
    bar.write(edu_regs::DMA_SRC, src);
    bar.write(edu_regs::DMA_DST, dst);
    bar.write(edu_regs::DMA_COUNT, 4096);
    bar.doorbell(edu_regs::DMA_CMD, 1 | u32::from(to_memory) << 1);
    bar.wait_for(edu_regs::DMA_CMD, LONG, |cmd| cmd & 1 == 0).unwrap();
}

/// A page that a device may write at any time.
struct Page(Mapping);

impl Page {
    fn new() -> Self {
        Self(Mapping::anonymous(4096).unwrap())
    }

    fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: the mapping is 4096 bytes and lives as long as `self`; atomics may change under us.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().as_ptr().cast::<AtomicU8>(), 4096) }
    }

    fn fill(&self, seed: u8) {
        for (i, byte) in self.bytes().iter().enumerate() {
            byte.store(seed.wrapping_add(i as u8), Ordering::Release);
        }
    }

    fn holds(&self, seed: u8) -> bool {
        self.bytes().iter().enumerate().all(|(i, byte)| byte.load(Ordering::Acquire) == seed.wrapping_add(i as u8))
    }

    fn map(&self, iommu: &Arc<dyn Iommu>, iova: u32) -> Result<(), DeviceError> {
        // SAFETY: every test unmaps, or closes its devices, before it drops the page, and touches it by atomics only.
        unsafe { iommu.map(self.0.as_ptr().as_ptr(), 4096, iova.into()) }
    }
}

// ---- Registers ----

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

// ---- Interrupts ----

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

// ---- DMA ----

#[test]
fn guest_dma_reaches_what_is_mapped_and_nothing_else() {
    let Some(_guest) = guest() else { return };
    const IOVA: u32 = 0x10_0000;
    let device = edu();
    let (bar, iommu) = (device.bar(0).unwrap(), device.iommu());
    device.set_bus_master(true).unwrap();
    let page = Page::new();
    page.map(&iommu, IOVA).unwrap();

    page.fill(7);
    edu_dma(&bar, IOVA, EDU_BUFFER, false);
    page.fill(99);
    edu_dma(&bar, EDU_BUFFER, IOVA, true);
    assert!(page.holds(7), "out and in again");

    iommu.unmap(IOVA.into(), 4096).unwrap();
    page.fill(99);
    edu_dma(&bar, EDU_BUFFER, IOVA, true);
    assert!(page.holds(99), "an unmapped page is out of reach");

    page.map(&iommu, IOVA).unwrap();
    device.set_bus_master(false).unwrap();
    edu_dma(&bar, EDU_BUFFER, IOVA, true);
    assert!(page.holds(99), "no DMA without bus mastering");
    device.set_bus_master(true).unwrap();
    edu_dma(&bar, EDU_BUFFER, IOVA, true);
    assert!(page.holds(7));
    iommu.unmap(IOVA.into(), 4096).unwrap();
}

#[test]
fn guest_the_iommu_keeps_account() {
    let Some(_guest) = guest() else { return };
    let device = edu();
    let iommu = device.iommu();
    let ranges = iommu.iova_ranges();
    assert!(!ranges.is_empty() && ranges.iter().all(|r| !r.contains(&0xfee0_0000)), "{ranges:?}");
    let before = iommu.entries_left().unwrap();
    let page = Page::new();
    page.map(&iommu, 0x1000).unwrap();
    assert_eq!(iommu.entries_left(), Some(before - 1));

    let error = page.map(&iommu, 0x1000).unwrap_err().to_string();
    assert_says(&error, &["VFIO_IOMMU_MAP_DMA", "IOMMU group", "0x1000..0x2000 is mapped already"]);
    let error = page.map(&iommu, 0xfee0_0000).unwrap_err().to_string();
    assert_says(&error, &["VFIO_IOMMU_MAP_DMA", "is not within what the IOMMU permits", "..=0xfedfffff"]);
    let error = page.map(&iommu, 0x2010).unwrap_err().to_string();
    assert_says(&error, &["whole pages of 4096 bytes"]);
    let error = iommu.unmap(0x1000, 8192).unwrap_err().to_string();
    assert_says(&error, &["VFIO_IOMMU_UNMAP_DMA", "4096 of 8192 bytes"]);
    assert_eq!(iommu.entries_left(), Some(before));
    assert!(iommu.unmap(0x1000, 4096).is_err(), "nothing is mapped there");

    // The address space ends with its last device, and what it held counts as taken away.
    page.map(&iommu, 0x1000).unwrap();
    drop(device);
    iommu.unmap(0x1000, 4096).unwrap();
    assert!(page.map(&iommu, 0x1000).is_err());
    assert_eq!((iommu.iova_ranges().len(), iommu.entries_left()), (0, None));
}

#[test]
fn guest_a_full_iommu_says_so() {
    let Some(_guest) = guest() else { return };
    const LIMIT: &str = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    rebind(&find(EDU)[0], "vfio-pci");
    let usual = fs::read_to_string(LIMIT).unwrap();
    fs::write(LIMIT, "2").unwrap();
    let device = edu();
    fs::write(LIMIT, usual).unwrap();
    let (iommu, page) = (device.iommu(), Page::new());
    page.map(&iommu, 0x1000).unwrap();
    page.map(&iommu, 0x2000).unwrap();
    assert_eq!(iommu.entries_left(), Some(0));
    let error = page.map(&iommu, 0x3000).unwrap_err().to_string();
    assert_says(&error, &["VFIO_IOMMU_MAP_DMA", "takes no more mappings", "dma_entry_limit"]);
    iommu.unmap(0x2000, 4096).unwrap();
    page.map(&iommu, 0x3000).unwrap();
    drop(device);
}

#[test]
fn guest_devices_of_several_groups_share_one_address_space() {
    let Some(_guest) = guest() else { return };
    let (a, b) = (igb(0), igb(1));
    assert!(Arc::ptr_eq(&a.iommu(), &b.iommu()));
    let page = Page::new();
    page.map(&a.iommu(), 0x1000).unwrap();
    drop(a);
    // The mapping lives on with the other group, which a third one joins.
    let c = edu();
    assert!(Arc::ptr_eq(&c.iommu(), &b.iommu()));
    c.iommu().unmap(0x1000, 4096).unwrap();
}

// ---- Open and close ----

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

// ---- What is refused ----

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

// ---- Another process ----

/// This test program once more, to do `what` with the device, with a memlock limit in KiB where it is not zero.
fn child(what: &str, bdf: Bdf, memlock_kib: u32) -> Command {
    let limit = if memlock_kib == 0 { String::new() } else { format!("ulimit -l {memlock_kib} && ") };
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("{limit}exec \"$0\" --exact guest_other_process --nocapture"));
    command.arg(std::env::current_exe().unwrap());
    command.env("SPINWAKE_TEST_CHILD", format!("{what} {bdf}")).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// The rest of the first line that has `says: ` in it, of those that a child prints.
fn said(child: &mut Child) -> String {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        if let Some((_, text)) = line.split_once("says: ") {
            return text.to_owned();
        }
    }
    panic!("the other process said nothing");
}

/// What the other process does; nothing when it is run as an ordinary test.
#[test]
fn guest_other_process() {
    let Ok(task) = std::env::var("SPINWAKE_TEST_CHILD") else { return };
    let (what, bdf) = task.split_once(' ').unwrap();
    let device = match VfioDevice::open(bdf.parse().unwrap()) {
        Ok(device) => device,
        Err(error) => return println!("says: {error}"),
    };
    if what == "hold" {
        println!("says: opened");
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let memory = Mapping::anonymous(1 << 20).unwrap();
    // SAFETY: the device is closed before the memory is unmapped, and nobody touches the memory.
    match unsafe { device.iommu().map(memory.as_ptr().as_ptr(), memory.len(), 0x10_0000) } {
        Ok(()) => println!("says: mapped"),
        Err(error) => println!("says: {error}"),
    }
    drop(device);
}
