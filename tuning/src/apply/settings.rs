//! A profile's wishes as values of this machine's kernel.
//!
//! Documentation of these files: the kernel's admin-guide/sysctl, admin-guide/pm, admin-guide/mm and core-api/workqueue.

use spinwake::mem::PageSize;

use super::plan::{Plan, Wanted};
use crate::change::{Form, cores_in_mask, mask_like};
use crate::host::Host;
use crate::profile::{Profile, Roles};

const CPU: &str = "/sys/devices/system/cpu";
const WORKQUEUE: &str = "/sys/devices/virtual/workqueue";

/// Adds all that `profile` wants of clocks, memory, and the kernel's own work.
pub(super) fn plan(host: &Host, profile: &Profile, roles: &Roles, plan: &mut Plan) {
    processor(host, profile, roles, plan);
    memory(host, profile, plan);
    kernel(host, profile, roles, plan);
    let why = "a host that looks for work while a guest idles keeps its core busy with that";
    plan.want_number(host, "/sys/module/kvm/parameters/halt_poll_ns", profile.kvm.halt_poll_ns, why);
    for (name, value) in &profile.sysctl {
        // sysctl(8): a slash in a name with dots stands for a dot in the file's.
        let swapped = |c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        };
        let file: String = name.chars().map(swapped).collect();
        plan.want_number(host, &format!("/proc/sys/{file}"), Some(value), "the profile names this value");
    }
}

fn processor(host: &Host, profile: &Profile, roles: &Roles, plan: &mut Plan) {
    let wanted = &profile.processor;
    if let Some(governor) = &wanted.governor {
        let policies = host.names(format!("{CPU}/cpufreq"));
        let policies: Vec<_> = policies.iter().filter(|name| name.starts_with("policy")).collect();
        if policies.is_empty() {
            plan.skip(&format!("{CPU}/cpufreq"), "this machine does not let its kernel choose frequencies");
        }
        for policy in policies {
            let folder = format!("{CPU}/cpufreq/{policy}");
            let path = &format!("{folder}/scaling_governor");
            let offered = host.read(format!("{folder}/scaling_available_governors"));
            if let Some(offered) = offered.filter(|all| all.split_whitespace().all(|one| one != governor)) {
                plan.skip(path, &format!("there is no governor \"{governor}\" here; there are {offered}"));
                continue;
            }
            let why = "a core that has to speed up first answers late";
            plan.want(host, &Wanted { path, form: Form::Plain, value: governor, why, refusable: true });
        }
    }
    if let Some(turbo) = wanted.turbo {
        let why = if turbo {
            "cores may run above their nominal frequency"
        } else {
            "a clock that changes with the load of other cores halts the core at each change"
        };
        let intel = format!("{CPU}/intel_pstate/no_turbo");
        let (path, value) = if host.has(&intel) { (intel, !turbo) } else { (format!("{CPU}/cpufreq/boost"), turbo) };
        // Where the firmware has switched it off, the kernel refuses to switch it on.
        let value = &u8::from(value).to_string();
        plan.want(host, &Wanted { path: &path, form: Form::Plain, value, why, refusable: true });
    }
    if let Some(limit_us) = wanted.idle_exit_us {
        for core in roles.workers.iter() {
            let folder = format!("{CPU}/cpu{core}/cpuidle");
            for state in host.names(&folder).iter().filter(|name| name.starts_with("state")) {
                let Some(exit_us) = host.value::<u64>(format!("{folder}/{state}/latency")) else {
                    plan.skip(&format!("{folder}/{state}"), "how long it takes to leave is unknown");
                    continue;
                };
                let name = host.read(format!("{folder}/{state}/name")).unwrap_or_else(|| state.clone());
                let why = format!("{name} takes {exit_us} \u{b5}s to leave, and {limit_us} \u{b5}s are allowed");
                plan.want_number(host, &format!("{folder}/{state}/disable"), (exit_us > limit_us).then_some(1), &why);
            }
        }
        if roles.workers.iter().all(|core| !host.has(format!("{CPU}/cpu{core}/cpuidle/state0"))) {
            plan.skip("idle states", "the kernel has no choice of them on worker cores, or there are no worker cores");
        }
    }
}

fn memory(host: &Host, profile: &Profile, plan: &mut Plan) {
    let wanted = &profile.memory;
    let huge = "/sys/kernel/mm/transparent_hugepage";
    let choices = [
        ("enabled", &wanted.transparent_hugepages, "who gets transparent huge pages: making one stops its program"),
        ("defrag", &wanted.transparent_hugepages_defrag, "who waits for memory to be moved to make a huge page"),
    ];
    for (name, value, why) in choices {
        if let Some(value) = value {
            let path = &format!("{huge}/{name}");
            plan.want(host, &Wanted { path, form: Form::Choice, value, why, refusable: false });
        }
    }
    let yes = |flag: Option<bool>| flag.map(u64::from);
    let vm = |name: &str| format!("/proc/sys/vm/{name}");
    let numbers = [
        (
            format!("{huge}/khugepaged/defrag"),
            yes(wanted.khugepaged_defrag),
            "whether the collector of huge pages moves memory: that stops all cores to change their page tables",
        ),
        (
            "/sys/kernel/mm/ksm/run".into(),
            yes(wanted.same_page_merging),
            "whether equal pages are merged: a write to one takes a page fault then",
        ),
        (vm("swappiness"), wanted.swappiness, "memory that was swapped out takes milliseconds to come back"),
        (
            "/proc/sys/kernel/numa_balancing".into(),
            yes(wanted.numa_balancing),
            "whether memory is unmapped now and then to learn who uses it: each time a page fault",
        ),
        (
            vm("compaction_proactiveness"),
            wanted.compaction_proactiveness,
            "memory that is moved ahead of need stops who uses it",
        ),
        (
            vm("stat_interval"),
            wanted.stat_interval_s,
            "seconds between two interruptions of each core by its own statistics",
        ),
    ];
    for (path, value, why) in numbers {
        plan.want_number(host, &path, value, why);
    }
    for (size, count) in &profile.hugepages {
        // The profile was refused if this is no size.
        let Ok(size) = size.parse::<PageSize>() else { continue };
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", size.bytes() / 1024);
        if host.value::<u64>(&path).is_some_and(|there| there >= *count) {
            plan.unchanged += 1;
        } else {
            plan.want_number(host, &path, Some(count), "buffers that devices read and write lie in hugepages");
        }
    }
}

fn kernel(host: &Host, profile: &Profile, roles: &Roles, plan: &mut Plan) {
    let wanted = &profile.kernel;
    let yes = |flag: Option<bool>| flag.map(i64::from);
    let name = |name: &str| format!("/proc/sys/kernel/{name}");
    let numbers = [
        (
            "timer_migration",
            yes(wanted.timer_migration),
            "timers go to a core that is awake, away from one that is isolated",
        ),
        ("nmi_watchdog", yes(wanted.nmi_watchdog), "its counter interrupts each core every few seconds"),
        (
            "sched_rt_runtime_us",
            wanted.rt_runtime_us,
            "microseconds of a second that realtime threads may use; -1 is all",
        ),
    ];
    for (file, value, why) in numbers {
        plan.want_number(host, &name(file), value, why);
    }
    if roles.workers.is_empty() {
        return;
    }
    if wanted.watchdog_off_workers == Some(true) {
        let path = &name("watchdog_cpumask");
        let found: Option<spinwake::cpu::CpuSet> = host.value(path);
        let value = &found.map_or_else(|| roles.others.clone(), |found| roles.without_workers(&found)).to_string();
        let why = "the lockup detectors look in on each of these cores";
        plan.want(host, &Wanted { path, form: Form::List, value, why, refusable: false });
    }
    let queues = [
        ("cpumask", wanted.workqueues_off_workers, "the kernel's work that is bound to no core runs on these"),
        ("writeback/cpumask", wanted.writeback_off_workers, "files are written back on these cores"),
    ];
    for (file, _, why) in queues.iter().filter(|(_, wanted, _)| *wanted == Some(true)) {
        want_mask(host, plan, roles, &format!("{WORKQUEUE}/{file}"), why);
    }
}

/// Takes worker cores out of a mask.
pub(super) fn want_mask(host: &Host, plan: &mut Plan, roles: &Roles, path: &str, why: &str) {
    let found = host.read(path).unwrap_or_default();
    let value = &match cores_in_mask(&found) {
        Some(cores) => mask_like(&roles.without_workers(&cores), &found),
        None if host.has(path) => return plan.skip(path, "what it holds is no mask of cores"),
        None => mask_like(&roles.others, &found),
    };
    plan.want(host, &Wanted { path, form: Form::Mask, value, why, refusable: true });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn turbo_that_the_firmware_forbids_stops_nothing() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        fs::create_dir_all(host.path(format!("{CPU}/intel_pstate"))).unwrap();
        fs::write(host.path(format!("{CPU}/intel_pstate/no_turbo")), "1\n").unwrap();
        let mut profile = Profile::default();
        profile.processor.turbo = Some(true);
        let roles =
            Roles { workers: "1".parse().unwrap(), others: "0".parse().unwrap(), online: "0-1".parse().unwrap() };
        let mut found = Plan::default();
        plan(&host, &profile, &roles, &mut found);
        assert!(found.changes[0].refusable, "{:?}", found.changes);
    }
}
