//! Why memory could not be had.

use std::fmt;
use std::io;

use super::hugepages::mend;
use super::{HugepageCount, PageSize};

/// Why [`Memory::alloc`](super::Memory::alloc) refused.
#[derive(Debug, thiserror::Error)]
pub enum MemError {
    /// Nothing was asked for.
    #[error("memory of 0 bytes was asked for; ask for at least 1")]
    Empty,
    /// More than an address space holds.
    #[error("memory of {len} bytes in pages of {page} was asked for, more than an address space holds; ask for less")]
    TooLong {
        /// Bytes wanted.
        len: usize,
        /// In pages of this size.
        page: PageSize,
    },
    /// The NUMA node is not there or has no memory.
    #[error("NUMA node {node} has no memory; these nodes have some: {known:?}")]
    NoSuchNode {
        /// The node wanted.
        node: usize,
        /// The nodes there are.
        known: Vec<usize>,
    },
    /// Not enough huge pages.
    #[error(transparent)]
    Exhausted(Box<Shortage>),
    /// The kernel or the CPU has no pages of this size.
    #[error("{call} for pages of {page} failed: {source}; this kernel or CPU has no pages of that size, use another")]
    UnknownSize {
        /// The call that failed.
        call: &'static str,
        /// The size wanted.
        page: PageSize,
        /// The meaning of errno.
        source: io::Error,
    },
    /// Not enough memory in ordinary pages; taking them would wake the kernel's out-of-memory killer.
    #[error(
        "{wanted_bytes} bytes in ordinary pages were wanted, but the machine has {available_bytes} available; \
         ask for less, or free some memory"
    )]
    NotEnoughMemory {
        /// Bytes wanted.
        wanted_bytes: usize,
        /// Bytes that programs can have without swapping.
        available_bytes: usize,
    },
    /// The process may not lock so much memory.
    #[error(
        "mlock of {len} bytes failed: {source}; this process may lock {} in all (RLIMIT_MEMLOCK): raise it with \
         `ulimit -l unlimited` as root, `LimitMEMLOCK=infinity` in the service's unit, or a memlock line in \
         /etc/security/limits.conf",
        limit(*.limit_bytes)
    )]
    Lock {
        /// Bytes to lock.
        len: usize,
        /// The soft limit (RLIMIT_MEMLOCK); `None` when there is none.
        limit_bytes: Option<u64>,
        /// The meaning of errno.
        source: io::Error,
    },
    /// The node cannot be bound to.
    #[error(
        "mbind of {len} bytes to NUMA node {node} failed: {source}; check that the process may use that node \
         (Mems_allowed_list in /proc/self/status) and make this call, or ask for memory of any node"
    )]
    Bind {
        /// Bytes to bind.
        len: usize,
        /// The node wanted.
        node: usize,
        /// The meaning of errno.
        source: io::Error,
    },
    /// Another call failed.
    #[error("{call} of {len} bytes in pages of {page} failed: {source}")]
    Call {
        /// The call that failed.
        call: &'static str,
        /// Bytes wanted.
        len: usize,
        /// In pages of this size.
        page: PageSize,
        /// The meaning of errno.
        source: io::Error,
    },
}

impl MemError {
    /// Whether ordinary pages could do where this failed.
    pub(super) fn is_about_huge_pages(&self) -> bool {
        matches!(self, Self::Exhausted(_) | Self::UnknownSize { .. })
    }
}

/// Huge pages that were wanted and not there, and what mends it.
#[derive(Debug)]
pub struct Shortage {
    /// Pages wanted.
    pub wanted: usize,
    /// The pool they were wanted from, as it was just after.
    pub pool: HugepageCount,
    /// The call that failed.
    pub call: &'static str,
    /// The meaning of errno.
    pub source: io::Error,
}

impl Shortage {
    /// The command, for root, that makes the pool large enough; `None` when it seems large enough already.
    pub fn mend(&self) -> Option<String> {
        let missing = self.wanted.saturating_sub(self.pool.available().unwrap_or(0));
        let pages = self.pool.configured.unwrap_or(0).saturating_add(missing);
        (missing > 0).then(|| mend(self.pool.size, self.pool.node, pages))
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, pool, call, source } = self;
        let place = pool.node.map_or("any NUMA node".to_owned(), |node| format!("NUMA node {node}"));
        write!(f, "not enough huge pages of {} on {place}: wanted {wanted}, {pool} ({call}: {source}); ", pool.size)?;
        match self.mend() {
            Some(command) => write!(f, "run `{command}` as root")?,
            None => f.write_str(
                "enough are free now, so try again; if that fails too, look for a limit: hugetlb.*.max of this \
                 process's cgroup, cpuset.mems, `ulimit -v`",
            )?,
        }
        if pool.size == PageSize::Huge1G {
            f.write_str(
                " (1 GiB pages are best set aside at boot: hugepagesz=1G hugepages=N on the kernel's command line)",
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Shortage {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

fn limit(bytes: Option<u64>) -> String {
    bytes.map_or("an unlimited amount".to_owned(), |bytes| format!("{} KiB", bytes / 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortage(size: PageSize, node: Option<usize>, configured: Option<usize>, free: Option<usize>) -> Shortage {
        let pool = HugepageCount { size, node, configured, free, reserved: None };
        Shortage { wanted: 64, pool, call: "mmap", source: io::ErrorKind::OutOfMemory.into() }
    }

    #[test]
    fn a_shortage_says_what_was_wanted_where_and_what_mends_it() {
        let text = shortage(PageSize::Huge2M, Some(1), Some(10), Some(3)).to_string();
        assert!(
            text.starts_with("not enough huge pages of 2 MiB on NUMA node 1: wanted 64, free 3, configured 10 (mmap: ")
        );
        let file = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
        assert!(text.contains(&format!("run `echo 71 > {file}` as root")), "{text}");
    }

    #[test]
    fn the_mend_of_1_gib_pages_names_their_own_file_and_the_boot_parameter() {
        let text = shortage(PageSize::Huge1G, None, Some(0), Some(0)).to_string();
        assert!(text.contains("`echo 64 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages`"), "{text}");
        assert!(text.contains("hugepagesz=1G"), "{text}");
    }

    #[test]
    fn unknown_counts_still_give_a_command() {
        let text = shortage(PageSize::Huge2M, None, None, None).to_string();
        assert!(text.contains("free unknown, configured unknown"), "{text}");
        assert!(text.contains("`echo 64 > /"), "{text}");
    }

    #[test]
    fn a_pool_that_is_large_enough_points_at_limits() {
        let shortage = shortage(PageSize::Huge2M, None, Some(100), Some(64));
        assert_eq!(shortage.mend(), None);
        assert!(shortage.to_string().contains("cgroup"));
    }

    #[test]
    fn a_lock_that_is_refused_names_the_limit() {
        let error = MemError::Lock { len: 4096, limit_bytes: Some(65536), source: io::ErrorKind::OutOfMemory.into() };
        let text = error.to_string();
        assert!(text.contains("64 KiB in all (RLIMIT_MEMLOCK)") && text.contains("ulimit -l"), "{text}");
    }
}
