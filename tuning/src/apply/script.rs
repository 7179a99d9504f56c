//! A plan as a shell script: to read, to keep, and to run on machines that shall not have this program.

use std::collections::HashSet;
use std::fmt::Write;

use super::perform::backup_path;
use super::plan::Plan;
use crate::change::{Bytes, Change, State, Target};
use crate::output::quoted;
use crate::profile::{Profile, Roles};

/// Functions that a script may need: a word that calls it, and its text.
const FUNCTIONS: [(&str, &str); 4] = [
    (
        "\nput ",
        r#"
# put FILE VALUE: writes a value of the kernel's.
put() {
    if ! printf '%s\n' "$2" > "$1"; then
        echo "$1 does not become $2" >&2
        failed=1
    fi
}
"#,
    ),
    (
        "\nask ",
        r#"
# ask FILE VALUE: the same where the kernel may refuse without harm, as with interrupts that it manages itself.
ask() {
    { printf '%s\n' "$2" > "$1"; } 2> /dev/null || echo "$1 stays as it is: the kernel refuses $2" >&2
}
"#,
    ),
    (
        "\nmove ",
        r#"
# move NAME CORES: lets all kernel threads of this name run on these cores only.
move() {
    for folder in /proc/[0-9]*; do
        { read -r name < "$folder/comm"; } 2> /dev/null || continue
        [ "$name" = "$1" ] || continue
        # The parent of kernel threads is kthreadd, process 2, which has none.
        grep -Eq '^(PPid:[[:space:]]+2|Pid:[[:space:]]+2)$' "$folder/status" || continue
        taskset -pc "$2" "${folder#/proc/}" > /dev/null 2>&1 || echo "thread ${folder#/proc/} ($1) cannot be moved" >&2
    done
}
"#,
    ),
    (
        "\nkeep ",
        r#"
# keep FILE COPY: keeps a copy of a file.
keep() {
    mkdir -p "$(dirname "$2")" && cp -p "$1" "$2" || exit 1
}
"#,
    ),
];

/// The script that does what a plan does.
pub(super) fn script(profile: &Profile, roles: &Roles, plan: &Plan) -> String {
    let mut body = String::new();
    let mut last_why = "";
    let mut moved = HashSet::new();
    for change in &plan.changes {
        let Some(command) = command(change) else { continue };
        // Threads of one name are moved together.
        if matches!(change.target, Target::Thread { .. }) && !moved.insert(command.clone()) {
            continue;
        }
        if change.why != last_why {
            // Writing to a text cannot fail.
            let _ = write!(body, "\n# {}\n", comment(&change.why));
            last_why = &change.why;
        }
        body.push_str(&command);
        body.push('\n');
    }
    let mut text = format!(
        "#!/bin/sh\n\
         # What `spinwake-tune apply {}` would change on this machine: {}.\n\
         # Cores for workers: {}; for everything else: {}.\n\
         #\n\
         # Nothing of it is written down for `spinwake-tune revert`. Each value's earlier one stands behind it.\n",
        comment(&profile.name),
        comment(&profile.summary),
        if roles.workers.is_empty() { "none".into() } else { roles.workers.to_string() },
        roles.others,
    );
    for skipped in &plan.skipped {
        let _ = writeln!(text, "# Left out: {}: {}", comment(&skipped.target), comment(&skipped.reason));
    }
    text.push_str(
        "\nset -u\numask 022\nfailed=0\n\n[ \"$(id -u)\" = 0 ] || { echo \"run this as root\" >&2; exit 1; }\n",
    );
    for (call, function) in FUNCTIONS {
        if body.contains(call) {
            text.push_str(function);
        }
    }
    text.push_str(&body);
    text.push_str("\nexit \"$failed\"\n");
    text
}

fn command(change: &Change) -> Option<String> {
    let before = || comment(&change.old.to_string());
    Some(match (&change.target, &change.new) {
        (Target::Value { path, form }, State::Value(value)) => {
            let verb = if change.refusable { "ask" } else { "put" };
            format!("{verb} {} {} # was {}", quoted(path), quoted(form.writable(value)), before())
        }
        (Target::Thread { name, .. }, State::Value(cores)) => {
            format!("move {} {} # was {}", quoted(name), quoted(cores), before())
        }
        (Target::Folder { path }, State::Folder) => format!("mkdir -p {} || failed=1", quoted(path)),
        (Target::Link { path }, State::Value(to)) => format!("ln -sfn {} {} || failed=1", quoted(to), quoted(path)),
        (Target::File { path }, State::Content(bytes)) => {
            let copy = backup_path(path);
            let keep = match change.old {
                State::Content(_) => format!("keep {} {}\n", quoted(path), quoted(&copy.to_string_lossy())),
                _ => String::new(),
            };
            keep + &write_file(path, bytes)
        }
        (Target::BootMenu { program }, State::Value(_)) => format!("{program} || failed=1"),
        _ => return None,
    })
}

/// A command that makes a file with exactly these bytes.
fn write_file(path: &str, bytes: &Bytes) -> String {
    let path = quoted(path);
    match bytes {
        Bytes::Text(text) if text.ends_with('\n') && !text.contains('\0') => {
            let mut end = String::from("END");
            while text.lines().any(|line| line == end) {
                end.push('_');
            }
            format!("cat > {path} << '{end}' || failed=1\n{text}{end}")
        }
        bytes => {
            let octal: String = bytes.to_vec().unwrap_or_default().iter().map(|byte| format!("\\{byte:03o}")).collect();
            format!("printf '{octal}' > {path} || failed=1")
        }
    }
}

/// Text that stays within its line.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Form;

    #[test]
    fn hostile_names_stay_words() {
        assert_eq!(quoted("kworker/u4:1"), "kworker/u4:1");
        assert_eq!(quoted("a'; reboot #"), "'a'\\''; reboot #'");
        assert_eq!((quoted("$(reboot)"), quoted("")), ("'$(reboot)'".into(), "''".into()));
        let change = Change {
            target: Target::Thread { id: 9, name: "x\n'; reboot".into(), started: 1 },
            old: State::Value("0-1\nreboot".into()),
            new: State::Value("0".into()),
            why: "because\nreboot".into(),
            refusable: true,
            boot: false,
        };
        assert_eq!(command(&change).unwrap(), "move 'x\n'\\''; reboot' 0 # was 0-1 reboot");
        assert_eq!(comment(&change.why), "because reboot");
    }

    #[test]
    fn files_come_out_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        for (index, bytes) in
            [&b"a\nEND\n$HOME `x` \\ '\n"[..], b"no line break", b"", b"\0\xff%\n", b"END\nEND_\n"].iter().enumerate()
        {
            let path = dir.path().join(format!("file {index}"));
            let State::Content(content) = State::content(*bytes) else { unreachable!() };
            let command = write_file(path.to_str().unwrap(), &content);
            let status = std::process::Command::new("sh").arg("-c").arg(&command).status().unwrap();
            assert!(status.success() && std::fs::read(&path).unwrap() == *bytes, "{command}");
            let nowhere = dir.path().join("no such folder/file");
            let command = write_file(nowhere.to_str().unwrap(), &content) + "\nexit \"$failed\"";
            let output = std::process::Command::new("sh").arg("-c").arg(&command).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{command}");
        }
    }

    #[test]
    fn only_what_is_used_is_defined() {
        let mut plan = Plan::default();
        plan.changes.push(Change {
            target: Target::Value { path: "/proc/sys/vm/swappiness".into(), form: Form::Plain },
            old: State::Value("60".into()),
            new: State::Value("1".into()),
            why: "why".into(),
            refusable: false,
            boot: false,
        });
        let roles =
            Roles { workers: "1".parse().unwrap(), others: "0".parse().unwrap(), online: "0-1".parse().unwrap() };
        let text = script(&Profile::find("low-latency").unwrap(), &roles, &plan);
        assert!(text.contains("\n# why\nput /proc/sys/vm/swappiness 1 # was 60\n"), "{text}");
        assert!(text.contains("put() {") && !text.contains("move() {") && !text.contains("ask() {"), "{text}");
    }
}
