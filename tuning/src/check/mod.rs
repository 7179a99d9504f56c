//! A doctor: what of this machine costs a polled-mode driver time or keeps it from running, and what mends it.
//!
//! ```text
//! Host, environment ──▶ Facts ──▶ one function an item ──▶ CheckReport
//! ```
//!
//! Every item is judged by files alone, and nothing is changed. What a file does not tell, or tells in words that are not
//! understood, is *unknown*: never good. *Broken* is what keeps a driver from running at all; what it merely pays for *costs*.

mod boot;
mod container;
mod cores;
mod devices;
mod facts;
#[cfg(test)]
pub(crate) mod fake;
mod identity;
mod interrupts;
mod item;
mod kernel;
mod machine;
mod memory;
mod planned;
mod power;
mod report;
mod seen;
mod tasks;
#[cfg(test)]
mod tests;
mod user;
mod workers;

use std::collections::BTreeSet;
use std::path::PathBuf;

pub use facts::Environment;
pub use item::{Item, Remedy, State};
pub use report::CheckReport;

use crate::host::Host;
use crate::placement::{Placement, PlacementError};
use facts::Facts;
use item::Finding;
use seen::Unseen;

/// What `spinwake-tune check` is asked.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// Judges a planned placement, too: a TOML file with tables of workers (core and ports) and of memory
    #[arg(long = "for", value_name = "FILE.toml")]
    pub plan: Option<PathBuf>,
    /// Only these: an item, as in memory.thp, or a group, as in memory
    #[arg(value_name = "ITEM")]
    pub items: Vec<String>,
}

/// Nothing was checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The placement cannot be judged.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// There is no such item.
    #[error("there is no item or group \"{name}\"; there are {known}")]
    NoItem {
        /// What was asked for.
        name: String,
        /// All groups and items.
        known: String,
    },
}

/// Checks a machine for this process: its user, its environment variables.
///
/// # Errors
///
/// When the placement makes no sense, or an item is asked for that does not exist. What a machine does not tell is no
/// error, but an item of the state [`State::Unknown`].
pub fn run(args: &Args, host: &Host) -> Result<CheckReport, CheckError> {
    let plan = args.plan.as_deref().map(Placement::load).transpose()?;
    let mut report = examine(host, &own_environment(), plan.as_ref());
    if let Some(plan) = &args.plan {
        report.again = format!("spinwake-tune check --for {}", planned::word(&plan.display().to_string()));
    }
    if let Some(name) = args.items.iter().find(|name| !report.items.iter().any(|item| is_called(item, name))) {
        return Err(CheckError::NoItem { name: name.clone(), known: known(&report) });
    }
    if !args.items.is_empty() {
        report.items.retain(|item| args.items.iter().any(|name| is_called(item, name)));
    }
    Ok(report)
}

/// The environment variables of this process. One that is no text says nothing to us.
pub fn own_environment() -> Environment {
    let variables = std::env::vars_os();
    variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

/// Checks a machine as it shows itself to a process with these environment variables. Reads, and changes nothing.
pub fn examine(host: &Host, environment: &Environment, plan: Option<&Placement>) -> CheckReport {
    let facts = Facts::read(host, environment, plan);
    let mut items = plan.map(|plan| planned::items(&facts, plan)).unwrap_or_default();
    for (group, checks) in GROUPS {
        // What only cards need is no concern of a plan without one.
        if plan.is_some_and(|plan| !planned::has_pci(plan)) && ["devices", "user"].contains(group) {
            continue;
        }
        items.extend(checks.iter().map(|(id, check)| Item::new(*id, check(&facts))));
    }
    CheckReport::new(&facts, items)
}

type Check = fn(&Facts<'_>) -> Result<Finding, Unseen>;

/// The groups of items, and the items of each, in the order in which they are shown.
const GROUPS: &[(&str, &[(&str, Check)])] = &[
    ("cores", cores::CHECKS),
    ("interrupts", interrupts::CHECKS),
    ("kernel", kernel::CHECKS),
    ("power", power::CHECKS),
    ("memory", memory::CHECKS),
    ("devices", devices::CHECKS),
    ("user", user::CHECKS),
    ("machine", machine::CHECKS),
    ("container", container::CHECKS),
];

/// An item is called by its id, by its id without the core or port, and by its group.
fn is_called(item: &Item, name: &str) -> bool {
    item.id == name || item.id.split('@').next() == Some(name) || item.group() == name
}

fn known(report: &CheckReport) -> String {
    let groups: BTreeSet<_> = report.items.iter().map(|item| item.group().to_owned()).collect();
    let items: BTreeSet<_> = report.items.iter().map(|item| item.id.clone()).collect();
    let names: Vec<_> = groups.into_iter().chain(items).collect();
    names.join(", ")
}
