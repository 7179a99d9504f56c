//! One change of the machine: what it changes, from which state to which, and why.
//!
//! ```text
//! Change { target ──▶ a value of the kernel's, a kernel thread, a file, a folder, a link, the boot menu
//!          old, new ──▶ states of it }
//! ```
//!
//! A target can be read, written, and asked whether it is in a state; it knows no more. What is written is never the
//! contents of a file that was not named by a change.

mod form;
mod replace;
mod target;

pub use form::{Form, cores_in_mask, mask_like};
pub use target::{Target, kernel_threads};

use std::fmt;

use serde::{Deserialize, Serialize};

/// A target's state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is not there.
    Absent,
    /// A value of the kernel's, the cores of a thread, where a link leads to.
    Value(String),
    /// The contents of a file.
    Content(Bytes),
    /// A folder that is there.
    Folder,
}

/// The exact bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bytes {
    /// As text, where they are text.
    Text(String),
    /// As two hexadecimal digits each, where not.
    Hex(String),
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(
            |error| Self::Hex(error.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()),
            Self::Text,
        )
    }
}

impl Bytes {
    /// The bytes; `None` when hexadecimal digits are none.
    pub fn to_vec(&self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.clone().into_bytes()),
            Self::Hex(digits) if digits.len().is_multiple_of(2) => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                digits.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
            }
            Self::Hex(_) => None,
        }
    }
}

impl State {
    /// The state of a file that holds these bytes.
    pub fn content(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Content(bytes.into().into())
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "nothing"),
            Self::Value(value) if value.is_empty() => write!(f, "(empty)"),
            Self::Value(value) => write!(f, "{value}"),
            Self::Content(Bytes::Text(text)) => write!(f, "{} bytes of text", text.len()),
            Self::Content(Bytes::Hex(digits)) => write!(f, "{} bytes", digits.len() / 2),
            Self::Folder => write!(f, "a folder"),
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What it changes.
    pub target: Target,
    /// Its state before.
    pub old: State,
    /// Its state afterwards.
    pub new: State,
    /// Why this is wanted.
    pub why: String,
    /// Whether the kernel may refuse it without harm: an interrupt that it manages itself, for example.
    #[serde(default)]
    pub refusable: bool,
    /// Whether it is about how the machine boots, and so done and taken back only when asked for.
    #[serde(default)]
    pub boot: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.target, &self.old, &self.new) {
            (Target::BootMenu { program }, ..) => write!(f, "{program} is run"),
            (target, State::Absent, State::Folder | State::Content(_)) => write!(f, "{target}: new"),
            (target, State::Content(_), State::Content(_)) => write!(f, "{target}: changed"),
            (target, old, new) => write!(f, "{target}: {old} -> {new}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_journal() {
        for bytes in [b"plain text\n".to_vec(), vec![0xff, 0, b'\n', 0x7f], Vec::new()] {
            let json = serde_json::to_string(&State::content(bytes.clone())).unwrap();
            let State::Content(read) = serde_json::from_str(&json).unwrap() else { panic!("{json}") };
            assert_eq!(read.to_vec(), Some(bytes), "{json}");
        }
        assert_eq!((Bytes::Hex("0".into()).to_vec(), Bytes::Hex("zz".into()).to_vec()), (None, None));
    }
}
