//! What devices reach, and what the IOMMU says.

use super::*;

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
