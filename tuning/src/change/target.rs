//! What a change changes.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use spinwake::cpu::{CpuSet, set_thread_affinity};

use super::form::Form;
use super::{State, replace};
use crate::effects::search_path;
use crate::host::Host;

/// Something that can be read and changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Target {
    /// A value of the kernel's, below `/proc` or `/sys`.
    Value {
        /// Its file.
        path: String,
        /// How it is written.
        form: Form,
    },
    /// The cores that a kernel thread may run on.
    Thread {
        /// Its id.
        id: i32,
        /// Its name.
        name: String,
        /// When it was made, in ticks since boot: another thread with the same id has another time.
        started: u64,
    },
    /// A file, as a whole.
    File {
        /// Where it is.
        path: String,
    },
    /// A folder.
    Folder {
        /// Where it is.
        path: String,
    },
    /// A symbolic link.
    Link {
        /// Where it is.
        path: String,
    },
    /// The boot loader's menu, which a program makes out of other files. Going to any [`State::Value`] runs it.
    BootMenu {
        /// The program with its arguments, without quoting.
        program: String,
    },
}

impl Target {
    /// Whether its state survives a reboot.
    pub fn lasts(&self) -> bool {
        !matches!(self, Self::Value { .. } | Self::Thread { .. })
    }

    /// Its state at this moment.
    ///
    /// # Errors
    ///
    /// When it cannot be read. Values and threads that are not there are errors (`NotFound`), too: they come and go with
    /// the machine, and nobody can make them.
    pub fn read(&self, host: &Host) -> io::Result<State> {
        match self {
            Self::Value { path, .. } => host.try_read(path).map(State::Value),
            Self::Thread { id, started, .. } => match thread(host, *id) {
                Some(thread) if thread.started == *started => Ok(State::Value(thread.cores.to_string())),
                _ => Err(io::ErrorKind::NotFound.into()),
            },
            Self::File { path } => {
                let path = host.path(path);
                match replace::file(&path)? {
                    Some(_) => or_absent(fs::read(&path).map(State::content)),
                    None => Ok(State::Absent),
                }
            }
            Self::Folder { path } => or_absent(fs::metadata(host.path(path)).map(|_| State::Folder)),
            Self::Link { path } => {
                let leads_to = fs::read_link(host.path(path));
                or_absent(leads_to.map(|to| State::Value(to.to_string_lossy().into_owned())))
            }
            Self::BootMenu { .. } => Ok(State::Absent),
        }
    }

    /// Whether it is in this state.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn is(&self, host: &Host, wanted: &State) -> io::Result<bool> {
        Ok(match (self, self.read(host)?, wanted) {
            (Self::Value { form, .. }, State::Value(found), State::Value(wanted)) => form.same(&found, wanted),
            (Self::Thread { .. }, State::Value(found), State::Value(wanted)) => Form::List.same(&found, wanted),
            (Self::File { .. }, State::Content(found), State::Content(wanted)) => found.to_vec() == wanted.to_vec(),
            (_, found, wanted) => found == *wanted,
        })
    }

    /// Brings it into a state.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or it cannot be in such a state.
    pub fn write(&self, host: &Host, state: &State) -> io::Result<()> {
        match (self, state) {
            (Self::Value { path, form }, State::Value(value)) => {
                let mut file = OpenOptions::new().write(true).truncate(true).open(host.path(path))?;
                // One call: the kernel takes each as a whole value.
                file.write_all(format!("{}\n", form.writable(value)).as_bytes())
            }
            (Self::Thread { id, .. }, State::Value(cores)) => {
                let cores: CpuSet = cores.parse().map_err(io::Error::other)?;
                if !host.is_this() || *id <= 0 {
                    return Err(io::Error::other("a machine that is made of files has no threads to move"));
                }
                set_thread_affinity(*id, &cores)
            }
            (Self::File { path }, State::Content(bytes)) => {
                let bytes = bytes.to_vec().ok_or_else(|| io::Error::other("these are no hexadecimal digits"))?;
                replace::replace(&host.path(path), &bytes)
            }
            (Self::Folder { path }, State::Folder) => {
                let path = host.path(path);
                fs::create_dir(&path)?;
                replace::sync_folder_of(&path)
            }
            (Self::Link { path }, State::Value(to)) => {
                // One that leads elsewhere, as `systemctl enable` makes it, is replaced.
                replace::link(&host.path(path), to)
            }
            (Self::File { path } | Self::Link { path }, State::Absent) => {
                let path = host.path(path);
                or_absent(replace::remove(&path).map(|()| State::Absent)).map(|_| ())
            }
            (Self::Folder { path }, State::Absent) => match replace::remove(&host.path(path)) {
                // Somebody else has put something there: then it is no longer ours to take away.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                result => or_absent(result.map(|()| State::Absent)).map(|_| ()),
            },
            (Self::BootMenu { program }, State::Value(_)) => run(host, program),
            (Self::BootMenu { .. }, State::Absent) => Ok(()),
            (target, state) => Err(io::Error::other(format!("{target} cannot become {state}"))),
        }
    }

    /// Takes away what a [`write`](Self::write) may have left that was stopped in its middle.
    ///
    /// # Errors
    ///
    /// When it cannot be taken away.
    pub fn tidy(&self, host: &Host) -> io::Result<()> {
        match self {
            Self::File { path } => {
                let path = host.path(path);
                replace::discard(&fs::canonicalize(&path).unwrap_or(path))
            }
            Self::Link { path } => replace::discard(&host.path(path)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { path, .. } | Self::File { path } | Self::Folder { path } | Self::Link { path } => {
                write!(f, "{path}")
            }
            Self::Thread { id, name, .. } => write!(f, "kernel thread {id} ({name}), cores"),
            Self::BootMenu { program } => write!(f, "the boot menu ({program})"),
        }
    }
}

fn or_absent(state: io::Result<State>) -> io::Result<State> {
    match state {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::Absent),
        state => state,
    }
}

/// Runs a program that makes the boot menu. A machine that is made of files has none.
fn run(host: &Host, program: &str) -> io::Result<()> {
    let mut words = program.split(' ');
    let (Some(name), true) = (words.next(), host.is_this()) else { return Ok(()) };
    let output = Command::new(name).args(words).env("PATH", search_path()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let last = told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it does not say why");
    Err(io::Error::other(format!("{}: {last}", output.status)))
}

/// A thread of the kernel's own that may be moved.
#[derive(Debug)]
pub struct KernelThread {
    /// Its id.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// When it was made, in ticks since boot.
    pub started: u64,
    /// The cores it may run on.
    pub cores: CpuSet,
}

/// The kernel's threads that may be moved, in the order of their ids.
pub fn kernel_threads(host: &Host) -> Vec<KernelThread> {
    let mut ids: Vec<i32> = host.names("/proc").iter().filter_map(|name| name.parse().ok()).collect();
    ids.sort_unstable();
    ids.into_iter().filter_map(|id| thread(host, id)).collect()
}

/// Thread `id`, if it is one of the kernel's and may be moved.
fn thread(host: &Host, id: i32) -> Option<KernelThread> {
    // include/linux/sched.h: PF_KTHREAD and PF_NO_SETAFFINITY.
    const KERNEL_THREAD: u64 = 0x0020_0000;
    const BOUND: u64 = 0x0400_0000;
    let folder = format!("/proc/{id}");
    let folder = Path::new(&folder);
    // proc(5): "ID (NAME) STATE PPID PGRP SESSION TTY TPGID FLAGS ...", where NAME may hold anything; STARTTIME is the 22nd.
    let stat = host.read(folder.join("stat"))?;
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1;
    let fields: Vec<_> = tail.split_whitespace().collect();
    let flags: u64 = fields.get(6)?.parse().ok()?;
    if flags & KERNEL_THREAD == 0 || flags & BOUND != 0 {
        return None;
    }
    let status = host.read(folder.join("status"))?;
    let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.parse().ok()?;
    Some(KernelThread { id, name: name.into(), started: fields.get(19)?.parse().ok()?, cores })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        fs::create_dir_all(host.path("/proc/sys/vm")).unwrap();
        fs::create_dir_all(host.path("/etc")).unwrap();
        (root, host)
    }

    #[test]
    fn a_value_is_written_but_never_made() {
        let (_root, host) = tree();
        let target = Target::Value { path: "/proc/sys/vm/swappiness".into(), form: Form::Plain };
        let state = State::Value("1".into());
        assert_eq!(target.write(&host, &state).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(target.is(&host, &state).is_err());
        fs::write(host.path("/proc/sys/vm/swappiness"), "60\n").unwrap();
        assert!(!target.is(&host, &state).unwrap());
        target.write(&host, &state).unwrap();
        assert!(target.is(&host, &state).unwrap());
        assert!(target.write(&host, &State::Absent).is_err());
    }

    #[test]
    fn files_folders_and_links_come_and_go() {
        let (_root, host) = tree();
        let folder = Target::Folder { path: "/etc/new".into() };
        let file = Target::File { path: "/etc/new/file".into() };
        let link = Target::Link { path: "/etc/new/link".into() };
        let states = [State::Folder, State::content("text"), State::Value("../file".into())];
        for (target, state) in [&folder, &file, &link].into_iter().zip(&states) {
            assert!(target.is(&host, &State::Absent).unwrap());
            target.write(&host, state).unwrap();
            assert!(target.is(&host, state).unwrap());
        }
        folder.write(&host, &State::Absent).unwrap();
        assert!(folder.is(&host, &State::Folder).unwrap(), "it is not empty");
        for target in [&link, &file, &folder, &folder] {
            target.write(&host, &State::Absent).unwrap();
            assert!(target.is(&host, &State::Absent).unwrap());
        }
    }

    #[test]
    fn a_link_leads_elsewhere_and_back() {
        let (_root, host) = tree();
        let link = Target::Link { path: "/etc/link".into() };
        let (ours, theirs) = (State::Value("../ours".into()), State::Value("/theirs".into()));
        symlink("/theirs", host.path("/etc/link")).unwrap();
        for state in [&ours, &theirs, &ours] {
            link.write(&host, state).unwrap();
            assert!(link.is(&host, state).unwrap());
        }
        symlink("/x", host.path("/etc/link.spinwake-new")).unwrap();
        link.tidy(&host).unwrap();
        assert_eq!(host.names("/etc"), ["link"]);
    }

    #[test]
    fn what_is_no_file_is_not_read_as_one() {
        let (_root, host) = tree();
        let _socket = std::os::unix::net::UnixListener::bind(host.path("/etc/null")).unwrap();
        symlink("null", host.path("/etc/masked")).unwrap();
        let error = Target::File { path: "/etc/masked".into() }.read(&host).unwrap_err().to_string();
        assert!(error.contains("no file"), "{error}");
    }

    #[test]
    fn kernel_threads_that_may_be_moved_are_found_whatever_their_name() {
        let (_root, host) = tree();
        let make = |id: i32, name: &str, flags: u64, status: &str| {
            fs::create_dir_all(host.path(format!("/proc/{id}"))).unwrap();
            let stat = format!("{id} ({name}) S 2 0 0 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 77 0 0\n");
            fs::write(host.path(format!("/proc/{id}/stat")), stat).unwrap();
            fs::write(host.path(format!("/proc/{id}/status")), status).unwrap();
        };
        make(17, "odd) name (", 0x20_0000, "Name:\tx\nCpus_allowed_list:\t0-3\n");
        make(18, "bound", 0x420_0000, "Cpus_allowed_list:\t0-3\n");
        make(19, "a program", 0x40_0000, "Cpus_allowed_list:\t0-3\n");
        make(20, "no list", 0x20_0000, "Cpus_allowed_list:\tmany\n");
        fs::create_dir_all(host.path("/proc/21")).unwrap();
        fs::write(host.path("/proc/21/stat"), "21 (short) S\n").unwrap();
        let threads = kernel_threads(&host);
        assert_eq!(threads.len(), 1, "{threads:?}");
        let found = (threads[0].id, threads[0].name.as_str(), threads[0].started, threads[0].cores.to_string());
        assert_eq!(found, (17, "odd) name (", 77, "0-3".into()));
        let target = Target::Thread { id: 17, name: "x".into(), started: 77 };
        assert!(target.is(&host, &State::Value("0,1-3".into())).unwrap());
        let later = Target::Thread { id: 17, name: "x".into(), started: 78 };
        assert_eq!(later.read(&host).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
