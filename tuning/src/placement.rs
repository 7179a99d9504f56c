//! A planned placement: which worker runs on which core, with which ports.
//!
//! ```toml
//! [[workers]]
//! core = 1
//! ports = ["pci:0000:01:00.0", "pci:0000:02:00.0"]
//!
//! [memory]
//! hugepages_mib = 64
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use spinwake::cpu::CpuSet;
use spinwake::port::{PortSpec, SpecError};

/// Workers with their cores and ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// In the order of the file; at least one.
    pub workers: Vec<Worker>,
    /// Hugepages that the program wants, in MiB.
    pub hugepages_mib: Option<u64>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its core.
    pub core: usize,
    /// What it serves.
    pub ports: Vec<PortSpec>,
}

/// A placement could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// The file cannot be read.
    #[error("the placement {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The meaning of errno.
        source: io::Error,
    },
    /// It is not what a placement is written like.
    #[error(
        "{} is no placement: {why}\na placement looks like this:\n\n[[workers]]\ncore = 1\nports = \
         [\"pci:0000:01:00.0\"]\n\n[memory]            # optional\nhugepages_mib = 64",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        why: String,
    },
    /// A port of it is no port.
    #[error("{}, worker on core {core}: {source}", path.display())]
    Port {
        /// The file.
        path: PathBuf,
        /// The worker's core.
        core: usize,
        /// What is wrong with it.
        source: Box<SpecError>,
    },
}

impl Placement {
    /// Reads the placement in a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read, has a key that does not exist, or a value that makes no sense.
    pub fn load(path: &Path) -> Result<Self, PlacementError> {
        let text = fs::read_to_string(path).map_err(|source| PlacementError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, PlacementError> {
        let wrong = |why: String| PlacementError::Format { path: path.into(), why };
        let File { workers, memory } = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if workers.is_empty() {
            return Err(wrong("it has no [[workers]]".into()));
        }
        let worker = |WorkerTable { core, ports }: WorkerTable| {
            if core > CpuSet::MAX_ID {
                return Err(wrong(format!("core = {core} is above {}, the largest there can be", CpuSet::MAX_ID)));
            }
            let port = |spec: &String| {
                let refused = |source| PlacementError::Port { path: path.into(), core, source: Box::new(source) };
                spec.parse().map_err(refused)
            };
            Ok(Worker { core, ports: ports.iter().map(port).collect::<Result<_, _>>()? })
        };
        let workers = workers.into_iter().map(worker).collect::<Result<_, _>>()?;
        Ok(Self { workers, hugepages_mib: memory.and_then(|memory| memory.hugepages_mib) })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    workers: Vec<WorkerTable>,
    memory: Option<MemoryTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkerTable {
    core: usize,
    #[serde(default)]
    ports: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemoryTable {
    hugepages_mib: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Placement, String> {
        Placement::parse(text, Path::new("plan.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_placement_is_read() {
        let plan = parse(
            "[[workers]]\ncore = 1\nports = [\"soft:,rate=0\"]\n[[workers]]\ncore = 3\n[memory]\nhugepages_mib = 64",
        )
        .unwrap();
        assert_eq!(plan.workers.iter().map(|worker| worker.core).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(plan.workers[0].ports[0].kind(), "soft");
        assert_eq!(plan.hugepages_mib, Some(64));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_exists() {
        for (text, parts) in [
            ("[[workers]]\ncores = 1", &["cores", "`core`", "`ports`", "line 2"][..]),
            ("[[worker]]\ncore = 1", &["`worker`", "`workers`", "`memory`"]),
            ("[[workers]]\ncore = 1\n[memory]\npages = 3", &["pages", "hugepages_mib"]),
            ("[[workers]]\ncore = -1", &["-1"]),
            ("[[workers]]\ncore = 70000", &["70000", "65535"]),
            ("[[workers]]\nports = []", &["core"]),
            ("[[workers]]\ncore = 1\nports = [\"eth0\"]", &["core 1", "eth0", "no kind"]),
            ("", &["no [[workers]]"]),
            ("= 1", &["plan.toml is no placement", "core = 1"]),
        ] {
            let error = parse(text).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "no `{part}` in: {error}");
            }
        }
        assert!(Placement::load(Path::new("/nowhere/plan.toml")).unwrap_err().to_string().contains("cannot be read"));
    }
}
