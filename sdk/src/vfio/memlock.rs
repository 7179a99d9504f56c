//! The limit on locked memory, which VFIO counts every mapped page against.

use std::fs;
use std::path::Path;

/// What a process may lock and has locked, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memlock {
    /// `RLIMIT_MEMLOCK`; `None` is no limit.
    limit: Option<u64>,
    locked: u64,
}

impl Memlock {
    /// Reads the account of the process shown in `dir` (`/proc/self`); what cannot be read counts as no limit.
    pub(super) fn of(dir: &Path) -> Self {
        let status = fs::read_to_string(dir.join("status")).unwrap_or_default();
        let limits = fs::read_to_string(dir.join("limits")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let locked_kib = field("VmLck:").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        // linux/capability.h: CAP_IPC_LOCK is bit 14, and who has it is not limited. In a user namespace of its own (a
        // container without root) a process shows capabilities that the kernel does not honour here.
        let capable =
            field("CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok()).is_some_and(|c| c >> 14 & 1 == 1);
        let uid_map = fs::read_to_string(dir.join("uid_map")).unwrap_or_default();
        let may_all = capable && uid_map.split_whitespace().eq(["0", "0", "4294967295"]);
        let soft = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")?.split_whitespace().next());
        Self {
            limit: soft.and_then(|text| text.parse().ok()).filter(|_| !may_all),
            locked: locked_kib.unwrap_or(0).saturating_mul(1024),
        }
    }

    /// Says what to do about a mapping of `len` bytes that failed for lack of memory.
    pub(super) fn advice(self, len: u64) -> String {
        let needed = self.locked.saturating_add(len);
        match self.limit {
            Some(limit) if needed > limit => format!(
                "; RLIMIT_MEMLOCK is {limit} bytes, and {needed} are needed ({len} more than the {} locked now): raise it \
                 with `ulimit -l {}` as root before starting, or with LimitMEMLOCK=infinity in a systemd unit, or with \
                 a memlock line in /etc/security/limits.conf",
                self.locked,
                needed.div_ceil(1024)
            ),
            _ => format!("; the kernel is out of memory for {len} bytes and their page tables"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_USERS: &str = "         0          0 4294967295\n";

    fn process(status: &str, limits: &str) -> Memlock {
        process_of(ALL_USERS, status, limits)
    }

    fn process_of(uid_map: &str, status: &str, limits: &str) -> Memlock {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("uid_map"), uid_map).unwrap();
        fs::write(dir.path().join("status"), status).unwrap();
        fs::write(dir.path().join("limits"), limits).unwrap();
        Memlock::of(dir.path())
    }

    const LIMITS: &str =
        "Limit  Soft Limit Hard Limit Units\nMax locked memory         65536       131072       bytes\n";

    #[test]
    fn a_low_limit_is_told_with_what_is_needed() {
        let memlock = process("VmLck:\t      8 kB\nCapEff:\t0000000000000000\n", LIMITS);
        assert_eq!(memlock, Memlock { limit: Some(65536), locked: 8192 });
        let text = memlock.advice(1 << 20);
        for part in ["RLIMIT_MEMLOCK is 65536 bytes", "1056768 are needed", "`ulimit -l 1032`", "LimitMEMLOCK="] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_limit_that_does_not_apply_is_not_blamed() {
        for memlock in [
            process("VmLck: 8 kB\nCapEff: 0000000000004000\n", LIMITS),
            process("", "Max locked memory  unlimited unlimited bytes"),
            process("", ""),
            process("VmLck: 8 kB\nCapEff: 0\n", "Max locked memory  99999999 99999999 bytes"),
        ] {
            assert!(memlock.advice(1 << 20).contains("out of memory"));
        }
    }

    #[test]
    fn a_capability_in_a_namespace_of_its_own_counts_for_nothing() {
        let memlock = process_of("0 1000 1\n", "VmLck: 8 kB\nCapEff: 0000000000004000\n", LIMITS);
        assert!(memlock.advice(1 << 20).contains("RLIMIT_MEMLOCK is 65536 bytes"));
    }

    #[test]
    fn this_process_can_be_read() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert!(status.contains("VmLck:") && status.contains("CapEff:"));
        assert!(fs::read_to_string("/proc/self/limits").unwrap().contains("Max locked memory"));
    }
}
