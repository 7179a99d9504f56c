//! Cores of their own for workers: isolation, the timer tick, RCU, who else runs there, SMT siblings.
//!
//! Kernel documentation: admin-guide/kernel-parameters, timers/no_hz, admin-guide/kernel-per-CPU-kthreads.

use spinwake::cpu::CpuSet;

use super::Check;
use super::facts::{Facts, count, named, whatever_ails};
use super::item::Finding;
use super::seen::Unseen;
use super::tasks::few;
use super::workers::Origin;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("cores.isolated", isolated),
    ("cores.tasks", tasks),
    ("cores.nohz_full", nohz_full),
    ("cores.rcu_nocbs", rcu_nocbs),
    ("cores.smt", smt),
];

pub(super) const NOT_ISOLATED: &str =
    "other tasks and the timer tick interrupt a worker, for tens of microseconds to milliseconds at a time";
const TICKS: &str = "the timer tick interrupts a worker 100 to 1000 times a second, for a few microseconds each";

fn isolated(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let isolated = facts.isolated()?;
    let online = facts.online()?;
    if isolated.is_empty() && online.len() == 1 {
        return Ok(
            Finding::costs("this machine has one core", NOT_ISOLATED).advise("use a machine with two cores or more")
        );
    }
    let lacking = facts.workers()?.difference(&isolated);
    if lacking.is_empty() {
        let rest = named(&online.difference(&isolated));
        return Ok(Finding::good(format!("the scheduler leaves {} alone; {rest} for all else", named(&isolated))));
    }
    let found = match (isolated.is_empty(), facts.origin()) {
        (true, _) => format!("no core is isolated ({} online)", named(online)),
        (false, _) => format!("{} of the plan not isolated, only {}", named(&lacking), named(&isolated)),
    };
    Ok(Finding::costs(found, NOT_ISOLATED).mend(facts.apply_boot()).after_reboot())
}

fn tasks(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let workers = facts.workers()?;
    on_cores(facts, workers)
}

/// More threads than a command line should name.
const STRAYS_MAX: usize = 30;

/// Who of user space may run on these cores. Who may run nowhere else was put there on purpose.
pub(super) fn on_cores(facts: &Facts<'_>, cores: &CpuSet) -> Result<Finding, Unseen> {
    if facts.tasks.is_empty() {
        return Err(Unseen::because("/proc shows no processes"));
    }
    if let Some(task) = facts.tasks.iter().find(|task| task.allowed.is_none()) {
        return Err(Unseen::because(format!(
            "/proc/{}/task/{}/status does not tell where it may run",
            task.pid, task.tid
        )));
    }
    let own = facts.host.is_this().then(std::process::id);
    let user = || facts.tasks.iter().filter(|task| !task.kernel && Some(task.pid) != own && task.may_run_on(cores));
    let name = |task: &super::tasks::Task| format!("{} ({})", task.name, task.tid);
    let (pinned, roaming): (Vec<_>, Vec<_>) = user().partition(|task| task.is_confined_to(cores));
    if !roaming.is_empty() {
        let found = format!(
            "{} may run on {}: {}",
            count(roaming.len(), "thread"),
            named(cores),
            few(roaming.iter().copied().map(name))
        );
        let finding = Finding::costs(found, "each time one does, the worker waits for up to some milliseconds");
        let house = facts.housekeeping();
        // Many are no strays that one moves back: everything runs there.
        return Ok(if facts.origin() == Origin::Proposed || house.is_empty() || roaming.len() > STRAYS_MAX {
            finding.mend(facts.apply_boot()).after_reboot()
        } else {
            let ids: Vec<_> = roaming.iter().map(|task| task.tid.to_string()).collect();
            finding.run(format!("for thread in {}; do taskset -cp {house} $thread; done", ids.join(" ")))
        });
    }
    if !facts.sees_all_tasks() {
        return Err(Unseen::because(format!(
            "none of the threads seen from here may run on {}, but others are hidden",
            named(cores)
        )));
    }
    let free = format!("no other thread may run on {}", named(cores));
    if pinned.is_empty() {
        return Ok(Finding::good(free));
    }
    Ok(Finding::good(format!("{free} but those pinned there: {}", few(pinned.into_iter().map(name)))))
}

fn nohz_full(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    tick(facts, facts.workers()?)
}

/// Whether the timer tick of these cores stops.
pub(super) fn tick(facts: &Facts<'_>, cores: &CpuSet) -> Result<Finding, Unseen> {
    const NOHZ_FULL: &str = "/sys/devices/system/cpu/nohz_full";
    let Some(stopped) = facts.topology.nohz_full() else {
        // The file came with that of isolated cores (Linux 4.2), and only kernels that can stop the tick have it.
        return match whatever_ails(facts.host, NOHZ_FULL) {
            Unseen::Missing(_) if facts.isolated().is_ok() => {
                Ok(Finding::costs("this kernel cannot stop the timer tick (no CONFIG_NO_HZ_FULL)", TICKS)
                    .advise("boot a kernel built with CONFIG_NO_HZ_FULL, as those of Debian, Fedora and Ubuntu are")
                    .after_reboot())
            }
            unseen => Err(unseen),
        };
    };
    let lacking = cores.difference(stopped);
    if !lacking.is_empty() {
        let found = format!("the timer ticks on {}", named(&lacking));
        return Ok(Finding::costs(found, TICKS).mend(facts.apply_boot()).after_reboot());
    }
    Ok(Finding::good(format!("the timer tick stops on {} while one task runs there", named(cores))))
}

fn rcu_nocbs(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const COST: &str = "the kernel frees memory on a worker's core, for up to hundreds of microseconds at a time";
    let workers = facts.workers()?;
    let boot = facts.boot.as_ref().map_err(Clone::clone)?;
    let asked = boot.cores("rcu_nocbs", facts.online()?)?.unwrap_or_default();
    // A core whose tick stops has its callbacks taken away, too (kernel/rcu/tree_nocb.h, rcu_init_nohz).
    let offloaded = asked.union(facts.topology.nohz_full().unwrap_or(&CpuSet::new()));
    let lacking = workers.difference(&offloaded);
    if !lacking.is_empty() {
        let found = format!("{} runs its own RCU callbacks (no rcu_nocbs)", named(&lacking));
        return Ok(Finding::costs(found, COST).mend(facts.apply_boot()).after_reboot());
    }
    // Each such core has a thread rcuop/N or rcuos/N that runs its callbacks.
    let has_thread = |core: usize| {
        facts.tasks.iter().any(|task| {
            task.name.split_once('/').is_some_and(|(kind, id)| kind.starts_with("rcuo") && id.parse() == Ok(core))
        })
    };
    match workers.iter().find(|&core| facts.sees_all_tasks() && !has_thread(core)) {
        Some(core) => {
            let found = format!(
                "asked for at boot, but there is no thread rcuop/{core}: this kernel cannot (no CONFIG_RCU_NOCB_CPU)"
            );
            Ok(Finding::costs(found, COST).advise("boot a kernel built with CONFIG_RCU_NOCB_CPU").after_reboot())
        }
        None => Ok(Finding::good(format!("the RCU callbacks of {} run elsewhere", named(workers)))),
    }
}

fn smt(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    siblings(facts, facts.workers()?, facts.workers()?)
}

/// Whether what shares its execution units with one of `cores` is idle. `workers` have work of their own.
pub(super) fn siblings(facts: &Facts<'_>, cores: &CpuSet, workers: &CpuSet) -> Result<Finding, Unseen> {
    const COST: &str = "what runs on a sibling takes about half of the core's execution units and its first caches";
    let online = facts.online()?;
    let isolated = facts.topology.isolated().cloned().unwrap_or_default();
    let mut others = CpuSet::new();
    let mut unknown = None;
    for core in cores.iter() {
        match facts.topology.core(core).and_then(|core| core.siblings.as_ref()) {
            Some(siblings) => {
                others = others.union(&siblings.difference(&[core].into_iter().collect()).intersection(online))
            }
            None => unknown = unknown.or(Some(core)),
        }
    }
    let busy = if facts.origin() == Origin::Planned {
        others.intersection(workers).union(&others.difference(&isolated))
    } else {
        others.difference(workers)
    };
    if !busy.is_empty() {
        let shared = busy.intersection(workers);
        let found = if shared.is_empty() {
            format!("{} shares its execution units with {}, where anything may run", named(cores), named(&busy))
        } else {
            format!("{} shares its execution units with another worker's {}", named(cores), named(&shared))
        };
        let finding = Finding::costs(found, COST);
        return Ok(if shared.is_empty() && !busy.contains(0) {
            let off = busy.iter().map(|core| format!("echo 0 > /sys/devices/system/cpu/cpu{core}/online"));
            finding.run(off.collect::<Vec<_>>().join("; "))
        } else {
            finding.advise("give each worker a physical core of its own, and not that of core 0")
        });
    }
    if let Some(core) = unknown {
        return Err(Unseen::because(format!(
            "/sys/devices/system/cpu/cpu{core}/topology does not tell core {core}'s siblings"
        )));
    }
    Ok(Finding::good(if others.is_empty() {
        format!("{} shares its execution units with no other", named(cores))
    } else {
        format!("siblings among {} are kept free, too: let only one of each pair work", named(&cores.union(&others)))
    }))
}
