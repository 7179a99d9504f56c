//! `revert`: takes everything back that is in the journal, the last change first, and reads back whether it is.
//!
//! It may be stopped anywhere and run again; what was taken back is not touched a second time.

use std::fmt;
use std::io;

use serde::Serialize;

use crate::apply::forget_earlier_boots;
use crate::boot;
use crate::change::{Change, Target};
use crate::host::Host;
use crate::journal::{Entry, Journal, JournalError, stop};
use crate::output::Report;

/// What the command line says.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Also takes back what the kernel is booted with
    #[arg(long)]
    pub boot: bool,
}

/// What was taken back.
#[derive(Debug, Default, Serialize)]
pub struct RevertReport {
    /// What is again as it was.
    pub restored: Vec<String>,
    /// What was taken back by a reboot.
    pub by_reboot: usize,
    /// What is no longer there, so that nothing is left to take back.
    pub gone: Vec<String>,
    /// What somebody else has changed meanwhile, and was brought back all the same.
    pub changed_since: Vec<String>,
    /// What could not be taken back, and why. It stays in the journal.
    pub failed: Vec<String>,
    /// How many changes are left because they are about booting, and that was not asked for.
    pub boot_left: usize,
    /// Whether some of it counts after a reboot only.
    pub reboot: bool,
}

/// Takes back what earlier runs of `apply` have changed.
///
/// # Errors
///
/// When the journal cannot be used. A change that cannot be taken back is no error: the report tells.
pub fn run(args: &Args, host: &Host) -> Result<RevertReport, JournalError> {
    let mut report = RevertReport::default();
    if !Journal::is_there(host) {
        return Ok(report);
    }
    let mut journal = Journal::open(host)?;
    let boot_id = host.read("/proc/sys/kernel/random/boot_id");
    report.by_reboot = forget_earlier_boots(&mut journal, boot_id.as_deref())?;
    for entry in journal.entries().to_vec().iter().rev() {
        if entry.change.boot && !args.boot {
            report.boot_left += 1;
        } else if take_back(host, entry, &mut report) {
            report.reboot |= entry.change.boot;
            stop::point();
            journal.undone(entry.number)?;
        }
    }
    journal.close()?;
    Ok(report)
}

/// Takes one change back; returns whether nothing is left to take back.
fn take_back(host: &Host, entry: &Entry, report: &mut RevertReport) -> bool {
    let change = &entry.change;
    match restore(host, change) {
        Ok(Restored::AsItWas) => true,
        Ok(Restored::Gone) => {
            report.gone.push(change.target.to_string());
            true
        }
        Ok(Restored::Now { was_ours }) => {
            if !entry.refused && !was_ours {
                report.changed_since.push(change.target.to_string());
            }
            report.restored.push(format!("{}: {}", change.target, change.old));
            true
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !change.target.lasts() => {
            report.gone.push(change.target.to_string());
            true
        }
        // What the kernel has refused was never made.
        Err(_) if entry.refused => true,
        Err(error) => {
            report.failed.push(format!("{} is not {} again: {error}", change.target, change.old));
            false
        }
    }
}

enum Restored {
    /// There was nothing to do.
    AsItWas,
    /// It went, and what it was for went with it.
    Gone,
    /// It has been written.
    Now {
        /// Whether it had the state that we gave it.
        was_ours: bool,
    },
}

fn restore(host: &Host, change: &Change) -> io::Result<Restored> {
    let Change { target, old, new, .. } = change;
    target.tidy(host)?;
    if matches!(target, Target::BootMenu { .. }) {
        target.write(host, old)?;
        return Ok(Restored::AsItWas);
    }
    if target.is(host, old)? {
        return Ok(Restored::AsItWas);
    }
    if boot::is_obsolete(host, change)? {
        return Ok(Restored::Gone);
    }
    let was_ours = target.is(host, new)?;
    target.write(host, old)?;
    stop::point();
    if target.is(host, old)? || is_shared_folder(host, change)? {
        return Ok(Restored::Now { was_ours });
    }
    Err(io::Error::other(format!("it was written, and is {} now", target.read(host)?)))
}

/// Whether this is a folder of ours that somebody else has put something into: it stays.
fn is_shared_folder(host: &Host, change: &Change) -> io::Result<bool> {
    Ok(matches!(change.target, Target::Folder { .. }) && change.target.is(host, &change.new)?)
}

impl Report for RevertReport {
    fn exit_code(&self) -> u8 {
        u8::from(!self.failed.is_empty())
    }
}

impl fmt::Display for RevertReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.restored {
            writeln!(f, "{line}")?;
        }
        for target in &self.changed_since {
            writeln!(f, "note: somebody else had changed {target} meanwhile")?;
        }
        for target in &self.gone {
            writeln!(f, "note: {target} is no longer there")?;
        }
        for line in &self.failed {
            writeln!(f, "FAILED: {line}")?;
        }
        if self.by_reboot > 0 {
            writeln!(f, "note: {} values of an earlier boot went with the reboot", self.by_reboot)?;
        }
        if self.boot_left > 0 {
            writeln!(f, "note: boot parameters stay; `spinwake-tune revert --boot` takes them back, too")?;
        }
        if self.reboot {
            writeln!(f, "note: boot parameters count until the next reboot")?;
        }
        match (self.restored.len(), self.failed.len()) {
            (0, 0) if self.by_reboot == 0 => write!(f, "there was nothing to take back"),
            (restored, 0) => write!(f, "taken back: {restored}"),
            (restored, failed) => write!(f, "taken back: {restored}; {failed} could not be, and stay in the journal"),
        }
    }
}
