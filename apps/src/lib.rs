//! What Spinwake's programs share: how they talk to their operator.

pub mod console;
pub mod metrics;
pub mod options;
pub mod perf;
pub mod report;
pub mod worker;
