//! What is to be changed, in order, and what cannot be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Serialize;

use crate::change::{Change, Form, State, Target};
use crate::host::Host;

/// What a profile asks of one machine at one moment.
#[derive(Debug, Default)]
pub struct Plan {
    /// What is changed, in this order.
    pub changes: Vec<Change>,
    /// What is wanted and cannot be changed.
    pub skipped: Vec<Skipped>,
    /// How many values are what they should be already.
    pub unchanged: usize,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// Something that is wanted and cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// What it is.
    pub target: String,
    /// Why not.
    pub reason: String,
}

/// A value that is wanted.
pub(super) struct Wanted<'a> {
    pub(super) path: &'a str,
    pub(super) form: Form,
    pub(super) value: &'a str,
    pub(super) why: &'a str,
    pub(super) refusable: bool,
}

impl Plan {
    /// Adds a value of the kernel's that is wanted, unless it is so already or cannot be changed.
    pub(super) fn want(&mut self, host: &Host, wanted: &Wanted<'_>) {
        let Wanted { path, form, value, why, refusable } = *wanted;
        let found = match host.try_read(path) {
            Ok(found) => found,
            Err(_) if !host.has(path) => return self.skip(path, "this kernel or machine does not have it"),
            Err(error) => return self.skip(path, &format!("it cannot be read: {error}")),
        };
        if form.same(&found, value) {
            self.unchanged += 1;
        } else if !form.offers(&found, value) {
            self.skip(path, &format!("\"{value}\" is not among what it offers: {found}"));
        } else if is_read_only(&host.path(path)) {
            self.skip(path, &format!("it is read-only here, and is {found}"));
        } else {
            self.changes.push(Change {
                target: Target::Value { path: path.into(), form },
                old: State::Value(found),
                new: State::Value(value.into()),
                why: why.into(),
                refusable,
                boot: false,
            });
        }
    }

    /// Adds a plain number, or yes or no as 1 or 0, that is wanted.
    pub(super) fn want_number(&mut self, host: &Host, path: &str, value: Option<impl ToString>, why: &str) {
        if let Some(value) = value {
            let value = &value.to_string();
            self.want(host, &Wanted { path, form: Form::Plain, value, why, refusable: false });
        }
    }

    /// Adds a file, folder or link that is wanted in this state, with the folders that it needs, unless it is so already.
    /// Returns whether it is not.
    pub fn want_file(&mut self, host: &Host, target: Target, new: State, why: &str, boot: bool) -> bool {
        let old = match target.read(host) {
            Ok(old) => old,
            Err(error) => {
                self.skip(&target.to_string(), &format!("it cannot be read: {error}"));
                return false;
            }
        };
        if old == new {
            self.unchanged += 1;
            return false;
        }
        if let Target::File { path } | Target::Link { path } | Target::Folder { path } = &target
            && let Some(folder) = Path::new(path).parent().and_then(Path::to_str)
            && !host.has(folder)
            && !self.makes(folder)
        {
            self.want_file(host, Target::Folder { path: folder.into() }, State::Folder, why, boot);
        }
        self.changes.push(Change { target, old, new, why: why.into(), refusable: false, boot });
        true
    }

    /// Notes that something is wanted and cannot be changed.
    pub fn skip(&mut self, target: &str, reason: &str) {
        self.skipped.push(Skipped { target: target.into(), reason: reason.into() });
    }

    fn makes(&self, folder: &str) -> bool {
        self.changes.iter().any(|change| matches!(&change.target, Target::Folder { path } if path == folder))
    }
}

/// Whether nobody, root included, may write it.
pub(super) fn is_read_only(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o222 == 0)
}
