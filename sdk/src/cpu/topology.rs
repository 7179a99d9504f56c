//! Which cores there are, how they hang together, and which of them are quiet.

use std::fs;
use std::path::Path;

use super::cpuset::{Cpuset, read_list, read_text};
use super::set::CpuSet;
use crate::sys::sched;

/// The machine's cores at one moment, as the kernel describes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    cores: Vec<Core>,
    online: Option<CpuSet>,
    isolated: Option<CpuSet>,
    nohz_full: Option<CpuSet>,
    allowed: Option<CpuSet>,
}

/// One core: a logical processor, what the kernel calls a CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// Its number.
    pub id: usize,
    /// Its package (socket); unknown for an offline core.
    pub package: Option<usize>,
    /// The cores that share its execution units (SMT), itself among them; unknown for an offline core.
    pub siblings: Option<CpuSet>,
    /// Its NUMA node; unknown for an offline core and on a kernel without NUMA.
    pub node: Option<usize>,
}

impl Topology {
    /// This machine, and where this process may run on it.
    ///
    /// What a process may use is what its main thread's affinity has, and the isolated cores within its cgroup: the
    /// kernel leaves those out of the affinity it gives to everybody, but lets a thread ask for them.
    pub fn read() -> Self {
        let affinity = sched::affinity(sched::process_id()).ok();
        Self::assemble(Path::new("/"), affinity.map(|ids| ids.into_iter().collect()))
    }

    /// The machine described by the `sys` and `proc` folders under `root`. The affinity is then that of
    /// `proc/self/status`.
    pub fn read_from(root: &Path) -> Self {
        Self::assemble(root, affinity_in_status(root))
    }

    fn assemble(root: &Path, affinity: Option<CpuSet>) -> Self {
        let cpu_dir = root.join("sys/devices/system/cpu");
        let list = |name: &str| read_list(&cpu_dir.join(name));
        let cpuset = Cpuset::read(root);
        let online = list("online");
        let isolated = match list("isolated") {
            None if cpuset.isolated.is_empty() => None,
            boot => Some(boot.unwrap_or_default().union(&cpuset.isolated)),
        };
        let allowed = affinity.map(|affinity| {
            let askable = isolated.clone().unwrap_or_default().intersection(online.as_ref().unwrap_or(&affinity));
            affinity.union(&cpuset.effective.map_or(askable.clone(), |effective| effective.intersection(&askable)))
        });
        let present = [list("present"), numbered(&cpu_dir, "cpu"), online.clone(), allowed.clone()];
        let present = present.into_iter().flatten().find(|set| !set.is_empty()).unwrap_or_default();
        let cores = read_cores(root, &cpu_dir, &present);
        Self { cores, online, isolated, nohz_full: list("nohz_full"), allowed }
    }

    /// The cores that exist, by id.
    pub fn cores(&self) -> &[Core] {
        &self.cores
    }

    /// Core `id`, if it exists.
    pub fn core(&self, id: usize) -> Option<&Core> {
        self.cores.binary_search_by_key(&id, |core| core.id).ok().map(|index| &self.cores[index])
    }

    /// The ids of the cores that exist.
    pub fn present(&self) -> CpuSet {
        self.cores.iter().map(|core| core.id).collect()
    }

    /// The cores that are online.
    pub fn online(&self) -> Option<&CpuSet> {
        self.online.as_ref()
    }

    /// The cores that the scheduler leaves alone: booted with `isolcpus`, or in an isolated cpuset partition.
    pub fn isolated(&self) -> Option<&CpuSet> {
        self.isolated.as_ref()
    }

    /// The cores whose timer tick stops while one task runs there. Unknown on a kernel built without it.
    pub fn nohz_full(&self) -> Option<&CpuSet> {
        self.nohz_full.as_ref()
    }

    /// The cores on which threads of this process may ask to run.
    pub fn allowed(&self) -> Option<&CpuSet> {
        self.allowed.as_ref()
    }

    /// The cores of NUMA node `node` that are online.
    pub fn node_cores(&self, node: usize) -> CpuSet {
        self.cores.iter().filter(|core| core.node == Some(node)).map(|core| core.id).collect()
    }

    /// The NUMA nodes that have cores online, ascending.
    pub fn nodes(&self) -> Vec<usize> {
        distinct(self.cores.iter().filter_map(|core| core.node))
    }

    /// The packages (sockets) that have cores online, ascending.
    pub fn packages(&self) -> Vec<usize> {
        distinct(self.cores.iter().filter_map(|core| core.package))
    }
}

fn read_cores(root: &Path, cpu_dir: &Path, present: &CpuSet) -> Vec<Core> {
    let node_dir = root.join("sys/devices/system/node");
    let nodes: Vec<(usize, CpuSet)> = numbered(&node_dir, "node")
        .unwrap_or_default()
        .iter()
        .filter_map(|node| Some((node, read_list(&node_dir.join(format!("node{node}/cpulist")))?)))
        .collect();
    let core = |id: usize| {
        let topology = cpu_dir.join(format!("cpu{id}/topology"));
        // The first name is the current one, the second that of kernels before 5.2 (admin-guide/cputopology).
        let siblings = ["core_cpus_list", "thread_siblings_list"]
            .iter()
            .find_map(|name| read_list(&topology.join(name)))
            .filter(|siblings| siblings.contains(id))
            .map(|siblings| siblings.intersection(present));
        Core {
            id,
            // -1 where the platform does not say.
            package: read_text(&topology.join("physical_package_id")).and_then(|text| text.trim().parse().ok()),
            siblings,
            node: nodes.iter().find(|(_, cores)| cores.contains(id)).map(|(node, _)| *node),
        }
    };
    present.iter().map(core).collect()
}

/// The numbers of the entries of `dir` that are called `prefix` and a number.
fn numbered(dir: &Path, prefix: &str) -> Option<CpuSet> {
    let names = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.file_name());
    let number = |name: std::ffi::OsString| name.to_str()?.strip_prefix(prefix)?.parse().ok();
    Some(names.filter_map(number).filter(|&id: &usize| id <= CpuSet::MAX_ID).collect())
}

fn affinity_in_status(root: &Path) -> Option<CpuSet> {
    let status = read_text(&root.join("proc/self/status"))?;
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.parse().ok()
}

fn distinct(numbers: impl Iterator<Item = usize>) -> Vec<usize> {
    numbers.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpu::fake::Tree;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn a_whole_machine_is_read() {
        let tree = Tree::two_packages();
        tree.list("isolated", "2-3,6-7").list("nohz_full", "3,7");
        let topology = tree.read();
        assert_eq!(topology.present(), set("0-7"));
        assert_eq!((topology.packages(), topology.nodes()), (vec![0, 1], vec![0, 1]));
        assert_eq!(topology.node_cores(1), set("2-3,6-7"));
        assert_eq!(
            topology.core(6),
            Some(&Core { id: 6, package: Some(1), siblings: Some(set("2,6")), node: Some(1) })
        );
        assert_eq!(topology.core(8), None);
        assert_eq!(topology.isolated(), Some(&set("2-3,6-7")));
        assert_eq!(topology.nohz_full(), Some(&set("3,7")));
    }

    #[test]
    fn an_offline_core_exists_and_is_otherwise_unknown() {
        let tree = Tree::two_packages();
        tree.list("online", "0-4,6-7").remove("sys/devices/system/cpu/cpu5/topology");
        tree.write("sys/devices/system/node/node0/cpulist", "0-1,4\n");
        let topology = tree.read();
        assert_eq!(topology.core(5), Some(&Core { id: 5, package: None, siblings: None, node: None }));
        assert_eq!(topology.online(), Some(&set("0-4,6-7")));
    }

    #[test]
    fn ids_above_1024_are_read() {
        let tree = Tree::empty();
        tree.list("present", "0-1,1024,8191")
            .list("online", "0-1,1024,8191")
            .list("isolated", "8191")
            .affinity("0-1,1024");
        tree.write("sys/devices/system/cpu/cpu8191/topology/thread_siblings_list", "1024,8191\n");
        let topology = tree.read();
        assert_eq!(topology.present(), set("0-1,1024,8191"));
        assert_eq!(topology.core(8191).unwrap().siblings, Some(set("1024,8191")));
        assert_eq!(topology.allowed(), Some(&set("0-1,1024,8191")));
    }

    /// The kernel's default affinity has no isolated cores; a cgroup may keep them away all the same.
    #[test]
    fn isolated_cores_may_be_asked_for_within_the_cgroup() {
        let tree = Tree::two_packages();
        tree.list("isolated", "2-3").affinity("0-1,4-7");
        assert_eq!(tree.read().allowed(), Some(&set("0-7")), "no cgroup says otherwise");
        tree.write("proc/self/cgroup", "0::/app.slice/fwd.service\n");
        tree.write("sys/fs/cgroup/app.slice/cpuset.cpus.effective", "0-2,4-7\n");
        assert_eq!(tree.read().allowed(), Some(&set("0-2,4-7")), "the nearest group with the controller");
        tree.write("proc/self/cgroup", "5:cpu,cpuset:/box\n0::/app.slice/fwd.service\n");
        tree.write("sys/fs/cgroup/cpuset/box/cpuset.effective_cpus", "0-1,3-7\n");
        assert_eq!(tree.read().allowed(), Some(&set("0-1,3-7")), "a version 1 cpuset comes first");
        tree.write("proc/self/cgroup", "0::/../elsewhere\n");
        assert_eq!(tree.read().allowed(), Some(&set("0-7")), "a group out of sight says nothing");
    }

    #[test]
    fn taskset_limits_what_is_not_isolated() {
        let tree = Tree::two_packages();
        tree.list("isolated", "3").affinity("0-1");
        assert_eq!(tree.read().allowed(), Some(&set("0-1,3")));
        tree.list("online", "0-2,4-7");
        assert_eq!(tree.read().allowed(), Some(&set("0-1")));
    }

    #[test]
    fn isolated_partitions_are_isolated() {
        let tree = Tree::two_packages();
        tree.write("proc/self/cgroup", "0::/fwd/worker\n").affinity("6-7");
        tree.write("sys/fs/cgroup/fwd/cpuset.cpus.effective", "6-7\n");
        tree.write("sys/fs/cgroup/fwd/worker/cpuset.cpus.partition", "member\n");
        for (kind, isolated) in [("isolated", "6-7"), ("isolated invalid (Cpu list empty)", ""), ("root", "")] {
            tree.write("sys/fs/cgroup/fwd/cpuset.cpus.partition", format!("{kind}\n"));
            assert_eq!(tree.read().isolated(), Some(&set(isolated)), "{kind}");
        }
        tree.write("sys/fs/cgroup/cpuset.cpus.isolated", "2-3\n");
        let topology = tree.read();
        assert_eq!(topology.isolated(), Some(&set("2-3")));
        assert_eq!(topology.allowed(), Some(&set("6-7")), "another group's partition is not ours to use");
        tree.remove("sys/devices/system/cpu/isolated");
        assert_eq!(tree.read().isolated(), Some(&set("2-3")));
    }

    #[test]
    fn what_is_missing_stays_unknown() {
        assert_eq!(Tree::empty().read(), Topology::default());
        assert_eq!(Topology::read_from(Path::new("/nonexistent")), Topology::default());
        let tree = Tree::two_packages();
        for name in ["present", "possible", "online", "isolated", "nohz_full"] {
            tree.remove(&format!("sys/devices/system/cpu/{name}"));
        }
        tree.remove("sys/devices/system/node").remove("proc/self/status");
        let topology = tree.read();
        assert_eq!(topology.present(), set("0-7"), "the folders are there");
        assert_eq!((topology.online(), topology.isolated(), topology.nohz_full()), (None, None, None));
        assert_eq!((topology.allowed(), topology.nodes()), (None, vec![]));
    }

    #[test]
    fn garbage_is_unknown() {
        let tree = Tree::two_packages();
        tree.list("online", "0-x").list("isolated", "7-3").list("nohz_full", "(null)");
        tree.write("sys/devices/system/cpu/cpu1/topology/physical_package_id", "-1\n");
        tree.write("sys/devices/system/cpu/cpu2/topology/core_cpus_list", "5\n");
        tree.write("sys/devices/system/cpu/cpu3/topology/core_cpus_list", [0xff, 0xfe, 0]);
        tree.write("sys/devices/system/cpu/cpu4/topology/core_cpus_list", "0,4,999\n");
        tree.write("sys/devices/system/node/node1/cpulist", "all of them\n");
        let topology = tree.read();
        assert_eq!((topology.online(), topology.isolated(), topology.nohz_full()), (None, None, Some(&CpuSet::new())));
        assert_eq!(topology.core(1).unwrap().package, None);
        assert_eq!(topology.core(2).unwrap().siblings, None, "siblings without itself");
        assert_eq!(topology.core(3).unwrap().siblings, None);
        assert_eq!(topology.core(4).unwrap().siblings, Some(set("0,4")));
        assert_eq!((topology.core(2).unwrap().node, topology.core(0).unwrap().node), (None, Some(0)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_contents_of_any_file_panic(
            file in 0usize..9,
            text in prop_oneof!["[-0-9,:/\n]{0,20}", "\\PC{0,20}", Just("0-65535\n".to_owned())],
        ) {
            let files = [
                "sys/devices/system/cpu/online",
                "sys/devices/system/cpu/isolated",
                "sys/devices/system/cpu/cpu1/topology/core_cpus_list",
                "sys/devices/system/cpu/cpu1/topology/physical_package_id",
                "sys/devices/system/node/node1/cpulist",
                "sys/devices/system/node/node99999999999999999999/cpulist",
                "proc/self/status",
                "proc/self/cgroup",
                "sys/fs/cgroup/cpuset.cpus.effective",
            ];
            let tree = Tree::two_packages();
            tree.write(files[file], text);
            prop_assert_eq!(tree.read().present(), set("0-7"));
        }
    }

    #[test]
    fn this_machine_makes_sense() {
        let topology = Topology::read();
        assert!(!topology.cores().is_empty());
        let allowed = topology.allowed().unwrap();
        assert!(!allowed.is_empty() && allowed.difference(&topology.present()).is_empty(), "{topology:?}");
        let mine: CpuSet = sched::affinity(0).unwrap().into_iter().collect();
        assert!(mine.difference(allowed).is_empty(), "{mine} is not within {allowed}");
    }
}
