//! Frequency and idle states of workers' cores.
//!
//! Kernel documentation: admin-guide/pm/cpufreq, admin-guide/pm/cpuidle, power/pm_qos_interface.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use spinwake::cpu::CpuSet;

use super::Check;
use super::facts::{Facts, named};
use super::item::Finding;
use super::seen::{self, Unseen};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("power.governor", governor),
    ("power.turbo", turbo),
    ("power.c_states", c_states),
    ("power.dma_latency", dma_latency),
];

/// A core that wakes within so long is not asleep for our purposes.
const SHALLOW_US: u32 = 10;

fn governor(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let workers = facts.workers()?;
    let mut governors: BTreeMap<String, CpuSet> = BTreeMap::new();
    for core in workers.iter() {
        let path = format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
        match seen::word(facts.host, &path) {
            Ok(governor) => governors.entry(governor).or_default().insert(core),
            Err(Unseen::Missing(_)) => return Err(unshown(facts, "does not let Linux set frequencies")),
            Err(unseen) => return Err(unseen),
        };
    }
    let slow = |governor: &String| governor != "performance";
    if !governors.keys().any(slow) {
        return Ok(Finding::good(format!("performance on {}", named(workers))));
    }
    let found: Vec<_> = governors.iter().map(|(governor, cores)| format!("{governor} on {}", named(cores))).collect();
    Ok(Finding::costs(
        found.join(", "),
        "after each idle time a core is slow until the governor notices, for up to some milliseconds",
    )
    .mend(facts.apply()))
}

fn turbo(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    const INTEL: &str = "/sys/devices/system/cpu/intel_pstate/no_turbo";
    const OTHERS: &str = "/sys/devices/system/cpu/cpufreq/boost";
    let on = match seen::switch(facts.host, INTEL) {
        Ok(off) => !off,
        Err(Unseen::Missing(_)) => match seen::switch(facts.host, OTHERS) {
            Err(Unseen::Missing(_)) => return Err(unshown(facts, "does not show whether there is turbo")),
            seen => seen?,
        },
        Err(unseen) => return Err(unseen),
    };
    if !on {
        return Ok(Finding::good("off: every core keeps its base frequency, whatever the others do"));
    }
    Ok(Finding::costs(
        "on: a core's speed depends on how many others are busy",
        "each change of frequency halts the core for some tens of microseconds; off, it is steady, and slower on average",
    )
    .mend(facts.apply()))
}

/// Why what the firmware or a hypervisor decides is not known.
fn unshown(facts: &Facts<'_>, what: &str) -> Unseen {
    Unseen::because(match facts.hypervisor {
        Ok(Some(_)) => format!("this virtual machine {what}: its host decides, and should be checked, too"),
        _ => format!("this kernel {what}: the firmware decides"),
    })
}

/// The deepest idle state that is on: its name, and how long waking from it takes in µs.
struct Deepest {
    name: String,
    wake_us: u32,
}

/// The deepest idle state that is on for one of the workers' cores; `None` if there is none below halting.
fn deepest(facts: &Facts<'_>) -> Result<Option<Deepest>, Unseen> {
    const DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";
    let mut deepest: Option<Deepest> = None;
    for core in facts.workers()?.iter() {
        let folder = format!("/sys/devices/system/cpu/cpu{core}/cpuidle");
        let states: Vec<_> = facts.host.names(&folder).into_iter().filter(|name| name.starts_with("state")).collect();
        if states.is_empty() {
            return match seen::word(facts.host, DRIVER)?.as_str() {
                "none" => Ok(None),
                driver => Err(Unseen::because(format!("{folder} lists no idle states, though {driver} has some"))),
            };
        }
        let held_us = held_us(facts, core)?;
        for state in states {
            let wake_us = seen::value(facts.host, &format!("{folder}/{state}/latency"))?;
            let off = seen::switch(facts.host, &format!("{folder}/{state}/disable"))? || wake_us > held_us;
            if !off && deepest.as_ref().is_none_or(|deepest| deepest.wake_us < wake_us) {
                let name = facts.host.read(format!("{folder}/{state}/name")).unwrap_or(state);
                deepest = Some(Deepest { name: super::tasks::printable(&name), wake_us });
            }
        }
    }
    Ok(deepest)
}

/// What one core is held to, in µs (ABI/testing/sysfs-devices-power): a limit, none for 0, and no latency at all for `n/a`.
fn held_us(facts: &Facts<'_>, core: usize) -> Result<u32, Unseen> {
    let path = format!("/sys/devices/system/cpu/cpu{core}/power/pm_qos_resume_latency_us");
    match seen::text(facts.host, &path) {
        Ok(text) if text == "n/a" => Ok(0),
        Ok(text) => match text.parse() {
            Ok(0) => Ok(u32::MAX),
            Ok(limit_us) => Ok(limit_us),
            Err(_) => Err(Unseen::malformed(&path, &text)),
        },
        Err(Unseen::Missing(_)) => Ok(u32::MAX),
        Err(unseen) => Err(unseen),
    }
}

/// How long workers' cores take to wake from a deep idle state that is on, in µs; `None` where there is none.
pub(super) fn deep_us(facts: &Facts<'_>) -> Result<Option<u32>, Unseen> {
    Ok(deepest(facts)?.map(|deepest| deepest.wake_us).filter(|&wake_us| wake_us > SHALLOW_US))
}

fn c_states(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let workers = facts.workers()?;
    let Some(Deepest { name, wake_us }) = deepest(facts)? else {
        if facts.boot.as_ref().is_ok_and(|boot| boot.value("idle") == Some("poll")) {
            return Ok(Finding::good("idle cores look for work and never halt (idle=poll)"));
        }
        return Ok(Finding::good("cores halt when idle, and have no deeper states"));
    };
    if wake_us <= SHALLOW_US {
        return Ok(Finding::good(format!("an idle core wakes within {wake_us} µs at most ({name})")));
    }
    let found = format!("{} may sleep as deep as {name}, which takes {wake_us} µs to wake from", named(workers));
    if let Ok(held_us) = requested_us(facts)
        && held_us <= SHALLOW_US
    {
        return Ok(Finding::good(format!("{found}, but somebody holds all cores to {held_us} µs")));
    }
    Ok(Finding::costs(
        found,
        format!("a worker that sleeps wakes up to {wake_us} µs late, unless the program may hold it off"),
    )
    .mend(facts.apply()))
}

fn dma_latency(facts: &Facts<'_>) -> Result<Finding, Unseen> {
    let Some(wake_us) = deep_us(facts)? else {
        return Ok(Finding::good("nobody needs to hold cores awake: their idle states are shallow"));
    };
    let held_us = requested_us(facts)?;
    if held_us <= SHALLOW_US {
        return Ok(Finding::good(format!("a process holds all cores to states that wake within {held_us} µs")));
    }
    // Spinwake's programs hold it while they run, where they may open the file for writing.
    Ok(Finding::costs(
        "nobody holds cores out of deep idle states now (/dev/cpu_dma_latency)",
        format!("until a program does, which Spinwake's do where they may, waking takes up to {wake_us} µs"),
    )
    .mend(facts.apply()))
}

/// What /dev/cpu_dma_latency is held at, in µs: the kernel's four bytes.
fn requested_us(facts: &Facts<'_>) -> Result<u32, Unseen> {
    const PATH: &str = "/dev/cpu_dma_latency";
    let mut bytes = Vec::new();
    let read = File::open(facts.host.path(PATH)).and_then(|file| file.take(5).read_to_end(&mut bytes));
    match (read.map_err(|error| error.kind()), <[u8; 4]>::try_from(&bytes[..])) {
        (Ok(_), Ok(word)) if i32::from_ne_bytes(word) >= 0 => Ok(u32::from_ne_bytes(word)),
        (Ok(_), _) => Err(Unseen::malformed(PATH, &format!("{bytes:x?}"))),
        (Err(std::io::ErrorKind::NotFound), _) => Err(Unseen::Missing(PATH.into())),
        (Err(_), _) => Err(Unseen::Denied(PATH.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Tree;
    use super::super::item::State;

    #[test]
    fn one_core_may_be_held_alone() {
        let tree = Tree::cores(2, 1, 1);
        let held = |text: &str| {
            tree.set("/sys/devices/system/cpu/cpu1/power/pm_qos_resume_latency_us", text);
            (tree.state("power.c_states"), tree.state("power.dma_latency"))
        };
        for text in ["0", "133", "500"] {
            assert_eq!(held(text), (State::Costs, State::Costs), "{text}");
        }
        for text in ["n/a", "1", "132"] {
            assert_eq!(held(text), (State::Good, State::Good), "{text}");
        }
        assert_eq!(held("soon"), (State::Unknown, State::Unknown));
    }

    #[test]
    fn a_core_that_polls_when_idle_does_not_halt() {
        let tree = Tree::cores(2, 1, 1);
        tree.remove("/sys/devices/system/cpu/cpu1/cpuidle");
        tree.set("/sys/devices/system/cpu/cpuidle/current_driver", "none\n");
        assert!(tree.item("power.c_states").found.contains("cores halt"));
        tree.set("/proc/cmdline", "quiet idle=poll");
        assert!(tree.item("power.c_states").found.contains("never halt"));
    }
}
