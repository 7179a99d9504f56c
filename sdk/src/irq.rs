//! Interrupts as a program sees them: a [`Vector`] is an eventfd that counts, an [`AckProgram`] is what a device
//! wants written (or read) before it will interrupt again.
//!
//! The kernel signals a vector; user space never runs in interrupt context. A vector's count is a hint that something
//! happened, never the truth about how much: that stands in the device's descriptors or registers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::mmio::{Bar, Reg, Rw};
use crate::sys::event;

/// The three ways a PCI device can interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IrqKind {
    /// A level-triggered line, which the kernel masks each time it fires until user space unmasks it.
    Intx,
    /// One message (or a few), edge-triggered.
    Msi,
    /// A table of messages, each vector its own.
    Msix,
}

impl std::fmt::Display for IrqKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Intx => "INTx",
            Self::Msi => "MSI",
            Self::Msix => "MSI-X",
        })
    }
}

/// One interrupt of a device, seen as an eventfd.
///
/// Fits any event loop through [`AsFd`]: readable means that it fired since the last [`take`](Self::take).
#[derive(Debug)]
pub struct Vector {
    fd: OwnedFd,
}

impl Vector {
    /// A vector that has not fired.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: event::eventfd()? })
    }

    /// A vector that another process made and sent here.
    ///
    /// That process may make it block again, and then fill it: a [`signal`](Self::signal) would then wait for it. So would
    /// any program's, and the kernel offers no write that does not.
    ///
    /// # Errors
    ///
    /// When it is no eventfd.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        event::adopt_eventfd(fd.as_fd())?;
        Ok(Self { fd })
    }

    /// How often it fired since the last `take`; zero when it did not. Never blocks.
    pub fn take(&self) -> u64 {
        // A read of an open, non-blocking eventfd fails only with "would block", which `eventfd_take` reports as zero.
        event::eventfd_take(self.fd.as_fd()).unwrap_or(0)
    }

    /// Blocks while the count is zero, at most `timeout` (nanosecond resolution); returns and clears the count, zero
    /// when the time passed or a signal came.
    pub fn wait(&self, timeout: Duration) -> u64 {
        match event::wait_readable(self.fd.as_fd(), timeout) {
            Ok(true) => self.take(),
            _ => 0,
        }
    }

    /// Fires it `n` times: what a device in software does, and what another thread does to wake a waiter.
    pub fn signal(&self, n: u64) {
        // The largest number cannot be written (eventfd(2)). Otherwise a write to an open eventfd fails only when the count
        // is full, and then its waiter is due anyway.
        let _ = event::eventfd_add(self.fd.as_fd(), n.min(u64::MAX - 1));
    }
}

impl AsFd for Vector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One step of an [`AckProgram`].
#[derive(Debug, Clone, Copy)]
pub enum AckStep {
    /// Reads a register for its effect (a cause register that reading clears).
    Read(Reg<Rw>),
    /// Writes a register.
    Write(Reg<Rw>, u32),
    /// Reads a register, clears the bits of the first mask, sets those of the second, and writes it back.
    Modify(Reg<Rw>, u32, u32),
}

/// A short sequence of register accesses that clears or masks a device's interrupt.
///
/// A driver describes it once; whoever handles the wake-up runs it, without knowing the device.
#[derive(Debug, Clone, Default)]
pub struct AckProgram {
    steps: Vec<AckStep>,
}

impl AckProgram {
    /// The program of these steps, in order.
    pub fn new(steps: impl IntoIterator<Item = AckStep>) -> Self {
        Self { steps: steps.into_iter().collect() }
    }

    /// Runs it on `bar`.
    ///
    /// # Panics
    ///
    /// If a step names a register outside the BAR.
    pub fn run(&self, bar: &Bar) {
        for step in &self.steps {
            match *step {
                AckStep::Read(reg) => {
                    bar.read(reg);
                }
                AckStep::Write(reg, value) => bar.write(reg, value),
                AckStep::Modify(reg, clear, set) => bar.modify(reg, clear, set),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_counts_and_clears() {
        let vector = Vector::new().unwrap();
        assert_eq!(vector.take(), 0);
        vector.signal(1);
        vector.signal(2);
        assert_eq!(vector.wait(Duration::from_secs(5)), 3);
        assert_eq!(vector.wait(Duration::ZERO), 0);
    }

    #[test]
    fn only_an_eventfd_is_adopted() {
        let vector = Vector::new().unwrap();
        let other = Vector::adopt(vector.as_fd().try_clone_to_owned().unwrap()).unwrap();
        vector.signal(3);
        assert_eq!(other.take(), 3);
        let error = Vector::adopt(std::fs::File::open("/dev/zero").unwrap().into()).unwrap_err();
        assert_eq!(error.to_string(), "/dev/zero is no eventfd");
        assert!(Vector::adopt(std::io::pipe().unwrap().1.into()).is_err());
    }

    #[test]
    fn the_largest_signal_is_still_one() {
        let vector = Vector::new().unwrap();
        vector.signal(u64::MAX);
        assert!(vector.take() > 0);
    }
}
