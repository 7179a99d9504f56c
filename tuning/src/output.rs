//! What a command tells: as text for people, as JSON for programs.

use std::fmt::Display;
use std::io::{self, Write};

use serde::Serialize;

/// The result of a command. Its text ends without a line break.
pub trait Report: Serialize + Display {
    /// The exit code that goes with it.
    fn exit_code(&self) -> u8 {
        0
    }
}

/// A name that anybody may have chosen, as it may be shown: without what a terminal would obey.
pub(crate) fn shown(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A word that the shell takes as it is.
pub(crate) fn quoted(word: &str) -> String {
    if !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+:@".contains(c)) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Writes a report as text, or as one JSON object.
///
/// # Errors
///
/// When it cannot be written.
pub fn tell(report: &impl Report, json: bool, mut out: impl Write) -> io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)
    } else {
        writeln!(out, "{report}")
    }
}
