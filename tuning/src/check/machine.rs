//! The clock, and what a hypervisor does to this machine.
//!
//! Kernel documentation: timers/timekeeping, virt/guest-halt-polling, virt/kvm/halt-polling; proc_stat(5).

use super::Check;
use super::facts::{Facts, named};
use super::item::Finding;
use super::seen::{self, Unseen};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("machine.clocksource", clocksource),
    ("machine.virtual", virtual_machine),
    ("machine.steal", steal),
    ("machine.halt_polling", halt_polling),
];

fn clocksource(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const FOLDER: &str = "/sys/devices/system/clocksource/clocksource0";
    let current = seen::word(facts.host, &format!("{FOLDER}/current_clocksource"))?;
    let available = seen::text(facts.host, &format!("{FOLDER}/available_clocksource"))?;
    if !available.split_whitespace().any(|name| name == current) {
        return Err(Unseen::malformed(&format!("{FOLDER}/available_clocksource"), &available));
    }
    if current == "tsc" {
        return Ok(Finding::good("tsc"));
    }
    let cost = match current.as_str() {
        "hpet" | "acpi_pm" => "reading the time takes a system call and a slow device: 1 to 5 µs each",
        _ => "reading the time takes longer than one instruction, and timestamps are the less exact for it",
    };
    let finding = Finding::costs(format!("{current} (available: {available})"), cost);
    if available.split_whitespace().any(|name| name == "tsc") {
        return Ok(finding.run(format!("echo tsc > {FOLDER}/current_clocksource")));
    }
    let invariant = facts.has_cpu_flag("constant_tsc")? && facts.has_cpu_flag("nonstop_tsc")?;
    Ok(finding.advise(match (invariant, &facts.hypervisor) {
        (true, _) => {
            "the kernel found the TSC unfit and logged why (`dmesg | grep -i tsc`); a newer firmware may mend it"
        }
        (false, Ok(Some(_))) => "give this virtual machine the host's invariant TSC (QEMU: -cpu host,+invtsc)",
        (false, _) => "this processor's TSC does not run at a constant rate; nothing changes that",
    }))
}

fn virtual_machine(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    match facts.hypervisor.as_ref().map_err(Clone::clone)? {
        None => Ok(Finding::good("bare metal")),
        Some(name) => Ok(Finding::costs(
            format!("a virtual machine (hypervisor: {name})"),
            "its host may take a core away at any time, and each interrupt and halt leaves the guest for some microseconds",
        )
        .advise("on the host: pin each virtual core to an isolated one of its own, and check the host, too")),
    }
}

fn steal(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const STAT: &str = "/proc/stat";
    let workers = facts.workers()?;
    if facts.hypervisor.as_ref().map_err(Clone::clone)?.is_none() {
        return Ok(Finding::good("bare metal: nobody to steal time"));
    }
    let text = seen::text(facts.host, STAT)?;
    let (mut stolen, mut all) = (0u64, 0u64);
    for core in workers.iter() {
        // user nice system idle iowait irq softirq steal guest guest_nice; guest time is in user time already.
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{core} ")));
        let times: Option<Vec<u64>> =
            line.map(|line| line.split_whitespace().take(8).filter_map(|time| time.parse().ok()).collect());
        let Some(times) = times.filter(|times| times.len() == 8) else { return Err(Unseen::malformed(STAT, &text)) };
        stolen = stolen.saturating_add(times[7]);
        all = times.iter().fold(all, |sum, time| sum.saturating_add(*time));
    }
    if all == 0 {
        return Err(Unseen::because(format!("{STAT} counts no time for {}", named(workers))));
    }
    let share = 100.0 * stolen as f64 / all as f64;
    let found = format!("{share:.2}% of the time of {} since boot", named(workers));
    if share < 0.01 {
        return Ok(Finding::good(found));
    }
    Ok(Finding::costs(found, "a worker stands still while its host runs something else, for milliseconds at a time")
        .advise("on the host: pin this machine's virtual cores, and give no other machine the same ones"))
}

fn halt_polling(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";
    const GOVERNORS: &str = "/sys/devices/system/cpu/cpuidle/available_governors";
    const POLL: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";
    const HOST: &str = "/sys/module/kvm/parameters/halt_poll_ns";
    if facts.hypervisor.as_ref().map_err(Clone::clone)?.is_none() {
        return match seen::value::<u64>(facts.host, HOST) {
            Ok(0) | Err(Unseen::Missing(_)) => Ok(Finding::good("bare metal: an idle core leaves nothing")),
            Ok(ns) => Ok(Finding::good(format!(
                "bare metal; as a host of others it polls for {} µs before a virtual core sleeps",
                ns / 1000
            ))),
            Err(unseen) => Err(unseen),
        };
    }
    let driver = seen::word(facts.host, DRIVER)?;
    let poll_ns = match seen::value::<u64>(facts.host, POLL) {
        Ok(ns) if driver == "haltpoll" => ns,
        Ok(_) | Err(Unseen::Missing(_)) => 0,
        Err(unseen) => return Err(unseen),
    };
    if poll_ns > 0 {
        return Ok(Finding::good(format!("an idle core looks for work for {} µs before it halts", poll_ns / 1000)));
    }
    if sleeps_by_mwait(facts)? {
        return Ok(Finding::good(format!(
            "an idle core sleeps without leaving the guest (cpuidle driver: {driver}, MWAIT)"
        )));
    }
    let finding = Finding::costs(
        format!("an idle core halts at once (cpuidle driver: {driver})"),
        "each halt leaves the guest: a worker that sleeps wakes 5 to 50 µs later than on bare metal",
    );
    if driver == "haltpoll" {
        return Ok(finding.run(format!("echo 200000 > {POLL}")));
    }
    // There is one driver: where there is another, the one that polls is refused (drivers/cpuidle/driver.c).
    if driver != "none" {
        return Ok(finding.advise(format!("where latency counts, --wait poll: {driver} never looks before it halts")));
    }
    // Kernels that can offer it on KVM alone, whatever they are told.
    if !seen::text(facts.host, GOVERNORS)?.split_whitespace().any(|governor| governor == "haltpoll") {
        return Ok(
            finding.advise("a kernel with halt polling, on KVM, looks before it halts; elsewhere, --wait poll does")
        );
    }
    let release = facts.host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let loadable = facts.host.read(format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
    Ok(if loadable.contains("/cpuidle-haltpoll.ko") {
        finding.run("modprobe cpuidle-haltpoll force=1")
    } else {
        // Built in, as Debian has it, it takes its parameter from the command line.
        finding.advise("boot with cpuidle_haltpoll.force=1").after_reboot()
    })
}

/// Whether workers' cores sleep by MWAIT, which a guest is shown where it may use it without leaving (QEMU: -overcommit
/// cpu-pm=on). Drivers describe a state by the way in: `MWAIT 0x00`, `ACPI FFH MWAIT 0x0`, `ACPI HLT`.
fn sleeps_by_mwait(facts: &Facts<'_>) -> Result<bool, Unseen> {
    let mut states = Vec::new();
    for core in facts.workers()?.iter() {
        let folder = format!("/sys/devices/system/cpu/cpu{core}/cpuidle");
        let names = facts.host.names(&folder).into_iter().filter(|name| name.starts_with("state"));
        states.extend(names.filter_map(|name| facts.host.read(format!("{folder}/{name}/desc"))));
    }
    // The first one only looks for work.
    states.retain(|state| !state.contains("POLL"));
    Ok(!states.is_empty() && states.iter().all(|state| state.contains("MWAIT")))
}
