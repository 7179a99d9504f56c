//! Spinwake's drivers, and one call that opens any port.
//!

pub mod igb;
pub mod soft;
