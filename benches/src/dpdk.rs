//! DPDK as the peer: small C programs in `benches/peers`, built against the installed DPDK and run in turn with ours.

use std::collections::HashMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The peer could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No DPDK.
    #[error("DPDK's development files are not installed (on Debian: apt-get install libdpdk-dev)")]
    NotInstalled,
    /// The compiler failed.
    #[error("cannot build {source_file}: {message}")]
    Build {
        /// Which program.
        source_file: PathBuf,
        /// What the compiler said.
        message: String,
    },
    /// The program failed.
    #[error("{program} failed ({status}): {message}")]
    Run {
        /// Which program.
        program: String,
        /// How it ended.
        status: String,
        /// What it said.
        message: String,
    },
    /// The program did not print a figure.
    #[error("the peer printed no figure \"{0}\"")]
    NoFigure(String),
}

/// A peer program, built.
#[derive(Debug)]
pub struct Peer {
    program: PathBuf,
}

/// What a peer printed: lines of a name and a number.
#[derive(Debug)]
pub struct Figures(HashMap<String, f64>);

impl Figures {
    /// The figure of that name.
    ///
    /// # Errors
    ///
    /// When the peer did not print it.
    pub fn get(&self, name: &str) -> Result<f64, PeerError> {
        self.0.get(name).copied().ok_or_else(|| PeerError::NoFigure(name.into()))
    }
}

impl Peer {
    /// Builds `benches/peers/NAME.c` for this machine's processor, as DPDK's own programs are meant to be built.
    ///
    /// # Errors
    ///
    /// When DPDK is not installed or the compiler fails.
    pub fn build(name: &str) -> Result<Self, PeerError> {
        let flags = |what: &str| {
            let output = Command::new("pkg-config").args([what, "libdpdk"]).output();
            let output = output.ok().filter(|o| o.status.success()).ok_or(PeerError::NotInstalled)?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok::<_, PeerError>(text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let source_file = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name).with_extension("c");
        let program = env::temp_dir().join(format!("spinwake-peer-{name}-{}", std::process::id()));
        let output = Command::new("cc")
            .args(["-O3", "-march=native"])
            .args(flags("--cflags")?)
            .arg(&source_file)
            .arg("-o")
            .arg(&program)
            .args(flags("--libs")?)
            .output();
        match output {
            Ok(output) if output.status.success() => Ok(Self { program }),
            Ok(output) => {
                Err(PeerError::Build { source_file, message: String::from_utf8_lossy(&output.stderr).into_owned() })
            }
            Err(error) => Err(PeerError::Build { source_file, message: error.to_string() }),
        }
    }

    /// Runs it on `core`, without hugepages or devices, and returns its figures.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn run(&self, core: usize, arguments: &[&str]) -> Result<Figures, PeerError> {
        let core = core.to_string();
        let prefix = format!("spinwake-{}", std::process::id());
        let eal = ["-l", &core, "--no-huge", "-m", "256", "--no-pci", "--log-level=1", "--file-prefix", &prefix, "--"];
        let failed = |status: String, message: String| PeerError::Run {
            program: self.program.display().to_string(),
            status,
            message,
        };
        match Command::new(&self.program).args(eal).args(arguments).output() {
            Ok(Output { status, stdout, .. }) if status.success() => Ok(parse(&String::from_utf8_lossy(&stdout))),
            Ok(Output { status, stderr, .. }) => {
                Err(failed(status.to_string(), String::from_utf8_lossy(&stderr).into_owned()))
            }
            Err(error) => Err(failed("not started".into(), error.to_string())),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // A program left in the temporary directory does no harm.
        let _ = std::fs::remove_file(&self.program);
    }
}

fn parse(text: &str) -> Figures {
    let figure = |line: &str| {
        let (name, value) = line.trim().rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    Figures(text.lines().filter_map(figure).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_by_name_and_the_rest_is_passed_over() {
        let figures = parse("EAL: chatter\nmempool 1.044\nmbuf 5.5\n");
        assert_eq!(figures.get("mempool").unwrap(), 1.044);
        assert!(figures.get("ring").is_err());
    }
}
