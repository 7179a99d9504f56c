//! How peers come: by a socket of ours at a path, or by our connecting to theirs.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use spinwake::sys::socket;

/// How often a peer that does not listen is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// How long others may take to make or remove a socket in the same directory.
const TURN: Duration = Duration::from_secs(2);

/// A socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// There is no folder for it.
    #[error("there is no folder for {path}; make it, or correct the path", path = path.display())]
    NoFolder {
        /// Where.
        path: PathBuf,
    },
    /// Something else is at the path.
    #[error("{path} is no socket; choose a path where nothing is yet", path = path.display())]
    NoSocket {
        /// Where.
        path: PathBuf,
    },
    /// Somebody listens at the path.
    #[error(
        "{path} is in use: another program listens there; end it, choose another path, or connect to it (server=off)",
        path = path.display()
    )]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// A call failed.
    #[error("{path}: {call} failed: {source}; may this user make files there?", path = path.display())]
    Call {
        /// Where.
        path: PathBuf,
        /// Which.
        call: &'static str,
        /// The meaning of errno.
        source: io::Error,
    },
}

/// Where the next peer comes from.
#[derive(Debug)]
pub(super) enum Door {
    Listens(Listening),
    Calls(Calling),
}

impl Door {
    /// Opens it. A stale socket at the path, which nobody listens on, is replaced.
    pub(super) fn open(path: &Path, server: bool) -> Result<Self, DoorError> {
        if server { Listening::bind(path).map(Self::Listens) } else { Ok(Self::Calls(Calling::new(path))) }
    }

    /// The next peer, if it is there; it does not block.
    pub(super) fn next(&mut self, now: Instant) -> io::Result<Option<UnixStream>> {
        match self {
            Self::Listens(listening) => listening.accept(),
            Self::Calls(calling) => Ok(calling.call(now)),
        }
    }

    /// What becomes readable when a peer comes.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Listens(listening) => Some(listening.listener.as_fd()),
            Self::Calls(_) => None,
        }
    }

    /// When [`next`](Self::next) is to be asked without that.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Self::Listens(_) => None,
            Self::Calls(calling) => Some(calling.due),
        }
    }
}

/// A socket at a path, which is removed at the end.
#[derive(Debug)]
pub(super) struct Listening {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: what we remove at the end shall be ours.
    file: (u64, u64),
}

impl Listening {
    fn bind(path: &Path) -> Result<Self, DoorError> {
        let failed = |call| move |source| DoorError::Call { path: path.into(), call, source };
        if !folder(path).is_dir() {
            return Err(DoorError::NoFolder { path: path.into() });
        }
        let _turn = turn(path).map_err(failed("locking its directory"))?;
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(failed("binding a socket"))?;
        listener.set_nonblocking(true).map_err(failed("binding a socket"))?;
        // Whoever may write may connect, and have us map memory. Until here it was the owner alone, but for a loose umask.
        fs::set_permissions(path, Permissions::from_mode(0o660))
            .map_err(failed("setting permissions of the socket"))?;
        let about = fs::symlink_metadata(path).map_err(failed("looking at the socket"))?;
        Ok(Self { listener, path: path.into(), file: (about.dev(), about.ino()) })
    }

    fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(stream))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => Ok(None),
                _ => Err(error),
            },
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _turn = turn(&self.path);
        if fs::symlink_metadata(&self.path).is_ok_and(|about| (about.dev(), about.ino()) == self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("{} cannot be removed: {error}", self.path.display());
        }
    }
}

/// Makes room for a socket at `path`.
fn remove_stale(path: &Path) -> Result<(), DoorError> {
    let failed = |call| move |source| DoorError::Call { path: path.into(), call, source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("looking at it")(error)),
        Ok(about) if !about.file_type().is_socket() => return Err(DoorError::NoSocket { path: path.into() }),
        Ok(_) => {}
    }
    match socket::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("removing a stale socket"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(failed("connecting to see who listens")(error))
        }
        // Somebody took the call, or has too many waiting.
        _ => Err(DoorError::InUse { path: path.into() }),
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Our turn in the directory of `path`: of two programs that find the same stale socket, one removes the other's new one
/// otherwise.
fn turn(path: &Path) -> io::Result<File> {
    let directory = File::open(folder(path))?;
    let end = Instant::now() + TURN;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            // Somebody else's lock may be there for another purpose, or for good: it protects little enough.
            Err(_) if Instant::now() > end => return Ok(directory),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// A peer that listens, or will.
#[derive(Debug)]
pub(super) struct Calling {
    path: PathBuf,
    due: Instant,
    /// It was said that nobody answers.
    complained: bool,
}

impl Calling {
    fn new(path: &Path) -> Self {
        Self { path: path.into(), due: Instant::now(), complained: false }
    }

    fn call(&mut self, now: Instant) -> Option<UnixStream> {
        if now < self.due {
            return None;
        }
        self.due = now + RETRY;
        match socket::connect(&self.path) {
            Ok(stream) => {
                self.complained = false;
                Some(stream)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    log::info!("vhost:{}: nobody answers yet ({error}); trying on", self.path.display());
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "stale");
        let door = Door::open(&path, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = Door::open(&path, true).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("server=off"), "{error}");
        socket::connect(&path).unwrap();
        drop(door);
        assert!(!path.exists());
        fs::write(&path, "mine").unwrap();
        let error = Door::open(&path, true).unwrap_err().to_string();
        assert!(error.contains("is no socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        let error = Door::open(&dir.path().join("none/s"), true).unwrap_err().to_string();
        assert!(error.contains("no folder for") && error.contains("none/s"), "{error}");
    }

    #[test]
    fn a_socket_that_is_no_longer_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let door = Door::open(&path, true).unwrap();
        // So that the inode's number is not used again at once.
        fs::rename(&path, dir.path().join("moved")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(door);
        assert!(path.exists());
    }

    #[test]
    fn a_peer_that_does_not_listen_is_called_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut door = Door::open(&path, false).unwrap();
        let now = Instant::now();
        assert!(door.next(now).unwrap().is_none() && door.due() > Some(now));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(door.next(now).unwrap().is_none(), "not yet due");
        assert!(door.next(now + RETRY).unwrap().is_some());
        listener.accept().unwrap();
    }
}
