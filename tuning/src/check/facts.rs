//! What several items are judged by, read once.

use std::collections::BTreeMap;

use spinwake::cpu::{CpuSet, Topology};
use spinwake::pci::PciDevice;

use super::boot::BootWords;
use super::identity::Identity;
use super::item::Remedy;
use super::seen::{self, Unseen};
use super::tasks::{self, Task};
use super::workers::{Origin, Workers};
use crate::boot;
use crate::host::Host;
use crate::placement::Placement;
use crate::profile::{Profile, Roles};

/// The environment variables of a process.
pub type Environment = BTreeMap<String, String>;

/// A machine, and who looks at it.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) host: &'a Host,
    pub(super) environment: &'a Environment,
    pub(super) topology: Topology,
    pub(super) boot: Result<BootWords, Unseen>,
    pub(super) tasks: Vec<Task>,
    /// Every PCI device, or why they cannot be listed.
    pub(super) devices: Result<Vec<PciDevice>, Unseen>,
    pub(super) identity: Result<Identity, Unseen>,
    /// The name of the hypervisor, `None` on bare metal.
    pub(super) hypervisor: Result<Option<String>, Unseen>,
    cpu_flags: Result<Vec<String>, Unseen>,
    workers: Workers,
}

impl<'a> Facts<'a> {
    pub(super) fn read(host: &'a Host, environment: &'a Environment, plan: Option<&Placement>) -> Self {
        let topology = host.topology();
        let cpu_flags = cpu_flags(host);
        Self {
            environment,
            boot: BootWords::read(host),
            tasks: Task::all(host),
            devices: host.sysfs().devices().map_err(|error| Unseen::because(error.to_string())),
            identity: Identity::read(host),
            hypervisor: cpu_flags.clone().map(|flags| hypervisor(host, &flags)),
            cpu_flags,
            workers: Workers::find(&topology, plan),
            topology,
            host,
        }
    }

    /// The cores that workers run on or would, and never none.
    pub(super) fn workers(&self) -> Result<&CpuSet, Unseen> {
        if !self.workers.cores.is_empty() {
            return Ok(&self.workers.cores);
        }
        Err(Unseen::because(match self.online() {
            Ok(online) if online.len() == 1 => "this machine has one core, and so none for a worker alone",
            _ => "which cores there are is not known, so none can be judged",
        }))
    }

    pub(super) fn origin(&self) -> Origin {
        self.workers.origin
    }

    pub(super) fn online(&self) -> Result<&CpuSet, Unseen> {
        const ONLINE: &str = "/sys/devices/system/cpu/online";
        self.topology.online().filter(|online| !online.is_empty()).ok_or_else(|| whatever_ails(self.host, ONLINE))
    }

    pub(super) fn isolated(&self) -> Result<CpuSet, Unseen> {
        const ISOLATED: &str = "/sys/devices/system/cpu/isolated";
        let isolated = self.topology.isolated().ok_or_else(|| whatever_ails(self.host, ISOLATED))?;
        Ok(isolated.intersection(self.online()?))
    }

    /// The cores that are left to everything else.
    pub(super) fn housekeeping(&self) -> CpuSet {
        self.topology.online().map(|online| online.difference(&self.workers.cores)).unwrap_or_default()
    }

    /// The flags of the processor, as /proc/cpuinfo names them.
    pub(super) fn has_cpu_flag(&self, flag: &str) -> Result<bool, Unseen> {
        self.cpu_flags.as_ref().map(|flags| flags.iter().any(|name| name == flag)).map_err(Clone::clone)
    }

    /// The network devices among the PCI devices.
    pub(super) fn network_devices(&self) -> Result<Vec<&PciDevice>, Unseen> {
        let devices = self.devices.as_ref().map_err(Clone::clone)?;
        Ok(devices.iter().filter(|device| device.class().is_some_and(|class| class.is_network())).collect())
    }

    /// The devices that VFIO has: those that a program may drive.
    pub(super) fn bound_devices(&self) -> Result<Vec<&PciDevice>, Unseen> {
        let devices = self.devices.as_ref().map_err(Clone::clone)?;
        Ok(devices.iter().filter(|device| device.driver().is_some_and(|driver| driver.contains("vfio"))).collect())
    }

    /// Whether the kernel's own threads can be seen, and with them everybody's: not from within a PID namespace.
    pub(super) fn sees_all_tasks(&self) -> bool {
        self.tasks.iter().any(|task| task.pid == 2 && task.name == "kthreadd")
    }

    /// The command that changes at run time what keeps workers from their cores.
    pub(super) fn apply(&self) -> Remedy {
        match self.workers.origin {
            Origin::Isolated => Remedy::Run("spinwake-tune apply low-latency".into()),
            _ => self.unless_all(format!("spinwake-tune apply low-latency --cores {}", self.workers.cores)),
        }
    }

    /// The command that changes what the kernel is booted with.
    pub(super) fn apply_boot(&self) -> Remedy {
        self.apply_boot_for(&self.workers.cores)
    }

    /// The same, to have workers on these cores.
    pub(super) fn apply_boot_for(&self, workers: &CpuSet) -> Remedy {
        let cores = if workers.is_empty() { String::new() } else { format!(" --cores {workers}") };
        match self.unless_all(format!("spinwake-tune apply low-latency{cores} --boot")) {
            Remedy::Run(_) if !boot::has_loader(self.host) => Remedy::Do(format!(
                "have the kernel booted with {}; neither GRUB nor systemd-boot is found here to do that for you, so write it \
                 where this machine's command line comes from (its hypervisor, or another boot loader)",
                self.boot_parameters(workers).map_or_else(
                    || "what profile low-latency has under [boot]".into(),
                    |parameters| format!("`{parameters}`")
                )
            )),
            remedy => remedy,
        }
    }

    /// What profile low-latency has the kernel booted with.
    fn boot_parameters(&self, workers: &CpuSet) -> Option<String> {
        let profile = Profile::find("low-latency").ok()?;
        let asked = (!workers.is_empty()).then_some(workers);
        let roles = Roles::of(&self.topology, asked, profile.workers).ok()?;
        Some(boot::parameters(&profile, &roles).join(" "))
    }

    /// No command gives workers every core: `apply` refuses that.
    fn unless_all(&self, command: String) -> Remedy {
        match self.online() {
            Ok(online) if online.difference(&self.workers.cores).is_empty() => Remedy::Do(
                "plan fewer workers, or use a machine with more cores: all but workers needs one core at least".into(),
            ),
            _ => Remedy::Run(command),
        }
    }
}

/// `core 1`, `cores 1-3`.
pub(super) fn named(cores: &CpuSet) -> String {
    match cores.len() {
        0 => "no core".into(),
        1 => format!("core {cores}"),
        _ => format!("cores {cores}"),
    }
}

/// `1 task`, `5 tasks`.
pub(super) fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

/// Why a list that the topology does not have is not there.
pub(super) fn whatever_ails(host: &Host, path: &str) -> Unseen {
    match seen::text(host, path) {
        Err(unseen) => unseen,
        Ok(text) => Unseen::malformed(path, &text),
    }
}

fn cpu_flags(host: &Host) -> Result<Vec<String>, Unseen> {
    const CPUINFO: &str = "/proc/cpuinfo";
    let text = seen::text(host, CPUINFO)?;
    let line = text.lines().find_map(|line| {
        let (name, flags) = line.split_once(':')?;
        (name.trim() == "flags").then_some(flags)
    });
    let flags = line.ok_or_else(|| Unseen::malformed(CPUINFO, &text))?;
    Ok(flags.split_whitespace().map(str::to_owned).collect())
}

fn hypervisor(host: &Host, cpu_flags: &[String]) -> Option<String> {
    if !cpu_flags.iter().any(|flag| flag == "hypervisor") {
        return None;
    }
    let name = |path: &str| host.read(path).filter(|text| !text.is_empty()).map(|text| tasks::printable(&text));
    Some(
        name("/sys/class/dmi/id/sys_vendor")
            .or_else(|| name("/sys/hypervisor/type"))
            .unwrap_or_else(|| "of unknown make".into()),
    )
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Tree, item};
    use super::*;
    use crate::placement::Worker;

    #[test]
    fn no_command_is_named_that_would_be_refused() {
        let tree = Tree::cores(2, 1, 1);
        let plan = |cores: &[usize]| Placement {
            workers: cores.iter().map(|&core| Worker { core, ports: Vec::new() }).collect(),
            hugepages_mib: None,
        };
        let remedy = |plan, id| item(&tree.check_with(&[], Some(&plan)), id).remedy;
        let run = Remedy::Run("spinwake-tune apply low-latency --cores 1".into());
        assert_eq!(remedy(plan(&[1]), "kernel.workqueues"), run);
        for id in ["kernel.workqueues", "cores.isolated", "worker.isolated@0"] {
            assert!(matches!(remedy(plan(&[0, 1]), id), Remedy::Do(what) if what.contains("fewer workers")), "{id}");
        }
    }
}
