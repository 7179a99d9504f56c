//! `apply`: brings the machine to what a profile says.
//!
//! ```text
//! profile ──▶ plan (reads the machine) ──▶ shown (--dry-run), printed as a script (--script), or performed (journaled)
//! ```
//!
//! Only what is not yet so is changed, so a second run changes nothing.

mod interrupts;
mod perform;
mod persist;
mod plan;
mod script;
mod settings;

pub(crate) use perform::forget_earlier_boots;
pub use perform::{Made, Outcome, PerformError};
pub use plan::{Plan, Skipped};

use std::fmt;
use std::io;

use serde::Serialize;
use spinwake::cpu::CpuSet;

use crate::boot;
use crate::host::Host;
use crate::journal::{Journal, JournalError};
use crate::output::Report;
use crate::profile::{Profile, ProfileError, Roles, RolesError};

/// What the command line says.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// low-latency, throughput, balanced, or the path of your own, as in ./mine.toml
    pub profile: String,
    /// Cores for workers, as in 2-5,8; default: the isolated ones, or what the profile says where there are none
    #[arg(long, value_name = "LIST")]
    pub cores: Option<CpuSet>,
    /// Also sets the parameters that the kernel is booted with (GRUB, systemd-boot); they count after a reboot
    #[arg(long)]
    pub boot: bool,
    /// Also has the profile applied at each boot, by a systemd unit
    #[arg(long)]
    pub persist: bool,
    /// Prints a shell script that does the same, and changes nothing
    #[arg(long, conflicts_with = "dry_run")]
    pub script: bool,
    /// Shows what would be changed, and changes nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// The profile could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The profile cannot be had.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The cores cannot be dealt out.
    #[error(transparent)]
    Roles(#[from] RolesError),
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The unit cannot be written.
    #[error("a unit that applies the profile at boot cannot be made: {0}")]
    Persist(io::Error),
    /// A change failed.
    #[error(transparent)]
    Perform(#[from] PerformError),
}

/// What was done, or would be.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum ApplyReport {
    /// Changes.
    Changes(Changes),
    /// A script that makes them.
    Script {
        /// Its text.
        script: String,
    },
}

/// Changes that were made, or would be.
#[derive(Debug, Serialize)]
pub struct Changes {
    /// The profile.
    pub profile: String,
    /// The worker cores, as a list.
    pub workers: String,
    /// The cores for everything else, as a list.
    pub others: String,
    /// Whether nothing was changed because that was asked for.
    pub dry_run: bool,
    /// The changes, in order.
    pub changes: Vec<Made>,
    /// What is wanted and cannot be changed.
    pub skipped: Vec<Skipped>,
    /// How many values were as they should be already.
    pub unchanged: usize,
    /// Whether some of it counts after a reboot only.
    pub reboot: bool,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// Brings the machine to what the profile says, or tells what that would be.
///
/// # Errors
///
/// When the profile, the cores or the journal cannot be used, or a change fails.
pub fn run(args: &Args, host: &Host) -> Result<ApplyReport, ApplyError> {
    let profile = Profile::find(&args.profile)?;
    let roles = Roles::of(&host.topology(), args.cores.as_ref(), profile.workers)?;
    let boot_id = host.read("/proc/sys/kernel/random/boot_id");
    let only_shown = args.dry_run || args.script;
    let mut journal = if only_shown { None } else { Some(Journal::open(host)?) };
    let entries = match &mut journal {
        Some(journal) => {
            forget_earlier_boots(journal, boot_id.as_deref())?;
            journal.entries().to_vec()
        }
        // Without the right to read it nothing is known of earlier refusals, and little is lost.
        None => Journal::peek(host).unwrap_or_default(),
    };
    let mut plan = Plan::default();
    settings::plan(host, &profile, &roles, &mut plan);
    interrupts::plan(host, &profile, &roles, &mut plan);
    perform::leave_out_refused(&mut plan, &entries, boot_id.as_deref());
    if args.persist {
        persist::plan(host, &profile, args.cores.as_ref(), &mut plan).map_err(ApplyError::Persist)?;
    } else if !plan.changes.is_empty() {
        plan.notes
            .push("values below /proc and /sys last until the next boot; --persist sets them at each boot".into());
    }
    if args.boot {
        boot::plan(host, &boot::parameters(&profile, &roles), &entries, &mut plan);
    }
    if args.script {
        return Ok(ApplyReport::Script { script: script::script(&profile, &roles, &plan) });
    }
    let changes = match &mut journal {
        None => plan.changes.iter().map(|change| Made::new(change, Outcome::Planned)).collect(),
        Some(journal) => perform::perform(host, journal, &profile.name, boot_id.as_deref(), &plan)?,
    };
    if let Some(journal) = journal {
        journal.close()?;
    }
    Ok(ApplyReport::Changes(Changes {
        profile: profile.name,
        workers: roles.workers.to_string(),
        others: roles.others.to_string(),
        dry_run: args.dry_run,
        changes,
        skipped: plan.skipped,
        unchanged: plan.unchanged,
        reboot: plan.changes.iter().any(|change| change.boot),
        notes: plan.notes,
    }))
}

impl Report for ApplyReport {}

impl fmt::Display for ApplyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changes(changes) => changes.fmt(f),
            Self::Script { script } => f.write_str(script.trim_end()),
        }
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers = if self.workers.is_empty() { "no cores" } else { &self.workers };
        writeln!(f, "{}: {workers} for workers, {} for everything else", self.profile, self.others)?;
        let mut last_why = "";
        for made in &self.changes {
            if made.why != last_why {
                writeln!(f, "\n{}", made.why)?;
                last_why = &made.why;
            }
            match &made.outcome {
                Outcome::Planned | Outcome::Done => writeln!(f, "  {}", made.text)?,
                Outcome::Refused(reason) => writeln!(f, "  {}: NOT DONE, the kernel refuses: {reason}", made.text)?,
                Outcome::Differs(found) => writeln!(f, "  {}: asked for, and it is {found} now", made.text)?,
            }
        }
        if !self.skipped.is_empty() {
            writeln!(f, "\nleft out:")?;
        }
        for skipped in &self.skipped {
            writeln!(f, "  {}: {}", skipped.target, skipped.reason)?;
        }
        writeln!(f)?;
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        let made = self.changes.iter().filter(|made| !matches!(made.outcome, Outcome::Refused(_))).count();
        let (verb, way_back) = match (self.dry_run, made) {
            (true, _) => ("would change", ""),
            (false, 0) => ("changed", ""),
            (false, _) => ("changed", "; `spinwake-tune revert` takes them back"),
        };
        write!(f, "{verb} {made}, were right already {}{way_back}", self.unchanged)?;
        if self.reboot {
            write!(f, ". Boot parameters count after a reboot (and need `revert --boot`)")?;
        }
        Ok(())
    }
}
