//! Running the program, and reading what it says.

use std::fmt;
use std::process::Command;

use serde_json::Value;

/// Whether tests of this tier run here.
pub(crate) fn tier(name: &str) -> bool {
    let runs = std::env::var("SPINWAKE_TEST_TIER").is_ok_and(|tiers| tiers.contains(name));
    if !runs {
        println!("skipped: needs the {name} tier");
    }
    runs
}

pub(crate) fn program() -> &'static str {
    env!("CARGO_BIN_EXE_spinwake-tune")
}

/// What a check said, item by item.
pub(crate) struct Seen {
    pub(crate) json: Value,
    pub(crate) code: i32,
}

impl Seen {
    fn item(&self, id: &str) -> &Value {
        let items = self.json["items"].as_array().unwrap();
        items.iter().find(|item| item["id"] == id).unwrap_or_else(|| panic!("no {id} in {self}"))
    }

    pub(crate) fn state(&self, id: &str) -> &str {
        self.item(id)["state"].as_str().unwrap()
    }

    pub(crate) fn text(&self, id: &str, key: &str) -> &str {
        self.item(id)[key].as_str().unwrap()
    }

    pub(crate) fn found(&self, id: &str) -> &str {
        self.text(id, "found")
    }

    #[track_caller]
    pub(crate) fn assert(&self, id: &str, state: &str, parts: &[&str]) {
        assert_eq!(self.state(id), state, "{}", self.item(id));
        for part in parts {
            assert!(self.found(id).contains(part), "no `{part}` in: {}", self.item(id));
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.json)
    }
}

/// Runs `check --json` by a command that ends in the program, such as `taskset -c 0 PROGRAM`.
pub(crate) fn check_by(mut command: Command, items: &[&str]) -> Seen {
    let output = command.args(["check", "--json"]).args(items).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"));
    assert_eq!(errors, "");
    Seen { json, code: output.status.code().unwrap() }
}

/// Runs `check --json` for these items, or all.
pub(crate) fn check(items: &[&str]) -> Seen {
    check_by(Command::new(program()), items)
}

/// What a command prints, without white space around it.
pub(crate) fn said(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Whether a command succeeds.
pub(crate) fn succeeds(command: &str) -> bool {
    Command::new("sh").args(["-c", command]).output().unwrap().status.success()
}
