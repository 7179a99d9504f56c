//! Where the summary goes as JSON.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use spinwake_apps::report::Report;

/// The JSON cannot be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write the summary to {path}: {source}; give --json a file that can be written, or - for standard output"
)]
pub(crate) struct JsonError {
    path: String,
    source: io::Error,
}

impl JsonError {
    pub(crate) fn new(path: impl Into<String>, source: io::Error) -> Self {
        Self { path: path.into(), source }
    }
}

/// Writes a report as one object.
pub(crate) fn write(report: &Report, mut to: impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut to, report)?;
    writeln!(to)?;
    to.flush()
}

/// A file that will get the summary.
///
/// Until then it is as it was: what it holds stays in it, and one that did not exist goes again if no summary comes.
#[derive(Debug)]
pub(crate) struct JsonFile {
    path: PathBuf,
    file: File,
    /// Whether it is ours to remove.
    unwanted: bool,
}

impl JsonFile {
    pub(crate) fn open(path: &str) -> Result<Self, JsonError> {
        let mut options = OpenOptions::new();
        options.write(true);
        let (file, unwanted) = match options.clone().create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (options.open(path), false),
            other => (other, true),
        };
        let file = file.map_err(|source| JsonError::new(path, source))?;
        Ok(Self { path: path.into(), file, unwanted })
    }

    pub(crate) fn finish(mut self, report: &Report) -> Result<(), JsonError> {
        self.unwanted = false;
        self.replace(report).map_err(|source| JsonError::new(self.path.display().to_string(), source))
    }

    fn replace(&self, report: &Report) -> io::Result<()> {
        // Pipes and terminals hold nothing that could be replaced.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        write(report, &self.file)
    }
}

impl Drop for JsonFile {
    fn drop(&mut self) {
        if self.unwanted {
            // The reason why no summary comes has been told; an empty file does no harm.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use spinwake_apps::report::PoolReport;

    use super::*;

    fn report() -> Report {
        Report {
            seconds: 1.0,
            ports: Vec::new(),
            workers: Vec::new(),
            pool: PoolReport { frames: 1, missing: 0 },
            latency_us: None,
        }
    }

    /// A path of this test's own.
    fn path(name: &str) -> (PathBuf, String) {
        let path = std::env::temp_dir().join(format!("l2fwd-json-{}-{name}", std::process::id()));
        let text = path.display().to_string();
        (path, text)
    }

    #[test]
    fn without_a_summary_nothing_has_changed() {
        let (path, text) = path("unfinished");
        drop(JsonFile::open(&text).unwrap());
        assert!(!path.exists());
        fs::write(&path, "old").unwrap();
        drop(JsonFile::open(&text).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_summary_replaces_what_was_there() {
        let (path, text) = path("finished");
        for old in [None, Some("x".repeat(10_000))] {
            if let Some(old) = old {
                fs::write(&path, old).unwrap();
            }
            JsonFile::open(&text).unwrap().finish(&report()).unwrap();
            let written: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(written["seconds"], 1.0);
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_written_is_refused_by_name() {
        for path in ["/nowhere/at/all.json", "/"] {
            let error = JsonFile::open(path).unwrap_err().to_string();
            assert!(error.contains(&format!("summary to {path}: ")) && error.contains("--json"), "{error}");
        }
    }
}
