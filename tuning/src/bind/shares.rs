//! Folders of its host that a virtual machine has through a device (9p, virtiofs): no block device shows them.

use std::fs;
use std::path::Path;

use spinwake::pci::PciDevice;

use super::disks::Mount;
use super::uses::Use;
use crate::host::Host;

/// Mounts of the folders that a device shares.
pub(super) fn uses(host: &Host, device: &PciDevice) -> Vec<Use> {
    let children = fs::read_dir(device.path()).into_iter().flatten().flatten();
    let shares: Vec<_> = children.filter_map(|child| Share::of(host, &child.path())).collect();
    if shares.is_empty() {
        return Vec::new();
    }
    let Ok(text) = host.try_read("/proc/self/mountinfo") else {
        return vec![Use::Unknown { what: "/proc/self/mountinfo cannot be read: what is mounted".into() }];
    };
    let mounts = text.lines().filter_map(Mount::parse);
    let ours = mounts.filter(|mount| shares.iter().any(|share| share.may_be(mount)));
    ours.map(|mount| Use::Mounted { disk: format!("the shared folder {}", mount.source), at: mount.at }).collect()
}

/// A folder that a device shares.
struct Share {
    /// The file system's name.
    kind: &'static str,
    /// The name that it is mounted by; `None` when the kernel does not say.
    tag: Option<String>,
}

impl Share {
    /// What the device at this place of the virtio bus shares.
    fn of(host: &Host, place: &Path) -> Option<Self> {
        let driver = fs::read_link(place.join("driver")).ok()?;
        match driver.file_name()?.to_str()? {
            "9pnet_virtio" => {
                let tag = fs::read_to_string(place.join("mount_tag")).ok();
                Some(Self { kind: "9p", tag: tag.map(|tag| tag.trim_end_matches(['\0', '\n']).to_owned()) })
            }
            // Linux 6.9 is the first to tell tags.
            "virtiofs" => Some(Self { kind: "virtiofs", tag: virtiofs_tag(host, place) }),
            _ => None,
        }
    }

    fn may_be(&self, mount: &Mount<'_>) -> bool {
        self.kind == mount.kind && self.tag.as_ref().is_none_or(|tag| *tag == mount.source)
    }
}

fn virtiofs_tag(host: &Host, place: &Path) -> Option<String> {
    let place = fs::canonicalize(place).ok()?;
    let mut all = host.names("/sys/fs/virtiofs").into_iter().map(|number| format!("/sys/fs/virtiofs/{number}"));
    let ours =
        all.find(|one| fs::canonicalize(host.path(format!("{one}/device"))).is_ok_and(|other| other == place))?;
    host.read(format!("{ours}/tag"))
}
