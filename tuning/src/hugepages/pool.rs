//! Where a pool stands in the device tree, and where hugepages are mounted.

use spinwake::mem::{PageSize, default_hugepage};

use crate::bind::unescape;
use crate::host::Host;

/// The folder of the pool of `size` pages on `node`, or on all nodes together.
pub(super) fn folder(size: PageSize, node: Option<usize>) -> String {
    let name = format!("hugepages-{}kB", size.bytes() >> 10);
    match node {
        None => format!("/sys/kernel/mm/hugepages/{name}"),
        Some(node) => format!("/sys/devices/system/node/node{node}/hugepages/{name}"),
    }
}

/// Where a file system of hugepages is mounted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MountPoint {
    /// The folder.
    pub at: String,
    /// Bytes of its pages; `null` when the kernel does not say.
    pub page_bytes: Option<usize>,
}

/// Every mount of hugepages, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
pub(super) fn mounts(host: &Host) -> Vec<MountPoint> {
    let text = host.read("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let mut back = back.split(' ');
        if back.next()? != "hugetlbfs" {
            return None;
        }
        let options = back.nth(1).unwrap_or_default();
        let size = options.split(',').find_map(|option| option.strip_prefix("pagesize="));
        // It is shown as `2M` or `1024M`.
        let asked = size.and_then(|size| match size.strip_suffix('M') {
            Some(mib) => mib.parse::<usize>().ok()?.checked_mul(1 << 20),
            None => size.parse::<PageSize>().ok().map(PageSize::bytes),
        });
        let page_bytes =
            asked.or_else(|| default_hugepage(host.root()).map(PageSize::bytes).filter(|_| size.is_none()));
        Some(MountPoint { at: unescape(front.split(' ').nth(4)?), page_bytes })
    };
    text.lines().filter_map(mount).collect()
}
