//! A machine made of files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use spinwake::cpu::CpuSet;
use tempfile::TempDir;

use super::item::{Item, State};
use super::{CheckReport, Environment, examine};
use crate::host::Host;
use crate::placement::Placement;

/// The card that every tree has.
pub(crate) const CARD: &str = "0000:01:00.0";

/// `/proc`, `/sys`, `/dev` and so on in a temporary place.
pub(crate) struct Tree(TempDir);

impl Tree {
    /// A machine that says nothing about itself.
    pub(crate) fn empty() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// A stock bare-metal machine with `cores` logical ones, `threads` to a physical one, over `nodes` NUMA nodes, seen by
    /// root. Siblings are numbered as on a PC: 0 and `cores / 2`. One igb at [`CARD`], on the last node, with the kernel.
    pub(crate) fn cores(cores: usize, threads: usize, nodes: usize) -> Self {
        let tree = Self::empty();
        let all = CpuSet::from_iter(0..cores).to_string();
        tree.topology(cores, threads, nodes).power(cores).processes(&all).kernel(&all).devices(nodes - 1);
        tree
    }

    /// The same machine after everything was done for workers on `workers`.
    pub(crate) fn tuned(cores: usize, threads: usize, nodes: usize, workers: &str) -> Self {
        let tree = Self::cores(cores, threads, nodes);
        let all = CpuSet::from_iter(0..cores);
        let set: CpuSet = workers.parse().unwrap();
        let house = all.difference(&set).to_string();
        let mask = mask(&all.difference(&set), cores);
        tree.set(
            "/proc/cmdline",
            format!("quiet isolcpus={workers} nohz_full={workers} rcu_nocbs={workers} intel_iommu=on iommu=pt"),
        );
        for file in ["isolated", "nohz_full"] {
            tree.set(format!("/sys/devices/system/cpu/{file}"), workers);
        }
        for pid in [1, 2, 3, 400] {
            tree.allow(pid, &house);
        }
        for (index, core) in set.iter().enumerate() {
            tree.task(10_000 + index, &format!("rcuop/{core}"), 0x0020_8040, &house);
            tree.set(format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"), "performance");
            tree.set(format!("/sys/devices/system/cpu/cpu{core}/cpuidle/state1/disable"), "1");
        }
        for (path, text) in [
            ("/proc/irq/default_smp_affinity", mask.as_str()),
            ("/sys/devices/virtual/workqueue/cpumask", &mask),
            ("/proc/irq/30/smp_affinity_list", &house),
            ("/proc/irq/30/effective_affinity_list", "0"),
            ("/proc/sys/kernel/watchdog_cpumask", &house),
            ("/proc/sys/kernel/numa_balancing", "0"),
            ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
            ("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "64"),
            ("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "64"),
            ("/proc/swaps", "Filename\t\t\t\tType\t\tSize\n"),
            ("/sys/devices/system/cpu/intel_pstate/no_turbo", "1"),
        ] {
            tree.set(path, text);
        }
        for node in 0..nodes {
            for file in ["nr_hugepages", "free_hugepages"] {
                tree.set(
                    format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/{file}"),
                    (64 / nodes).to_string(),
                );
            }
        }
        tree.iommu().vfio().bind(CARD, "vfio-pci");
        tree
    }

    pub(crate) fn host(&self) -> Host {
        Host::at(self.0.path())
    }

    /// Makes or replaces a file.
    pub(crate) fn set(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> &Self {
        let path = self.host().path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
        self
    }

    /// Makes a folder.
    pub(crate) fn folder(&self, path: &str) -> &Self {
        fs::create_dir_all(self.host().path(path)).unwrap();
        self
    }

    /// Makes or replaces a symbolic link; both paths are absolute in this machine.
    pub(crate) fn link(&self, path: &str, target: &str) -> &Self {
        let (path, target) = (self.host().path(path), self.host().path(target));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
        self
    }

    /// Takes a file or folder away.
    pub(crate) fn remove(&self, path: &str) -> &Self {
        let path = self.host().path(path);
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        self
    }

    /// Every file, links left out.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() => walk(&entry.path(), files),
                    kind if kind.is_file() => files.push(entry.path()),
                    _ => {}
                }
            }
        }
        let mut files = Vec::new();
        walk(self.0.path(), &mut files);
        files.sort();
        files
    }

    /// A thread of its own process.
    pub(crate) fn task(&self, pid: usize, name: &str, flags: u32, allowed: &str) -> &Self {
        let stat = format!("{pid} ({name}) S 0 0 0 0 -1 {flags} 0 0 0 0\n");
        self.set(format!("/proc/{pid}/task/{pid}/stat"), stat);
        self.allow(pid, allowed)
    }

    /// Where a process may run.
    pub(crate) fn allow(&self, pid: usize, cores: &str) -> &Self {
        self.set(format!("/proc/{pid}/task/{pid}/status"), format!("Name:\tx\nCpus_allowed_list:\t{cores}\n"))
    }

    /// Who looks: an ordinary user with these limits, or root.
    pub(crate) fn user(&self, user: u32, capabilities: u64, memlock: &str) -> &Self {
        let cores = self.host().read("/sys/devices/system/cpu/online").unwrap_or_default();
        self.set(
            "/proc/self/status",
            format!(
                "Name:\tcheck\nUid:\t{user}\t{user}\t{user}\t{user}\nGid:\t{user}\t{user}\t{user}\t{user}\nGroups:\t{user}\n\
                 CapEff:\t{capabilities:016x}\nCpus_allowed_list:\t{cores}\n"
            ),
        );
        self.set("/proc/self/uid_map", "         0          0 4294967295\n");
        self.set(
            "/proc/self/limits",
            format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max locked memory         {memlock:<20} {memlock:<20} bytes     \n\
                 Max realtime priority     0                    0                    \n"
            ),
        )
    }

    /// Gives every PCI device an IOMMU group of its own.
    pub(crate) fn iommu(&self) -> &Self {
        self.folder("/sys/class/iommu/dmar0");
        for (number, bdf) in self.host().names("/sys/bus/pci/devices").into_iter().enumerate() {
            self.group(&bdf, number);
        }
        self
    }

    /// Puts a device into an IOMMU group.
    pub(crate) fn group(&self, bdf: &str, number: usize) -> &Self {
        let group = format!("/sys/kernel/iommu_groups/{number}");
        self.set(format!("{group}/type"), "identity\n");
        self.link(&format!("{group}/devices/{bdf}"), &format!("/sys/bus/pci/devices/{bdf}"));
        self.link(&format!("/sys/bus/pci/devices/{bdf}/iommu_group"), &group);
        self.set(format!("/dev/vfio/{number}"), "")
    }

    /// Loads VFIO's modules.
    pub(crate) fn vfio(&self) -> &Self {
        self.folder("/sys/module/vfio_iommu_type1").folder("/sys/bus/pci/drivers/vfio-pci").set("/dev/vfio/vfio", "")
    }

    /// Gives a device to a driver.
    pub(crate) fn bind(&self, bdf: &str, driver: &str) -> &Self {
        self.folder(&format!("/sys/bus/pci/drivers/{driver}"));
        self.link(&format!("/sys/bus/pci/devices/{bdf}/driver"), &format!("/sys/bus/pci/drivers/{driver}"))
    }

    pub(crate) fn check(&self) -> CheckReport {
        examine(&self.host(), &Environment::new(), None)
    }

    pub(crate) fn check_with(&self, environment: &[(&str, &str)], plan: Option<&Placement>) -> CheckReport {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        examine(&self.host(), &environment, plan)
    }

    /// One item of the check.
    pub(crate) fn item(&self, id: &str) -> Item {
        item(&self.check(), id)
    }

    pub(crate) fn state(&self, id: &str) -> State {
        self.item(id).state
    }

    fn topology(&self, cores: usize, threads: usize, nodes: usize) -> &Self {
        let all = CpuSet::from_iter(0..cores).to_string();
        let physical = cores / threads;
        let cpu = "/sys/devices/system/cpu";
        for file in ["online", "present", "possible"] {
            self.set(format!("{cpu}/{file}"), &all);
        }
        self.set(format!("{cpu}/isolated"), "\n").set(format!("{cpu}/nohz_full"), "\n");
        let node_of = |core: usize| core % physical * nodes / physical;
        for core in 0..cores {
            let siblings: Vec<_> =
                (0..threads).map(|thread| (core % physical + thread * physical).to_string()).collect();
            self.set(format!("{cpu}/cpu{core}/topology/core_cpus_list"), siblings.join(","));
            self.set(format!("{cpu}/cpu{core}/topology/physical_package_id"), node_of(core).to_string());
        }
        let list = CpuSet::from_iter(0..nodes).to_string();
        self.set("/sys/devices/system/node/online", &list).set("/sys/devices/system/node/has_memory", &list);
        for node in 0..nodes {
            let own: CpuSet = (0..cores).filter(|&core| node_of(core) == node).collect();
            let folder = format!("/sys/devices/system/node/node{node}");
            self.set(format!("{folder}/cpulist"), own.to_string());
            let distances: Vec<_> = (0..nodes).map(|other| if other == node { "10" } else { "21" }).collect();
            self.set(format!("{folder}/distance"), distances.join(" "));
            for file in ["nr_hugepages", "free_hugepages"] {
                self.set(format!("{folder}/hugepages/hugepages-2048kB/{file}"), "0");
            }
        }
        self
    }

    fn power(&self, cores: usize) -> &Self {
        for core in 0..cores {
            let cpu = format!("/sys/devices/system/cpu/cpu{core}");
            self.set(format!("{cpu}/cpufreq/scaling_governor"), "schedutil\n");
            for (state, name, latency) in [(0, "POLL", 0), (1, "C6", 133)] {
                let folder = format!("{cpu}/cpuidle/state{state}");
                self.set(format!("{folder}/name"), name).set(format!("{folder}/latency"), latency.to_string());
                self.set(format!("{folder}/disable"), "0");
            }
        }
        self.set("/sys/devices/system/cpu/cpuidle/current_driver", "intel_idle\n");
        self.set("/sys/devices/system/cpu/cpuidle/available_governors", "menu teo \n");
        self.set("/sys/devices/system/cpu/intel_pstate/no_turbo", "0\n");
        self.set("/dev/cpu_dma_latency", 2_000_000_000_u32.to_ne_bytes())
    }

    fn processes(&self, all: &str) -> &Self {
        self.task(1, "systemd", 0x0040_0100, all).task(2, "kthreadd", 0x0020_8040, all);
        self.task(3, "rcu_preempt", 0x0020_8040, all).task(400, "sshd", 0x0040_0100, all);
        self.task(14, "ksoftirqd/1", 0x0420_8040, "1").task(15, "kworker/u4:0-events_unbound", 0x0420_8060, all);
        self.user(0, u64::MAX >> 23, "8388608")
    }

    fn kernel(&self, all: &str) -> &Self {
        let cores: CpuSet = all.parse().unwrap();
        let mask = mask(&cores, cores.len());
        for (path, text) in [
            ("/etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n"),
            ("/proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz root=/dev/sda1 quiet"),
            ("/proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu tsc constant_tsc nonstop_tsc\n"),
            ("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 999 0 -2\n"),
            ("/proc/meminfo", "MemTotal: 16000000 kB\nHugepagesize: 2048 kB\n"),
            ("/proc/self/cgroup", "0::/user.slice/user-0.slice\n"),
            ("/proc/sys/kernel/ostype", "Linux\n"),
            ("/proc/sys/kernel/osrelease", "6.12.1\n"),
            ("/proc/sys/kernel/watchdog", "1\n"),
            ("/proc/sys/kernel/nmi_watchdog", "1\n"),
            ("/proc/sys/kernel/soft_watchdog", "1\n"),
            ("/proc/sys/kernel/watchdog_cpumask", all),
            ("/proc/sys/kernel/timer_migration", "1\n"),
            ("/proc/sys/kernel/numa_balancing", "1\n"),
            ("/proc/irq/default_smp_affinity", &mask),
            ("/proc/irq/30/smp_affinity_list", all),
            ("/proc/irq/30/effective_affinity_list", "1\n"),
            ("/sys/devices/virtual/workqueue/cpumask", &mask),
            ("/sys/devices/system/cpu/vulnerabilities/meltdown", "Not affected\n"),
            ("/sys/devices/system/cpu/vulnerabilities/spectre_v1", "Mitigation: usercopy/swapgs barriers\n"),
            ("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
            ("/sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet acpi_pm \n"),
            ("/sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n"),
            ("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n"),
            ("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0\n"),
            ("/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "0\n"),
            (
                "/lib/modules/6.12.1/modules.dep",
                "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n",
            ),
            ("/sys/firmware/acpi/tables/DMAR", "DMAR"),
        ] {
            self.set(path, text);
        }
        let times = cores.iter().map(|core| format!("cpu{core} 10 0 10 1000 0 0 1 0 0 0\n"));
        self.set("/proc/stat", format!("cpu  20 0 20 2000 0 0 2 0 0 0\n{}", times.collect::<String>()));
        self.folder("/proc/irq/30/nvme0q1").folder("/sys/module/kvm")
    }

    fn devices(&self, node: usize) -> &Self {
        let card = format!("/sys/bus/pci/devices/{CARD}");
        self.set(format!("{card}/vendor"), "0x8086\n").set(format!("{card}/device"), "0x10c9\n");
        self.set(format!("{card}/class"), "0x020000\n").set(format!("{card}/numa_node"), format!("{node}\n"));
        self.set(format!("{card}/net/eth0/flags"), "0x1002\n");
        self.bind(CARD, "igb")
    }
}

pub(crate) fn item(report: &CheckReport, id: &str) -> Item {
    let found = report.items.iter().find(|item| item.id == id);
    found
        .unwrap_or_else(|| panic!("no {id} in {:?}", report.items.iter().map(|item| &item.id).collect::<Vec<_>>()))
        .clone()
}

/// A set as /proc/irq/default_smp_affinity shows it, for that many cores.
fn mask(cores: &CpuSet, of: usize) -> String {
    let group =
        |index: usize| (0..32).filter(|bit| cores.contains(index * 32 + bit)).fold(0u32, |word, bit| word | 1 << bit);
    let groups: Vec<_> = (0..of.div_ceil(32)).rev().map(|index| format!("{:08x}", group(index))).collect();
    groups.join(",")
}
