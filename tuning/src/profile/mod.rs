//! What a machine shall be like: the profiles that come with the program, and own ones in TOML.
//!
//! A profile says what is wanted, not how: everything is optional, and what it does not name stays as it is. A key that
//! no profile has is refused by name.

mod cores;

pub use cores::{Roles, RolesError};

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Name and text of the profiles that come with the program.
const BUILT_IN: [(&str, &str); 3] = [
    ("low-latency", include_str!("../../profiles/low-latency.toml")),
    ("throughput", include_str!("../../profiles/throughput.toml")),
    ("balanced", include_str!("../../profiles/balanced.toml")),
];

/// A profile could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is none of those that come with the program.
    #[error(
        "there is no profile \"{name}\"; there are low-latency, throughput and balanced, and your own by its path, as in \
         ./mine.toml"
    )]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The meaning of errno.
        source: std::io::Error,
    },
    /// It is no profile.
    #[error("profile {name}: {source}")]
    Malformed {
        /// The profile.
        name: String,
        /// Where, and what is wrong.
        source: Box<toml::de::Error>,
    },
    /// A value is one that cannot be.
    #[error("profile {name}: {key} = \"{value}\": {reason}")]
    Impossible {
        /// The profile.
        name: String,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it, and what would be right.
        reason: &'static str,
    },
}

/// What is wanted.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profile {
    /// Its name, or its path.
    #[serde(skip)]
    pub name: String,
    /// What it is for, in one line.
    pub summary: String,
    /// Which cores are worker cores unless the command line says so.
    pub workers: DefaultWorkers,
    /// Clocks and idle states.
    pub processor: Processor,
    /// Memory.
    pub memory: Memory,
    /// Interrupts.
    pub interrupts: Interrupts,
    /// The kernel's own work.
    pub kernel: Kernel,
    /// Virtual machines that run here.
    pub kvm: Kvm,
    /// Hugepages to have at least, by size: `"2M" = 512`.
    pub hugepages: BTreeMap<String, u64>,
    /// Other values below `/proc/sys`, by the names of sysctl: `"net.core.busy_poll" = "50"`.
    pub sysctl: BTreeMap<String, String>,
    /// The kernel's command line.
    pub boot: Boot,
}

/// Which cores are worker cores when nobody names them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefaultWorkers {
    /// The isolated ones.
    #[default]
    Isolated,
    /// The isolated ones; where there are none, all but the first and what shares its execution units.
    Rest,
}

/// Clocks and idle states.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Processor {
    /// The frequency governor of every core.
    pub governor: Option<String>,
    /// Whether cores may run above their nominal frequency.
    pub turbo: Option<bool>,
    /// Idle states that take more microseconds to leave are disabled on worker cores.
    pub idle_exit_us: Option<u64>,
}

/// Memory.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// Who gets transparent huge pages: `always`, `madvise` or `never`.
    pub transparent_hugepages: Option<String>,
    /// Who waits for memory to be moved to make some: `always`, `defer`, `defer+madvise`, `madvise` or `never`.
    pub transparent_hugepages_defrag: Option<String>,
    /// Whether the kernel's collector of huge pages may move memory.
    pub khugepaged_defrag: Option<bool>,
    /// Whether equal pages are merged (KSM).
    pub same_page_merging: Option<bool>,
    /// How readily programs' memory is swapped out, 0 to 200.
    pub swappiness: Option<u64>,
    /// Whether memory is unmapped now and then to learn which node uses it.
    pub numa_balancing: Option<bool>,
    /// How much memory is moved ahead of need, 0 to 100.
    pub compaction_proactiveness: Option<u64>,
    /// Seconds between two rounds of folding each core's memory statistics.
    pub stat_interval_s: Option<u64>,
}

/// Interrupts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Interrupts {
    /// Whether they, and those to come, are kept off worker cores.
    pub off_workers: Option<bool>,
}

/// The kernel's own work.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kernel {
    /// Whether work bound to no core is kept off worker cores.
    pub workqueues_off_workers: Option<bool>,
    /// Whether writing files back is kept off worker cores.
    pub writeback_off_workers: Option<bool>,
    /// Whether kernel threads that can be moved are kept off worker cores.
    pub threads_off_workers: Option<bool>,
    /// Whether timers may go to another core.
    pub timer_migration: Option<bool>,
    /// Whether the hard lockup detector runs: an interrupt of each core, every few seconds.
    pub nmi_watchdog: Option<bool>,
    /// Whether the lockup detectors leave worker cores out.
    pub watchdog_off_workers: Option<bool>,
    /// How many microseconds of each second realtime threads may use; -1 for all.
    pub rt_runtime_us: Option<i64>,
}

/// Virtual machines that run here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kvm {
    /// How many nanoseconds the host looks for work when a guest's core idles.
    pub halt_poll_ns: Option<u64>,
}

/// The kernel's command line.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Boot {
    /// Its parameters; `{workers}` and `{others}` stand for lists of cores. One with such a list is left out where the list
    /// is empty.
    pub parameters: Vec<String>,
}

impl Profile {
    /// The profile of this name, or in the file of this path: what has a slash in it or ends in `.toml` is a path.
    ///
    /// # Errors
    ///
    /// When there is none, or it is malformed.
    pub fn find(name: &str) -> Result<Self, ProfileError> {
        if name.contains('/') || name.ends_with(".toml") {
            let path = Path::new(name);
            let text =
                fs::read_to_string(path).map_err(|source| ProfileError::Unreadable { path: path.into(), source })?;
            return Self::parse(name, &text);
        }
        let (_, text) = BUILT_IN
            .iter()
            .find(|(built_in, _)| *built_in == name)
            .ok_or_else(|| ProfileError::Unknown { name: name.into() })?;
        Self::parse(name, text)
    }

    /// Whether it came from a file.
    pub fn is_own(&self) -> bool {
        BUILT_IN.iter().all(|(name, _)| *name != self.name)
    }

    fn parse(name: &str, text: &str) -> Result<Self, ProfileError> {
        let profile: Self = toml::from_str(text)
            .map_err(|source| ProfileError::Malformed { name: name.into(), source: Box::new(source) })?;
        let profile = Self { name: name.into(), ..profile };
        profile.check()?;
        Ok(profile)
    }

    /// Refuses what would end up somewhere else than it says.
    fn check(&self) -> Result<(), ProfileError> {
        let impossible = |key: &str, value: &str, reason| {
            let (name, key, value) = (self.name.clone(), key.into(), value.into());
            Err(ProfileError::Impossible { name, key, value, reason })
        };
        let word =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-+".contains(c));
        let words = [
            ("processor.governor", &self.processor.governor),
            ("memory.transparent_hugepages", &self.memory.transparent_hugepages),
            ("memory.transparent_hugepages_defrag", &self.memory.transparent_hugepages_defrag),
        ];
        for (key, value) in words {
            if let Some(value) = value.as_ref().filter(|value| !word(value)) {
                return impossible(key, value, "this is one word of letters");
            }
        }
        for (name, value) in &self.sysctl {
            if name.split(['.', '/']).any(|part| part.is_empty() || !part.chars().all(|c| c.is_ascii_graphic())) {
                return impossible("sysctl", name, "a name is words with dots between them, as in vm.swappiness");
            }
            if value.trim().is_empty() || value.contains(|c: char| c.is_control() && c != '\t') {
                return impossible(&format!("sysctl.{name}"), value, "a value is one line");
            }
        }
        for size in self.hugepages.keys() {
            if !size.parse().is_ok_and(spinwake::mem::PageSize::is_huge) {
                return impossible("hugepages", size, "this is a size, as in 2M or 1G");
            }
        }
        for parameter in &self.boot.parameters {
            // What needs no quoting in any boot loader's files.
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-.,:=/@+%{}".contains(c);
            if !parameter.starts_with(|c: char| c.is_ascii_alphabetic()) || !parameter.chars().all(plain) {
                return impossible(
                    "boot.parameters",
                    parameter,
                    "a parameter is a name or name=value of letters, digits and _-.,:=/@+%",
                );
            }
            let rest = parameter.replace("{workers}", "").replace("{others}", "");
            if rest.contains(['{', '}']) {
                return impossible("boot.parameters", parameter, "only {workers} and {others} stand for something");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_come_with_the_program_are_well_formed() {
        for (name, _) in BUILT_IN {
            let profile = Profile::find(name).unwrap();
            assert!(!profile.summary.is_empty() && !profile.is_own() && profile.name == name);
        }
        assert_eq!(Profile::find("low-latency").unwrap().processor.governor.as_deref(), Some("performance"));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        for (text, words) in [
            ("[memory]\nswapiness = 1\n", ["swapiness", "swappiness"]),
            ("[procesor]\n", ["procesor", "processor"]),
            ("[memory]\nswappiness = \"low\"\n", ["swappiness", "low"]),
            ("workers = \"all\"\n", ["all", "isolated"]),
            ("[boot]\nparameters = [\"a b\"]\n", ["boot.parameters", "a b"]),
            ("[boot]\nparameters = [\"a={cores}\"]\n", ["a={cores}", "{workers}"]),
            ("[boot]\nparameters = [\"a=$(reboot)\"]\n", ["a=$(reboot)", "name=value"]),
            ("[sysctl]\n\"../../etc/passwd\" = \"1\"\n", ["../../etc/passwd", "dots"]),
            ("[sysctl]\n\"a.b\" = \"1\\n2\"\n", ["sysctl.a.b", "one line"]),
            ("[hugepages]\nlarge = 1\n", ["large", "2M"]),
        ] {
            let error = Profile::parse("mine.toml", text).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)) && error.contains("mine.toml"), "{text}: {error}");
        }
    }

    #[test]
    fn an_unknown_profile_is_told_which_there_are() {
        let error = Profile::find("fast").unwrap_err().to_string();
        assert!(["fast", "low-latency", "throughput", "balanced"].iter().all(|word| error.contains(word)), "{error}");
        assert!(Profile::find("./no/such.toml").unwrap_err().to_string().contains("./no/such.toml"));
    }
}
