//! Files that a program fills at its end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

/// What a file is for, in the words of its errors.
#[derive(Debug, Clone, Copy)]
pub struct Purpose {
    /// What will stand in it.
    pub what: &'static str,
    /// What to do when it cannot be written.
    pub remedy: &'static str,
}

/// A file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the {what} to {path}: {source}; {remedy}", what = .purpose.what, remedy = .purpose.remedy)]
pub struct FileError {
    purpose: Purpose,
    path: String,
    source: io::Error,
}

impl FileError {
    /// `path` could not be written because of `source`.
    pub fn new(purpose: Purpose, path: impl Into<String>, source: io::Error) -> Self {
        Self { purpose, path: path.into(), source }
    }
}

/// A file that will be filled at the end, opened at the start so that a bad path is refused before any work.
///
/// Until then it is as it was: what it holds stays in it, and one that did not exist goes again if nothing comes.
#[derive(Debug)]
pub struct OutputFile {
    purpose: Purpose,
    path: PathBuf,
    file: File,
    /// Whether it is ours to remove.
    unwanted: bool,
}

impl OutputFile {
    /// Opens `path`.
    ///
    /// # Errors
    ///
    /// When it cannot be written; nothing is changed then.
    pub fn open(path: &str, purpose: Purpose) -> Result<Self, FileError> {
        let mut options = OpenOptions::new();
        options.write(true);
        let (file, unwanted) = match options.clone().create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (options.open(path), false),
            other => (other, true),
        };
        let file = file.map_err(|source| FileError::new(purpose, path, source))?;
        Ok(Self { purpose, path: path.into(), file, unwanted })
    }

    /// Replaces what it holds by `text`.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn finish(mut self, text: &str) -> Result<(), FileError> {
        self.unwanted = false;
        self.replace(text).map_err(|source| FileError::new(self.purpose, self.path.display().to_string(), source))
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        // Pipes and terminals hold nothing that could be replaced.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        let mut file = &self.file;
        file.write_all(text.as_bytes())?;
        file.flush()
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if self.unwanted {
            // The reason why nothing comes has been told; an empty file does no harm.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURPOSE: Purpose = Purpose { what: "summary", remedy: "give --json a file that can be written" };

    /// A path of this test's own.
    fn path(name: &str) -> (PathBuf, String) {
        let path = std::env::temp_dir().join(format!("spinwake-file-{}-{name}", std::process::id()));
        let text = path.display().to_string();
        (path, text)
    }

    #[test]
    fn unless_it_is_finished_nothing_has_changed() {
        let (path, text) = path("unfinished");
        drop(OutputFile::open(&text, PURPOSE).unwrap());
        assert!(!path.exists());
        fs::write(&path, "old").unwrap();
        drop(OutputFile::open(&text, PURPOSE).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_comes_replaces_what_was_there() {
        let (path, text) = path("finished");
        for old in [None, Some("x".repeat(10_000))] {
            if let Some(old) = old {
                fs::write(&path, old).unwrap();
            }
            OutputFile::open(&text, PURPOSE).unwrap().finish("new").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_written_is_refused_by_name() {
        for path in ["/nowhere/at/all.json", "/"] {
            let error = OutputFile::open(path, PURPOSE).unwrap_err().to_string();
            assert!(error.contains(&format!("summary to {path}: ")) && error.contains("--json"), "{error}");
        }
    }
}
