//! Makes the changes of a plan, each of them written down before.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::plan::Plan;
use crate::change::{Change, State, Target};
use crate::effects::hint;
use crate::host::Host;
use crate::journal::{Entry, FOLDER, Journal, JournalError, stop};

/// The machine could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum PerformError {
    /// The journal could not be written, so the change was not made.
    #[error("{source}. {}", so_far(*made))]
    Journal {
        /// What is wrong with it.
        source: JournalError,
        /// How many changes were made before.
        made: usize,
    },
    /// There is no place for the backup, so the change was not made.
    #[error("no copy of {path} can be kept in {}: {source}. {}", backup.display(), so_far(*made))]
    Backup {
        /// The file.
        path: String,
        /// Where its copy should be.
        backup: PathBuf,
        /// The meaning of errno.
        source: io::Error,
        /// How many changes were made before.
        made: usize,
    },
    /// Somebody else has changed it since the plan was made.
    #[error("{target} has just been changed by somebody else, and is left alone; run this again. {}", so_far(*made))]
    Meanwhile {
        /// What was to be changed.
        target: Box<Target>,
        /// How many changes were made before.
        made: usize,
    },
    /// A change was refused.
    #[error("{change} failed: {source}{}. {}", hint(source), so_far(*made))]
    Refused {
        /// The change.
        change: Box<Change>,
        /// The meaning of errno.
        source: io::Error,
        /// How many changes were made before.
        made: usize,
    },
}

fn so_far(made: usize) -> String {
    match made {
        0 => "Nothing was changed before".into(),
        1 => "One change was made before; `spinwake-tune revert` takes it back".into(),
        made => format!("{made} changes were made before; `spinwake-tune revert` takes them back"),
    }
}

/// A change, and what became of it.
#[derive(Debug, Serialize)]
pub struct Made {
    /// What was to be changed.
    pub target: String,
    /// Its state before.
    pub old: String,
    /// Its state afterwards.
    pub new: String,
    /// Why.
    pub why: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The same in one line.
    #[serde(skip)]
    pub text: String,
}

/// What became of a change.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It would be made.
    Planned,
    /// It was made.
    Done,
    /// The kernel did not want it, for this reason; nothing is harmed.
    Refused(String),
    /// The kernel took it, and the value is another one now.
    Differs(String),
}

impl Made {
    pub(super) fn new(change: &Change, outcome: Outcome) -> Self {
        let (target, old, new) = (change.target.to_string(), change.old.to_string(), change.new.to_string());
        Self { target, old, new, why: change.why.clone(), outcome, text: change.to_string() }
    }
}

/// Forgets those changes of an earlier boot that the reboot has taken back.
pub(crate) fn forget_earlier_boots(journal: &mut Journal, boot_id: Option<&str>) -> Result<usize, JournalError> {
    // Of what may be this boot's nothing is forgotten.
    let Some(boot_id) = boot_id else { return Ok(0) };
    let is_earlier = |entry: &Entry| entry.boot_id.as_deref().is_some_and(|its| its != boot_id);
    let gone = |entry: &&Entry| !entry.change.target.lasts() && is_earlier(entry);
    let gone: Vec<_> = journal.entries().iter().filter(gone).map(|entry| entry.number).collect();
    for number in &gone {
        journal.undone(*number)?;
    }
    Ok(gone.len())
}

/// Takes those changes out of a plan that the kernel has refused before.
pub(super) fn leave_out_refused(plan: &mut Plan, entries: &[Entry], boot_id: Option<&str>) {
    let refused = entries.iter().filter(|entry| entry.refused && entry.boot_id.as_deref() == boot_id);
    // Another value may be taken.
    let refused: HashSet<_> = refused.map(|Entry { change, .. }| (change.target.to_string(), &change.new)).collect();
    let is_refused = |change: &Change| refused.contains(&(change.target.to_string(), &change.new));
    let (out, left) = plan.changes.drain(..).partition(is_refused);
    plan.changes = left;
    for change in out {
        plan.skip(&change.target.to_string(), "the kernel has refused this before");
    }
}

/// Makes all changes of a plan.
///
/// # Errors
///
/// When one fails that must not. Those before it stay, and are in the journal.
pub(super) fn perform(
    host: &Host,
    journal: &mut Journal,
    profile: &str,
    boot_id: Option<&str>,
    plan: &Plan,
) -> Result<Vec<Made>, PerformError> {
    let mut all = Vec::new();
    for change in &plan.changes {
        let made =
            all.iter().filter(|made: &&Made| matches!(made.outcome, Outcome::Done | Outcome::Differs(_))).count();
        let journaled = |source| PerformError::Journal { source, made };
        let refused = |source| PerformError::Refused { change: Box::new(change.clone()), source, made };
        // What is written was made of what was there when the plan was made. The same file may stand there by two paths.
        let is = |state| change.target.is(host, state).unwrap_or(true);
        if matches!(change.target, Target::File { .. }) && !is(&change.old) && !is(&change.new) {
            return Err(PerformError::Meanwhile { target: Box::new(change.target.clone()), made });
        }
        back_up(host, journal, change, made)?;
        // The entry before the files' has the menu made when they are changed back. This one says that it has been made: it is
        // written afterwards, so that the next run makes a menu that this one could not.
        let makes_menu = matches!(change.target, Target::BootMenu { .. }) && change.new != State::Absent;
        if makes_menu {
            change.target.write(host, &change.new).map_err(refused)?;
            stop::point();
        }
        let number = journal.append(profile, boot_id.map(str::to_owned), change.clone()).map_err(journaled)?;
        let written = if makes_menu { Ok(()) } else { change.target.write(host, &change.new) };
        let outcome = match written {
            Ok(()) => outcome(host, change),
            Err(source) if change.refusable => {
                stop::point();
                journal.refused(number).map_err(journaled)?;
                Outcome::Refused(source.to_string())
            }
            Err(source) => return Err(refused(source)),
        };
        stop::point();
        all.push(Made::new(change, outcome));
    }
    Ok(all)
}

fn outcome(host: &Host, change: &Change) -> Outcome {
    if matches!(change.target, Target::BootMenu { .. }) || change.target.is(host, &change.new).unwrap_or(false) {
        return Outcome::Done;
    }
    match change.target.read(host) {
        Ok(found) => Outcome::Differs(found.to_string()),
        Err(error) => Outcome::Differs(format!("cannot be read: {error}")),
    }
}

/// Keeps a copy of a file of the boot loader's before its first change: for whoever has to mend a machine by hand.
fn back_up(host: &Host, journal: &Journal, change: &Change, made: usize) -> Result<(), PerformError> {
    let (Target::File { path }, State::Content(bytes), true) = (&change.target, &change.old, change.boot) else {
        return Ok(());
    };
    if journal.entries().iter().any(|entry| entry.change.target == change.target) {
        return Ok(());
    }
    let backup = host.path(backup_path(path));
    let failed = |source| PerformError::Backup { path: path.clone(), backup: backup.clone(), source, made };
    fs::create_dir_all(backup.parent().unwrap_or(&backup)).map_err(failed)?;
    // Root's alone: others may not have been able to read the file itself.
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&backup).map_err(failed)?;
    file.write_all(&bytes.to_vec().unwrap_or_default()).and_then(|()| file.sync_all()).map_err(failed)
}

/// Where the copy of a file is kept.
pub(super) fn backup_path(path: &str) -> PathBuf {
    Path::new(FOLDER).join("backup").join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Form;
    use std::os::unix::fs::PermissionsExt;

    fn tree() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        fs::create_dir_all(host.path("/etc")).unwrap();
        (root, host)
    }

    fn change(target: Target, old: State, new: State) -> Change {
        Change { target, old, new, why: "a test".into(), refusable: false, boot: true }
    }

    fn interrupt(cores: &str) -> Change {
        let target = Target::Value { path: "/proc/irq/9/smp_affinity_list".into(), form: Form::List };
        change(target, State::Value("0-3".into()), State::Value(cores.into()))
    }

    fn plan(changes: Vec<Change>) -> Plan {
        Plan { changes, ..Plan::default() }
    }

    #[test]
    fn a_menu_that_could_not_be_made_is_not_noted_as_made() {
        let (_root, host) = tree();
        let mut journal = Journal::open(&host).unwrap();
        // A state that it cannot have stands for a program that fails.
        let menu = change(Target::BootMenu { program: "update-grub".into() }, State::Absent, State::Folder);
        perform(&host, &mut journal, "x", None, &plan(vec![menu.clone()])).unwrap_err();
        assert!(journal.entries().is_empty(), "{:?}", journal.entries());
        let made = Change { new: State::Value("made anew".into()), ..menu };
        perform(&host, &mut journal, "x", None, &plan(vec![made.clone()])).unwrap();
        assert_eq!(journal.entries()[0].change, made);
    }

    #[test]
    fn what_others_may_not_read_they_read_nowhere_else() {
        let (_root, host) = tree();
        fs::write(host.path("/etc/secret"), "old").unwrap();
        fs::set_permissions(host.path("/etc/secret"), fs::Permissions::from_mode(0o640)).unwrap();
        let mut journal = Journal::open(&host).unwrap();
        let secret = change(Target::File { path: "/etc/secret".into() }, State::content("old"), State::content("new"));
        perform(&host, &mut journal, "x", None, &plan(vec![secret])).unwrap();
        for path in ["backup/etc/secret", "journal.jsonl"] {
            let mode = fs::metadata(host.path(FOLDER).join(path)).unwrap().permissions().mode();
            assert_eq!(mode & 0o007, 0, "{path}: {mode:o}");
        }
    }

    #[test]
    fn without_a_boot_s_id_nothing_is_forgotten() {
        let (_root, host) = tree();
        let mut journal = Journal::open(&host).unwrap();
        journal.append("x", Some("this".into()), interrupt("0")).unwrap();
        journal.append("x", None, interrupt("0")).unwrap();
        assert_eq!(forget_earlier_boots(&mut journal, None).unwrap(), 0);
        assert_eq!(forget_earlier_boots(&mut journal, Some("this")).unwrap(), 0);
        assert_eq!(forget_earlier_boots(&mut journal, Some("next")).unwrap(), 1);
    }

    #[test]
    fn what_was_refused_is_left_out_and_another_value_is_tried() {
        let entry = Entry { number: 1, profile: "x".into(), boot_id: None, change: interrupt("0"), refused: true };
        let mut wanted = plan(vec![interrupt("0"), interrupt("0-1")]);
        leave_out_refused(&mut wanted, &[entry], None);
        assert_eq!((wanted.changes, wanted.skipped.len()), (vec![interrupt("0-1")], 1));
    }

    #[test]
    fn a_file_that_somebody_else_has_just_changed_is_theirs() {
        let (_root, host) = tree();
        fs::write(host.path("/etc/cmdline"), "theirs").unwrap();
        let mut journal = Journal::open(&host).unwrap();
        let target = Target::File { path: "/etc/cmdline".into() };
        let stale = change(target, State::content("as planned"), State::content("ours"));
        let error = perform(&host, &mut journal, "x", None, &plan(vec![stale])).unwrap_err().to_string();
        assert!(error.contains("/etc/cmdline") && error.contains("again"), "{error}");
        assert!(journal.entries().is_empty() && host.read("/etc/cmdline").unwrap() == "theirs");
    }
}
