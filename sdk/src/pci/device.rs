//! One PCI device as sysfs describes it.

use std::fs;
use std::path::{Path, PathBuf};

use super::sysfs::{link_name, number, text};
use super::{Bdf, Class, ConfigSpace, DeviceId, IommuGroup};

/// A PCI device in sysfs. Each method reads anew: drivers come and go.
#[derive(Debug, Clone)]
pub struct PciDevice {
    bdf: Bdf,
    path: PathBuf,
}

impl PciDevice {
    pub(super) fn at(bdf: Bdf, path: PathBuf) -> Self {
        Self { bdf, path }
    }

    /// Its address.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// Its directory in sysfs.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Vendor and device number.
    pub fn id(&self) -> Option<DeviceId> {
        let word = |file: &str| u16::try_from(number(&self.path.join(file))?).ok();
        Some(DeviceId { vendor: word("vendor")?, device: word("device")? })
    }

    /// What kind of device it is.
    pub fn class(&self) -> Option<Class> {
        u32::try_from(number(&self.path.join("class"))?).ok().map(Class)
    }

    /// The driver it is bound to.
    pub fn driver(&self) -> Option<String> {
        link_name(&self.path.join("driver"))
    }

    /// The only driver that may bind to it, where somebody said so.
    pub fn driver_override(&self) -> Option<String> {
        text(&self.path.join("driver_override")).filter(|name| name != "(null)")
    }

    /// Its IOMMU group; `None` when no IOMMU stands between it and memory.
    pub fn iommu_group(&self) -> Option<IommuGroup> {
        IommuGroup::of(&self.path)
    }

    /// The NUMA node it is attached to; the kernel says -1 where it does not know.
    pub fn numa_node(&self) -> Option<usize> {
        usize::try_from(number(&self.path.join("numa_node"))?).ok()
    }

    /// The interrupt number of its INTx line.
    pub fn irq(&self) -> Option<u32> {
        u32::try_from(number(&self.path.join("irq"))?).ok().filter(|&irq| irq != 0)
    }

    /// Its configuration space, as much as this process may read: an ordinary user sees the first 64 bytes.
    pub fn config(&self) -> Option<ConfigSpace> {
        fs::read(self.path.join("config")).ok().map(ConfigSpace::new)
    }

    /// The network interfaces that its driver made, in the order of names.
    pub fn net_interfaces(&self) -> Vec<NetInterface> {
        // A virtio device hangs its interfaces one level deeper, below the device on its own bus.
        let children = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let virtio = children.filter(|e| e.file_name().to_string_lossy().starts_with("virtio")).map(|e| e.path());
        let mut found: Vec<_> = std::iter::once(self.path.clone())
            .chain(virtio)
            .flat_map(|dir| fs::read_dir(dir.join("net")).into_iter().flatten().flatten())
            .map(|entry| NetInterface::at(&entry.path()))
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }
}

/// A network interface of the kernel on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetInterface {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// The bridge, bond or team it is a port of.
    pub master: Option<String>,
}

impl NetInterface {
    fn at(path: &Path) -> Self {
        // linux/if.h: IFF_UP is bit 0 of the flags.
        let up = number(&path.join("flags")).is_some_and(|flags| flags & 1 == 1);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { name, up, master: link_name(&path.join("master")) }
    }

    /// Whether somebody would miss it: it is up, or a port of another interface.
    pub fn in_use(&self) -> bool {
        self.up || self.master.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GroupMember, Sysfs};
    use super::*;
    use std::os::unix::fs::symlink;

    fn put(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A tree with one bound NIC (in a group of two), one virtio NIC and one device of which nothing is known.
    fn tree() -> (tempfile::TempDir, Sysfs) {
        let dir = tempfile::tempdir().unwrap();
        let pci = dir.path().join("bus/pci/devices");
        let nic = pci.join("0000:01:00.0");
        for (file, text) in [
            ("vendor", "0x8086\n"),
            ("device", "0x10c9\n"),
            ("class", "0x020000\n"),
            ("numa_node", "1\n"),
            ("irq", "11\n"),
            ("driver_override", "(null)\n"),
            ("net/eth1/flags", "0x1003\n"),
            ("net/eth0/flags", "0x1002\n"),
        ] {
            put(&nic.join(file), text);
        }
        fs::write(nic.join("config"), [0x86, 0x80, 0xc9, 0x10]).unwrap();
        symlink("../../../drivers/igb", nic.join("driver")).unwrap();
        let group = dir.path().join("kernel/iommu_groups/7");
        fs::create_dir_all(group.join("devices/0000:01:00.1")).unwrap();
        symlink(&nic, group.join("devices/0000:01:00.0")).unwrap();
        symlink(&group, nic.join("iommu_group")).unwrap();
        put(&pci.join("0000:02:00.0/virtio0/net/eth2/flags"), "0x1002\n");
        symlink("../br0", pci.join("0000:02:00.0/virtio0/net/eth2/master")).unwrap();
        put(&pci.join("0000:02:00.0/numa_node"), "-1\n");
        fs::create_dir_all(pci.join("0000:03:00.0")).unwrap();
        fs::create_dir_all(pci.join("not-an-address")).unwrap();
        let sysfs = Sysfs::at(dir.path());
        (dir, sysfs)
    }

    #[test]
    fn a_device_is_read_whole() {
        let (_dir, sysfs) = tree();
        let nic = sysfs.device("01:00.0".parse().unwrap()).unwrap();
        assert_eq!(nic.id(), Some(DeviceId { vendor: 0x8086, device: 0x10c9 }));
        assert!(nic.class().unwrap().is_network());
        assert_eq!((nic.numa_node(), nic.irq()), (Some(1), Some(11)));
        assert_eq!((nic.driver().as_deref(), nic.driver_override()), (Some("igb"), None));
        assert_eq!(nic.config().unwrap().id(), nic.id());
        let names: Vec<_> = nic.net_interfaces().into_iter().map(|n| (n.name.clone(), n.in_use())).collect();
        assert_eq!(names, [("eth0".to_owned(), false), ("eth1".to_owned(), true)]);
    }

    #[test]
    fn a_group_names_its_members_and_their_drivers() {
        let (_dir, sysfs) = tree();
        let group = sysfs.device("01:00.0".parse().unwrap()).unwrap().iommu_group().unwrap();
        assert_eq!((group.number, group.isolated), (7, true));
        assert!(group.members[0].blocks() && !group.members[1].blocks());
        let others: Vec<_> = group.others("0000:01:00.0").collect();
        assert_eq!(others, [&GroupMember { name: "0000:01:00.1".into(), driver: None }]);
        assert_eq!(others[0].to_string(), "0000:01:00.1 (no driver)");
    }

    #[test]
    fn a_virtio_device_owns_the_interface_below_it() {
        let (_dir, sysfs) = tree();
        let nic = sysfs.device("02:00.0".parse().unwrap()).unwrap();
        let [interface] = &nic.net_interfaces()[..] else { panic!("one interface") };
        assert_eq!((interface.name.as_str(), interface.master.as_deref()), ("eth2", Some("br0")));
        assert!(interface.in_use());
        assert_eq!(nic.numa_node(), None);
    }

    #[test]
    fn what_is_missing_is_none() {
        let (_dir, sysfs) = tree();
        assert!(sysfs.device("0f:00.0".parse().unwrap()).is_none());
        let bare = sysfs.device("03:00.0".parse().unwrap()).unwrap();
        assert!(bare.id().is_none() && bare.class().is_none() && bare.driver().is_none());
        assert!(bare.iommu_group().is_none() && bare.config().is_none() && bare.net_interfaces().is_empty());
    }

    #[test]
    fn devices_are_found_by_number() {
        let (_dir, sysfs) = tree();
        let all: Vec<_> = sysfs.devices().unwrap().iter().map(|d| d.bdf().to_string()).collect();
        assert_eq!(all, ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]);
        let found = sysfs.find(DeviceId { vendor: 0x8086, device: 0x10c9 }).unwrap();
        assert_eq!(found.len(), 1);
        let error = Sysfs::at("/nowhere").devices().unwrap_err().to_string();
        assert!(error.contains("/nowhere/bus/pci/devices"), "{error}");
    }
}
