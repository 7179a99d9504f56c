//! The cgroup this process is in, as far as it says where the process may run.
//!
//! Kernel documentation: admin-guide/cgroup-v2 ("Cpuset Interface Files") and admin-guide/cgroup-v1/cpusets.

use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use super::set::CpuSet;

/// What the cgroup says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cpuset {
    /// Cores its tasks may run on.
    pub(super) effective: Option<CpuSet>,
    /// Cores in isolated partitions, as far as they are visible from here.
    pub(super) isolated: CpuSet,
}

impl Cpuset {
    pub(super) fn read(root: &Path) -> Self {
        let memberships = read_text(&root.join("proc/self/cgroup")).unwrap_or_default();
        let version_1 = memberships.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|name| name == "cpuset").then_some(path)
        });
        match (version_1, memberships.lines().find_map(|line| line.strip_prefix("0::"))) {
            (Some(path), _) => Self::read_version_1(&root.join("sys/fs/cgroup/cpuset"), path),
            (None, Some(path)) => Self::read_version_2(&root.join("sys/fs/cgroup"), path),
            (None, None) => Self::default(),
        }
    }

    fn read_version_1(mount: &Path, path: &str) -> Self {
        let effective = ancestry(mount, path).iter().find_map(|dir| {
            read_list(&dir.join("cpuset.effective_cpus")).or_else(|| read_list(&dir.join("cpuset.cpus")))
        });
        Self { effective, isolated: CpuSet::new() }
    }

    fn read_version_2(mount: &Path, path: &str) -> Self {
        let ancestry = ancestry(mount, path);
        // A group without the controller runs where the nearest one above it with the controller may.
        let effective = ancestry.iter().find_map(|dir| read_list(&dir.join("cpuset.cpus.effective")));
        // Only the root group lists the cores of every isolated partition (since Linux 6.7); from inside a container it
        // cannot be seen, but our own partition can. A partition that could not be formed reads "isolated invalid (why)".
        let mut isolated = read_list(&mount.join("cpuset.cpus.isolated")).unwrap_or_default();
        let partition = |dir: &PathBuf| read_text(&dir.join("cpuset.cpus.partition"));
        let own = ancestry.iter().find(|dir| partition(dir).is_some_and(|kind| kind.trim() != "member"));
        if let Some(dir) = own.filter(|dir| partition(dir).is_some_and(|kind| kind.trim() == "isolated")) {
            isolated = isolated.union(&read_list(&dir.join("cpuset.cpus.effective")).unwrap_or_default());
        }
        Self { effective, isolated }
    }
}

/// The group at `path` under `mount` and those above it, nearest first. A path that leaves the mount (a group outside
/// of our cgroup namespace reads `/../other`) has none.
fn ancestry(mount: &Path, path: &str) -> Vec<PathBuf> {
    let path = Path::new(path.trim_start_matches('/'));
    if path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Vec::new();
    }
    path.ancestors().map(|part| mount.join(part)).collect()
}

/// The text of a small file of the kernel's; `None` if there is none, or it is no text.
pub(super) fn read_text(path: &Path) -> Option<String> {
    // A list of every second of 8192 cores has 20 kB.
    const SIZE_MAX: u64 = 256 << 10;
    let mut text = String::new();
    fs::File::open(path).ok()?.take(SIZE_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The cores listed in a file of the kernel's.
pub(super) fn read_list(path: &Path) -> Option<CpuSet> {
    let text = read_text(path)?;
    // Some kernels print an absent mask that way (seen in `nohz_full`).
    if text.trim() == "(null)" { Some(CpuSet::new()) } else { text.parse().ok() }
}
