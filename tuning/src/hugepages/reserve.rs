//! `hugepages reserve`: sets how many pages a pool has.

use std::fmt;
use std::io;

use serde::Serialize;
use spinwake::mem::{PageSize, default_hugepage, hugepages};

use super::{in_words, pool};
use crate::effects::{Effects, hint};
use crate::host::Host;

/// Sets how many pages a pool has
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How many pages the pool shall have, those in use among them
    #[arg(value_name = "N")]
    pub pages: usize,

    /// How big they are: 2M or 1G
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = super::huge)]
    pub size: PageSize,

    /// On this NUMA node; without it, the kernel spreads them over all
    #[arg(long, value_name = "N")]
    pub node: Option<usize>,

    /// Also after the next start: by a file of sysctl.d or tmpfiles.d
    #[arg(long)]
    pub persist: bool,
}

/// Pages could not be reserved.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// No such pool.
    #[error("this kernel has no pages of {size}{place}; there are {there}")]
    NoPool {
        /// Of what size.
        size: PageSize,
        /// On which node, with a preposition.
        place: String,
        /// What there is.
        there: String,
    },
    /// The kernel refused, or the file for the next start cannot be written.
    #[error("{path}: {source}{}", hint(source))]
    Write {
        /// The file.
        path: String,
        /// The meaning of errno.
        source: io::Error,
    },
    /// The pool was written and cannot be read.
    #[error("{path} was written, and does not say how many pages there are now")]
    Unknown {
        /// The file.
        path: String,
    },
}

/// What became of a pool.
#[derive(Debug, Serialize)]
pub struct Reserved {
    /// Bytes of one page.
    pub page_bytes: usize,
    /// On which NUMA node; `null` for the whole machine.
    pub node: Option<usize>,
    /// Pages in the pool before.
    pub before: Option<usize>,
    /// Pages that were asked for.
    pub asked: usize,
    /// Pages in the pool now.
    pub now: usize,
    /// Those of them that somebody has.
    pub used: Option<usize>,
    /// Whether the kernel was asked to move memory together for it.
    pub compacted: bool,
    /// Why it is not what was asked for.
    pub why: Option<String>,
    /// The file that was written for the next start.
    pub written: Option<String>,
    /// The file that was removed.
    pub removed: Option<String>,
}

pub(super) fn reserve(args: &Args, host: &Host, effects: &dyn Effects) -> Result<Reserved, ReserveError> {
    let path = format!("{}/nr_hugepages", pool::folder(args.size, args.node));
    let read = || hugepages(host.root(), args.size, args.node);
    if !host.has(&path) {
        return Err(no_pool(args, host));
    }
    let before = read().configured;
    let write = |path: &str, text: &str| {
        effects.write(path, text).map_err(|source| ReserveError::Write { path: path.into(), source })
    };
    let unknown = || ReserveError::Unknown { path: path.clone() };
    let mut compacted = false;
    if before != Some(args.pages) {
        write(&path, &args.pages.to_string())?;
        if read().configured.ok_or_else(unknown)? < args.pages {
            // Memory that is free in pieces: the kernel is asked once to move it together. Not every kernel can.
            compacted = effects.write("/proc/sys/vm/compact_memory", "1").is_ok();
            write(&path, &args.pages.to_string())?;
        }
    }
    let count = read();
    let now = count.configured.ok_or_else(unknown)?;
    let used = count.free.map(|free| now.saturating_sub(free));
    let (mut written, mut removed) = (None, None);
    if args.persist {
        let kept = Kept::choose(args, host);
        let fail = |source| ReserveError::Write { path: kept.path.clone(), source };
        if args.pages == 0 {
            removed = effects.remove(&kept.path).map_err(fail)?.then(|| kept.path.clone());
        } else {
            effects.save(&kept.path, &kept.text).map_err(fail)?;
            written = Some(kept.path.clone());
        }
    }
    Ok(Reserved {
        page_bytes: args.size.bytes(),
        node: args.node,
        before,
        asked: args.pages,
        now,
        used,
        compacted,
        why: why(args, host, now, used),
        written,
        removed,
    })
}

fn no_pool(args: &Args, host: &Host) -> ReserveError {
    let there: Vec<_> = spinwake::mem::all_hugepages(host.root())
        .iter()
        .map(|pool| match pool.node {
            Some(node) => format!("{} on node {node}", pool.size),
            None => pool.size.to_string(),
        })
        .collect();
    let there = if there.is_empty() { "none".into() } else { there.join(", ") };
    let place = args.node.map_or_else(String::new, |node| format!(" on node {node}"));
    ReserveError::NoPool { size: args.size, place, there }
}

/// Why the kernel has fewer pages than asked for, or more.
fn why(args: &Args, host: &Host, now: usize, used: Option<usize>) -> Option<String> {
    let Args { pages, size, .. } = *args;
    if now == pages {
        return None;
    }
    if now > pages {
        let used = used.map_or("some".into(), |used| used.to_string());
        return Some(format!(
            "{used} of them are in use, and go when they are given back; `spinwake-tune hugepages holders` says who has them"
        ));
    }
    let (file, place) = match args.node {
        Some(node) => (format!("/sys/devices/system/node/node{node}/meminfo"), format!("node {node}")),
        None => ("/proc/meminfo".into(), "this machine".into()),
    };
    let text = host.read(file).unwrap_or_default();
    let free_kib = text.lines().find_map(|line| {
        let value = line.split_once("MemFree:")?.1;
        value.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()
    });
    let wanted_mib = (pages - now).saturating_mul(size.bytes() >> 20);
    let free = free_kib.map_or("unknown how much".into(), |kib| format!("{} MiB", kib >> 10));
    let word = format!("hugepagesz={} hugepages={pages}", if size == PageSize::Huge1G { "1G" } else { "2M" });
    Some(format!(
        "the kernel needs {wanted_mib} MiB more in whole pages, and {place} has {free} free, part of it in smaller pieces: end \
         programs that have much memory, or `echo 3 > /proc/sys/vm/drop_caches` and again; sure is only the start of the \
         machine, with {word} on the kernel's command line"
    ))
}

/// The file that does the same at the next start.
struct Kept {
    path: String,
    text: String,
}

impl Kept {
    /// sysctl.d knows the default size on all nodes together; for all others, tmpfiles.d writes the pool's own file.
    fn choose(args: &Args, host: &Host) -> Self {
        let Args { pages, size, node, .. } = *args;
        if node.is_none() && default_hugepage(host.root()) == Some(size) {
            let text = format!("# Made by spinwake-tune.\nvm.nr_hugepages = {pages}\n");
            return Self { path: "/etc/sysctl.d/60-spinwake-hugepages.conf".into(), text };
        }
        let name = match node {
            Some(node) => format!("{}kB-node{node}", size.bytes() >> 10),
            None => format!("{}kB", size.bytes() >> 10),
        };
        let text = format!("# Made by spinwake-tune.\nw {}/nr_hugepages - - - - {pages}\n", pool::folder(size, node));
        Self { path: format!("/etc/tmpfiles.d/60-spinwake-hugepages-{name}.conf"), text }
    }
}

impl Reserved {
    /// 1 when there are fewer than asked for.
    pub fn exit_code(&self) -> u8 {
        u8::from(self.now < self.asked)
    }
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.node.map_or_else(String::new, |node| format!(" on node {node}"));
        let before = self.before.map_or("unknown".into(), |before| before.to_string());
        let size = in_words(self.page_bytes);
        write!(f, "pages of {size}{place}: {} now (before: {before}, asked: {})", self.now, self.asked)?;
        if let Some(used) = self.used.filter(|&used| used > 0) {
            write!(f, ", {used} of them in use")?;
        }
        if let Some(why) = &self.why {
            write!(f, "\n  {why}")?;
        }
        if self.compacted {
            write!(f, "\n  the kernel was asked to move free memory together (vm.compact_memory)")?;
        }
        if let Some(path) = &self.written {
            write!(f, "\n  written for the next start: {path}")?;
            if self.page_bytes == PageSize::Huge1G.bytes() {
                write!(
                    f,
                    " (memory may be in pieces by then; surer is hugepagesz=1G hugepages={} on the kernel's command line)",
                    self.asked
                )?;
            }
        }
        if let Some(path) = &self.removed {
            write!(f, "\n  removed: {path}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::fake::Fake;

    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    const NODE_POOL: &str = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB";

    fn machine(room: usize, compacted: usize) -> Fake {
        let fake = Fake::new();
        fake.room.set(room);
        fake.room_compacted.set(compacted);
        for pool in [POOL, NODE_POOL] {
            fake.put(&format!("{pool}/nr_hugepages"), "2\n");
            fake.put(&format!("{pool}/free_hugepages"), "0\n");
        }
        fake.put("/sys/devices/system/node/has_memory", "1\n");
        fake.put("/proc/sys/vm/compact_memory", "");
        fake.put("/proc/meminfo", "MemFree: 20480 kB\nHugepagesize: 2048 kB\n");
        fake
    }

    fn args(pages: usize) -> Args {
        Args { pages, size: PageSize::Huge2M, node: None, persist: false }
    }

    fn done(fake: &Fake, args: &Args) -> (u8, String) {
        let reserved = reserve(args, fake.host(), fake).unwrap();
        (reserved.exit_code(), reserved.to_string())
    }

    #[test]
    fn what_was_and_what_is_are_told() {
        let fake = machine(100, 100);
        assert_eq!(
            done(&fake, &args(64)),
            (0, "pages of 2 MiB: 64 now (before: 2, asked: 64), 64 of them in use".into())
        );
        fake.done.borrow_mut().clear();
        done(&fake, &args(64));
        assert!(fake.done.borrow().is_empty());
        let (_, text) = done(&fake, &Args { node: Some(1), ..args(8) });
        assert!(text.starts_with("pages of 2 MiB on node 1: 8 now (before: 2"), "{text}");
    }

    #[test]
    fn compaction_is_tried_once() {
        let (code, text) = done(&machine(10, 64), &args(64));
        assert_eq!(code, 0);
        assert!(text.contains("64 now") && text.contains("asked to move free memory together"), "{text}");
    }

    #[test]
    fn fewer_than_asked_is_told_with_the_reason() {
        let (code, text) = done(&machine(10, 12), &args(64));
        assert_eq!(code, 1);
        for part in [
            "12 now (before: 2, asked: 64)",
            "needs 104 MiB more",
            "this machine has 20 MiB free",
            "hugepagesz=2M hugepages=64",
        ] {
            assert!(text.contains(part), "no `{part}` in {text}");
        }
    }

    #[test]
    fn persisting_writes_what_the_next_start_reads_and_none_removes_it() {
        let fake = machine(100, 100);
        let persist = |pages, node| Args { pages, node, size: PageSize::Huge2M, persist: true };
        done(&fake, &persist(64, None));
        let text = fake.host().read("/etc/sysctl.d/60-spinwake-hugepages.conf").unwrap();
        assert!(text.ends_with("vm.nr_hugepages = 64"), "{text}");
        done(&fake, &persist(8, Some(1)));
        let path = "/etc/tmpfiles.d/60-spinwake-hugepages-2048kB-node1.conf";
        let text = fake.host().read(path).unwrap();
        assert!(text.ends_with(&format!("w {NODE_POOL}/nr_hugepages - - - - 8")), "{text}");
        let (_, text) = done(&fake, &persist(0, Some(1)));
        assert!(text.contains(&format!("removed: {path}")) && !fake.host().has(path), "{text}");
    }

    #[test]
    fn a_size_or_a_node_that_is_not_there_is_refused() {
        let fake = machine(1, 1);
        let error = reserve(&Args { size: PageSize::Huge1G, ..args(1) }, fake.host(), &fake).unwrap_err().to_string();
        assert_eq!(error, "this kernel has no pages of 1 GiB; there are 2 MiB, 2 MiB on node 1");
        let error = reserve(&Args { node: Some(7), ..args(1) }, fake.host(), &fake).unwrap_err().to_string();
        assert!(error.starts_with("this kernel has no pages of 2 MiB on node 7"), "{error}");
        assert!(fake.done.borrow().is_empty());
    }
}
