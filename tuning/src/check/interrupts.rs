//! Where the interrupts of devices go.
//!
//! Kernel documentation: core-api/irq/irq-affinity; `isolcpus=managed_irq` in admin-guide/kernel-parameters.

use spinwake::cpu::CpuSet;

use super::Check;
use super::facts::{Facts, count, named};
use super::item::Finding;
use super::seen::{self, Unseen};
use super::tasks::few;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("interrupts.affinity", affinity),
    ("interrupts.default_affinity", default_affinity),
    ("interrupts.managed", managed),
    ("interrupts.irqbalance", irqbalance),
];

const COST: &str = "each one takes a worker away from its work for 2 to 20 µs";

/// An interrupt that somebody handles.
struct Irq {
    number: u32,
    handlers: Vec<String>,
    /// Where it is delivered now; where it may be, when that is not told.
    cores: Result<CpuSet, Unseen>,
}

impl Irq {
    fn name(&self) -> String {
        format!("{} ({})", self.number, self.handlers.join(", "))
    }

    fn reaches(&self, cores: &CpuSet) -> bool {
        self.cores.as_ref().is_ok_and(|own| !own.intersection(cores).is_empty())
    }
}

/// Every interrupt that somebody handles, but those that VFIO hands to a program: a worker wants them.
fn irqs(facts: &Facts<'_>) -> Result<Vec<Irq>, Unseen> {
    let host = facts.host;
    let numbers: Vec<u32> = host.names("/proc/irq").iter().filter_map(|name| name.parse().ok()).collect();
    if numbers.is_empty() {
        return Err(Unseen::because("/proc/irq lists no interrupts"));
    }
    let mut irqs = Vec::new();
    for number in numbers {
        let folder = format!("/proc/irq/{number}");
        // Each handler has a folder of its name there.
        let handlers: Vec<_> = host
            .names(&folder)
            .into_iter()
            .filter(|name| host.path(format!("{folder}/{name}")).is_dir())
            .map(|name| super::tasks::printable(&name))
            .collect();
        if handlers.is_empty() || handlers.iter().any(|name| name.starts_with("vfio")) {
            continue;
        }
        // An interrupt that is not set up yet is delivered nowhere; older kernels do not tell (before 4.14).
        let effective = seen::list(host, &format!("{folder}/effective_affinity_list"));
        let cores = match effective {
            Ok(cores) if !cores.is_empty() => Ok(cores),
            Ok(_) | Err(Unseen::Missing(_)) => seen::list(host, &format!("{folder}/smp_affinity_list")),
            Err(unseen) => Err(unseen),
        };
        irqs.push(Irq { number, handlers, cores });
    }
    irqs.sort_by_key(|irq| irq.number);
    Ok(irqs)
}

fn affinity(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    on_cores(facts, facts.workers()?)
}

/// Which interrupts are delivered to these cores.
pub(super) fn on_cores(facts: &Facts<'_>, cores: &CpuSet) -> Result<Finding, Unseen> {
    let irqs = irqs(facts)?;
    let reaching: Vec<_> = irqs.iter().filter(|irq| irq.reaches(cores)).collect();
    if !reaching.is_empty() {
        let found = format!(
            "{} of {} delivered to {}: {}",
            reaching.len(),
            count(irqs.len(), "interrupt"),
            named(cores),
            few(reaching.iter().map(|irq| irq.name()))
        );
        return Ok(Finding::costs(found, COST).mend(facts.apply()));
    }
    match irqs.iter().find_map(|irq| irq.cores.as_ref().err()) {
        Some(unseen) => Err(unseen.clone()),
        None => {
            Ok(Finding::good(format!("none of {} is delivered to {}", count(irqs.len(), "interrupt"), named(cores))))
        }
    }
}

fn default_affinity(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let workers = facts.workers()?;
    let default = seen::mask(facts.host, "/proc/irq/default_smp_affinity")?;
    let reached = default.intersection(workers);
    if reached.is_empty() {
        return Ok(Finding::good(format!("interrupts of devices that come later go to {}", named(&default))));
    }
    let found = format!("interrupts of devices that come later may go to {}", named(&reached));
    Ok(Finding::costs(found, COST).mend(facts.apply()))
}

/// Managed interrupts (those of multi-queue disks and some NICs) are placed by the kernel, one a core, and cannot be moved.
fn managed(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const DEBUG: &str = "/sys/kernel/debug/irq/irqs";
    let workers = facts.workers()?;
    let irqs = irqs(facts)?;
    if let Some(unseen) = irqs.iter().find_map(|irq| irq.cores.as_ref().err()) {
        return Err(unseen.clone());
    }
    let reaching: Vec<_> = irqs.iter().filter(|irq| irq.reaches(workers)).collect();
    if reaching.is_empty() {
        return Ok(Finding::good(format!("no interrupt at all is delivered to {}", named(workers))));
    }
    let kept_away = facts.boot.as_ref().ok().filter(|boot| boot.has_flag("isolcpus", "managed_irq"));
    let kept_away = kept_away.and_then(|boot| boot.cores("isolcpus", facts.online().ok()?).ok()?);
    if kept_away.is_some_and(|cores| workers.difference(&cores).is_empty()) {
        return Ok(Finding::good(format!("isolcpus=managed_irq keeps them away from {} where it can", named(workers))));
    }
    let mut managed = Vec::new();
    for irq in reaching {
        let path = format!("{DEBUG}/{}", irq.number);
        let text = match seen::text(facts.host, &path) {
            Ok(text) if text.contains("dstate:") => text,
            Ok(text) => return Err(Unseen::malformed(&path, &text)),
            Err(Unseen::Denied(_)) => return Err(Unseen::Denied(DEBUG.into())),
            Err(_) => {
                return Err(Unseen::because(format!(
                    "only {DEBUG} tells managed interrupts from others, and this kernel does not show it \
                     (CONFIG_GENERIC_IRQ_DEBUGFS, debugfs mounted)"
                )));
            }
        };
        if text.contains("IRQD_AFFINITY_MANAGED") {
            managed.push(irq.name());
        }
    }
    if managed.is_empty() {
        return Ok(Finding::good(format!("none of the interrupts on {} is a managed one", named(workers))));
    }
    let found = format!(
        "the kernel keeps {} on {}: {}",
        count(managed.len(), "managed interrupt"),
        named(workers),
        few(managed)
    );
    // They fire for requests that this very core made, so a core without disk traffic of its own hears none.
    Ok(Finding::costs(found, "a worker that reads or writes a disk is interrupted for it, and nothing can move that")
        .advise(format!("boot with isolcpus=managed_irq,domain,{workers}"))
        .after_reboot())
}

fn irqbalance(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    if !facts.sees_all_tasks() {
        return Err(Unseen::because("the machine's processes are not seen from here"));
    }
    match facts.tasks.iter().find(|task| task.name == "irqbalance") {
        None => Ok(Finding::good("irqbalance does not run: interrupts stay where they are put")),
        Some(task) => Ok(Finding::costs(
            format!("irqbalance runs (process {})", task.pid),
            "it moves interrupts every ten seconds, and undoes what was set by hand",
        )
        .run("systemctl disable --now irqbalance")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Tree, item};
    use super::super::item::State;
    use crate::placement::{Placement, Worker};

    #[test]
    fn managed_interrupts_are_kept_off_the_cores_that_were_named_at_boot() {
        let tree = Tree::tuned(4, 1, 1, "2-3");
        tree.set("/proc/irq/30/effective_affinity_list", "3");
        tree.set("/proc/cmdline", "isolcpus=managed_irq,domain,2-3");
        let managed = |core| {
            let plan = Placement { workers: vec![Worker { core, ports: Vec::new() }], hugepages_mib: None };
            item(&tree.check_with(&[], Some(&plan)), "interrupts.managed")
        };
        assert_eq!((tree.state("interrupts.managed"), managed(3).state), (State::Good, State::Good));
        tree.set("/proc/irq/30/effective_affinity_list", "1");
        assert_eq!(managed(1).state, State::Unknown, "core 1 was not named, and there is no debugfs");
    }
}
