//! Who looks: the user, and what the user may do.

use crate::host::Host;

use super::seen::{self, Unseen};
use super::tasks::field;

/// The user that this process runs as, and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// The effective user.
    pub(super) user: u32,
    /// Its groups.
    groups: Vec<u32>,
    /// Bits of linux/capability.h.
    capabilities: u64,
    /// Whether capabilities count for the machine: those of a user namespace do not.
    of_machine: bool,
}

/// linux/capability.h.
pub(super) mod capability {
    pub(in super::super) const DAC_OVERRIDE: u32 = 1;
    pub(in super::super) const IPC_LOCK: u32 = 14;
    pub(in super::super) const SYS_NICE: u32 = 23;
}

const STATUS: &str = "/proc/self/status";

impl Identity {
    pub(super) fn read(host: &Host) -> Result<Self, Unseen> {
        let text = seen::text(host, STATUS)?;
        let parsed = Self::parse(&text, host.read("/proc/self/uid_map").as_deref());
        parsed.ok_or_else(|| Unseen::malformed(STATUS, &text))
    }

    fn parse(status: &str, uid_map: Option<&str>) -> Option<Self> {
        // proc_pid_status(5): real, effective, saved, file system.
        let effective = |name| field(status, name)?.split_whitespace().nth(1)?.parse::<u32>().ok();
        let mut groups = vec![effective("Gid:")?];
        groups.extend(field(status, "Groups:")?.split_whitespace().filter_map(|group| group.parse::<u32>().ok()));
        Some(Self {
            user: effective("Uid:")?,
            groups,
            capabilities: u64::from_str_radix(field(status, "CapEff:")?, 16).ok()?,
            of_machine: uid_map.is_none_or(|map| map.split_whitespace().eq(["0", "0", "4294967295"])),
        })
    }

    /// Whether it has a capability that counts.
    pub(super) fn can(&self, capability: u32) -> bool {
        self.of_machine && self.capabilities >> capability & 1 == 1
    }

    /// Whether it may read and write a file of this owner, group and mode.
    pub(super) fn may_use(&self, owner: u32, group: u32, mode: u32) -> bool {
        let bits = match (self.user == owner, self.groups.contains(&group)) {
            (true, _) => mode >> 6,
            (false, true) => mode >> 3,
            (false, false) => mode,
        };
        bits & 6 == 6 || self.can(capability::DAC_OVERRIDE)
    }

    /// Root, or `user 1000`.
    pub(super) fn name(&self) -> String {
        if self.user == 0 { "root".into() } else { format!("user {}", self.user) }
    }
}

/// A limit of this process, in the unit that /proc/self/limits has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    None,
    At(u64),
}

/// The soft limit called `name` there.
pub(super) fn limit(host: &Host, name: &str) -> Result<Limit, Unseen> {
    const LIMITS: &str = "/proc/self/limits";
    let text = seen::text(host, LIMITS)?;
    let soft = field(&text, name).and_then(|line| line.split_whitespace().next());
    match soft.map(|soft| (soft, soft.parse())) {
        Some(("unlimited", _)) => Ok(Limit::None),
        Some((_, Ok(limit))) => Ok(Limit::At(limit)),
        _ => Err(Unseen::malformed(LIMITS, &text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Uid:\t1000\t1000\t1000\t1000\nGid:\t100\t100\t100\t100\nGroups:\t7 8\nCapEff:\t0000000000004000\n";

    #[test]
    fn permission_is_of_the_first_class_that_fits() {
        let user = Identity::parse(STATUS, None).unwrap();
        assert!(user.may_use(1000, 0, 0o600) && user.may_use(0, 8, 0o060) && user.may_use(0, 100, 0o060));
        assert!(user.may_use(0, 0, 0o006) && !user.may_use(0, 0, 0o660));
        assert!(!user.may_use(1000, 0, 0o066), "the owner is not anybody");
        assert!(user.can(capability::IPC_LOCK) && !user.can(capability::SYS_NICE));
    }

    #[test]
    fn capabilities_of_a_user_namespace_do_not_count() {
        let user = Identity::parse(STATUS, Some("0 1000 1")).unwrap();
        assert!(!user.can(capability::IPC_LOCK));
        assert_eq!(Identity::parse("Uid:\t0\n", None), None);
    }
}
