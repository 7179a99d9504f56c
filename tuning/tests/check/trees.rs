//! Machines made of files, and the program's manners.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::program;

fn run(root: &Path, arguments: &[&str]) -> Output {
    Command::new(program()).arg("--root").arg(root).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A machine with two cores, a card, and no IOMMU.
fn machine() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, contents) in [
        ("sys/devices/system/cpu/online", "0-1\n"),
        ("sys/devices/system/cpu/isolated", "\n"),
        ("sys/devices/system/cpu/nohz_full", "\n"),
        ("sys/bus/pci/devices/0000:01:00.0/class", "0x020000\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
        ("proc/cmdline", "quiet\n"),
    ] {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    root
}

#[test]
fn exit_codes_tell_broken_from_not_broken_from_not_run() {
    let root = machine();
    let all = run(root.path(), &["check"]);
    assert_eq!(all.status.code(), Some(1), "{}", text(&all.stdout));
    assert!(
        text(&all.stdout).contains("BROKEN") && text(&all.stdout).contains("Next, as root:"),
        "{}",
        text(&all.stdout)
    );
    assert_eq!(run(root.path(), &["check", "memory.thp"]).status.code(), Some(0));
    let wrong = run(root.path(), &["check", "memory.fast"]);
    assert_eq!((wrong.status.code(), text(&wrong.stdout)), (Some(2), String::new()));
    assert!(
        text(&wrong.stderr).contains("no item or group \"memory.fast\"") && text(&wrong.stderr).contains("memory.thp")
    );
    assert_eq!(run(Path::new("/nowhere/at/all"), &["check"]).status.code(), Some(0), "all unknown, nothing broken");
}

#[test]
fn items_and_groups_are_chosen_by_name() {
    let root = machine();
    let output = run(root.path(), &["check", "--json", "cores", "memory.thp"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let ids: Vec<_> = json["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["cores.isolated", "cores.tasks", "cores.nohz_full", "cores.rcu_nocbs", "cores.smt", "memory.thp"]);
}

#[test]
fn a_placement_is_judged_or_refused() {
    let root = machine();
    let file = root.path().join("plan.toml");
    let judge = |plan: &str| {
        fs::write(&file, plan).unwrap();
        run(root.path(), &["check", "--for", file.to_str().unwrap()])
    };
    let good = judge("[[workers]]\ncore = 1\nports = [\"pci:0000:01:00.0\"]\n");
    assert_eq!(good.status.code(), Some(1));
    assert!(text(&good.stdout).contains("run:   spinwake-tune bind 0000:01:00.0"), "{}", text(&good.stdout));
    let bad = judge("[[workers]]\ncore = 1\nport = [\"soft:\"]\n");
    assert_eq!(bad.status.code(), Some(2));
    for part in ["error:", "`port`", "`core`", "`ports`"] {
        assert!(text(&bad.stderr).contains(part), "no {part} in {}", text(&bad.stderr));
    }
}

#[test]
fn a_closed_output_is_no_panic() {
    let mut child = Command::new(program()).arg("check").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "");
    assert!(matches!(output.status.code(), Some(0 | 1)));
}

/// Whoever runs the tests, on whatever machine: nothing panics, and the two forms agree.
#[test]
fn this_machine_is_checked() {
    let output = Command::new(program()).arg("check").output().unwrap();
    let shown = text(&output.stdout);
    assert!(
        shown.contains(" items: ") && matches!(output.status.code(), Some(0 | 1)),
        "{shown}{}",
        text(&output.stderr)
    );
    let seen = super::check(&[]);
    assert_eq!(Some(seen.code), output.status.code());
    let items = seen.json["items"].as_array().unwrap();
    assert!(items.len() > 35, "{seen}");
    for item in items {
        let (id, state) = (item["id"].as_str().unwrap(), item["state"].as_str().unwrap());
        assert!(["good", "costs", "broken", "unknown"].contains(&state), "{item}");
        assert!(shown.contains(id.split_once('.').unwrap().1), "no {id} in {shown}");
    }
}
