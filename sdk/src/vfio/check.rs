//! What stands in the way of opening a device, as far as looking can tell.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Holder, Host, OpenError};
use crate::pci::{Bdf, GroupMember, IommuGroup, PciDevice};

/// A device that nothing visible keeps from being opened.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    pub(super) host: &'a Host,
    pub(super) pci: PciDevice,
    pub(super) group: IommuGroup,
}

impl<'a> Candidate<'a> {
    /// Looks at the device, its driver, its group and VFIO's nodes. Opens nothing.
    pub(super) fn find(host: &'a Host, bdf: Bdf) -> Result<Self, OpenError> {
        let Some(pci) = host.sysfs().device(bdf) else {
            return Err(OpenError::NotFound { bdf, candidates: network_devices(host) });
        };
        // Before the driver: without an IOMMU, binding to vfio-pci would fail too.
        let Some(group) = pci.iommu_group().filter(|group| group.isolated) else {
            return Err(OpenError::NoIommu { bdf });
        };
        match pci.driver() {
            None => return Err(OpenError::NoDriver { bdf }),
            Some(driver) if !driver.contains("vfio") => {
                let interfaces = pci.net_interfaces().into_iter().map(|n| (n.name.clone(), n.in_use())).collect();
                return Err(OpenError::BoundElsewhere { bdf, driver, interfaces });
            }
            Some(_) => {}
        }
        let candidate = Self { host, pci, group };
        if candidate.group.others(&bdf.to_string()).any(GroupMember::blocks) {
            return Err(candidate.not_viable());
        }
        let path = host.container_path();
        if !path.exists() {
            return Err(OpenError::NoVfio { bdf, path });
        }
        Ok(candidate)
    }

    pub(super) fn bdf(&self) -> Bdf {
        self.pci.bdf()
    }

    /// The node of its group.
    pub(super) fn group_path(&self) -> PathBuf {
        self.host.group_path(self.group.number)
    }

    pub(super) fn not_viable(&self) -> OpenError {
        let bdf = self.bdf();
        let others = self.group.others(&bdf.to_string()).cloned().collect();
        OpenError::NotViable { bdf, group: self.group.number, others }
    }

    /// A call failed for a reason of its own.
    pub(super) fn call(&self, call: &'static str, source: io::Error, hint: &'static str) -> OpenError {
        OpenError::Call { bdf: self.bdf(), call, source, hint }
    }

    /// Why `path`, a node of VFIO, could not be opened.
    pub(super) fn not_opened(&self, path: &Path, source: io::Error) -> OpenError {
        let bdf = self.bdf();
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound if path == self.host.container_path() => OpenError::NoVfio { bdf, path },
            io::ErrorKind::NotFound => OpenError::NoGroupNode { bdf, path },
            io::ErrorKind::ResourceBusy => {
                OpenError::Busy { bdf, group: self.group.number, holder: Holder::of(self.host.proc(), &path) }
            }
            io::ErrorKind::PermissionDenied => {
                let Ok(node) = fs::metadata(&path) else { return self.call("open", source, "") };
                // The owner of /proc/self is the effective user of this process.
                let user = fs::metadata("/proc/self").map_or(0, |process| process.uid());
                OpenError::Permission {
                    bdf,
                    path,
                    owner: node.uid(),
                    group: node.gid(),
                    mode: node.mode() & 0o7777,
                    user,
                }
            }
            _ => self.call("open of a VFIO node", source, ""),
        }
    }
}

/// The network devices of the machine with their drivers: what somebody who mistyped an address may have meant.
fn network_devices(host: &Host) -> Vec<GroupMember> {
    let devices = host.sysfs().devices().unwrap_or_default().into_iter();
    devices
        .filter(|device| device.class().is_some_and(|class| class.is_network()))
        .map(|device| GroupMember { name: device.bdf().to_string(), driver: device.driver() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A machine of one's own choice.
    struct Fake {
        dir: tempfile::TempDir,
        host: Host,
    }

    impl Fake {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("vfio")).unwrap();
            fs::create_dir_all(dir.path().join("sys/bus/pci/devices")).unwrap();
            fs::write(dir.path().join("vfio/vfio"), "").unwrap();
            let host = Host::at(dir.path());
            Self { dir, host }
        }

        fn device(self, name: &str, driver: Option<&str>, group: Option<u32>) -> Self {
            let sys = self.dir.path().join("sys");
            let device = sys.join("bus/pci/devices").join(name);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("class"), "0x020000").unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../drivers/{driver}"), device.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let group = sys.join(format!("kernel/iommu_groups/{group}"));
                fs::create_dir_all(group.join("devices")).unwrap();
                symlink(&group, device.join("iommu_group")).unwrap();
                symlink(&device, group.join("devices").join(name)).unwrap();
            }
            self
        }

        fn refusal(&self, bdf: &str) -> String {
            Candidate::find(&self.host, bdf.parse().unwrap()).unwrap_err().to_string()
        }

        fn candidate(&self, bdf: &str) -> Candidate<'_> {
            Candidate::find(&self.host, bdf.parse().unwrap()).unwrap()
        }
    }

    fn assert_says(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_gets_a_list_of_those_that_are() {
        let fake = Fake::new().device("0000:01:00.0", Some("vfio-pci"), Some(1)).device("0000:02:00.0", None, Some(2));
        let text = fake.refusal("0000:09:00.0");
        assert_says(&text, &["no PCI device 0000:09:00.0", "bound to vfio-pci: 0000:01:00.0 (vfio-pci)"]);
        assert_says(&text, &["other network devices: 0000:02:00.0 (no driver)"]);
        assert_says(&Fake::new().refusal("0000:09:00.0"), &["no network device is bound to vfio-pci"]);
    }

    #[test]
    fn a_kernel_driver_is_named_with_its_interfaces_and_the_way_out() {
        let fake = Fake::new().device("0000:01:00.0", Some("igb"), Some(1));
        let net = fake.dir.path().join("sys/bus/pci/devices/0000:01:00.0/net/eth0");
        fs::create_dir_all(&net).unwrap();
        fs::write(net.join("flags"), "0x1003").unwrap();
        let text = fake.refusal("01:00.0");
        assert_says(&text, &["kernel driver igb", "eth0 (in use", "`spinwake-tune bind 0000:01:00.0`"]);
        assert_says(&text, &["echo vfio-pci > /sys/bus/pci/devices/0000:01:00.0/driver_override", "driver/unbind"]);
        assert_says(&text, &["echo 0000:01:00.0 > /sys/bus/pci/drivers_probe"]);
    }

    #[test]
    fn no_driver_and_no_iommu_are_told_apart() {
        let fake = Fake::new().device("0000:01:00.0", None, Some(1)).device("0000:02:00.0", Some("igb"), None);
        let text = fake.refusal("01:00.0");
        assert_says(&text, &["not bound to any driver", "spinwake-tune bind"]);
        assert!(!text.contains("unbind"), "{text}");
        assert_says(&fake.refusal("02:00.0"), &["no IOMMU group", "intel_iommu=on", "amd_iommu=on", "firmware"]);
    }

    #[test]
    fn a_group_without_an_iommu_behind_it_is_refused() {
        let fake = Fake::new().device("0000:01:00.0", Some("vfio-pci"), Some(0));
        fs::write(fake.dir.path().join("sys/kernel/iommu_groups/0/name"), "vfio-noiommu\n").unwrap();
        assert_says(&fake.refusal("01:00.0"), &["no IOMMU group"]);
    }

    #[test]
    fn the_others_in_a_group_that_is_not_viable_are_named() {
        let fake = Fake::new()
            .device("0000:01:00.0", Some("vfio-pci"), Some(5))
            .device("0000:01:00.1", Some("e1000"), Some(5))
            .device("0000:01:00.2", None, Some(5))
            .device("0000:00:01.0", Some("pcieport"), Some(5));
        let text = fake.refusal("01:00.0");
        assert_says(&text, &["IOMMU group 5", "0000:01:00.1 (e1000)", "0000:01:00.2 (no driver)", "(pcieport)"]);
        assert!(text.ends_with("unbind or give to vfio-pci: 0000:01:00.1"), "{text}");
    }

    #[test]
    fn bridges_stubs_and_vfio_itself_do_not_block_a_group() {
        let fake = Fake::new()
            .device("0000:01:00.0", Some("vfio-pci"), Some(5))
            .device("0000:01:00.1", Some("mlx5_vfio_pci"), Some(5))
            .device("0000:01:00.2", Some("pci-stub"), Some(5))
            .device("0000:00:01.0", Some("pcieport"), Some(5));
        assert_eq!(fake.candidate("01:00.0").group.number, 5);
    }

    #[test]
    fn missing_nodes_are_named() {
        let fake = Fake::new().device("0000:01:00.0", Some("vfio-pci"), Some(5));
        let group = fake.candidate("01:00.0");
        let error = group.not_opened(&group.group_path(), io::ErrorKind::NotFound.into()).to_string();
        assert_says(&error, &["vfio/5 does not exist", "container"]);
        fs::remove_file(fake.dir.path().join("vfio/vfio")).unwrap();
        assert_says(&fake.refusal("01:00.0"), &["vfio/vfio does not exist", "modprobe vfio-pci"]);
    }

    #[test]
    fn a_refused_or_busy_node_is_explained() {
        let fake = Fake::new().device("0000:01:00.0", Some("vfio-pci"), Some(5));
        let candidate = fake.candidate("01:00.0");
        let path = candidate.group_path();
        fs::write(&path, "").unwrap();
        let text = candidate.not_opened(&path, io::ErrorKind::PermissionDenied.into()).to_string();
        let node = fs::metadata(&path).unwrap();
        let mode = format!("user {} and group {} with mode {:04o}", node.uid(), node.gid(), node.mode() & 0o7777);
        assert_says(&text, &["no permission to open", "vfio/5", &mode, "chown", "chgrp", "udev"]);

        let text = candidate.not_opened(&path, io::ErrorKind::ResourceBusy.into()).to_string();
        assert_says(&text, &["group 5 is in use by another process"]);
        let process = fake.dir.path().join("proc/77");
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::write(process.join("comm"), "l2fwd\n").unwrap();
        symlink(&path, process.join("fd/3")).unwrap();
        let text = candidate.not_opened(&path, io::ErrorKind::ResourceBusy.into()).to_string();
        assert_says(&text, &["group 5 is in use by process 77 (l2fwd)"]);
    }
}
