//! The program on machines made of files: what it prints, its exit codes, and what it leaves alone.
#![expect(clippy::unwrap_used, reason = "the helpers of tests, too, fail by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use proptest::prelude::*;
use spinwake_tune::host::Host;
use spinwake_tune::{devices, hugepages};

const CARD: &str = "0000:01:00.0";
const DISK: &str = "0000:02:00.0";

/// A machine with a card that has the default route, a disk that is mounted, and a card that nobody uses.
fn machine() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for (bdf, class, device, driver, group) in [
        (CARD, "0x020000", "0x10c9", "igb", "1"),
        (DISK, "0x010802", "0x5845", "nvme", "2"),
        ("0000:03:00.0", "0x020000", "0x10d3", "e1000e", "3"),
    ] {
        let folder = format!("sys/bus/pci/devices/{bdf}");
        put(root, &format!("{folder}/class"), class);
        put(root, &format!("{folder}/vendor"), "0x8086\n");
        put(root, &format!("{folder}/device"), device);
        put(root, &format!("{folder}/driver_override"), "(null)\n");
        put(root, &format!("sys/bus/pci/drivers/{driver}/unbind"), "");
        symlink(root.join(format!("sys/bus/pci/drivers/{driver}")), root.join(&folder).join("driver")).unwrap();
        let group = format!("sys/kernel/iommu_groups/{group}");
        fs::create_dir_all(root.join(&group).join("devices")).unwrap();
        symlink(root.join(&folder), root.join(&group).join("devices").join(bdf)).unwrap();
        symlink(root.join(&group), root.join(&folder).join("iommu_group")).unwrap();
    }
    put(root, "sys/bus/pci/drivers/vfio-pci/bind", "");
    put(root, "sys/bus/pci/drivers_probe", "");
    put(root, &format!("sys/bus/pci/devices/{CARD}/net/eth0/flags"), "0x1003\n");
    put(root, "sys/bus/pci/devices/0000:03:00.0/net/eth1/flags", "0x1002\n");
    put(root, "proc/net/route", "Iface Destination\neth0 00000000 0100000A 0003 0 0 100 00000000 0 0 0\n");
    put(root, "proc/net/fib_trie", "");
    let disk = format!("sys/bus/pci/devices/{DISK}/nvme/nvme0/nvme0n1");
    put(root, &format!("{disk}/dev"), "259:0\n");
    fs::create_dir_all(root.join("sys/class/block")).unwrap();
    symlink(root.join(&disk), root.join("sys/class/block/nvme0n1")).unwrap();
    put(root, "proc/self/mountinfo", "1 0 259:0 / / rw - ext4 /dev/nvme0n1 rw\n");
    put(root, "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "4\n");
    put(root, "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "3\n");
    put(root, "proc/meminfo", "Hugepagesize: 2048 kB\n");
    dir
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn tune(root: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spinwake-tune"));
    command.args(words).arg("--root").arg(root).stdin(Stdio::null()).output().unwrap()
}

/// What the command printed; it must have ended with this exit code.
fn printed(root: &Path, words: &[&str], code: i32) -> String {
    let output = tune(root, words);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{words:?}: {out}{err}");
    if code == 2 {
        assert!(out.is_empty() && err.starts_with("error: "), "{words:?}: {out}{err}");
        return err;
    }
    assert!(err.is_empty(), "{words:?}: {err}");
    out
}

/// Every file and link below a folder, with what it holds.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_symlink() {
                found.insert(path.clone(), fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
            } else if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn devices_as_text_and_as_json() {
    let dir = machine();
    let text = printed(dir.path(), &["devices"], 0);
    assert!(text.contains("eth0 has the default route") && text.contains("1 more of other kinds: --all"), "{text}");
    let text = printed(dir.path(), &["devices", "--all", "--json"], 0);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let devices = json["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 3);
    assert_eq!((&devices[0]["known_to"], &devices[2]["known_to"]), (&"igb".into(), &serde_json::Value::Null));
    assert_eq!(devices[1]["uses"][0]["kind"], "mounted");
    assert_eq!(devices[1]["group"]["viable"], true);
}

#[test]
fn a_refusal_is_one_error_and_changes_nothing() {
    let dir = machine();
    let before = snapshot(dir.path());
    for (words, part) in [
        (&["bind", CARD][..], "eth0 has the default route"),
        (&["bind", CARD, "--force"], "Say --force --force"),
        (&["bind", "0000:03:00.0", DISK], "/dev/nvme0n1 is mounted at /"),
        (&["bind", "0000:09:00.0"], "no PCI device 0000:09:00.0"),
        (&["unbind", "0000:09:00.0"], "no PCI device 0000:09:00.0"),
        (&["permit", CARD, "--user", "0"], "spinwake-tune bind"),
        (&["permit", CARD, "--user", "nobody-at-all"], "no user"),
        (&["vfs", CARD, "1"], "cannot have virtual functions"),
        (&["hugepages", "reserve", "1", "--size", "1G"], "no pages of 1 GiB"),
        (&["hugepages", "mount", "here"], "no absolute path"),
    ] {
        let error = printed(dir.path(), words, 2);
        assert!(error.contains(part), "{words:?}: {error}");
        assert_eq!(snapshot(dir.path()), before, "{words:?}");
    }
}

/// Files are no kernel: nobody answers to what is written, so the device is given back and all is as before.
#[test]
fn a_device_that_is_not_taken_is_as_it_was() {
    let dir = machine();
    let error = printed(dir.path(), &["bind", "03:00.0"], 2);
    assert!(error.contains("vfio-pci did not take it") && error.contains("with e1000e again"), "{error}");
    let folder = dir.path().join("sys/bus/pci/devices/0000:03:00.0");
    assert_eq!(fs::read_to_string(folder.join("driver_override")).unwrap(), "\n");
    assert_eq!(fs::read_to_string(dir.path().join("sys/bus/pci/drivers/e1000e/unbind")).unwrap(), "0000:03:00.0");
}

#[test]
fn hugepages_are_shown_and_reserved() {
    let dir = machine();
    assert!(
        printed(dir.path(), &["hugepages"], 0).starts_with("2 MiB pages in all: free 3, configured 4\nnot mounted")
    );
    let text = printed(dir.path(), &["hugepages", "reserve", "9", "--persist", "--json"], 0);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["before"], &json["asked"], &json["now"]), (&4.into(), &9.into(), &9.into()));
    let kept = fs::read_to_string(dir.path().join("etc/sysctl.d/60-spinwake-hugepages.conf")).unwrap();
    assert!(kept.ends_with("vm.nr_hugepages = 9\n"), "{kept}");
    let json = printed(dir.path(), &["hugepages", "holders", "--json"], 0);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["mappings"], serde_json::json!([]));
}

#[test]
fn wrong_words_are_refused_with_the_right_ones() {
    let dir = machine();
    for (words, part) in [
        (&["bind"][..], "<BDF>"),
        (&["bind", "eth0"], "not a PCI address"),
        (&["permit", CARD], "--user <NAME>|--group <NAME>|--revoke"),
        (&["permit", CARD, "--user", "a", "--group", "b"], "cannot be used with"),
        (&["hugepages", "reserve", "1", "--size", "4K"], "the sizes are 2M and 1G"),
        (&["vfs", CARD, "-1"], "-1"),
        (&["vfs", CARD, "65536"], "65535 virtual functions at most"),
        (&["completions", "cmd"], "fish"),
    ] {
        let output = tune(dir.path(), words);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && error.contains(part), "{words:?}: {error}");
    }
}

#[test]
fn each_command_has_a_page_in_the_manual() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man/man1");
    let text = printed(Path::new("/"), &["manual", folder.to_str().unwrap()], 0);
    for name in ["", "-bind", "-unbind", "-devices", "-permit", "-vfs", "-hugepages", "-hugepages-reserve"] {
        let page = fs::read_to_string(folder.join(format!("spinwake-tune{name}.1")))
            .unwrap_or_else(|_| panic!("{name}: {text}"));
        assert!(page.contains(".TH ") && page.contains(".SH SYNOPSIS"), "{page}");
        assert!(!page.contains("\\-\\-root"), "a hidden option is in {name}");
    }
    let page = fs::read_to_string(folder.join("spinwake-tune-bind.1")).unwrap();
    assert!(page.contains("given twice"), "{page}");
    printed(Path::new("/"), &["manual", "/proc/nowhere"], 2);
}

#[test]
fn each_shell_has_completions() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(Path::new("/"), &["completions", shell], 0);
        assert!(script.contains("hugepages") && script.contains("force"), "{shell}");
        let file = dir.path().join(shell);
        fs::write(&file, script).unwrap();
        // Whoever has the shell lets it read its script.
        if let Ok(output) = Command::new(shell).arg("-n").arg(&file).output()
            && ["bash", "fish", "zsh"].contains(&shell)
        {
            assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_spinwake-tune"))
        .args(["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert!(child.wait().unwrap().success() && error.is_empty(), "{error}");
}

/// Files that the commands read, each of which may hold anything.
const FILES: &[&str] = &[
    "proc/net/route",
    "proc/net/fib_trie",
    "proc/net/if_inet6",
    "proc/net/ipv6_route",
    "proc/self/mountinfo",
    "proc/swaps",
    "proc/meminfo",
    "proc/7/smaps",
    "proc/7/numa_maps",
    "proc/7/comm",
    "sys/bus/pci/devices/0000:01:00.0/class",
    "sys/bus/pci/devices/0000:01:00.0/vendor",
    "sys/bus/pci/devices/0000:01:00.0/numa_node",
    "sys/bus/pci/devices/0000:01:00.0/sriov_numvfs",
    "sys/bus/pci/devices/0000:01:00.0/sriov_totalvfs",
    "sys/bus/pci/devices/0000:01:00.0/driver_override",
    "sys/bus/pci/devices/0000:01:00.0/net/eth0/flags",
    "sys/bus/pci/devices/0000:02:00.0/nvme/nvme0/nvme0n1/dev",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    "sys/devices/system/node/has_memory",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_content_of_a_file_panics(
        contents in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                "([0-9a-f]{1,34}[ :/-]{0,2}(kB|- |eth0|KernelPageSize:|Size:)?\n?){0,20}".prop_map(String::into_bytes),
            ],
            FILES.len(),
        )
    ) {
        let dir = machine();
        for (path, content) in FILES.iter().zip(&contents) {
            put(dir.path(), path, "");
            fs::write(dir.path().join(path), content).unwrap();
        }
        let host = Host::at(dir.path());
        let shown = devices::run(&devices::Args { all: true }, &host).unwrap();
        prop_assert_eq!(shown.devices.len(), 3);
        let _ = shown.to_string();
        for action in [hugepages::Action::Show, hugepages::Action::Holders] {
            let _ = hugepages::run(&hugepages::Args { action: Some(action) }, &host).unwrap().to_string();
        }
    }
}
