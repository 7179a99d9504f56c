//! Spinwake's drivers, and one call that opens any port.
//!
//! ```no_run
//! let port = spinwake_pmd::open("pci:0000:01:00.0,queues=2")?;
//! println!("{} {} {}", port.name(), port.mac(), port.link());
//! # Ok::<(), spinwake_pmd::OpenError>(())
//! ```
//!
//! Each driver is a folder of its own; none of them has unsafe code. What they are written against is in [`spinwake`].

#[cfg(any(all(test, not(loom)), fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod igb;
mod open;
mod pci;
pub mod soft;
mod vectors;
pub mod vhost;
mod virtio;
mod virtio_user;
mod voice;

pub use open::{OpenError, check, open, open_in};
pub use pci::driver_name;

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
