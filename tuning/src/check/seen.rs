//! Reading a file of the kernel's: its value, or why it is not known.

use std::fmt;
use std::io;
use std::str::FromStr;

use spinwake::cpu::CpuSet;

use crate::host::Host;

/// Why something is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unseen {
    /// There is no such file.
    Missing(String),
    /// This user may not read it.
    Denied(String),
    /// It reads as something else.
    Malformed { path: String, text: String },
    /// For a reason of its own.
    Because(String),
}

impl Unseen {
    pub(super) fn because(why: impl Into<String>) -> Self {
        Self::Because(why.into())
    }

    pub(super) fn malformed(path: &str, text: &str) -> Self {
        /// Enough to recognise a file by.
        const SHOWN: usize = 40;
        let mut text: String = text.chars().take(SHOWN + 1).collect();
        if text.chars().count() > SHOWN {
            text.pop();
            text.push('…');
        }
        Self::Malformed { path: path.into(), text }
    }

    /// How to know more.
    pub(super) fn remedy(&self) -> Option<&'static str> {
        matches!(self, Self::Denied(_)).then_some("run this check as root")
    }
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(path) => write!(f, "there is no {path} here"),
            Self::Denied(path) => write!(f, "this user may not read {path}"),
            Self::Malformed { path, text } => write!(f, "{path} reads {text:?}, which is not understood"),
            Self::Because(why) => f.write_str(why),
        }
    }
}

/// The text of a file, without white space around it.
pub(super) fn text(host: &Host, path: &str) -> Result<String, Unseen> {
    host.try_read(path).map_err(|error| unseen(path, &error))
}

/// What a file holds, when that is one value of this type and nothing else.
pub(super) fn value<T: FromStr>(host: &Host, path: &str) -> Result<T, Unseen> {
    let text = text(host, path)?;
    text.parse().map_err(|_| Unseen::malformed(path, &text))
}

/// The cores that a file lists, as in `0-3,8`.
pub(super) fn list(host: &Host, path: &str) -> Result<CpuSet, Unseen> {
    value(host, path)
}

/// The cores whose bits are set in a file, as in `ff,ffffffff`: 32 bits a group, the highest first.
pub(super) fn mask(host: &Host, path: &str) -> Result<CpuSet, Unseen> {
    let text = text(host, path)?;
    parse_mask(&text).ok_or_else(|| Unseen::malformed(path, &text))
}

/// The word in brackets of a file that offers several, as in `always [madvise] never`.
pub(super) fn chosen(host: &Host, path: &str) -> Result<String, Unseen> {
    let text = text(host, path)?;
    let word = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match word.filter(|word| is_word(word)) {
        Some(word) => Ok(word.to_owned()),
        None => Err(Unseen::malformed(path, &text)),
    }
}

/// A file that holds one name, as of a governor.
pub(super) fn word(host: &Host, path: &str) -> Result<String, Unseen> {
    let text = text(host, path)?;
    if is_word(&text) { Ok(text) } else { Err(Unseen::malformed(path, &text)) }
}

/// A file that is `0` or `1` (or `N` or `Y`, as parameters of modules are shown).
pub(super) fn switch(host: &Host, path: &str) -> Result<bool, Unseen> {
    let text = text(host, path)?;
    match text.as_str() {
        "0" | "N" => Ok(false),
        "1" | "Y" => Ok(true),
        _ => Err(Unseen::malformed(path, &text)),
    }
}

fn unseen(path: &str, error: &io::Error) -> Unseen {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Unseen::Missing(path.into()),
        io::ErrorKind::PermissionDenied => Unseen::Denied(path.into()),
        _ => Unseen::because(format!("{path} cannot be read: {error}")),
    }
}

fn parse_mask(text: &str) -> Option<CpuSet> {
    /// One more bit than the largest core there can be.
    const GROUPS_MAX: usize = (CpuSet::MAX_ID + 1) / 32;
    let groups: Vec<_> = text.split(',').collect();
    if groups.len() > GROUPS_MAX {
        return None;
    }
    let mut cores = CpuSet::new();
    for (index, group) in groups.iter().rev().enumerate() {
        if !(1..=8).contains(&group.len()) || !group.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let bits = u32::from_str_radix(group, 16).ok()?;
        for bit in (0..32).filter(|bit| bits >> bit & 1 == 1) {
            cores.insert(index * 32 + bit);
        }
    }
    Some(cores)
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-+.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_as_the_kernel_writes_them() {
        let read = |text| parse_mask(text).map(|set| set.to_string());
        assert_eq!(read("3").as_deref(), Some("0-1"));
        assert_eq!(read("ff,00000000,00000001").as_deref(), Some("0,64-71"));
        assert_eq!(read("00000000").as_deref(), Some(""));
        for text in ["", ",", "g", "123456789", "+1", "1, 2"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read(&"0,".repeat(5000)), None);
    }

    #[test]
    fn a_long_text_is_cut_where_a_character_ends() {
        let text = Unseen::malformed("/f", &"é".repeat(100)).to_string();
        assert!(text.contains(&"é".repeat(40)) && text.contains('…') && !text.contains(&"é".repeat(41)), "{text}");
    }
}
