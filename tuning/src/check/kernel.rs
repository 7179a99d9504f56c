//! What the kernel does on its own account: threads, deferred work, timers, watchdogs, mitigations.
//!
//! Kernel documentation: core-api/workqueue, admin-guide/sysctl/kernel, admin-guide/lockup-watchdogs, admin-guide/hw-vuln.

use super::Check;
use super::facts::{Facts, count, named};
use super::item::Finding;
use super::seen::{self, Unseen};
use super::tasks::few;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("kernel.threads", threads),
    ("kernel.workqueues", workqueues),
    ("kernel.timer_migration", timer_migration),
    ("kernel.watchdogs", watchdogs),
    ("kernel.numa_balancing", numa_balancing),
    ("kernel.mitigations", mitigations),
];

fn threads(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let workers = facts.workers()?;
    if !facts.sees_all_tasks() {
        return Err(Unseen::because(
            "the kernel's threads are not seen from here (a PID namespace, or /proc is limited)",
        ));
    }
    let kernel = || facts.tasks.iter().filter(|task| task.kernel);
    if let Some(task) = kernel().find(|task| task.allowed.is_none()) {
        return Err(Unseen::because(format!("/proc/{}/status does not tell where it may run", task.pid)));
    }
    // Those of one core (ksoftirqd/1, migration/1) and those of workqueues cannot be moved, and run when there is work.
    let movable: Vec<_> = kernel()
        .filter(|task| !task.fixed && task.may_run_on(workers) && !task.is_confined_to(workers))
        .map(|task| format!("{} ({})", task.name, task.tid))
        .collect();
    if movable.is_empty() {
        return Ok(Finding::good(format!("no kernel thread that can be moved may run on {}", named(workers))));
    }
    let found = format!("{} may run on {}: {}", count(movable.len(), "kernel thread"), named(workers), few(movable));
    Ok(Finding::costs(found, "each time one does, the worker waits for tens of microseconds").mend(facts.apply()))
}

fn workqueues(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const FOLDER: &str = "/sys/devices/virtual/workqueue";
    let workers = facts.workers()?;
    // Masks of single queues, such as writeback/cpumask, show what was asked for: they narrow this one, and never widen it
    // (kernel/workqueue.c, `wqattrs_actualize_cpumask`).
    let reached = seen::mask(facts.host, &format!("{FOLDER}/cpumask"))?.intersection(workers);
    if reached.is_empty() {
        return Ok(Finding::good(format!("the kernel's deferred work stays away from {}", named(workers))));
    }
    let found = format!("the kernel's deferred work (unbound workqueues) may run on {}", named(&reached));
    Ok(Finding::costs(found, "each piece of it takes the core for microseconds to milliseconds").mend(facts.apply()))
}

fn timer_migration(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const PATH: &str = "/proc/sys/kernel/timer_migration";
    if seen::switch(facts.host, PATH)? {
        return Ok(Finding::good("timers that a worker's core starts fire on other cores where they can"));
    }
    Ok(Finding::costs(
        "timers fire on the core that started them (kernel.timer_migration is 0)",
        "timers of the kernel interrupt a worker that happened to start them",
    )
    .run("sysctl -w kernel.timer_migration=1"))
}

fn watchdogs(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let workers = facts.workers()?;
    let host = facts.host;
    // A kernel without a kind of watchdog has no file for it.
    let on = |name: &str| match seen::switch(host, &format!("/proc/sys/kernel/{name}")) {
        Err(Unseen::Missing(_)) if host.has("/proc/sys/kernel/ostype") => Ok(false),
        seen => seen,
    };
    let watched = match seen::list(host, "/proc/sys/kernel/watchdog_cpumask") {
        Err(Unseen::Missing(_)) if host.has("/proc/sys/kernel/ostype") => workers.clone(),
        seen => seen?,
    };
    // `watchdog` is both kinds at once: hard lockups by NMI, soft ones by a timer on each core.
    let (any, nmi, soft) = (on("watchdog")?, on("nmi_watchdog")?, on("soft_watchdog")?);
    let watched = watched.intersection(workers);
    let mut kinds = Vec::new();
    if any && nmi {
        kinds.push("NMI");
    }
    if any && soft {
        kinds.push("soft lockup");
    }
    if kinds.is_empty() || watched.is_empty() {
        return Ok(Finding::good(format!("no watchdog looks at {}", named(workers))));
    }
    let found = format!("{} watchdog on {}", kinds.join(" and "), named(&watched));
    Ok(Finding::costs(found, "a timer every 4 s and its thread interrupt a worker for some microseconds; an NMI takes a performance counter, too")
        .mend(facts.apply()))
}

fn numa_balancing(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const PATH: &str = "/proc/sys/kernel/numa_balancing";
    match seen::value::<u32>(facts.host, PATH) {
        Ok(0) => Ok(Finding::good("off")),
        Err(Unseen::Missing(_)) if facts.host.has("/proc/sys/kernel/ostype") => {
            Ok(Finding::good("this kernel has none"))
        }
        Ok(_) if facts.topology.nodes().len() == 1 => Ok(Finding::good("on, and idle: there is one NUMA node")),
        Ok(_) => Ok(Finding::costs(
            "the kernel moves pages to where they are used (kernel.numa_balancing)",
            "it takes pages from a worker to see whether it uses them: a page fault of some microseconds each",
        )
        .run("sysctl -w kernel.numa_balancing=0")),
        Err(unseen) => Err(unseen),
    }
}

/// Said, and never judged worse than a cost: whether they are needed is not for a tuning program to know.
fn mitigations(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const FOLDER: &str = "/sys/devices/system/cpu/vulnerabilities";
    let names = facts.host.names(FOLDER);
    if names.is_empty() {
        return Err(Unseen::because(format!("{FOLDER} lists nothing")));
    }
    let (mut mitigated, mut vulnerable) = (Vec::new(), Vec::new());
    for name in names {
        let path = format!("{FOLDER}/{name}");
        let text = seen::text(facts.host, &path)?;
        // "KVM: " comes before what itlb_multihit says.
        let text = text.strip_prefix("KVM: ").unwrap_or(&text);
        if text.starts_with("Mitigation") {
            mitigated.push(name);
        } else if text.starts_with("Vulnerable") || text.starts_with("Processor vulnerable") {
            vulnerable.push(name);
        } else if !text.starts_with("Not affected") && !text.starts_with("Unknown") {
            return Err(Unseen::malformed(&path, text));
        }
    }
    let open = if vulnerable.is_empty() { String::new() } else { format!("; not mitigated: {}", few(vulnerable)) };
    if mitigated.is_empty() {
        return Ok(Finding::good(format!("no mitigation of the processor's flaws is on{open}")));
    }
    let found = format!("{} on: {}{open}", count(mitigated.len(), "mitigation"), few(mitigated));
    Ok(Finding::costs(
        found,
        "system calls and interrupts take up to some microseconds longer; a polling worker makes few",
    )
    .advise("leave them on where anybody else's code runs; only where not, mitigations=off at boot turns them off")
    .after_reboot())
}

#[cfg(test)]
mod tests {
    use super::super::fake::Tree;
    use super::super::item::State;

    #[test]
    fn one_queue_s_own_mask_widens_nothing() {
        let tree = Tree::tuned(2, 1, 1, "1");
        // As after a boot with isolcpus=1: what the queue may use at most is as it was built, and what all may use is not.
        tree.set("/sys/devices/virtual/workqueue/writeback/cpumask", "3\n");
        assert_eq!(tree.state("kernel.workqueues"), State::Good);
        tree.set("/sys/devices/virtual/workqueue/cpumask", "3\n");
        assert_eq!(tree.state("kernel.workqueues"), State::Costs);
    }
}
