//! Which process has a file open.

use std::fmt;
use std::fs;
use std::path::Path;

/// A process that has a file open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl Holder {
    /// The first process below `proc` that has `path` open, of those whose files this process may see.
    pub(super) fn of(proc: &Path, path: &Path) -> Option<Self> {
        fs::read_dir(proc).ok()?.flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let mut fds = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
            fds.find(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path))?;
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            Some(Self { pid, name: name.trim().to_owned() })
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_holder_is_found_by_its_open_file() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir_all(proc.path().join("41/fd")).unwrap();
        fs::create_dir_all(proc.path().join("42/fd")).unwrap();
        fs::create_dir_all(proc.path().join("sys")).unwrap();
        fs::write(proc.path().join("42/comm"), "qemu\n").unwrap();
        symlink("/dev/vfio/7", proc.path().join("42/fd/9")).unwrap();
        let holder = Holder::of(proc.path(), Path::new("/dev/vfio/7")).unwrap();
        assert_eq!(holder.to_string(), "process 42 (qemu)");
        assert_eq!(Holder::of(proc.path(), Path::new("/dev/vfio/8")), None);
    }
}
