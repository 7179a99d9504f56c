//! The library's warnings, on standard error.

use std::io::{self, Write};

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let word = if record.level() == log::Level::Error { "error" } else { "warning" };
        // Standard error may be closed; there is nobody left to tell then.
        let _ = writeln!(io::stderr(), "{word}: {}", record.args());
    }

    fn flush(&self) {}
}

/// Shows warnings from now on.
pub fn show() {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}
