//! `hugepages holders`: which processes and files have hugepages.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;

use serde::Serialize;
use spinwake::mem;

use super::{Pool, in_words, pool};
use crate::bind::Process;
use crate::bind::processes::pids;
use crate::host::Host;
use crate::output::{quoted, shown};

/// Holders could not be looked for.
#[derive(Debug, thiserror::Error)]
#[error("/proc cannot be read: {source}; is it mounted?")]
pub struct HoldersError {
    source: io::Error,
}

/// Who has hugepages.
#[derive(Debug, Serialize)]
pub struct Holders {
    /// What processes have mapped.
    pub mappings: Vec<Mapping>,
    /// Files of hugepages that no process has mapped, as far as was seen.
    pub files: Vec<Leftover>,
    /// Processes whose memory this user may not see.
    pub hidden: usize,
    /// The pools of the whole machine.
    pub pools: Vec<Pool>,
}

/// Hugepages of one size that a process has mapped from one file, or from none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mapping {
    /// The process.
    pub process: Process,
    /// The file; what the kernel calls it where it has no name in a folder.
    pub file: String,
    /// Bytes of one page.
    pub page_bytes: usize,
    /// Pages that it has, of those that it mapped.
    pub pages: usize,
    /// Pages that it mapped: those that it has not yet are promised to it.
    pub mapped: usize,
    /// Pages by NUMA node, where the kernel tells.
    pub nodes: BTreeMap<usize, usize>,
}

/// A file of hugepages that no process has mapped: its pages are not free until it is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// The file.
    pub path: String,
    /// Bytes of one page, where known.
    pub page_bytes: Option<usize>,
    /// Bytes that it has.
    pub bytes: u64,
}

pub(super) fn holders(host: &Host) -> Result<Holders, HoldersError> {
    fs::read_dir(host.path("/proc")).map_err(|source| HoldersError { source })?;
    let mut mappings = Vec::new();
    let mut hidden = 0;
    for pid in pids(host) {
        match File::open(host.path(format!("/proc/{pid}/smaps"))) {
            Ok(file) => match of_process(host, pid, BufReader::new(file)) {
                Ok(found) => mappings.extend(found),
                // Opening is allowed where reading is not.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => hidden += 1,
                // It has ended.
                Err(_) => {}
            },
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => hidden += 1,
            Err(_) => {}
        }
    }
    let files = leftovers(host, &mappings);
    let pools = mem::all_hugepages(host.root());
    let pools = pools.iter().filter(|pool| pool.node.is_none()).map(Pool::from).collect();
    Ok(Holders { mappings, files, hidden, pools })
}

/// One mapping in `/proc/PID/smaps`, while it is read.
#[derive(Debug, Default)]
struct Area {
    start: String,
    file: String,
    size_kib: usize,
    page_kib: usize,
    have_kib: usize,
}

fn of_process(host: &Host, pid: u32, smaps: impl BufRead) -> io::Result<Vec<Mapping>> {
    let mut areas: Vec<Area> = Vec::new();
    let mut current = Area::default();
    for line in smaps.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let (key, value) = line.split_once(' ').unwrap_or((&line, ""));
        let kib =
            || value.trim().strip_suffix("kB").and_then(|number| number.trim_end().parse::<usize>().ok()).unwrap_or(0);
        match key {
            "Size:" => current.size_kib = kib(),
            // No other memory has pages of this size here: transparent ones are counted as ordinary.
            "KernelPageSize:" => current.page_kib = kib(),
            "Shared_Hugetlb:" | "Private_Hugetlb:" => current.have_kib = current.have_kib.saturating_add(kib()),
            _ if !key.ends_with(':') && key.contains('-') => {
                areas.push(std::mem::take(&mut current));
                // Start-end, permissions, offset, device, inode, and the name after white space.
                current.start = key.split('-').next().unwrap_or_default().to_owned();
                let mut rest = value;
                for _ in 0..4 {
                    rest = rest.trim_start().split_once(' ').map_or("", |(_, rest)| rest);
                }
                current.file = rest.trim().to_owned();
            }
            _ => {}
        }
    }
    areas.push(current);
    areas.retain(|area| area.page_kib >= 1 << 10);
    if areas.is_empty() {
        return Ok(Vec::new());
    }
    let by_node = numa(host, pid);
    let process = Process::read(host, pid);
    let mut found: BTreeMap<(String, usize), Mapping> = BTreeMap::new();
    for area in areas {
        let file = if area.file.is_empty() { "no file".to_owned() } else { area.file };
        let mapping = found.entry((file.clone(), area.page_kib)).or_insert_with(|| Mapping {
            process: process.clone(),
            file,
            page_bytes: area.page_kib << 10,
            pages: 0,
            mapped: 0,
            nodes: BTreeMap::new(),
        });
        mapping.pages += area.have_kib / area.page_kib;
        mapping.mapped += area.size_kib / area.page_kib;
        for (node, pages) in by_node.get(&area.start).into_iter().flatten() {
            *mapping.nodes.entry(*node).or_default() += pages;
        }
    }
    Ok(found.into_values().collect())
}

/// Pages by NUMA node of each mapping of hugepages, by its address, from `/proc/PID/numa_maps` (words such as `N0=12`).
fn numa(host: &Host, pid: u32) -> BTreeMap<String, Vec<(usize, usize)>> {
    let text = host.read(format!("/proc/{pid}/numa_maps")).unwrap_or_default();
    let node = |word: &str| {
        let (node, pages) = word.strip_prefix('N')?.split_once('=')?;
        Some((node.parse().ok()?, pages.parse().ok()?))
    };
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(start, rest)| (start.to_owned(), rest.split(' ').filter_map(node).collect())).collect()
}

/// Files in mounted folders of hugepages that nobody mapped.
fn leftovers(host: &Host, mappings: &[Mapping]) -> Vec<Leftover> {
    let mut found = Vec::new();
    for mount in pool::mounts(host) {
        let mut folders = vec![mount.at];
        while let Some(folder) = folders.pop() {
            for name in host.names(&folder) {
                let path = format!("{}/{name}", folder.trim_end_matches('/'));
                let Ok(data) = fs::symlink_metadata(host.path(&path)) else { continue };
                if data.is_dir() {
                    folders.push(path);
                } else if data.is_file() && data.blocks() > 0 && !mappings.iter().any(|mapping| mapping.file == path) {
                    // stat(2) counts blocks of 512 bytes.
                    found.push(Leftover {
                        path,
                        page_bytes: mount.page_bytes,
                        bytes: data.blocks().saturating_mul(512),
                    });
                }
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found.dedup();
    found
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<usize>| number.map_or("unknown".into(), |number| number.to_string());
        for (index, pool) in self.pools.iter().enumerate() {
            let used = pool.pages.zip(pool.free).map(|(pages, free)| pages.saturating_sub(free));
            let start = if index > 0 { "\n" } else { "" };
            write!(
                f,
                "{start}pages of {}: {} in use of {}",
                in_words(pool.page_bytes),
                number(used),
                number(pool.pages)
            )?;
            if let Some(promised) = pool.promised.filter(|&promised| promised > 0) {
                write!(f, ", {promised} more promised")?;
            }
        }
        if self.pools.is_empty() {
            write!(f, "this kernel has no hugepages, or does not show them")?;
        }
        for mapping in &self.mappings {
            let Mapping { process, file, page_bytes, pages, mapped, nodes } = mapping;
            let file = shown(file);
            write!(f, "\n  {process}: {pages} of {mapped} mapped pages of {}, {file}", in_words(*page_bytes))?;
            if !nodes.is_empty() {
                let nodes: Vec<_> = nodes.iter().map(|(node, pages)| format!("{pages} on node {node}")).collect();
                write!(f, " ({})", nodes.join(", "))?;
            }
        }
        for Leftover { path, bytes, .. } in &self.files {
            write!(
                f,
                "\n  no process: {} MiB in the file {}; if no program needs it, `rm {}` gives them back",
                bytes >> 20,
                shown(path),
                shown(&quoted(path))
            )?;
        }
        if self.mappings.is_empty() && self.files.is_empty() {
            write!(f, "\n  no process was seen that has any")?;
        }
        if self.hidden > 0 {
            write!(f, "\n  not seen: the memory of {} processes (root sees most)", self.hidden)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::fake::Fake;

    const SMAPS: &str = "\
55d000000000-55d000001000 r-xp 00000000 fe:00 77                         /usr/bin/l2fwd
Size:                  4 kB
KernelPageSize:        4 kB
Private_Hugetlb:       0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0000800000 rw-p 00000000 00:10 4242                       /anon_hugepage (deleted)
Size:               8192 kB
KernelPageSize:     2048 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:    6144 kB
7f0000800000-7f0000a00000 rw-p 00000000 00:10 4243                       /anon_hugepage (deleted)
Size:               2048 kB
KernelPageSize:     2048 kB
Private_Hugetlb:    2048 kB
7f1000000000-7f1000200000 rw-s 00000000 00:11 4244                       /dev/hugepages/my file
Size:               2048 kB
KernelPageSize:     2048 kB
Shared_Hugetlb:     2048 kB
";

    #[test]
    fn processes_and_leftover_files_are_named() {
        let fake = Fake::new();
        fake.put("/proc/5/smaps", SMAPS);
        fake.put("/proc/5/comm", "l2fwd\n");
        fake.put("/proc/5/numa_maps", "7f0000000000 default file=/anon_hugepage N0=2 N1=1 kernelpagesize_kB=2048\n");
        fake.put("/proc/6/smaps", "\u{0}garbage\n-\n - - -\nSize: x kB\nKernelPageSize: 99999999999999999999 kB\n");
        fake.put("/proc/self/mountinfo", "9 1 0:9 / /dev/hugepages rw - hugetlbfs hugetlbfs rw,pagesize=2M\n");
        fake.put("/dev/hugepages/my file", "x");
        fake.put("/dev/hugepages/old/rtemap_0", "x");
        fake.put("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "16");
        fake.put("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "11");
        let report = holders(fake.host()).unwrap();
        let text = report.to_string();
        for part in [
            "pages of 2 MiB: 5 in use of 16",
            "process 5 (l2fwd): 4 of 5 mapped pages of 2 MiB, /anon_hugepage (deleted) (2 on node 0, 1 on node 1)",
            "process 5 (l2fwd): 1 of 1 mapped pages of 2 MiB, /dev/hugepages/my file",
            "no process: 0 MiB in the file /dev/hugepages/old/rtemap_0",
        ] {
            assert!(text.contains(part), "no `{part}` in {text}");
        }
        assert_eq!((report.mappings.len(), report.files.len(), report.hidden), (2, 1, 0));
    }

    #[test]
    fn names_of_files_do_nothing_to_a_terminal_or_a_shell() {
        let fake = Fake::new();
        fake.put("/proc/self/mountinfo", "9 1 0:9 / /dev/hugepages rw - hugetlbfs hugetlbfs rw,pagesize=2M\n");
        fake.put("/dev/hugepages/a; reboot #", "x");
        fake.put("/dev/hugepages/it's", "x");
        fake.put("/dev/hugepages/\u{1b}[2J", "x");
        let text = holders(fake.host()).unwrap().to_string();
        assert!(text.contains("`rm '/dev/hugepages/a; reboot #'`"), "{text}");
        assert!(text.contains(r"`rm '/dev/hugepages/it'\''s'`"), "{text}");
        assert!(!text.contains('\u{1b}') && text.contains("/dev/hugepages/?[2J"), "{text}");
    }

    #[test]
    fn a_machine_without_any_is_no_error() {
        let fake = Fake::new();
        fake.put("/proc/5/comm", "x");
        let text = holders(fake.host()).unwrap().to_string();
        assert!(text.contains("no hugepages") && text.contains("no process was seen"), "{text}");
        assert!(holders(&Host::at("/nowhere")).unwrap_err().to_string().contains("/proc cannot be read"));
    }
}
