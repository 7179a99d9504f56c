//! `hugepages show`.

use std::fmt;

use serde::Serialize;
use spinwake::mem::{self, HugepageCount};

use super::pool::{self, MountPoint};
use super::{Pool, in_words};
use crate::host::Host;

/// The machine's hugepages.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Every pool: each size for the whole machine, then by NUMA node.
    pub pools: Vec<Pool>,
    /// Where hugepages are mounted.
    pub mounts: Vec<MountPoint>,
    #[serde(skip)]
    counts: Vec<HugepageCount>,
}

pub(super) fn show(host: &Host) -> Shown {
    let counts = mem::all_hugepages(host.root());
    Shown { pools: counts.iter().map(Pool::from).collect(), mounts: pool::mounts(host), counts }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.counts.is_empty() {
            write!(f, "this kernel has no hugepages, or does not show them")?;
        }
        for (number, count) in self.counts.iter().enumerate() {
            let place = count.node.map_or_else(|| "in all".into(), |node| format!("on node {node}"));
            write!(f, "{}{} pages {place}: {count}", if number > 0 { "\n" } else { "" }, count.size)?;
        }
        for mount in &self.mounts {
            let size = mount.page_bytes.map_or("unknown size".into(), in_words);
            write!(f, "\nmounted at {}, pages of {size}", mount.at)?;
        }
        if self.mounts.is_empty() {
            write!(f, "\nnot mounted (`spinwake-tune hugepages mount`; only programs that want files need it)")?;
        }
        Ok(())
    }
}
