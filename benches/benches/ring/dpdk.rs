//! DPDK's side of the comparison: its own test program, run and read.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Row;
use crate::ours::Kind;

/// What DPDK's program is called where its package is installed.
const PROGRAM: &str = "dpdk-test";
/// One run takes a few seconds on a quiet machine.
const DEADLINE: Duration = Duration::from_secs(180);

/// Why DPDK has no figures.
#[derive(Debug)]
pub(crate) enum Error {
    NotInstalled,
    Io(io::Error),
    TooSlow,
    /// The output has no such figure.
    Missing(&'static str),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotInstalled => write!(f, "{PROGRAM} is not installed (Debian: apt-get install dpdk)"),
            Self::Io(error) => write!(f, "{PROGRAM} could not be run: {error}"),
            Self::TooSlow => write!(f, "{PROGRAM} did not end within {DEADLINE:?} and was killed"),
            Self::Missing(what) => write!(f, "{PROGRAM} printed no figure for {what}"),
        }
    }
}

/// DPDK's test program.
pub(crate) struct Peer {
    cores: String,
}

impl Peer {
    /// Finds it, to be run on these two cores.
    pub(crate) fn find(first: usize, second: usize) -> Result<Self, Error> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|folder| folder.join(PROGRAM).is_file()) {
            return Err(Error::NotInstalled);
        }
        Ok(Self { cores: format!("{first},{second}") })
    }

    /// Runs `ring_perf_autotest` once.
    pub(crate) fn run(&self) -> Result<Figures, Error> {
        let prefix = format!("--file-prefix=ringbench{}", std::process::id());
        let mut child = Command::new(PROGRAM)
            .args(["--no-huge", "-m", "512", "--no-pci", &prefix, "-l", &self.cores])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::Io)?;
        let mut input = child.stdin.take().expect("standard input is piped");
        let mut output = child.stdout.take().expect("standard output is piped");
        // Read while it runs: a full pipe would stop it.
        let reader = thread::spawn(move || {
            let mut text = String::new();
            output.read_to_string(&mut text).map(|_| text)
        });
        let asked = input.write_all(b"ring_perf_autotest\nquit\n");
        drop(input);
        let start = Instant::now();
        while child.try_wait().map_err(Error::Io)?.is_none() {
            if start.elapsed() > DEADLINE {
                child.kill().map_err(Error::Io)?;
                child.wait().map_err(Error::Io)?;
                return Err(Error::TooSlow);
            }
            thread::sleep(Duration::from_millis(50));
        }
        asked.map_err(Error::Io)?;
        Figures::parse(&reader.join().expect("the reader does not panic").map_err(Error::Io)?)
    }
}

/// Cycles per element of one run, for bulks of 32: `[SP/SC, MP/MC]` for 8-byte elements, then for 16-byte ones.
pub(crate) struct Figures {
    two_cores: [[f64; 2]; 2],
    one_core: [[f64; 2]; 2],
}

impl Figures {
    /// Reads what `ring_perf_autotest` of DPDK 20.05 and later prints.
    fn parse(text: &str) -> Result<Self, Error> {
        let find = |section: &str, element: &str, kind: &str| -> Option<f64> {
            let start = format!("{element}: {kind}: bulk (size: 32): ");
            let mut here = false;
            for line in text.lines() {
                if line.starts_with("###") {
                    here = line.contains(section);
                } else if let Some(figure) = line.strip_prefix(&start).filter(|_| here) {
                    return figure.trim().parse().ok();
                }
            }
            None
        };
        let of_section = |section: &'static str| -> Result<[[f64; 2]; 2], Error> {
            let mut figures = [[0.0; 2]; 2];
            for (row, element) in figures.iter_mut().zip(["legacy APIs", "elem APIs: element size 16B"]) {
                for (figure, kind) in row.iter_mut().zip(["SP/SC", "MP/MC"]) {
                    *figure = find(section, element, kind).ok_or(Error::Missing(section))?;
                }
            }
            Ok(figures)
        };
        let mut one_core = of_section("bulk enq/deq")?;
        // On one core it prints cycles for each bulk.
        one_core.iter_mut().flatten().for_each(|figure| *figure /= 32.0);
        Ok(Self { two_cores: of_section("two physical cores")?, one_core })
    }

    /// Both sides added.
    pub(crate) fn two_cores(&self, row: &Row) -> f64 {
        self.two_cores[usize::from(row.element_bytes == 16)][kind_index(row)]
    }

    /// Enqueue and dequeue.
    pub(crate) fn one_core(&self, row: &Row) -> f64 {
        self.one_core[usize::from(row.element_bytes == 16)][kind_index(row)]
    }
}

fn kind_index(row: &Row) -> usize {
    match row.kind {
        Kind::Single => 0,
        Kind::Multi => 1,
    }
}
