//! The machine as its files tell it.
//!
//! Everything is read and written below one folder, so that a machine can also be made of files. A file may be missing,
//! unreadable, or hold anything at all: what cannot be known is `None`, never a guess.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use spinwake::cpu::Topology;
use spinwake::pci::Sysfs;

/// No file that is read here is longer; of one that is, the rest is not looked at.
const LONGEST: u64 = 4 << 20;

/// A machine: `/proc`, `/sys`, `/etc` and the like, below a folder.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
}

impl Default for Host {
    /// The machine that this program runs on.
    fn default() -> Self {
        Self::at("/")
    }
}

impl Host {
    /// The machine whose `/proc`, `/sys` and so on lie in `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder that its files lie in: `/` for the machine that this program runs on.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it is the machine that this program runs on, so that system calls tell about it, too.
    pub fn is_this(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where a file of this machine lies. `path` is absolute, as in `/proc/cmdline`.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The text of a file, without white space around it; `None` when there is none or it cannot be read.
    pub fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        self.try_read(path).ok()
    }

    /// The text of a file, without white space around it. Bytes that are no UTF-8 are replaced.
    ///
    /// # Errors
    ///
    /// When there is none or it cannot be read.
    pub fn try_read(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let mut bytes = Vec::new();
        File::open(self.path(path))?.take(LONGEST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// What a file holds, when that is one value of this type and nothing else.
    pub fn value<T: FromStr>(&self, path: impl AsRef<Path>) -> Option<T> {
        self.read(path)?.parse().ok()
    }

    /// The names in a folder, in order; none when it is not there or cannot be read.
    pub fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// The last part of what a symbolic link points to, as in the name of a device's driver.
    pub fn link_name(&self, path: impl AsRef<Path>) -> Option<String> {
        Some(fs::read_link(self.path(path)).ok()?.file_name()?.to_str()?.to_owned())
    }

    /// Whether there is such a file or folder.
    pub fn has(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// Its cores.
    pub fn topology(&self) -> Topology {
        Topology::read_from(&self.root)
    }

    /// Its device tree.
    pub fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.path("/sys"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_malformed_file_is_unknown() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        assert_eq!(host.read("/proc/cmdline"), None);
        assert!(host.names("/sys").is_empty() && host.link_name("/sys/driver").is_none());
        fs::create_dir_all(host.path("/proc/sys")).unwrap();
        fs::write(host.path("/proc/sys/number"), " 12 \n").unwrap();
        fs::write(host.path("/proc/sys/bytes"), [0xff, b'1', b'\n']).unwrap();
        assert_eq!(host.value::<u32>("/proc/sys/number"), Some(12));
        assert_eq!(host.value::<u32>("/proc/sys/bytes"), None);
        assert_eq!(host.read("/proc/sys"), None);
        assert_eq!(host.names("/proc/sys"), ["bytes", "number"]);
    }

    #[test]
    fn a_path_stays_below_the_root() {
        assert_eq!(Host::at("/tmp/tree").path("/proc/cmdline"), Path::new("/tmp/tree/proc/cmdline"));
        assert_eq!(Host::default().path("/proc/cmdline"), Path::new("/proc/cmdline"));
        assert!(Host::default().is_this() && !Host::at("/tmp/tree").is_this());
    }
}
