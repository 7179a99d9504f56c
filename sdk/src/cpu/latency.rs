//! How deep the machine's idle cores may sleep.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

/// Where the kernel takes requests (kernel/power/qos.c): whoever holds the file open has one.
const DEVICE: &str = "/dev/cpu_dma_latency";

/// Keeps every idle core of the machine in states that it leaves within some microseconds, for as long as it lives.
///
/// The strictest of all holders counts. The kernel drops a request with its file, so when the process ends in any way, too.
/// A machine whose cores have no idle states to choose from, as most virtual ones, is not affected. Zero lets idle cores poll, at
/// full power.
#[derive(Debug)]
#[must_use = "dropping it ends the hold"]
pub struct LatencyHold {
    _file: File,
    max_us: i32,
}

/// Why idle states could not be held back.
#[derive(Debug, thiserror::Error)]
pub enum LatencyError {
    /// Less than nothing.
    #[error("a wake-up latency of {max_us} us does not exist; choose 0 (idle cores poll) or more")]
    Impossible {
        /// What was asked for.
        max_us: i32,
    },
    /// The process may not open the device.
    #[error(
        "cannot limit the wake-up latency of idle cores to {max_us} us: {DEVICE}: {source}. Run as root, or let a group \
         write to it with a udev rule: KERNEL==\"cpu_dma_latency\", GROUP=\"GROUP\", MODE=\"0660\""
    )]
    Forbidden {
        /// What was asked for.
        max_us: i32,
        /// The meaning of errno.
        source: io::Error,
    },
    /// There is no such device, or it does not work.
    #[error(
        "cannot limit the wake-up latency of idle cores to {max_us} us: {DEVICE}: {source}. A container must be given the \
         device; without it, only the kernel's command line (`cpuidle.off=1`, `processor.max_cstate=1`) limits idle states"
    )]
    Failed {
        /// What was asked for.
        max_us: i32,
        /// The meaning of errno.
        source: io::Error,
    },
}

impl LatencyHold {
    /// Lets no idle core take longer than `max_us` microseconds to wake up.
    ///
    /// # Errors
    ///
    /// When `max_us` is negative, or `/dev/cpu_dma_latency` cannot be written, which takes root or a udev rule.
    pub fn acquire(max_us: i32) -> Result<Self, LatencyError> {
        // To the kernel -1 is "no limit", and any other negative number stricter than zero.
        if max_us < 0 {
            return Err(LatencyError::Impossible { max_us });
        }
        // Four bytes are a number; it would take text for hexadecimal digits.
        let request = || -> io::Result<File> {
            let mut file = OpenOptions::new().write(true).open(DEVICE)?;
            file.write_all(&max_us.to_ne_bytes())?;
            Ok(file)
        };
        match request() {
            Ok(file) => Ok(Self { _file: file, max_us }),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(LatencyError::Forbidden { max_us, source })
            }
            Err(source) => Err(LatencyError::Failed { max_us, source }),
        }
    }

    /// The limit, in microseconds. Another holder's may be stricter.
    pub fn max_us(&self) -> i32 {
        self.max_us
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_negative_latency_is_refused() {
        for max_us in [-1, i32::MIN] {
            let error = LatencyHold::acquire(max_us).unwrap_err();
            assert!(matches!(error, LatencyError::Impossible { .. }), "{error:?}");
            assert!(error.to_string().contains("choose 0"), "{error}");
        }
    }

    #[test]
    fn a_refusal_says_what_would_help() {
        // So weak a limit changes nothing where it is granted.
        match LatencyHold::acquire(i32::MAX) {
            Ok(hold) => assert_eq!(hold.max_us(), i32::MAX),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(DEVICE) && (text.contains("udev") || text.contains("container")), "{text}");
            }
        }
    }

    /// What all holders together ask for, in microseconds.
    fn in_force() -> i32 {
        let mut value = [0; 4];
        File::open(DEVICE).unwrap().read_exact(&mut value).unwrap();
        i32::from_ne_bytes(value)
    }

    #[test]
    fn host_a_hold_is_in_force_until_it_is_dropped() {
        if !std::env::var("SPINWAKE_TEST_TIER").is_ok_and(|tiers| tiers.contains("host")) {
            println!("skipped: needs the host tier");
            return;
        }
        let before = in_force();
        assert!(before > 21, "something on this machine already holds {DEVICE} at {before} us");
        let hold = LatencyHold::acquire(21).unwrap();
        assert_eq!(in_force(), 21);
        let stricter = LatencyHold::acquire(20).unwrap();
        assert_eq!(in_force(), 20);
        drop(stricter);
        assert_eq!(in_force(), 21);
        drop(hold);
        assert_eq!(in_force(), before);
    }
}
