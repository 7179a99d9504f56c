//! Warnings, errors, signals and exit codes, the same in every program.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

/// The exit code for a request that cannot be fulfilled: nothing was changed.
pub const REFUSED: u8 = 2;

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let word = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        // Standard error may be closed; there is nobody left to tell then.
        let _ = writeln!(io::stderr(), "{word}{}", record.args());
    }

    fn flush(&self) {}
}

/// Sends the library's warnings to standard error.
pub fn show_warnings() {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

/// Prints why a program could not do what it was asked, and returns the exit code for that.
pub fn refuse(error: &dyn Error) -> ExitCode {
    log::error!("{error}");
    ExitCode::from(REFUSED)
}

/// Prints what went wrong after a program had begun its work, and returns the exit code for that.
pub fn fail(error: &dyn Error) -> ExitCode {
    log::error!("{error}");
    ExitCode::FAILURE
}

/// Set once the operator asks the program to end, by Ctrl-C or SIGTERM. Asking twice ends it at once.
#[derive(Debug, Clone)]
pub struct EndRequest(Arc<AtomicBool>);

impl EndRequest {
    /// Listens for the signals from now on.
    ///
    /// # Errors
    ///
    /// When the handlers cannot be installed.
    pub fn listen() -> io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, asked.clone())?;
            signal_hook::flag::register(signal, asked.clone())?;
        }
        Ok(Self(asked))
    }

    /// Whether it was asked.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
