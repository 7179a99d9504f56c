//! A program as its operator meets it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// One of our programs, by its path.
pub(crate) struct Program(pub(crate) &'static str);

impl Program {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.0);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// Runs it to its end, which must be a good one; returns its JSON, as `--json -` prints it.
    pub(crate) fn report(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.run(&[arguments, &["--json", "-"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON object and nothing else")
    }

    /// Starts it.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(arguments);
        Running(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts"))
    }

    /// Each of these arguments must lead to exit code 2 and one error with that word in it.
    pub(crate) fn refuses(&self, cases: &[(&[&str], &str)], always: &[&str]) {
        for (arguments, word) in cases {
            let output = self.run(&[arguments, always].concat());
            let err = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
            assert_eq!(err.matches("error:").count(), 1, "{arguments:?}: {err}");
            assert!(err.contains(word), "{arguments:?}: {err}");
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running program, ended when it goes out of scope.
pub(crate) struct Running(Child);

impl Running {
    /// What it prints from now on. To be kept: a program whose output nobody reads any more goes on, but says nothing.
    pub(crate) fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        BufReader::new(self.0.stdout.take().expect("a pipe")).lines().map(|line| line.expect("text"))
    }

    /// The kernel's id of it.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().expect("kill").success());
    }

    /// Its exit status, which must come in time.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it still runs");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
