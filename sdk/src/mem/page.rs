//! The page sizes of x86-64.

use std::fmt;
use std::str::FromStr;

/// How big the pages are that memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB: always there, and expensive in TLB misses.
    Ordinary,
    /// 2 MiB, from the kernel's pool of huge pages.
    Huge2M,
    /// 1 GiB, from the kernel's pool of huge pages.
    Huge1G,
}

impl PageSize {
    /// Every size, smallest first.
    pub const ALL: [Self; 3] = [Self::Ordinary, Self::Huge2M, Self::Huge1G];

    /// Bytes in one page.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Ordinary => 4 << 10,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }

    /// Whether pages of this size come from the kernel's pool of huge pages.
    pub const fn is_huge(self) -> bool {
        !matches!(self, Self::Ordinary)
    }

    /// `len` bytes rounded up to whole pages; `None` when that is more than an address space holds.
    pub fn round_up(self, len: usize) -> Option<usize> {
        len.checked_next_multiple_of(self.bytes()).filter(|&rounded| isize::try_from(rounded).is_ok())
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ordinary => "4 KiB",
            Self::Huge2M => "2 MiB",
            Self::Huge1G => "1 GiB",
        })
    }
}

/// A page size that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no page size; the sizes are 4K, 2M and 1G")]
pub struct ParsePageSizeError(String);

impl FromStr for PageSize {
    type Err = ParsePageSizeError;

    /// Takes `2M`, `2MB`, `2MiB` and `2 MiB` for the same size, in any case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        let short = lower.trim_end_matches('b').trim_end_matches('i').replace(' ', "");
        match short.as_str() {
            "4k" => Ok(Self::Ordinary),
            "2m" => Ok(Self::Huge2M),
            "1g" => Ok(Self::Huge1G),
            _ => Err(ParsePageSizeError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_back() {
        for size in PageSize::ALL {
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        assert_eq!("2M".parse(), Ok(PageSize::Huge2M));
        assert_eq!("1gb".parse(), Ok(PageSize::Huge1G));
    }

    #[test]
    fn other_sizes_are_refused_by_name() {
        let error = "3M".parse::<PageSize>().unwrap_err().to_string();
        assert!(error.contains("\"3M\"") && error.contains("1G"), "{error}");
        for text in ["", "M", "2", "b", "-2M", "2T"] {
            assert!(text.parse::<PageSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_become_whole_pages_or_nothing() {
        assert_eq!(PageSize::Huge2M.round_up(1), Some(2 << 20));
        assert_eq!(PageSize::Huge2M.round_up(2 << 20), Some(2 << 20));
        assert_eq!(PageSize::Huge1G.round_up(usize::MAX), None);
        assert_eq!(PageSize::Ordinary.round_up(isize::MAX as usize), None);
    }
}
