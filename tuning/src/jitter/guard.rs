//! Puts tracefs back when this program is killed before it can do so itself.
//!
//! A shell waits at the other end of a pipe and is told each change before it is made. When the pipe closes and nobody has said
//! that all is done, this program is gone, and the shell takes the changes back, the last one first.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// `$1` is the instance. What stops tracing comes first: the rest is what it is for.
const SCRIPT: &str = r#"trap '' HUP INT QUIT TERM
while IFS= read -r line; do
    [ "$line" = done ] && exit
    undo="$line
$undo"
done
echo 0 > "$1/tracing_on"
echo nop > "$1/current_tracer"
eval "$undo"
rmdir "$1""#;

/// A shell that takes back what it was told, unless it is told that this was done.
#[derive(Debug)]
pub(super) struct Guard {
    shell: Child,
}

impl Guard {
    /// Guards an instance of tracefs.
    ///
    /// # Errors
    ///
    /// When no shell can be started.
    pub(super) fn new(instance: &Path) -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "sh"]).arg(instance);
        // In a group of its own: what a terminal or a shell sends to this program's group is not meant for it.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { shell: command.spawn()? })
    }

    /// Tells that `path` is going to change, and what is to be written there in the end.
    ///
    /// # Errors
    ///
    /// When the shell is gone.
    pub(super) fn tell(&mut self, path: &Path, value: &str) -> io::Result<()> {
        let line = format!("printf '%s\\n' {} > {}\n", quoted(value), quoted(&path.display().to_string()));
        self.write(&line)
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        self.shell.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write_all(line.as_bytes())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A shell that is gone needs not be told.
        let _ = self.write("done\n");
        self.shell.stdin = None;
        let _ = self.shell.wait();
    }
}

/// One word of a shell, and one line.
fn quoted(text: &str) -> String {
    format!("'{}'", text.trim().replace('\n', " ").replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// An instance, and a file outside of it that stood at `it's 0-3`.
    fn guarded(folder: &Path) -> Guard {
        let instance = folder.join("instance");
        fs::create_dir(&instance).unwrap();
        let mut guard = Guard::new(&instance).unwrap();
        guard.tell(&folder.join("cpus"), "it's 0-3\n").unwrap();
        guard.tell(&folder.join("cpus"), "changed again").unwrap();
        fs::write(folder.join("cpus"), "1").unwrap();
        guard
    }

    #[test]
    fn what_is_done_is_left_alone_and_what_is_not_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        drop(guarded(folder.path()));
        assert_eq!(fs::read_to_string(folder.path().join("cpus")).unwrap(), "1");
        fs::remove_dir(folder.path().join("instance")).unwrap();

        let mut killed = guarded(folder.path());
        // As when the kernel closes what a dead process had open.
        killed.shell.stdin = None;
        killed.shell.wait().unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("cpus")).unwrap(), "it's 0-3\n", "the oldest value last");
    }
}
