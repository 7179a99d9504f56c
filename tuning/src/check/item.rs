//! One thing that a doctor looked at.

use std::fmt;

use serde::{Serialize, Serializer};

use super::seen::Unseen;

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A driver cannot run because of it.
    Broken,
    /// A driver runs, and pays for it.
    Costs,
    /// It cannot be told from here.
    Unknown,
    /// Nothing to mend.
    Good,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Broken => "BROKEN",
            Self::Costs => "costs",
            Self::Unknown => "unknown",
            Self::Good => "good",
        })
    }
}

/// What mends a thing. In JSON it is the text alone, empty for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing needs to be done, or nothing can be.
    #[default]
    Nothing,
    /// This command, as it stands, for a shell of root.
    Run(String),
    /// Something that no command here does.
    Do(String),
}

impl Remedy {
    /// Its text.
    pub fn text(&self) -> &str {
        match self {
            Self::Nothing => "",
            Self::Run(text) | Self::Do(text) => text,
        }
    }
}

impl Serialize for Remedy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}

/// One thing that was looked at: an object of `items[]` in the JSON report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What it is, as `group.name`; the same on every machine. In a planned placement `@` and a core or a port follow.
    pub id: String,
    /// How it is.
    pub state: State,
    /// What was found, in plain words with units.
    pub found: String,
    /// What that costs; empty where it costs nothing.
    pub cost: String,
    /// What mends it.
    pub remedy: Remedy,
    /// Whether the remedy takes effect at the next boot only.
    pub reboot: bool,
}

impl Item {
    /// The group it stands in: what comes before the first dot of its id.
    pub fn group(&self) -> &str {
        self.id.split_once('.').map_or(self.id.as_str(), |(group, _)| group)
    }

    /// Its name in the group.
    pub fn name(&self) -> &str {
        self.id.split_once('.').map_or("", |(_, name)| name)
    }

    pub(super) fn new(id: impl Into<String>, seen: Result<Finding, Unseen>) -> Self {
        let Finding { state, found, cost, remedy, reboot } = seen.unwrap_or_else(Finding::unseen);
        Self { id: id.into(), state, found, cost, remedy, reboot }
    }
}

/// An item that has no id yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    state: State,
    found: String,
    cost: String,
    remedy: Remedy,
    reboot: bool,
}

impl Finding {
    pub(super) fn good(found: impl Into<String>) -> Self {
        Self::with(State::Good, found, "")
    }

    pub(super) fn costs(found: impl Into<String>, cost: impl Into<String>) -> Self {
        Self::with(State::Costs, found, cost)
    }

    pub(super) fn broken(found: impl Into<String>, cost: impl Into<String>) -> Self {
        Self::with(State::Broken, found, cost)
    }

    pub(super) fn run(mut self, command: impl Into<String>) -> Self {
        self.remedy = Remedy::Run(command.into());
        self
    }

    pub(super) fn advise(mut self, what: impl Into<String>) -> Self {
        self.remedy = Remedy::Do(what.into());
        self
    }

    pub(super) fn mend(mut self, remedy: Remedy) -> Self {
        self.remedy = remedy;
        self
    }

    pub(super) fn after_reboot(mut self) -> Self {
        self.reboot = true;
        self
    }

    fn unseen(unseen: Unseen) -> Self {
        let unknown = Self::with(State::Unknown, unseen.to_string(), "");
        match unseen.remedy() {
            Some(remedy) => unknown.advise(remedy),
            None => unknown,
        }
    }

    fn with(state: State, found: impl Into<String>, cost: impl Into<String>) -> Self {
        Self { state, found: found.into(), cost: cost.into(), remedy: Remedy::Nothing, reboot: false }
    }
}
