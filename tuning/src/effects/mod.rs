//! What commands do to a machine: the few ways to change something, in one place, so that tests can play the kernel.

use std::env;
use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::process::{Command, Stdio};

use crate::host::Host;

#[cfg(test)]
pub(crate) mod fake;

/// Changes to a machine. Paths are absolute there, as in `/proc/sys/vm/nr_hugepages`.
pub trait Effects: Debug {
    /// Writes `text` to a file that the kernel made. It is never created.
    ///
    /// # Errors
    ///
    /// When there is no such file, or the kernel does not take the text.
    fn write(&self, path: &str, text: &str) -> io::Result<()>;

    /// Makes a file that everybody may read hold `text`, in folders that are made where they are missing. Whoever reads it
    /// meanwhile sees the old text or the new one.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    fn save(&self, path: &str, text: &str) -> io::Result<()>;

    /// Removes a file, and says whether there was one.
    ///
    /// # Errors
    ///
    /// When there is one and it cannot be removed.
    fn remove(&self, path: &str) -> io::Result<bool>;

    /// Makes a folder, and those that it lies in.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    fn make_folder(&self, path: &str) -> io::Result<()>;

    /// Gives a file to a user and a group (whom `None` leaves as they are), with these permission bits.
    ///
    /// # Errors
    ///
    /// When the kernel refuses one of them.
    fn give(&self, path: &str, user: Option<u32>, group: Option<u32>, mode: u32) -> io::Result<()>;

    /// Runs a program of the machine to its end.
    ///
    /// # Errors
    ///
    /// When it cannot be run or fails, with what it said.
    fn call(&self, program: &str, arguments: &[&str]) -> Result<(), CallError>;
}

/// A program failed, or did not start.
#[derive(Debug, thiserror::Error)]
#[error("`{command}`: {why}")]
pub struct CallError {
    command: String,
    why: String,
}

impl CallError {
    pub(crate) fn new(program: &str, arguments: &[&str], why: impl Into<String>) -> Self {
        let words: Vec<_> = std::iter::once(program).chain(arguments.iter().copied()).collect();
        Self { command: words.join(" "), why: why.into() }
    }
}

impl Effects for Host {
    fn write(&self, path: &str, text: &str) -> io::Result<()> {
        OpenOptions::new().write(true).truncate(true).open(self.path(path))?.write_all(text.as_bytes())
    }

    fn save(&self, path: &str, text: &str) -> io::Result<()> {
        let path = self.path(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // Beside it, so that renaming does not cross file systems; hidden, so that no reader of the folder takes it.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let new = path.with_file_name(format!(".{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        // A rule that was asked for is there after a power failure, too.
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    fn remove(&self, path: &str) -> io::Result<bool> {
        match fs::remove_file(self.path(path)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn make_folder(&self, path: &str) -> io::Result<()> {
        fs::create_dir_all(self.path(path))
    }

    fn give(&self, path: &str, user: Option<u32>, group: Option<u32>, mode: u32) -> io::Result<()> {
        let path = self.path(path);
        chown(&path, user, group)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
    }

    fn call(&self, program: &str, arguments: &[&str]) -> Result<(), CallError> {
        let fail = |why: String| Err(CallError::new(program, arguments, why));
        if !self.is_this() {
            return fail("programs are run for this machine only, not for one made of files".into());
        }
        let output = Command::new(program).args(arguments).env("PATH", search_path()).stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said = said.trim().lines().next().unwrap_or_default();
                fail(if said.is_empty() { output.status.to_string() } else { format!("{said} ({})", output.status) })
            }
            Err(error) => fail(error.to_string()),
        }
    }
}

/// The caller's PATH, and behind it the folders of modprobe and its like, which an ordinary user's may lack. Where there is
/// none, nothing stands before them: an empty word would be the current folder.
pub(crate) fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push("/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// What to add to the message of a failed write.
pub(crate) fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run this as root",
        io::ErrorKind::ReadOnlyFilesystem => "; a container often may not change this: run it on the host",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_kernel_is_never_created() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        assert_eq!(host.write("/sys/number", "1").unwrap_err().kind(), io::ErrorKind::NotFound);
        host.save("/sys/number", "long text").unwrap();
        host.write("/sys/number", "1").unwrap();
        assert_eq!(host.read("/sys/number").unwrap(), "1");
    }

    #[test]
    fn what_is_saved_is_there_and_goes_again() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        host.save("/etc/a/b.conf", "x\n").unwrap();
        assert_eq!(host.names("/etc/a"), ["b.conf"]);
        let mode = fs::metadata(host.path("/etc/a/b.conf")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
        assert!(host.remove("/etc/a/b.conf").unwrap() && !host.remove("/etc/a/b.conf").unwrap());
    }

    #[test]
    fn no_program_runs_for_a_machine_made_of_files() {
        let error = Host::at("/nowhere").call("modprobe", &["vfio-pci"]).unwrap_err().to_string();
        assert!(error.starts_with("`modprobe vfio-pci`: programs are run for this machine only"), "{error}");
    }

    #[test]
    fn what_a_program_said_is_told() {
        let error = Host::default().call("cat", &["/nowhere/at/all"]).unwrap_err().to_string();
        assert!(error.contains("No such file") && error.contains("exit status: 1"), "{error}");
        assert!(Host::default().call("/nowhere/program", &[]).is_err());
        Host::default().call("true", &[]).unwrap();
    }
}
