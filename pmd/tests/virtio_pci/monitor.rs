//! The guest's QEMU, told what to do: QMP through the virtio port that `testbench/guest` gives the guest.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};

/// A connection to QEMU's monitor.
pub(crate) struct Monitor {
    port: BufReader<File>,
}

impl Monitor {
    pub(crate) fn open() -> Self {
        let mut ports = fs::read_dir("/sys/class/virtio-ports").unwrap().map(|entry| entry.unwrap());
        let is_qemu = |port: &fs::DirEntry| fs::read_to_string(port.path().join("name")).unwrap() == "qemu\n";
        let port = ports.find(is_qemu).expect("a port to QEMU");
        let path = format!("/dev/{}", port.file_name().to_str().unwrap());
        let port = File::options().read(true).write(true).open(path).unwrap();
        let mut monitor = Self { port: BufReader::new(port) };
        monitor.run(r#"{"execute": "qmp_capabilities"}"#);
        monitor
    }

    /// Plugs or pulls the cable of the network device whose back end is `name`.
    pub(crate) fn set_link(&mut self, name: &str, up: bool) {
        self.run(&format!(r#"{{"execute": "set_link", "arguments": {{"name": "{name}", "up": {up}}}}}"#));
    }

    /// Runs a command and waits for its answer; greetings and events are passed over. A monitor that was told of its
    /// capabilities before says so by an error, which is an answer, too.
    fn run(&mut self, command: &str) {
        writeln!(self.port.get_mut(), "{command}").unwrap();
        loop {
            let mut line = String::new();
            assert!(self.port.read_line(&mut line).unwrap() > 0, "QEMU hung up");
            if line.starts_with(r#"{"return""#) || line.contains("CommandNotFound") {
                return;
            }
            assert!(!line.starts_with(r#"{"error""#), "{command}: {line}");
        }
    }
}
