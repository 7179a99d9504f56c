//! Fletcher's checksum with words of 32 bits: it finds what was changed and what has changed places, at a word a cycle or
//! so.
//!
//! J. Fletcher, An Arithmetic Checksum for Serial Transmissions, IEEE Transactions on Communications 30 (1982).

const MODULUS: u64 = u32::MAX as u64;

/// Bytes that are summed up piece by piece: how they are cut does not matter.
///
/// Sums are reduced at the end only, which is early enough for the first 2^17 bytes.
#[derive(Debug, Default)]
pub(crate) struct Fletcher64 {
    sum: u64,
    sum_of_sums: u64,
    /// The beginning of a word.
    partial: [u8; 4],
    partial_len: usize,
}

impl Fletcher64 {
    /// Adds `bytes`.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while self.partial_len > 0 || bytes.len() < 4 {
            let Some((first, rest)) = bytes.split_first() else { return };
            self.partial[self.partial_len] = *first;
            self.partial_len += 1;
            bytes = rest;
            if self.partial_len == 4 {
                self.word(self.partial);
                self.partial_len = 0;
            }
        }
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            self.word(*word);
        }
        self.partial[..rest.len()].copy_from_slice(rest);
        self.partial_len = rest.len();
    }

    /// The checksum of all that was added, filled up with zeros to a whole word.
    pub(crate) fn finish(mut self) -> u64 {
        if self.partial_len > 0 {
            self.partial[self.partial_len..].fill(0);
            self.word(self.partial);
        }
        ((self.sum_of_sums % MODULUS) << 32) + self.sum % MODULUS
    }

    #[inline(always)]
    fn word(&mut self, word: [u8; 4]) {
        self.sum += u64::from(u32::from_be_bytes(word));
        self.sum_of_sums += self.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pieces: &[&[u8]]) -> u64 {
        let mut sum = Fletcher64::default();
        pieces.iter().for_each(|piece| sum.update(piece));
        sum.finish()
    }

    #[test]
    fn it_is_the_same_however_the_bytes_are_cut() {
        let bytes: Vec<u8> = (0..=255).collect();
        let whole = of(&[&bytes]);
        for cut in 0..bytes.len() {
            for step in [1, 2, 3, 5, 100] {
                let (a, b) = bytes.split_at(cut);
                let (b, c) = b.split_at(step.min(b.len()));
                assert_eq!(of(&[a, b, c]), whole, "{cut} {step}");
            }
        }
    }

    #[test]
    fn a_changed_bit_and_swapped_words_show() {
        let bytes = [7; 10].map(|_: i32| [1u8, 2, 3, 4, 5, 6, 7, 8]).concat();
        let whole = of(&[&bytes]);
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(of(&[&other]), whole, "bit {bit}");
        }
        assert_ne!(of(&[&[5, 6, 7, 8, 1, 2, 3, 4], &bytes[8..]]), whole);
    }

    #[test]
    fn the_longest_frame_there_is_cannot_overflow_it() {
        assert_eq!(of(&[&[0xff; 1 << 17]]), 0);
    }
}
