//! Who took the core: what the kernel counted there, before and after.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::trace::Traced;
use crate::host::Host;

/// What the kernel counted on a core while it was measured. What it does not tell is `None`, or not in the list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Blame {
    /// Interrupts that the core took, the most frequent first.
    pub interrupts: Vec<Event>,
    /// Deferred interrupt work that ran there, the most frequent first.
    pub softirqs: Vec<Event>,
    /// Other threads that ran and were last seen there, the longest-running first.
    pub tasks: Vec<Ran>,
    /// How often the scheduler took the core from the measuring thread.
    pub preempted: Option<u64>,
    /// How long the measuring thread was ready to run and did not get the core, in nanoseconds.
    pub waited_ns: Option<u64>,
    /// How long the hypervisor ran somebody else in place of the core, in nanoseconds, in steps of 10 ms.
    pub steal_ns: Option<u64>,
    /// What the kernel's tracers saw, where they were asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traced: Vec<Traced>,
    /// What could not be found out, and why.
    pub unknown: Vec<String>,
}

/// Something that happened a number of times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number or short name, as in `/proc/interrupts`.
    pub id: String,
    /// What it is, as the kernel puts it.
    pub what: String,
    /// How often.
    pub count: u64,
}

/// Another thread that ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// Its id.
    pub tid: i32,
    /// Its name.
    pub name: String,
    /// How often it got a core.
    pub times: u64,
    /// For how long, in nanoseconds.
    pub ran_ns: u64,
}

/// The counts at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    interrupts: Option<BTreeMap<String, (String, u64)>>,
    softirqs: Option<BTreeMap<String, (String, u64)>>,
    tasks: Option<BTreeMap<i32, Task>>,
    preempted: Option<u64>,
    waited_ns: Option<u64>,
    steal_ticks: Option<u64>,
}

#[derive(Debug, Clone)]
struct Task {
    name: String,
    core: usize,
    times: u64,
    ran_ns: u64,
}

/// `USER_HZ`, in which `/proc/stat` counts, is 100 on every architecture but Alpha and Itanium (asm/param.h).
const STEAL_TICK_NS: u64 = 10_000_000;
/// What is shown of each kind, at most.
const MOST: usize = 40;

impl Counts {
    /// What the kernel has counted for `core` and for thread `tid` of this process so far.
    pub(super) fn read(host: &Host, core: usize, tid: i32) -> Self {
        let own = format!("/proc/self/task/{tid}");
        let schedstat = host.read(format!("{own}/schedstat"));
        Self {
            tasks: tasks(host, tid),
            interrupts: host.read("/proc/interrupts").and_then(|table| column(&table, core)),
            softirqs: host.read("/proc/softirqs").and_then(|table| column(&table, core)),
            preempted: host.read(format!("{own}/status")).and_then(|status| {
                status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"))?.trim().parse().ok()
            }),
            // Time run, time waited, time slices (Documentation/scheduler/sched-stats.rst).
            waited_ns: schedstat.and_then(|text| text.split_whitespace().nth(1)?.parse().ok()),
            steal_ticks: host.read("/proc/stat").and_then(|stat| steal(&stat, core)),
        }
    }

    /// What has been counted from `self` to `after`. `core` is the core of both.
    pub(super) fn until(&self, after: &Self, core: usize) -> Blame {
        let between = |a: Option<u64>, b: Option<u64>| Some(b?.saturating_sub(a?));
        let mut blame = Blame {
            preempted: between(self.preempted, after.preempted),
            waited_ns: between(self.waited_ns, after.waited_ns),
            steal_ns: between(self.steal_ticks, after.steal_ticks).map(|ticks| ticks.saturating_mul(STEAL_TICK_NS)),
            ..Blame::default()
        };
        let mut missing =
            |what: &str| blame.unknown.push(format!("{what}: the kernel does not tell, or not this user"));
        match (&self.interrupts, &after.interrupts) {
            (Some(a), Some(b)) => blame.interrupts = events(a, b),
            _ => missing("interrupts of this core (/proc/interrupts)"),
        }
        match (&self.softirqs, &after.softirqs) {
            (Some(a), Some(b)) => blame.softirqs = events(a, b),
            _ => missing("softirqs of this core (/proc/softirqs)"),
        }
        match (&self.tasks, &after.tasks) {
            (Some(a), Some(b)) => blame.tasks = ran(a, b, core),
            _ => missing("other threads on this core (/proc/*/task/*/schedstat)"),
        }
        for (what, known) in [
            ("how often the thread was preempted (/proc/self/task/*/status)", blame.preempted.is_some()),
            ("how long the thread waited for its core (/proc/self/task/*/schedstat)", blame.waited_ns.is_some()),
            ("time stolen by the hypervisor (/proc/stat)", blame.steal_ns.is_some()),
        ] {
            if !known {
                missing(what);
            }
        }
        blame
    }
}

/// The column of `core` in a table like `/proc/interrupts`: by row, its description and the count. The columns are the cores
/// that are online, and the heading names them. Rows with too few numbers count for the whole machine and are left out.
fn column(table: &str, core: usize) -> Option<BTreeMap<String, (String, u64)>> {
    let mut lines = table.lines();
    let cores: Vec<&str> = lines.next()?.split_whitespace().collect();
    let wanted = format!("CPU{core}");
    let at = cores.iter().position(|name| *name == wanted)?;
    let row = |line: &str| {
        let (id, rest) = line.split_once(':')?;
        let mut words = rest.split_whitespace();
        let counts: Vec<u64> = words.by_ref().take(cores.len()).map_while(|word| word.parse().ok()).collect();
        if counts.len() < cores.len() {
            return None;
        }
        Some((id.trim().to_owned(), (words.collect::<Vec<_>>().join(" "), counts[at])))
    };
    Some(lines.filter_map(row).collect())
}

fn events(before: &BTreeMap<String, (String, u64)>, after: &BTreeMap<String, (String, u64)>) -> Vec<Event> {
    let event = |(id, (what, count)): (&String, &(String, u64))| {
        let count = count.saturating_sub(before.get(id).map_or(0, |(_, count)| *count));
        (count > 0).then(|| Event { id: id.clone(), what: what.clone(), count })
    };
    let mut events: Vec<Event> = after.iter().filter_map(event).collect();
    events.sort_by_key(|event| std::cmp::Reverse(event.count));
    events.truncate(MOST);
    events
}

/// The eighth number of the core's line is stolen time (proc(5)).
fn steal(stat: &str, core: usize) -> Option<u64> {
    let name = format!("cpu{core}");
    let mut words = stat.lines().map(str::split_whitespace).find_map(|mut words| {
        let first = words.next()?;
        (first == name).then_some(words)
    })?;
    words.nth(7)?.parse().ok()
}

/// Every thread of the machine but `own`, by its id.
fn tasks(host: &Host, own: i32) -> Option<BTreeMap<i32, Task>> {
    let mut tasks = BTreeMap::new();
    for pid in host.names("/proc").iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
        for tid in host.names(format!("/proc/{pid}/task")) {
            let Ok(id) = tid.parse::<i32>() else { continue };
            if id != own
                && let Some(task) = task(host, &format!("/proc/{pid}/task/{tid}"))
            {
                tasks.insert(id, task);
            }
        }
    }
    (!tasks.is_empty()).then_some(tasks)
}

fn task(host: &Host, folder: &str) -> Option<Task> {
    let stat = host.read(format!("{folder}/stat"))?;
    // The name is in parentheses, and may hold some itself: the last one ends it (proc(5)).
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    // Field 39 is the core; the first after the name is the third.
    let core = rest.split_whitespace().nth(36)?.parse().ok()?;
    let schedstat = host.read(format!("{folder}/schedstat"))?;
    let mut numbers = schedstat.split_whitespace().map_while(|word| word.parse::<u64>().ok());
    let (ran_ns, times) = (numbers.next()?, numbers.nth(1)?);
    Some(Task { name: name.to_owned(), core, times, ran_ns })
}

fn ran(before: &BTreeMap<i32, Task>, after: &BTreeMap<i32, Task>, core: usize) -> Vec<Ran> {
    let ran = |(&tid, task): (&i32, &Task)| {
        let (times, ns) = before.get(&tid).map_or((0, 0), |old| (old.times, old.ran_ns));
        let (times, ran_ns) = (task.times.saturating_sub(times), task.ran_ns.saturating_sub(ns));
        (task.core == core && times > 0).then(|| Ran { tid, name: task.name.clone(), times, ran_ns })
    };
    let mut ran: Vec<Ran> = after.iter().filter_map(ran).collect();
    ran.sort_by_key(|ran| std::cmp::Reverse(ran.ran_ns));
    ran.truncate(MOST);
    ran
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// A machine whose counts for core 2 stand at `n`, those of core 0 at 7.
    fn tree(n: u64) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        let write = |path: &str, text: String| {
            let path = host.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        // Core 1 is offline, so that columns are not numbers.
        write(
            "/proc/interrupts",
            format!(
                "        CPU0    CPU2\n 24:   7  {n}  PCI-MSIX-0000:01:00.0  0-edge  eth0-rx\nLOC:  7  {}  Local timer interrupts\nERR:  9\nMIS: x\n",
                n * 100
            ),
        );
        write("/proc/softirqs", format!("        CPU0    CPU2\n   TIMER:   7  {n}\n     RCU:  7  7\n"));
        write("/proc/stat", format!("cpu 1 1 1\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu2 1 2 3 4 5 6 7 {n} 0 0\n"));
        write("/proc/self/task/77/status", format!("Name:\tx\nnonvoluntary_ctxt_switches:\t{n}\n"));
        write("/proc/self/task/77/schedstat", format!("100 {} 12\n", n * 1_000));
        for (tid, name, core) in [(77, "jitter", 2), (8, "k (worker)/2", 2), (9, "elsewhere", 0)] {
            let zeros = "0 ".repeat(35);
            write(&format!("/proc/{tid}/task/{tid}/stat"), format!("{tid} ({name}) S {zeros}{core} 0\n"));
            write(&format!("/proc/{tid}/task/{tid}/schedstat"), format!("{} 0 {n}\n", n * 500));
        }
        (root, host)
    }

    #[test]
    fn what_happened_in_between_is_told_for_the_one_core() {
        let ((_a, before), (_b, after)) = (tree(10), tree(25));
        let blame = Counts::read(&before, 2, 77).until(&Counts::read(&after, 2, 77), 2);
        let event = |id: &str, what: &str, count| Event { id: id.into(), what: what.into(), count };
        assert_eq!(
            blame.interrupts,
            [event("LOC", "Local timer interrupts", 1_500), event("24", "PCI-MSIX-0000:01:00.0 0-edge eth0-rx", 15)]
        );
        assert_eq!(blame.softirqs, [event("TIMER", "", 15)]);
        assert_eq!(blame.tasks, [Ran { tid: 8, name: "k (worker)/2".into(), times: 15, ran_ns: 7_500 }]);
        assert_eq!((blame.preempted, blame.waited_ns, blame.steal_ns), (Some(15), Some(15_000), Some(150_000_000)));
        assert!(blame.unknown.is_empty(), "{:?}", blame.unknown);
    }

    #[test]
    fn what_is_missing_is_said_to_be_unknown() {
        let empty = tempfile::tempdir().unwrap();
        let host = Host::at(empty.path());
        let blame = Counts::read(&host, 0, 1).until(&Counts::read(&host, 0, 1), 0);
        assert_eq!(blame.unknown.len(), 6, "{:?}", blame.unknown);
        let (_root, host) = tree(1);
        let absent = Counts::read(&host, 1, 77);
        assert!(
            absent.until(&absent, 1).unknown.iter().any(|what| what.contains("/proc/interrupts")),
            "core 1 is offline"
        );
    }

    #[test]
    fn counters_that_go_back_are_no_panic() {
        let ((_a, before), (_b, after)) = (tree(25), tree(10));
        let blame = Counts::read(&before, 2, 77).until(&Counts::read(&after, 2, 77), 2);
        assert_eq!((blame.interrupts.len(), blame.preempted), (0, Some(0)));
    }

    proptest! {
        #[test]
        fn no_contents_of_any_file_panic(file in 0usize..6, bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[CPU0-9 :x()\n-]{0,80}") {
            let files = ["/proc/interrupts", "/proc/softirqs", "/proc/stat", "/proc/self/task/77/schedstat", "/proc/8/task/8/stat", "/proc/8/task/8/schedstat"];
            let (_root, host) = tree(3);
            let good = Counts::read(&host, 2, 77);
            for contents in [bytes, text.into_bytes()] {
                fs::write(host.path(files[file]), contents).unwrap();
                let odd = Counts::read(&host, 2, 77);
                let _ = (good.until(&odd, 2), odd.until(&good, 2));
            }
        }
    }
}
