//! What Spinwake's programs share: how they talk to their operator, and how they open ports and watch workers.

pub mod console;
pub mod file;
pub mod output;
pub mod pace;
pub mod perf;
pub mod plot;

pub mod metrics;
pub mod options;
pub mod report;
pub mod worker;

pub mod links;
pub mod ports;
