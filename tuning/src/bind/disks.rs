//! What the disks of a device are used for: mounts, swap, and block devices made of others.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use spinwake::pci::PciDevice;

use super::processes::openers;
use super::uses::Use;
use crate::host::Host;

/// Uses of every block device below the device in the device tree, and of all that is made of one.
pub(super) fn uses(host: &Host, device: &PciDevice) -> Vec<Use> {
    let all = Blocks::read(host);
    let Ok(below) = fs::canonicalize(device.path()) else { return Vec::new() };
    let own = all.below(&below);
    if own.is_empty() {
        return Vec::new();
    }
    let (disks, mut found) = all.with_holders(host, own);
    found.extend(mounts(host, &disks));
    found.extend(swaps(host, &disks));
    let nodes: Vec<_> = disks.iter().map(|name| node(name)).collect();
    for (node, by) in openers(host, &nodes) {
        found.extend(by.into_iter().map(|by| Use::Opened { node: node.clone(), by }));
    }
    if found.is_empty() {
        // Whatever is left, a ZFS pool say, or a mount in a container.
        for disk in nodes {
            match is_claimed(&host.path(&disk)) {
                Ok(true) => found.push(Use::Claimed { disk }),
                Ok(false) => {}
                // One line for all.
                Err(error) => return vec![Use::Unknown { what: format!("whether somebody has {disk} ({error})") }],
            }
        }
    }
    found
}

/// The disks of a device and their partitions, by name.
pub(crate) fn disks(host: &Host, device: &PciDevice) -> Vec<String> {
    let Ok(below) = fs::canonicalize(device.path()) else { return Vec::new() };
    Blocks::read(host).below(&below).into_iter().collect()
}

/// Every block device, with its place in the device tree.
#[derive(Debug)]
struct Blocks(Vec<(String, PathBuf)>);

impl Blocks {
    fn read(host: &Host) -> Self {
        let names = host.names("/sys/class/block").into_iter();
        Self(names.filter_map(|name| Some((name.clone(), fs::canonicalize(host.path(class(&name))).ok()?))).collect())
    }

    /// The names of those below a place, and of the disks that the kernel joins from the paths there.
    fn below(&self, place: &Path) -> BTreeSet<String> {
        let mut names: BTreeSet<_> =
            self.0.iter().filter(|(_, path)| path.starts_with(place)).map(|(name, _)| name.clone()).collect();
        let joined: Vec<_> = names.iter().filter_map(|name| multipath_head(name)).collect();
        for head in joined {
            if let Some((_, path)) = self.0.iter().find(|(name, _)| *name == head) {
                names.extend(self.0.iter().filter(|(_, other)| other.starts_with(path)).map(|(name, _)| name.clone()));
            }
        }
        names
    }

    /// These, and all block devices made of them, at whatever height; and which is made of which.
    fn with_holders(&self, host: &Host, own: BTreeSet<String>) -> (BTreeSet<String>, Vec<Use>) {
        let mut all = own.clone();
        let mut open: Vec<_> = own.into_iter().collect();
        let mut found = Vec::new();
        while let Some(name) = open.pop() {
            for holder in host.names(format!("{}/holders", class(&name))) {
                found.push(Use::Built { disk: node(&name), on_it: described(host, &holder) });
                let path = self.0.iter().find(|(other, _)| *other == holder).map(|(_, path)| path.as_path());
                let parts = path.map(|path| self.below(path)).unwrap_or_default();
                for name in parts.into_iter().chain([holder]) {
                    if all.insert(name.clone()) {
                        open.push(name);
                    }
                }
            }
        }
        found.sort_by_key(|found| format!("{found:?}"));
        (all, found)
    }
}

fn class(name: &str) -> String {
    format!("/sys/class/block/{name}")
}

/// A block device's file; its name in the device tree has `!` for `/`.
fn node(name: &str) -> String {
    format!("/dev/{}", name.replace('!', "/"))
}

/// With several paths to one NVMe namespace, `nvme0c1n2` is one of them, hidden, and `nvme0n2` what is mounted.
fn multipath_head(name: &str) -> Option<String> {
    let (subsystem, rest) = name.strip_prefix("nvme")?.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = is_number(subsystem) && is_number(controller) && is_number(namespace);
    plain.then(|| format!("nvme{subsystem}n{namespace}"))
}

/// `/dev/dm-0`, with the name that the device mapper's user gave.
fn described(host: &Host, name: &str) -> String {
    match host.read(format!("{}/dm/name", class(name))) {
        Some(given) if !given.is_empty() => format!("{} ({given})", node(name)),
        _ => node(name),
    }
}

fn mounts(host: &Host, disks: &BTreeSet<String>) -> Vec<Use> {
    let Ok(text) = host.try_read("/proc/self/mountinfo") else {
        return vec![Use::Unknown { what: "/proc/self/mountinfo cannot be read: what is mounted".into() }];
    };
    let numbers: Vec<_> = disks.iter().map(|name| host.read(format!("{}/dev", class(name)))).collect();
    let mut found = Vec::new();
    for mount in text.lines().filter_map(Mount::parse) {
        // Btrfs shows a number that is no block device's, and Linux without an initial RAM disk a source that is none.
        let disk = disks.iter().zip(&numbers).find(|(name, number)| {
            number.as_deref() == Some(mount.number)
                || source_name(host, &mount.source).as_deref() == Some(name.as_str())
        });
        found.extend(disk.map(|(name, _)| Use::Mounted { disk: node(name), at: mount.at.clone() }));
    }
    // One file system may be mounted at many places.
    found.dedup();
    found
}

/// The name in sysfs of the block device that a mount's source is.
fn source_name(host: &Host, source: &str) -> Option<String> {
    let name = source.strip_prefix("/dev/")?;
    let path = fs::canonicalize(host.path(source)).ok();
    let resolved = path.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    Some(resolved.unwrap_or_else(|| name.replace('/', "!")))
}

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)), as far as it matters here.
pub(super) struct Mount<'a> {
    number: &'a str,
    pub(super) at: String,
    /// The file system's name.
    pub(super) kind: &'a str,
    pub(super) source: String,
}

impl<'a> Mount<'a> {
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(2);
        let (number, at) = (front.next()?, front.nth(1)?);
        let (kind, rest) = back.split_once(' ')?;
        let source = rest.split(' ').next()?;
        Some(Self { number, at: unescape(at), kind, source: unescape(source) })
    }
}

/// Space, tab, line break and backslash stand there as octal numbers.
pub(crate) fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

fn swaps(host: &Host, disks: &BTreeSet<String>) -> Vec<Use> {
    // A kernel without swap has no such file.
    let text = host.read("/proc/swaps").unwrap_or_default();
    let files = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let ours = files.filter(|file| source_name(host, file).is_some_and(|name| disks.contains(&name)));
    ours.map(|file| Use::Swap { disk: file.to_owned() }).collect()
}

/// Whether somebody has the block device for exclusive use: the kernel then refuses to open it so once more. Opening it
/// changes nothing else (open(2), O_EXCL). One without a file in `/dev`, or without a medium, nobody can have.
fn is_claimed(path: &Path) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::BUSY) => Ok(true),
        Ok(_) | Err(Errno::NOENT | Errno::NXIO | Errno::NOMEDIUM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::fake::Fake;

    const BDF: &str = "0000:03:00.0";

    /// A disk `vda` with a partition, two partitions of a second one, and what is built on them.
    fn machine() -> Fake {
        let fake = Fake::new();
        fake.device(BDF, "0x010802", Some("nvme"), Some(3));
        let disk = format!("/sys/bus/pci/devices/{BDF}/virtio0/block/vda");
        for (name, folder, number) in [
            ("vda", disk.clone(), "254:0"),
            ("vda1", format!("{disk}/vda1"), "254:1"),
            ("vda2", format!("{disk}/vda2"), "254:2"),
            ("dm-0", "/sys/devices/virtual/block/dm-0".into(), "253:0"),
            ("sdb", "/sys/devices/other/block/sdb".into(), "8:16"),
        ] {
            fake.put(&format!("{folder}/dev"), number);
            fake.link(&format!("/sys/class/block/{name}"), &folder);
        }
        fake.put("/proc/self/mountinfo", "22 1 8:16 / / rw shared:1 - ext4 /dev/sdb rw\n");
        fake.put("/proc/swaps", "Filename Type Size Used Priority\n/dev/sdb partition 1 0 -2\n");
        fake
    }

    fn found(fake: &Fake) -> Vec<String> {
        let device = fake.host().sysfs().device(BDF.parse().unwrap()).unwrap();
        uses(fake.host(), &device).iter().map(Use::to_string).collect()
    }

    #[test]
    fn a_disk_that_nobody_uses_is_free() {
        let fake = machine();
        assert!(found(&fake).is_empty());
        let device = fake.host().sysfs().device(BDF.parse().unwrap()).unwrap();
        assert_eq!(disks(fake.host(), &device), ["vda", "vda1", "vda2"]);
    }

    #[test]
    fn a_mounted_partition_is_found_by_number_and_by_name() {
        let fake = machine();
        fake.put("/proc/self/mountinfo", "30 22 254:1 / /mnt/my\\040data rw - ext4 /dev/root rw\n");
        assert_eq!(found(&fake), ["/dev/vda1 is mounted at /mnt/my data"]);
        fake.put("/proc/self/mountinfo", "30 22 0:45 / /mnt rw - btrfs /dev/vda2 rw\n");
        assert_eq!(found(&fake), ["/dev/vda2 is mounted at /mnt"]);
    }

    #[test]
    fn swap_and_what_is_made_of_a_disk_are_found() {
        let fake = machine();
        fake.put("/sys/devices/virtual/block/dm-0/dm/name", "vg-home");
        fake.link(&format!("/sys/bus/pci/devices/{BDF}/virtio0/block/vda/vda1/holders/dm-0"), "/sys/class/block/dm-0");
        fake.put("/proc/self/mountinfo", "30 22 253:0 / /home rw - xfs /dev/mapper/vg-home rw\n");
        fake.put("/proc/swaps", "Filename Type Size Used Priority\n/dev/vda2 partition 1 0 -2\n");
        let expected =
            ["/dev/dm-0 (vg-home) is made of /dev/vda1", "/dev/dm-0 is mounted at /home", "/dev/vda2 is swap space"];
        assert_eq!(found(&fake), expected);
    }

    #[test]
    fn holders_that_go_in_a_circle_end() {
        let fake = machine();
        fake.link("/sys/devices/virtual/block/dm-0/holders/dm-0", "/sys/class/block/dm-0");
        fake.link(&format!("/sys/bus/pci/devices/{BDF}/virtio0/block/vda/holders/dm-0"), "/sys/class/block/dm-0");
        assert_eq!(found(&fake).len(), 2);
    }

    #[test]
    fn a_program_that_has_it_open_is_named() {
        let fake = machine();
        fake.put("/proc/77/comm", "qemu\n");
        fake.link_to("/proc/77/fd/9", "/dev/vda");
        assert_eq!(found(&fake), ["process 77 (qemu) has /dev/vda open"]);
    }

    #[test]
    fn unknown_mounts_are_no_reason_to_go_on() {
        let fake = machine();
        fs::remove_file(fake.host().path("/proc/self/mountinfo")).unwrap();
        assert!(found(&fake)[0].starts_with("unknown: /proc/self/mountinfo"));
    }

    #[test]
    fn paths_of_a_shared_namespace() {
        assert_eq!(multipath_head("nvme0c1n2").as_deref(), Some("nvme0n2"));
        for name in ["nvme0n1", "nvme0n1p1", "nvmecn", "nvme0c1n2p1", "sdc1n2", ""] {
            assert_eq!(multipath_head(name), None, "{name}");
        }
    }
}
