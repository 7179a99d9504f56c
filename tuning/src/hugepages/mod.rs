//! `hugepages`: the kernel's pools of large pages: shows, fills, mounts them, and says who has them.

use std::fmt;

use clap::Subcommand;
use serde::Serialize;
use spinwake::mem::{HugepageCount, PageSize};

use crate::host::Host;
use crate::output::Report;

mod holders;
mod mount;
mod pool;
mod reserve;
mod show;

pub use holders::{Holders, HoldersError};
pub use mount::{MountError, Mounted};
pub use reserve::{ReserveError, Reserved};
pub use show::Shown;

/// Shows the hugepages there are, by size and NUMA node; reserves, mounts them, says who has them
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to do; show, when nothing is said
    #[command(subcommand)]
    pub action: Option<Action>,
}

/// What to do with hugepages.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// Shows the pools by size and NUMA node, and where they are mounted
    Show,
    /// Sets how many pages a pool has, and says how many the kernel really gave
    Reserve(reserve::Args),
    /// Mounts a file system of hugepages, for programs that want files (DPDK, QEMU); Spinwake needs none
    Mount(mount::Args),
    /// Says which processes and files have hugepages
    Holders,
}

/// A command on hugepages failed.
#[derive(Debug, thiserror::Error)]
pub enum HugepagesError {
    /// Reserving did.
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    /// Mounting did.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Looking for holders did.
    #[error(transparent)]
    Holders(#[from] HoldersError),
}

/// What a command on hugepages tells.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum HugepagesReport {
    /// The pools.
    Shown(Shown),
    /// What was reserved.
    Reserved(Reserved),
    /// What was mounted.
    Mounted(Mounted),
    /// Who has which.
    Holders(Holders),
}

/// Runs a command on hugepages.
///
/// # Errors
///
/// When the machine has no such pool, or the kernel refuses.
pub fn run(args: &Args, host: &Host) -> Result<HugepagesReport, HugepagesError> {
    Ok(match &args.action {
        None | Some(Action::Show) => HugepagesReport::Shown(show::show(host)),
        Some(Action::Reserve(args)) => HugepagesReport::Reserved(reserve::reserve(args, host, host)?),
        Some(Action::Mount(args)) => HugepagesReport::Mounted(mount::mount(args, host, host)?),
        Some(Action::Holders) => HugepagesReport::Holders(holders::holders(host)?),
    })
}

impl Report for HugepagesReport {
    fn exit_code(&self) -> u8 {
        match self {
            // Fewer than asked for is no success to a script.
            Self::Reserved(reserved) => reserved.exit_code(),
            _ => 0,
        }
    }
}

impl fmt::Display for HugepagesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shown(report) => report.fmt(f),
            Self::Reserved(report) => report.fmt(f),
            Self::Mounted(report) => report.fmt(f),
            Self::Holders(report) => report.fmt(f),
        }
    }
}

/// One pool, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Bytes of one page.
    pub page_bytes: usize,
    /// On which NUMA node; `null` for the whole machine.
    pub node: Option<usize>,
    /// Pages in the pool.
    pub pages: Option<usize>,
    /// Those that nobody has.
    pub free: Option<usize>,
    /// Free ones that are promised.
    pub promised: Option<usize>,
}

impl From<&HugepageCount> for Pool {
    fn from(count: &HugepageCount) -> Self {
        Self {
            page_bytes: count.size.bytes(),
            node: count.node,
            pages: count.configured,
            free: count.free,
            promised: count.reserved,
        }
    }
}

/// A page size in words.
fn in_words(bytes: usize) -> String {
    if bytes >= 1 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

/// A page size that the kernel has pools for.
fn huge(text: &str) -> Result<PageSize, String> {
    let size: PageSize = text.parse().map_err(|error: spinwake::mem::ParsePageSizeError| error.to_string())?;
    if size.is_huge() { Ok(size) } else { Err("pages of 4 KiB are ordinary ones; the sizes are 2M and 1G".into()) }
}
