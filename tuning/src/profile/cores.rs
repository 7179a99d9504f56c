//! Which cores run workers, and which everything else.

use spinwake::cpu::{CpuSet, Topology};

use super::DefaultWorkers;

/// Cores could not be dealt out.
#[derive(Debug, thiserror::Error)]
pub enum RolesError {
    /// The machine does not tell its cores.
    #[error("which cores are online cannot be read from /sys/devices/system/cpu; is /sys mounted?")]
    Unknown,
    /// A core is not there.
    #[error("--cores {asked}: {missing} cannot be used; cores {online} are online")]
    Missing {
        /// What was asked for.
        asked: CpuSet,
        /// What of it is not there.
        missing: CpuSet,
        /// What is.
        online: CpuSet,
    },
    /// Nothing would be left.
    #[error("--cores {asked} is every core that is online; leave at least one for everything else")]
    All {
        /// What was asked for.
        asked: CpuSet,
    },
    /// No core was named.
    #[error("--cores names no core; give a list, as in 2-5,8")]
    None,
}

/// Who runs where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles {
    /// Cores for workers; there may be none.
    pub workers: CpuSet,
    /// Cores for everything else: at least one, none of the former, and none that shares execution units with one if that can be.
    pub others: CpuSet,
    /// Cores that are online.
    pub online: CpuSet,
}

impl Roles {
    /// Deals out the machine's cores: `asked` for workers, or what the profile says.
    ///
    /// # Errors
    ///
    /// When the machine does not have these cores, no other would be left, or it does not tell which it has.
    pub fn of(topology: &Topology, asked: Option<&CpuSet>, default: DefaultWorkers) -> Result<Self, RolesError> {
        let online = topology.online().filter(|online| !online.is_empty()).ok_or(RolesError::Unknown)?.clone();
        let isolated = topology.isolated().cloned().unwrap_or_default().intersection(&online);
        let workers = match asked {
            Some(asked) => {
                let missing = asked.difference(&online);
                if !missing.is_empty() {
                    return Err(RolesError::Missing { asked: asked.clone(), missing, online });
                }
                match asked {
                    asked if asked.is_empty() => return Err(RolesError::None),
                    asked if *asked == online => return Err(RolesError::All { asked: asked.clone() }),
                    asked => asked.clone(),
                }
            }
            // A machine may say that all its cores are isolated; no kernel means it.
            None if !isolated.is_empty() && isolated != online => isolated.clone(),
            None if default == DefaultWorkers::Rest => {
                let first: CpuSet = online.iter().take(1).collect();
                online.difference(&first.union(&siblings(topology, &first)))
            }
            None => CpuSet::new(),
        };
        let rest = online.difference(&workers);
        let quiet = siblings(topology, &workers).union(&isolated);
        let others = Some(rest.difference(&quiet)).filter(|others| !others.is_empty()).unwrap_or(rest);
        Ok(Self { workers, others, online })
    }

    /// Of `cores`, those that anything may run on; where that leaves none, all that are for everything but workers.
    pub fn without_workers(&self, cores: &CpuSet) -> CpuSet {
        let left = cores.difference(&self.workers);
        if left.intersection(&self.online).is_empty() { self.others.clone() } else { left }
    }
}

/// The cores that share execution units with any of `cores`, themselves among them.
fn siblings(topology: &Topology, cores: &CpuSet) -> CpuSet {
    let of = |id| topology.core(id).and_then(|core| core.siblings.clone()).unwrap_or_default();
    cores.iter().fold(cores.clone(), |all, id| all.union(&of(id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Four cores of two threads each, sharing as 0,4 1,5 2,6 3,7.
    fn topology(isolated: &str) -> (tempfile::TempDir, Topology) {
        let root = tempfile::tempdir().unwrap();
        let cpu = root.path().join("sys/devices/system/cpu");
        for id in 0..8 {
            let dir = cpu.join(format!("cpu{id}/topology"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("core_cpus_list"), format!("{},{}\n", id % 4, id % 4 + 4)).unwrap();
        }
        for (name, text) in [("present", "0-7\n"), ("online", "0-7\n"), ("isolated", isolated)] {
            fs::write(cpu.join(name), text).unwrap();
        }
        let topology = Topology::read_from(root.path());
        (root, topology)
    }

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    fn deal(isolated: &str, asked: Option<&str>, default: DefaultWorkers) -> (String, String) {
        let (_root, topology) = topology(isolated);
        let roles = Roles::of(&topology, asked.map(set).as_ref(), default).unwrap();
        (roles.workers.to_string(), roles.others.to_string())
    }

    #[test]
    fn cores_are_dealt_out() {
        use DefaultWorkers::{Isolated, Rest};
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(deal("\n", None, Rest), pair("1-3,5-7", "0,4"), "all but the first and its sibling");
        assert_eq!(deal("\n", None, Isolated), pair("", "0-7"));
        assert_eq!(deal("2,6\n", None, Rest), pair("2,6", "0-1,3-5,7"));
        assert_eq!(deal("2,6\n", Some("1"), Rest), pair("1", "0,3-4,7"), "neither siblings nor the isolated");
        assert_eq!(deal("\n", Some("0-3"), Rest), pair("0-3", "4-7"), "rather siblings than none");
        assert_eq!(deal("0-7\n", None, Isolated), pair("", "0-7"));
        assert_eq!(deal("junk", None, Isolated), pair("", "0-7"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let (_root, topology) = topology("\n");
        let of = |asked: &str| Roles::of(&topology, Some(&set(asked)), DefaultWorkers::Rest).unwrap_err();
        assert!(of("7-9").to_string().contains("8-9 cannot be used; cores 0-7 are online"));
        assert!(matches!(of("0-7"), RolesError::All { .. }) && matches!(of(""), RolesError::None));
        let nothing = Topology::default();
        assert!(matches!(Roles::of(&nothing, None, DefaultWorkers::Rest), Err(RolesError::Unknown)));
    }

    #[test]
    fn a_mask_is_never_left_empty() {
        let roles = Roles { workers: set("1-3"), others: set("0"), online: set("0-3") };
        assert_eq!(roles.without_workers(&set("0-3")), set("0"));
        assert_eq!(roles.without_workers(&set("2")), set("0"));
        // Cores that are offline do not run anything.
        assert_eq!(roles.without_workers(&set("2,9")), set("0"));
    }
}
