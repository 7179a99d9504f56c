//! The kernel's pools of huge pages, as sysfs and /proc tell of them.
//!
//! Readers take the root of the tree, `/` on a real machine. What is missing or malformed there is unknown, never an
//! error: these numbers explain, they do not decide.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::PageSize;

/// One pool of huge pages: one size, on one NUMA node or on all of them together. `None` is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugepageCount {
    /// Of what size.
    pub size: PageSize,
    /// On which NUMA node; `None` for the whole machine.
    pub node: Option<usize>,
    /// Pages in the pool (`nr_hugepages`).
    pub configured: Option<usize>,
    /// Pages in the pool that nobody has (`free_hugepages`).
    pub free: Option<usize>,
    /// Free pages that are promised to mappings already made (`resv_hugepages`). The kernel keeps this number for the
    /// whole machine only.
    pub reserved: Option<usize>,
}

impl HugepageCount {
    /// Free pages that are not promised to anybody, as far as is known.
    pub fn available(&self) -> Option<usize> {
        self.free.map(|free| free.saturating_sub(self.reserved.unwrap_or(0)))
    }
}

impl fmt::Display for HugepageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<usize>| n.map_or("unknown".to_owned(), |n| n.to_string());
        write!(f, "free {}", number(self.free))?;
        match self.reserved {
            None | Some(0) => {}
            Some(reserved) => write!(f, " ({reserved} of them promised to others)")?,
        }
        write!(f, ", configured {}", number(self.configured))
    }
}

/// The pool of `size` pages on `node`, or on all nodes together. [`PageSize::Ordinary`] has no pool: all unknown.
pub fn hugepages(root: &Path, size: PageSize, node: Option<usize>) -> HugepageCount {
    let folder = root.join(pool(size, node).trim_start_matches('/'));
    HugepageCount {
        size,
        node,
        configured: number(&folder.join("nr_hugepages")),
        free: number(&folder.join("free_hugepages")),
        reserved: number(&folder.join("resv_hugepages")),
    }
}

/// Every pool that the kernel has: each size for the whole machine, then for each NUMA node with memory.
pub fn all_hugepages(root: &Path) -> Vec<HugepageCount> {
    let nodes = nodes_with_memory(root);
    let places = std::iter::once(None).chain(nodes.into_iter().map(Some));
    let pools = places.flat_map(|node| PageSize::ALL.map(|size| hugepages(root, size, node)));
    let mut pools: Vec<_> = pools.filter(|pool| pool.configured.is_some()).collect();
    pools.sort_by_key(|pool| (pool.size, pool.node));
    pools
}

/// The kernel's default huge page size (`Hugepagesize` in /proc/meminfo); `None` if it has none that we use.
pub fn default_hugepage(root: &Path) -> Option<PageSize> {
    let bytes = meminfo(root, "Hugepagesize")?;
    PageSize::ALL.into_iter().find(|size| size.is_huge() && size.bytes() == bytes)
}

/// Where the kernel shows the pool of `size` pages on `node`, or on all nodes together.
fn pool(size: PageSize, node: Option<usize>) -> String {
    let folder = match node {
        None => "/sys/kernel/mm/hugepages".to_owned(),
        Some(node) => format!("/sys/devices/system/node/node{node}/hugepages"),
    };
    format!("{folder}/hugepages-{}kB", size.bytes() >> 10)
}

/// The command that lets the pool of `size` pages on `node`, or on all nodes together, have `pages` pages.
pub(super) fn mend(size: PageSize, node: Option<usize>, pages: usize) -> String {
    format!("echo {pages} > {}/nr_hugepages", pool(size, node))
}

/// The NUMA nodes that have memory, ascending; empty when the kernel does not say.
pub(super) fn nodes_with_memory(root: &Path) -> Vec<usize> {
    let list = fs::read_to_string(root.join("sys/devices/system/node/has_memory")).unwrap_or_default();
    parse_list(list.trim()).unwrap_or_default()
}

/// Bytes of memory that programs can have without swapping (`MemAvailable` in /proc/meminfo).
pub(super) fn available_bytes(root: &Path) -> Option<usize> {
    meminfo(root, "MemAvailable")
}

/// A list such as `0-1,3`. The kernel has 1024 nodes at most, so a larger number is malformed.
fn parse_list(list: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= 1024 {
            return None;
        }
        numbers.extend(first..=last);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Some(numbers)
}

/// A line of /proc/meminfo in bytes; the kernel writes kB and means KiB.
fn meminfo(root: &Path, key: &str) -> Option<usize> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    usize::from_str(value.trim().strip_suffix("kB")?.trim_end()).ok()?.checked_mul(1024)
}

fn number(file: &PathBuf) -> Option<usize> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    const POOL: &str = "sys/kernel/mm/hugepages/hugepages-2048kB";
    const NODE1_POOL: &str = "sys/devices/system/node/node1/hugepages/hugepages-1048576kB";

    #[test]
    fn counts_are_read_for_the_machine_and_for_a_node() {
        let root = tree(&[
            (&format!("{POOL}/nr_hugepages"), "10\n"),
            (&format!("{POOL}/free_hugepages"), "7\n"),
            (&format!("{POOL}/resv_hugepages"), "3\n"),
            (&format!("{NODE1_POOL}/nr_hugepages"), "2\n"),
            (&format!("{NODE1_POOL}/free_hugepages"), "1\n"),
            ("sys/devices/system/node/has_memory", "0-1\n"),
        ]);
        let machine = hugepages(root.path(), PageSize::Huge2M, None);
        assert_eq!((machine.configured, machine.free, machine.available()), (Some(10), Some(7), Some(4)));
        assert_eq!(machine.to_string(), "free 7 (3 of them promised to others), configured 10");
        let node = hugepages(root.path(), PageSize::Huge1G, Some(1));
        assert_eq!((node.configured, node.available(), node.reserved), (Some(2), Some(1), None));
        assert_eq!(all_hugepages(root.path()), [machine, node]);
    }

    #[test]
    fn what_is_missing_or_malformed_is_unknown() {
        let root = tree(&[
            (&format!("{POOL}/nr_hugepages"), "many"),
            (&format!("{POOL}/free_hugepages"), "99999999999999999999999"),
            (&format!("{POOL}/resv_hugepages"), "-1"),
            ("proc/meminfo", "Hugepagesize: lots kB\nMemAvailable: 18446744073709551615 kB\n"),
            ("sys/devices/system/node/has_memory", "0-4294967295\n"),
        ]);
        let pool = hugepages(root.path(), PageSize::Huge2M, None);
        assert_eq!((pool.configured, pool.free, pool.reserved, pool.available()), (None, None, None, None));
        assert_eq!(pool.to_string(), "free unknown, configured unknown");
        assert_eq!(hugepages(root.path(), PageSize::Huge1G, Some(7)).configured, None);
        assert_eq!(default_hugepage(root.path()), None);
        assert_eq!(available_bytes(root.path()), None);
        assert!(nodes_with_memory(root.path()).is_empty());
        assert!(all_hugepages(root.path()).is_empty());
        assert!(all_hugepages(Path::new("/nowhere/at/all")).is_empty());
    }

    #[test]
    fn more_promised_than_free_leaves_nothing() {
        let root = tree(&[(&format!("{POOL}/free_hugepages"), "2"), (&format!("{POOL}/resv_hugepages"), "5")]);
        assert_eq!(hugepages(root.path(), PageSize::Huge2M, None).available(), Some(0));
    }

    #[test]
    fn the_default_size_is_one_of_ours_or_unknown() {
        let size = |text| default_hugepage(tree(&[("proc/meminfo", text)]).path());
        assert_eq!(size("MemTotal: 1 kB\nHugepagesize:       2048 kB\n"), Some(PageSize::Huge2M));
        assert_eq!(size("Hugepagesize: 1048576 kB\n"), Some(PageSize::Huge1G));
        assert_eq!(size("Hugepagesize: 4 kB\n"), None);
        assert_eq!(size(""), None);
    }

    #[test]
    fn node_lists() {
        assert_eq!(parse_list("0-1,3"), Some(vec![0, 1, 3]));
        assert_eq!(parse_list("5"), Some(vec![5]));
        for text in ["", "1-", "2-1", "0,,1", "0-9999", "x"] {
            assert_eq!(parse_list(text), None, "{text}");
        }
    }
}
