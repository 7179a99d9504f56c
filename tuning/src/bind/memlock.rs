//! How much memory a user's programs may lock, which VFIO counts what it maps against.

use std::fmt;
use std::str::FromStr;

use super::account::Account;

/// An amount of memory to lock, or no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memlock(Option<u64>);

impl Memlock {
    /// In bytes; `None` is no limit.
    pub fn bytes(self) -> Option<u64> {
        self.0.map(|mib| mib << 20)
    }

    /// The file of pam_limits that sets it, for soft and hard limit (limits.conf(5) counts in KiB).
    pub(super) fn limits_file(self, account: &Account) -> String {
        let value = self.0.map_or("unlimited".into(), |mib| (mib << 10).to_string());
        format!(
            "# Made by spinwake-tune: memory that may be locked for DMA, in KiB.\n{} - memlock {value}\n",
            account.in_limits
        )
    }

    /// The same for `ulimit -l`, which counts in KiB.
    pub(super) fn ulimit(self) -> String {
        self.0.map_or("unlimited".into(), |mib| (mib << 10).to_string())
    }

    /// The same for `prlimit --memlock`, which counts in bytes.
    pub(super) fn prlimit(self) -> String {
        self.bytes().map_or("unlimited".into(), |bytes| bytes.to_string())
    }
}

/// A text that is no amount of memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no amount of memory: a number of MiB, such as 512, or unlimited")]
pub struct ParseMemlockError(String);

impl FromStr for Memlock {
    type Err = ParseMemlockError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "unlimited" {
            return Ok(Self(None));
        }
        // More than an address space holds is no limit, and would not fit in the units of all who read it.
        let mib = text.parse::<u64>().ok().filter(|mib| (1..=1 << 30).contains(mib));
        mib.map(|mib| Self(Some(mib))).ok_or_else(|| ParseMemlockError(text.into()))
    }
}

impl fmt::Display for Memlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(mib) => write!(f, "{mib} MiB"),
            None => f.write_str("as much as they like"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written_in_each_reader_s_unit() {
        let memlock: Memlock = "64".parse().unwrap();
        assert_eq!(
            (memlock.bytes(), memlock.ulimit(), memlock.to_string()),
            (Some(64 << 20), "65536".into(), "64 MiB".into())
        );
        let account = Account { id: 7, name: "ann".into(), in_limits: "ann".into() };
        assert!(memlock.limits_file(&account).ends_with("\nann - memlock 65536\n"));
        assert_eq!("unlimited".parse::<Memlock>().unwrap().prlimit(), "unlimited");
        for text in ["0", "-1", "many", "99999999999999"] {
            assert!(text.parse::<Memlock>().is_err(), "{text}");
        }
    }
}
