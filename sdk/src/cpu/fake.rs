//! A machine made of files, to read topologies from.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::topology::Topology;

/// `sys` and `proc` folders in a temporary place.
pub(super) struct Tree(TempDir);

impl Tree {
    /// A machine that says nothing about itself.
    pub(super) fn empty() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// Two packages, each a NUMA node, of two cores with two threads each, numbered as Linux does on a PC: package 0
    /// has 0+4 and 1+5, package 1 has 2+6 and 3+7. Nothing is isolated, everything allowed.
    pub(super) fn two_packages() -> Self {
        let tree = Self::empty();
        for id in 0..8 {
            let (package, first) = (id % 4 / 2, id % 4);
            let topology = format!("sys/devices/system/cpu/cpu{id}/topology");
            tree.write(&format!("{topology}/physical_package_id"), format!("{package}\n"));
            tree.write(&format!("{topology}/core_cpus_list"), format!("{first},{}\n", first + 4));
        }
        for name in ["present", "online", "possible"] {
            tree.write(&format!("sys/devices/system/cpu/{name}"), "0-7\n");
        }
        tree.write("sys/devices/system/cpu/isolated", "\n");
        tree.write("sys/devices/system/cpu/nohz_full", "\n");
        tree.write("sys/devices/system/node/node0/cpulist", "0-1,4-5\n");
        tree.write("sys/devices/system/node/node1/cpulist", "2-3,6-7\n");
        tree.write("proc/self/status", "Name:\tworker\nCpus_allowed:\tff\nCpus_allowed_list:\t0-7\n");
        tree
    }

    /// Makes or replaces a file.
    pub(super) fn write(&self, path: &str, contents: impl AsRef<[u8]>) -> &Self {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
        self
    }

    /// Writes one of the core lists in `sys/devices/system/cpu`.
    pub(super) fn list(&self, name: &str, cores: &str) -> &Self {
        self.write(&format!("sys/devices/system/cpu/{name}"), format!("{cores}\n"))
    }

    /// Sets the affinity.
    pub(super) fn affinity(&self, cores: &str) -> &Self {
        self.write("proc/self/status", format!("Cpus_allowed_list:\t{cores}\n"))
    }

    /// Takes a file or folder away.
    pub(super) fn remove(&self, path: &str) -> &Self {
        let path = self.root().join(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        self
    }

    pub(super) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn read(&self) -> Topology {
        Topology::read_from(self.root())
    }
}
