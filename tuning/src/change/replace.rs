//! Files that survive a reboot, replaced as a whole: whoever looks finds the old one or the new one, even after a power
//! failure.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::journal::stop;

/// Puts `bytes` in the place of `path`, with the owner and the mode of what was there, else mode 0644.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // The new file goes beside the one that a symbolic link leads to, so that the link stays one.
    let earlier = file(path)?;
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let beside = beside(&path);
    discard(&path)?;
    // Nobody else's until it has the owner and the mode of the earlier one, which others may not have been able to read.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    let new = file.metadata()?;
    if let Some(earlier) = earlier.as_ref().filter(|earlier| (new.uid(), new.gid()) != (earlier.uid(), earlier.gid())) {
        chown(&beside, Some(earlier.uid()), Some(earlier.gid()))?;
    }
    let permissions = earlier.map_or_else(|| Permissions::from_mode(0o644), |earlier| earlier.permissions());
    if new.permissions() != permissions {
        file.set_permissions(permissions)?;
    }
    file.sync_all()?;
    stop::point();
    fs::rename(&beside, &path)?;
    sync_folder_of(&path)
}

/// Puts a symbolic link to `to` in the place of `path`, where another link may be.
pub(super) fn link(path: &Path, to: &str) -> io::Result<()> {
    let beside = beside(path);
    discard(path)?;
    symlink(to, &beside)?;
    stop::point();
    fs::rename(&beside, path)?;
    sync_folder_of(path)
}

/// What is known of the file at `path`, or where a link there leads to; `None` when there is nothing.
///
/// Anything else is an error. The link of a masked unit leads to `/dev/null`, which must not become a file.
pub(super) fn file(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(Some(found)),
        Ok(_) => Err(io::Error::other("what is there is no file, or a link to what is none, as a masked unit's")),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) if fs::symlink_metadata(path).is_ok() => Err(io::Error::other("what is there is a link to nowhere")),
        Err(_) => Ok(None),
    }
}

/// Takes a file, a link, or an empty folder away.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir(path)?;
    } else {
        fs::remove_file(path)?;
    }
    sync_folder_of(path)
}

/// Takes away what a [`replace`] left that did not come to its end.
pub(super) fn discard(path: &Path) -> io::Result<()> {
    match fs::remove_file(beside(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes sure that the entry of `path` in its folder survives a power failure.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// The new file's name until it takes the old one's place. No program reads files with such an ending.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".spinwake-new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_and_links_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("file", &link).unwrap();
        fs::write(dir.path().join("file.spinwake-new"), "left over").unwrap();
        replace(&link, b"new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, link) = (dir.path().join("null"), dir.path().join("masked.service"));
        let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        symlink("null", &link).unwrap();
        let error = replace(&link, b"[Unit]").unwrap_err().to_string();
        assert!(error.contains("no file"), "{error}");
        assert!(!fs::metadata(&socket).unwrap().is_file());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
