//! Where lines for the operator and the JSON for programs go.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use crate::file::{FileError, OutputFile, Purpose};

const SUMMARY: Purpose =
    Purpose { what: "summary", remedy: "give --json a file that can be written, or - for standard output" };

/// Takes lines for the operator while a program runs, and its summary at the end.
#[derive(Debug)]
pub struct Output {
    json: Option<Json>,
}

#[derive(Debug)]
enum Json {
    Stdout,
    File(OutputFile),
}

impl Output {
    /// An output that will write JSON to `json`, as `--json` gives it: a path, which is opened now so that a bad one is
    /// refused before any work, or `-` for standard output.
    ///
    /// # Errors
    ///
    /// When the path cannot be written.
    pub fn new(json: Option<&str>) -> Result<Self, FileError> {
        let json = match json {
            None => None,
            Some("-") => Some(Json::Stdout),
            Some(path) => Some(Json::File(OutputFile::open(path, SUMMARY)?)),
        };
        Ok(Self { json })
    }

    /// Prints a line for the operator: on standard output, unless the JSON goes there.
    pub fn say(&self, line: fmt::Arguments<'_>) {
        // A closed pipe must not end a program that moves frames.
        let _ = match self.json {
            Some(Json::Stdout) => writeln!(io::stderr(), "{line}"),
            _ => writeln!(io::stdout(), "{line}"),
        };
    }

    /// Prints the summary, and writes the report as one JSON object.
    ///
    /// # Errors
    ///
    /// When the JSON cannot be written.
    pub fn finish(self, summary: impl fmt::Display, report: &impl Serialize) -> Result<(), FileError> {
        self.say(format_args!("{summary}"));
        let Some(json) = self.json else { return Ok(()) };
        let on_stdout = |source| FileError::new(SUMMARY, "standard output", source);
        let mut text = serde_json::to_string_pretty(report).map_err(|error| on_stdout(error.into()))?;
        text.push('\n');
        match json {
            Json::Stdout => {
                let mut out = io::stdout();
                out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(on_stdout)
            }
            Json::File(file) => file.finish(&text),
        }
    }
}
