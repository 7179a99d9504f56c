//! A set of cores, in the kernel's list notation.

use std::fmt;
use std::str::FromStr;

/// A set of core ids, written as the kernel writes one: `0-3,8,10-11`.
///
/// Ids may be large (no kernel's limit is near [`CpuSet::MAX_ID`]); memory grows with the largest id held.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct CpuSet {
    /// Bit `id % 64` of word `id / 64`; the last word is never zero, so equal sets are equal vectors.
    words: Vec<u64>,
}

impl CpuSet {
    /// The largest id a set holds.
    pub const MAX_ID: usize = (1 << 16) - 1;

    /// The empty set.
    pub const fn new() -> Self {
        Self { words: Vec::new() }
    }

    /// Adds `id`; returns whether it was new.
    ///
    /// # Panics
    ///
    /// If `id` is above [`MAX_ID`](Self::MAX_ID).
    pub fn insert(&mut self, id: usize) -> bool {
        assert!(id <= Self::MAX_ID, "core id {id} is above {}", Self::MAX_ID);
        let new = !self.contains(id);
        if self.words.len() <= id / 64 {
            self.words.resize(id / 64 + 1, 0);
        }
        self.words[id / 64] |= 1 << (id % 64);
        new
    }

    /// Takes `id` out; returns whether it was in.
    pub fn remove(&mut self, id: usize) -> bool {
        let held = self.contains(id);
        if held {
            self.words[id / 64] &= !(1 << (id % 64));
            self.trim();
        }
        held
    }

    /// Whether `id` is in the set. Any number may be asked about.
    pub fn contains(&self, id: usize) -> bool {
        self.words.get(id / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// How many ids it holds.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The ids, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            std::iter::successors((word != 0).then_some(word), |rest| Some(rest & (rest - 1)).filter(|&rest| rest != 0))
                .map(move |rest| index * 64 + rest.trailing_zeros() as usize)
        })
    }

    /// The ids in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self::from_words(self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect())
    }

    /// The ids in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let word = |set: &Self, i: usize| set.words.get(i).copied().unwrap_or(0);
        let len = self.words.len().max(other.words.len());
        Self::from_words((0..len).map(|i| word(self, i) | word(other, i)).collect())
    }

    /// The ids in `self` that are not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let others = other.words.iter().chain(std::iter::repeat(&0));
        Self::from_words(self.words.iter().zip(others).map(|(a, b)| a & !b).collect())
    }

    fn from_words(words: Vec<u64>) -> Self {
        let mut set = Self { words };
        set.trim();
        set
    }

    fn trim(&mut self) {
        let used = self.words.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1);
        self.words.truncate(used);
    }
}

impl FromIterator<usize> for CpuSet {
    /// # Panics
    ///
    /// As [`CpuSet::insert`].
    fn from_iter<I: IntoIterator<Item = usize>>(ids: I) -> Self {
        let mut set = Self::new();
        for id in ids {
            set.insert(id);
        }
        set
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

/// A text is not a list of cores.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseCpuSetError {
    /// A part of it is no number, range, or strided range.
    #[error("\"{0}\" is not a core, a range of cores (0-3) or a strided one (0-31:2/4)")]
    Part(String),
    /// A range ends before it begins.
    #[error("the range of cores \"{0}\" ends before it begins")]
    Backwards(String),
    /// A stride that takes none, or more than there are.
    #[error("the stride of \"{0}\" must take at least 1 core out of a group, and no more than the group has")]
    Stride(String),
    /// A number no machine has.
    #[error("\"{0}\" names a core above {max}, the largest there can be", max = CpuSet::MAX_ID)]
    TooLarge(String),
}

impl FromStr for CpuSet {
    type Err = ParseCpuSetError;

    /// Reads the kernel's list notation: ids, ranges `a-b`, and strided ranges `a-b:used/group` (of each `group` of
    /// consecutive ids the first `used`), separated by commas or white space. An empty text is the empty set.
    fn from_str(text: &str) -> Result<Self, ParseCpuSetError> {
        let mut set = Self::new();
        let separator = |c: char| c == ',' || c.is_whitespace();
        for part in text.split(separator).filter(|part| !part.is_empty()) {
            insert_part(&mut set, part)?;
        }
        Ok(set)
    }
}

fn insert_part(set: &mut CpuSet, part: &str) -> Result<(), ParseCpuSetError> {
    let (range, stride) = part.split_once(':').map_or((part, None), |(range, stride)| (range, Some(stride)));
    let (first, last) = match range.split_once('-') {
        Some((first, last)) => (number(first, part)?, number(last, part)?),
        None => (number(range, part)?, number(range, part)?),
    };
    let (used, group) = match stride {
        None => (1, 1),
        Some(stride) => {
            let (used, group) = stride.split_once('/').ok_or_else(|| ParseCpuSetError::Part(part.to_owned()))?;
            (number(used, part)?, number(group, part)?)
        }
    };
    if last < first {
        return Err(ParseCpuSetError::Backwards(part.to_owned()));
    }
    if used == 0 || used > group {
        return Err(ParseCpuSetError::Stride(part.to_owned()));
    }
    for id in (first..=last).filter(|id| (id - first) % group < used) {
        set.insert(id);
    }
    Ok(())
}

fn number(digits: &str, part: &str) -> Result<usize, ParseCpuSetError> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ParseCpuSetError::Part(part.to_owned()));
    }
    // All digits, so what does not parse is too large.
    match digits.parse() {
        Ok(number) if number <= CpuSet::MAX_ID => Ok(number),
        _ => Err(ParseCpuSetError::TooLarge(part.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ids() -> impl Strategy<Value = BTreeSet<usize>> {
        prop::collection::btree_set(prop_oneof![0usize..200, 0usize..9000], 0..100)
    }

    proptest! {
        #[test]
        fn printed_and_read_back_it_is_the_same(ids in ids()) {
            let set: CpuSet = ids.iter().copied().collect();
            prop_assert_eq!(set.to_string().parse::<CpuSet>(), Ok(set.clone()));
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), ids.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((set.len(), set.is_empty()), (ids.len(), ids.is_empty()));
        }

        #[test]
        fn it_does_what_sets_do(a in ids(), b in ids(), id in 0usize..10_000) {
            let set = |ids: &BTreeSet<usize>| ids.iter().copied().collect::<CpuSet>();
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!(x.contains(id), a.contains(&id));
            prop_assert_eq!(x.intersection(&y), set(&(&a & &b)));
            prop_assert_eq!(x.union(&y), set(&(&a | &b)));
            prop_assert_eq!(x.difference(&y), set(&(&a - &b)));
            let mut emptied = x;
            for &id in &a {
                prop_assert!(emptied.remove(id) && !emptied.remove(id));
            }
            prop_assert_eq!(emptied, CpuSet::new());
        }

        #[test]
        fn garbage_never_panics(text in "[-0-9,:/ n\n]{0,40}|\\PC{0,40}") {
            let _ = text.parse::<CpuSet>();
        }

        #[test]
        fn strides_take_the_first_of_each_group(first in 0usize..2000, len in 0usize..200, group in 1usize..70, used in 1usize..70) {
            prop_assume!(used <= group);
            let text = format!("{first}-{}:{used}/{group}", first + len);
            let want: CpuSet = (0..=len).filter(|i| i % group < used).map(|i| first + i).collect();
            prop_assert_eq!(text.parse(), Ok(want));
        }
    }

    #[test]
    fn it_reads_what_the_kernel_writes() {
        let read = |text: &str| text.parse::<CpuSet>().unwrap().to_string();
        assert_eq!(read("0-3,8,10-11\n"), "0-3,8,10-11");
        assert_eq!(read("\n"), "");
        assert_eq!(read("3,1 2,,0\n"), "0-3");
        assert_eq!(read("0-31:2/16"), "0-1,16-17");
        assert_eq!(read("63-64,1023-1025,8191"), "63-64,1023-1025,8191");
        assert!(!CpuSet::from_iter([5]).contains(usize::MAX));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| text.parse::<CpuSet>().unwrap_err();
        for text in ["x", "1-", "-1", "1-2-3", "+1", "0x1", "1-4:2", "1-4:/2", "1-4:2/2/2", "(null)", "٣"] {
            assert_eq!(error(text), ParseCpuSetError::Part(text.into()), "{text}");
        }
        assert_eq!(error("0,3-1"), ParseCpuSetError::Backwards("3-1".into()));
        assert_eq!(error("0-7:0/2"), ParseCpuSetError::Stride("0-7:0/2".into()));
        assert_eq!(error("0-7:3/2"), ParseCpuSetError::Stride("0-7:3/2".into()));
        assert_eq!(error("0-18446744073709551616"), ParseCpuSetError::TooLarge("0-18446744073709551616".into()));
        assert_eq!(error("65536"), ParseCpuSetError::TooLarge("65536".into()));
        assert_eq!("65535".parse::<CpuSet>().unwrap().len(), 1);
    }
}
