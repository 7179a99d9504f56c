//! Every system call and ioctl of the SDK, and the only place that calls libc.
//!
//! Each function here is a thin, safe shape over one kernel facility: it checks the return value, turns `errno`
//! into [`std::io::Error`], and hands out types that give back what they took when they are dropped. What a call is
//! *for* is decided in the modules above.

pub mod barrier;
pub mod epoll;
pub mod event;
pub mod mem;
pub mod relax;
pub mod sched;
pub mod socket;
pub mod vfio;
