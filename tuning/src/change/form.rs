//! How the kernel writes a value, and when two spellings of it are the same.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use spinwake::cpu::CpuSet;

/// How a value below `/proc` or `/sys` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// One word or number.
    Plain,
    /// All the words there are to choose from, the chosen one in brackets: `always [madvise] never`.
    Choice,
    /// Cores as hexadecimal words of 32 bits: `ff,ffffffff`.
    Mask,
    /// Cores as a list: `0-3,8`.
    List,
}

impl Form {
    /// Whether both texts say the same.
    pub fn same(self, a: &str, b: &str) -> bool {
        let cores = match self {
            Self::Plain => return a.split_whitespace().eq(b.split_whitespace()),
            Self::Choice => return chosen(a) == chosen(b),
            Self::Mask => (cores_in_mask(a), cores_in_mask(b)),
            Self::List => (a.parse().ok(), b.parse().ok()),
        };
        match cores {
            (Some(a), Some(b)) => a == b,
            _ => a.trim() == b.trim(),
        }
    }

    /// What is written to come to what was read as `text`.
    pub fn writable(self, text: &str) -> &str {
        match self {
            Self::Choice => chosen(text),
            Self::Plain | Self::Mask | Self::List => text.trim(),
        }
    }

    /// Whether `word` can be chosen, given what was read as `text`.
    pub fn offers(self, text: &str, word: &str) -> bool {
        self != Self::Choice || text.split_whitespace().any(|choice| choice.trim_matches(['[', ']']) == word)
    }
}

/// The word in brackets, or all of it when none is.
fn chosen(text: &str) -> &str {
    text.split_whitespace()
        .find_map(|word| word.strip_prefix('[').and_then(|word| word.strip_suffix(']')))
        .unwrap_or(text.trim())
}

/// The cores in a mask; `None` when it is none.
pub fn cores_in_mask(text: &str) -> Option<CpuSet> {
    let words: Vec<_> = text.trim().split(',').collect();
    let mut cores = CpuSet::new();
    for (index, word) in words.iter().rev().enumerate() {
        let last = index + 1 == words.len();
        let fits = if last { (1..=8).contains(&word.len()) } else { word.len() == 8 };
        if !fits || word.starts_with('+') {
            return None;
        }
        let bits = u32::from_str_radix(word, 16).ok()?;
        for bit in (0..32).filter(|bit| bits >> bit & 1 == 1) {
            let core = index * 32 + bit;
            if core > CpuSet::MAX_ID {
                return None;
            }
            cores.insert(core);
        }
    }
    Some(cores)
}

/// `cores` as a mask with as many words as `like` has, or more where they need more.
pub fn mask_like(cores: &CpuSet, like: &str) -> String {
    let needed = cores.iter().last().map_or(1, |last| last / 32 + 1);
    let count = needed.max(like.trim().split(',').count());
    let mut words = vec![0_u32; count];
    for core in cores.iter() {
        words[core / 32] |= 1 << (core % 32);
    }
    let mut mask = String::new();
    for (index, word) in words.iter().rev().enumerate() {
        // The kernel's own first word has as many digits as there are cores for; more are understood all the same.
        let digits = if index == 0 { like.trim().split(',').next().map_or(1, str::len).clamp(1, 8) } else { 8 };
        let comma = if index == 0 { "" } else { "," };
        // Writing to a text cannot fail.
        let _ = write!(mask, "{comma}{word:0digits$x}");
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_compared_by_the_chosen_word() {
        let text = "always [madvise] never\n";
        assert!(Form::Choice.same(text, "madvise") && !Form::Choice.same(text, "never"));
        assert_eq!(Form::Choice.writable(text), "madvise");
        assert!(Form::Choice.offers(text, "madvise") && Form::Choice.offers(text, "never"));
        assert!(!Form::Choice.offers(text, "defer") && Form::Plain.offers(text, "defer"));
    }

    #[test]
    fn masks_and_lists_are_compared_as_cores() {
        assert!(Form::Mask.same("00000000,00000003", "3\n") && !Form::Mask.same("3", "1"));
        assert!(Form::List.same("0-1", "0,1\n") && !Form::List.same("0-1", "0"));
        assert!(Form::Mask.same("junk", "junk\n") && !Form::Mask.same("junk", "3"));
        assert!(Form::Plain.same("950000\n", "950000") && Form::Plain.same("4096\t131072", "4096 131072"));
    }

    #[test]
    fn masks_are_written_as_the_kernel_does() {
        let cores: CpuSet = "0,33,64".parse().unwrap();
        assert_eq!(mask_like(&cores, "f,ffffffff,ffffffff"), "1,00000002,00000001");
        assert_eq!(mask_like(&cores, "3"), "1,00000002,00000001");
        assert_eq!(mask_like(&"0".parse().unwrap(), "ffffffff,ffffffff\n"), "00000000,00000001");
        assert_eq!(mask_like(&"0".parse().unwrap(), "3\n"), "1");
        for text in ["1,00000002,00000001", "00000000", "ff"] {
            assert_eq!(mask_like(&cores_in_mask(text).unwrap(), text), text);
        }
        for text in ["", "x", "1,2", "123456789", "1,,00000000", "+1", "-1"] {
            assert_eq!(cores_in_mask(text), None, "{text}");
        }
        assert_eq!(cores_in_mask(&["ffffffff"; 3000].join(",")), None);
    }
}
