//! The threads of the machine, as far as they are seen from here.

use std::io::ErrorKind;

use spinwake::cpu::CpuSet;

use crate::host::Host;

/// A thread of the kernel or of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    /// The process.
    pub(super) pid: u32,
    /// The thread.
    pub(super) tid: u32,
    pub(super) name: String,
    /// Whether it is one of the kernel's own.
    pub(super) kernel: bool,
    /// Whether user space must not change where it runs.
    pub(super) fixed: bool,
    /// Where it may run; `None` when that is not told.
    pub(super) allowed: Option<CpuSet>,
}

/// linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;
const PF_NO_SETAFFINITY: u32 = 0x0400_0000;

impl Task {
    /// Every thread that could be read, in the order of processes. One that ends meanwhile is left out.
    pub(super) fn all(host: &Host) -> Vec<Self> {
        numbers(host, "/proc").into_iter().flat_map(|pid| Self::of(host, pid)).collect()
    }

    fn of(host: &Host, pid: u32) -> Vec<Self> {
        numbers(host, &format!("/proc/{pid}/task")).into_iter().filter_map(|tid| Self::read(host, pid, tid)).collect()
    }

    fn read(host: &Host, pid: u32, tid: u32) -> Option<Self> {
        let folder = format!("/proc/{pid}/task/{tid}");
        let stat = host.read(format!("{folder}/stat"))?;
        // proc_pid_stat(5): the name is in parentheses and may hold any, too; the flags are the ninth field.
        let (head, rest) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1;
        let flags: u32 = rest.split_whitespace().nth(6)?.parse().ok()?;
        let allowed = match host.try_read(format!("{folder}/status")) {
            Ok(status) => field(&status, "Cpus_allowed_list:").and_then(|cores| cores.parse().ok()),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
            Err(_) => return None,
        };
        Some(Self {
            pid,
            tid,
            name: printable(name),
            kernel: flags & PF_KTHREAD != 0,
            fixed: flags & PF_NO_SETAFFINITY != 0,
            allowed,
        })
    }

    /// Whether it may run on one of these cores.
    pub(super) fn may_run_on(&self, cores: &CpuSet) -> bool {
        self.allowed.as_ref().is_some_and(|allowed| !allowed.intersection(cores).is_empty())
    }

    /// Whether it may run on these cores only.
    pub(super) fn is_confined_to(&self, cores: &CpuSet) -> bool {
        self.allowed.as_ref().is_some_and(|allowed| !allowed.is_empty() && allowed.difference(cores).is_empty())
    }
}

/// The value of a field in a file of lines such as `Name: value`.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// A few names of many, for a person: `systemd (1), sshd (412) and 35 more`.
pub(super) fn few(names: impl IntoIterator<Item = String>) -> String {
    const SHOWN: usize = 4;
    let mut names: Vec<_> = names.into_iter().collect();
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    match more {
        0 => names.join(", "),
        _ => format!("{} and {more} more", names.join(", ")),
    }
}

/// A name that a user chose may hold anything: control characters would draw on the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn numbers(host: &Host, folder: &str) -> Vec<u32> {
    let mut numbers: Vec<u32> = host.names(folder).iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_parentheses_and_worse() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        let folder = host.path("/proc/7/task/8");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("stat"), "8 (a) b\u{1b}(c) S 1 7 7 0 -1 2097152 0 0\n").unwrap();
        std::fs::write(folder.join("status"), "Name:\ta\nCpus_allowed_list:\t1,3\n").unwrap();
        let [task] = &Task::all(&host)[..] else { panic!("one task") };
        assert_eq!((task.name.as_str(), task.kernel, task.fixed, task.tid), ("a) b?(c", true, false, 8));
        assert!(task.may_run_on(&"3-4".parse().unwrap()) && !task.may_run_on(&"2".parse().unwrap()));
        assert!(task.is_confined_to(&"0-3".parse().unwrap()) && !task.is_confined_to(&"1".parse().unwrap()));
    }

    #[test]
    fn many_names_are_counted() {
        assert_eq!(few(["a".into()]), "a");
        assert_eq!(few((0..7).map(|n| n.to_string())), "0, 1, 2, 3 and 3 more");
    }
}
