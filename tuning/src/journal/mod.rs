//! The journal: every change is written down, with the state before, and is on the disk before it is made.
//!
//! ```text
//! append(change) ──▶ make it ──▶ (refused) ... undone ──▶ when nothing is left: the file goes, too
//! ```
//!
//! One line a record, in `/var/lib/spinwake-tune/journal.jsonl`. A line that was not finished belongs to a change that
//! was not made: it is dropped. A lock keeps a second writer away; it goes with its process, however that ends.

pub(crate) mod stop;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::host::Host;

/// Where the journal and the backups are.
pub const FOLDER: &str = "/var/lib/spinwake-tune";

/// How long another's lock is waited for: a program that one of us has just started holds it until it is running.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// The journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refuses.
    #[error("the journal, {}: {source}{}", path.display(), hint(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The meaning of errno.
        source: io::Error,
    },
    /// Another process has it.
    #[error("another spinwake-tune is changing this machine ({} is locked); wait for it to end", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// It says something that no version of this program wrote.
    #[error(
        "{}, line {line}: {reason}. Nothing was changed. The line is one record in JSON; mend it, or take it out (the change it \
         tells of is then never taken back)",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { "; run this as root" } else { "" }
}

/// A change that was written down and not yet taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number; later ones have larger ones.
    pub number: u64,
    /// The profile that wanted it.
    pub profile: String,
    /// The boot it was made in.
    pub boot_id: Option<String>,
    /// The change.
    pub change: Change,
    /// Whether the kernel refused it, so that it was never made.
    #[serde(default)]
    pub refused: bool,
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Record {
    /// A change that is about to be made.
    Change(Box<Entry>),
    /// The kernel refused it.
    Refused(u64),
    /// It has been taken back.
    Undone(u64),
}

/// The journal, held by this process alone.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
    next: u64,
    /// Holds the lock until it is dropped.
    _lock: File,
}

impl Journal {
    /// Opens the journal for writing, and makes it if there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be read or written, another process holds it, or it is damaged.
    pub fn open(host: &Host) -> Result<Self, JournalError> {
        let folder = host.path(FOLDER);
        make_folders(&folder)?;
        let lock = lock(&folder.join("lock"))?;
        let path = folder.join("journal.jsonl");
        let failed = |source| JournalError::Io { path: path.clone(), source };
        // It holds files as they were, of which some were for root's eyes only.
        let mut options = OpenOptions::new();
        options.read(true).create(true).append(true).mode(0o600);
        let mut file = options.open(&path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let read = parse(&path, &bytes)?;
        if read.whole < bytes.len() {
            file.set_len(read.whole as u64).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        sync(&folder)?;
        let mut journal = Self { path, file, entries: read.entries, next: read.next, _lock: lock };
        if read.dead > 0 {
            journal.compact()?;
        }
        Ok(journal)
    }

    /// What an [`open`](Self::open) journal would hold, without touching anything.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is damaged.
    pub fn peek(host: &Host) -> Result<Vec<Entry>, JournalError> {
        let path = host.path(FOLDER).join("journal.jsonl");
        match fs::read(&path) {
            Ok(bytes) => Ok(parse(&path, &bytes)?.entries),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(JournalError::Io { path, source }),
        }
    }

    /// Whether there is a journal.
    pub fn is_there(host: &Host) -> bool {
        host.has(Path::new(FOLDER).join("journal.jsonl"))
    }

    /// The changes not yet taken back, in the order in which they were made.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Writes down a change that is about to be made; returns its number. When this returns it is on the disk.
    ///
    /// # Errors
    ///
    /// When it cannot be written. The change must not be made, then.
    pub fn append(&mut self, profile: &str, boot_id: Option<String>, change: Change) -> Result<u64, JournalError> {
        let number = self.next;
        let entry = Entry { number, profile: profile.into(), boot_id, change, refused: false };
        self.write(&Record::Change(Box::new(entry.clone())))?;
        self.next += 1;
        self.entries.push(entry);
        Ok(number)
    }

    /// Notes that the kernel refused a change.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn refused(&mut self, number: u64) -> Result<(), JournalError> {
        self.write(&Record::Refused(number))?;
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.number == number) {
            entry.refused = true;
        }
        Ok(())
    }

    /// Notes that a change has been taken back.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn undone(&mut self, number: u64) -> Result<(), JournalError> {
        self.write(&Record::Undone(number))?;
        self.entries.retain(|entry| entry.number != number);
        Ok(())
    }

    /// Takes the journal away when no change is left in it.
    ///
    /// # Errors
    ///
    /// When the file cannot be removed.
    pub fn close(self) -> Result<(), JournalError> {
        if !self.entries.is_empty() {
            return Ok(());
        }
        let path = self.path;
        fs::remove_file(&path).map_err(|source| JournalError::Io { path: path.clone(), source })?;
        sync(path.parent().unwrap_or(&path))
    }

    /// Writes one line and waits until the disk has it.
    fn write(&mut self, record: &Record) -> Result<(), JournalError> {
        let failed = |source: io::Error| JournalError::Io { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        stop::point();
        if stop::is_here() {
            // Half a line, as a machine that loses power may leave it.
            self.file.write_all(&line[..line.len() / 2]).map_err(failed)?;
            process::abort();
        }
        let before = self.file.metadata().map_err(failed)?.len();
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_all());
        if let Err(source) = written {
            // A full disk: half a line must not stand in the way of the next.
            let _ = self.file.set_len(before);
            return Err(failed(source));
        }
        stop::point();
        Ok(())
    }

    /// Replaces the file by one that has only what is not yet taken back.
    fn compact(&mut self) -> Result<(), JournalError> {
        let failed = |source: io::Error| JournalError::Io { path: self.path.clone(), source };
        let mut bytes = Vec::new();
        for entry in &self.entries {
            serde_json::to_writer(&mut bytes, &Record::Change(Box::new(entry.clone())))
                .map_err(|error| failed(error.into()))?;
            bytes.push(b'\n');
        }
        let new = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&new).map_err(failed)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        stop::point();
        fs::rename(&new, &self.path).map_err(failed)?;
        sync(self.path.parent().unwrap_or(&self.path))?;
        self.file = OpenOptions::new().append(true).open(&self.path).map_err(failed)?;
        Ok(())
    }
}

/// What the bytes of a journal say.
struct Parsed {
    entries: Vec<Entry>,
    next: u64,
    /// How many bytes are whole lines.
    whole: usize,
    /// How many lines tell of changes that are no more.
    dead: usize,
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Parsed, JournalError> {
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    let mut parsed = Parsed { entries: Vec::new(), next: 1, whole, dead: 0 };
    for (index, line) in bytes[..whole].split_inclusive(|&byte| byte == b'\n').enumerate() {
        let damaged = |reason: String| JournalError::Damaged { path: path.into(), line: index + 1, reason };
        match serde_json::from_slice(line).map_err(|error| damaged(error.to_string()))? {
            Record::Change(entry) if entry.number < parsed.next => {
                return Err(damaged(format!("change {} comes after {}", entry.number, parsed.next - 1)));
            }
            Record::Change(entry) => {
                parsed.next = entry.number.saturating_add(1);
                parsed.entries.push(*entry);
            }
            Record::Refused(number) => {
                parsed.entries.iter_mut().filter(|entry| entry.number == number).for_each(|entry| entry.refused = true);
            }
            Record::Undone(number) => {
                parsed.entries.retain(|entry| entry.number != number);
                parsed.dead += 1;
            }
        }
    }
    Ok(parsed)
}

/// Makes a folder and those above it, each of them on the disk.
fn make_folders(folder: &Path) -> Result<(), JournalError> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(folder);
    make_folders(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(JournalError::Io { path: folder.into(), source: error })
        }
        _ => sync(above),
    }
}

fn lock(path: &Path) -> Result<File, JournalError> {
    let failed = |source| JournalError::Io { path: path.into(), source };
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(failed)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
            Err(TryLockError::WouldBlock) if Instant::now() > deadline => {
                return Err(JournalError::Locked { path: path.into() });
            }
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PATIENCE / 20),
        }
    }
}

fn sync(folder: &Path) -> Result<(), JournalError> {
    let synced = File::open(folder).and_then(|file| file.sync_all());
    synced.map_err(|source| JournalError::Io { path: folder.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Form, State, Target};

    fn change(path: &str) -> Change {
        Change {
            target: Target::Value { path: path.into(), form: Form::Plain },
            old: State::Value("1".into()),
            new: State::Value("0".into()),
            why: "a test".into(),
            refusable: false,
            boot: false,
        }
    }

    fn tree() -> (tempfile::TempDir, Host, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        let path = host.path("/var/lib/spinwake-tune/journal.jsonl");
        (root, host, path)
    }

    #[test]
    fn what_is_not_taken_back_is_found_again() {
        let (_root, host, path) = tree();
        assert!(Journal::peek(&host).unwrap().is_empty() && !path.exists());
        let mut journal = Journal::open(&host).unwrap();
        for name in ["/a", "/b", "/c"] {
            journal.append("quiet", Some("boot".into()), change(name)).unwrap();
        }
        journal.refused(3).unwrap();
        journal.undone(1).unwrap();
        let live = journal.entries().to_vec();
        assert_eq!(live.iter().map(|entry| (entry.number, entry.refused)).collect::<Vec<_>>(), [(2, false), (3, true)]);
        drop(journal);
        assert_eq!(Journal::peek(&host).unwrap(), live);
        let mut journal = Journal::open(&host).unwrap();
        assert_eq!(journal.entries(), live);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2, "the dead are left out");
        assert_eq!(journal.append("quiet", None, change("/d")).unwrap(), 4);
        for number in 2..5 {
            journal.undone(number).unwrap();
        }
        journal.close().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_torn_line_is_dropped_and_a_damaged_one_is_told() {
        let (_root, host, path) = tree();
        let mut journal = Journal::open(&host).unwrap();
        journal.append("quiet", None, change("/a")).unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();
        for tail in [&whole[..whole.len() / 2], &whole[..whole.len() - 1], &[0, 0, 0]] {
            fs::write(&path, [&whole, tail].concat()).unwrap();
            assert_eq!(Journal::peek(&host).unwrap().len(), 1);
            let mut journal = Journal::open(&host).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
            journal.append("quiet", None, change("/b")).unwrap();
            drop(journal);
            assert_eq!(Journal::peek(&host).unwrap().len(), 2);
        }
        fs::write(&path, [b"{\"change\":\n", whole.as_slice()].concat()).unwrap();
        let error = Journal::open(&host).unwrap_err().to_string();
        assert!(error.contains("journal.jsonl, line 1"), "{error}");
        fs::write(&path, [whole.as_slice(), whole.as_slice()].concat()).unwrap();
        assert!(matches!(Journal::open(&host), Err(JournalError::Damaged { line: 2, .. })));
    }

    #[test]
    fn there_is_one_writer() {
        let (_root, host, _path) = tree();
        let journal = Journal::open(&host).unwrap();
        assert!(matches!(Journal::open(&host), Err(JournalError::Locked { .. })));
        drop(journal);
        Journal::open(&host).unwrap();
    }
}
