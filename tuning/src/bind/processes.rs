//! Which processes have a file open.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use serde::Serialize;

use crate::host::Host;
use crate::output::shown;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl Process {
    /// The process with this number, and the name that it has now.
    pub fn read(host: &Host, pid: u32) -> Self {
        // Each process chooses its own.
        let name = host.read(format!("/proc/{pid}/comm")).unwrap_or_else(|| "?".into());
        Self { pid, name: shown(&name) }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// Every process of the machine, ascending.
pub(crate) fn pids(host: &Host) -> Vec<u32> {
    let mut pids: Vec<u32> = host.names("/proc").iter().filter_map(|name| name.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// Who has each of `nodes` open, of those processes whose files this one may see; itself it leaves out.
pub(crate) fn openers(host: &Host, nodes: &[String]) -> BTreeMap<String, Vec<Process>> {
    let mut found: BTreeMap<String, Vec<Process>> = BTreeMap::new();
    if nodes.is_empty() {
        return found;
    }
    let own = if host.is_this() { std::process::id() } else { 0 };
    for pid in pids(host).into_iter().filter(|&pid| pid != own) {
        let Ok(files) = fs::read_dir(host.path(format!("/proc/{pid}/fd"))) else { continue };
        for target in files.flatten().filter_map(|file| fs::read_link(file.path()).ok()) {
            let Some(node) = nodes.iter().find(|node| target.as_os_str() == node.as_str()) else { continue };
            let holders = found.entry(node.clone()).or_default();
            if holders.last().is_none_or(|last| last.pid != pid) {
                holders.push(Process::read(host, pid));
            }
        }
    }
    found
}
