//! `apply` and `revert`, as programs, on machines made of files: what they change, that it is taken back, and that it is so
//! wherever they were killed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A machine of four cores.
struct Machine {
    root: tempfile::TempDir,
}

const FILES: [(&str, &str); 32] = [
    ("proc/sys/kernel/random/boot_id", "11111111-2222\n"),
    ("sys/devices/system/cpu/present", "0-3\n"),
    ("sys/devices/system/cpu/online", "0-3\n"),
    ("sys/devices/system/cpu/isolated", "2-3\n"),
    ("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave\n"),
    ("sys/devices/system/cpu/cpufreq/policy0/scaling_available_governors", "performance powersave\n"),
    ("sys/devices/system/cpu/cpufreq/policy2/scaling_governor", "schedutil\n"),
    ("sys/devices/system/cpu/cpufreq/policy2/scaling_available_governors", "schedutil ondemand\n"),
    ("sys/devices/system/cpu/cpufreq/boost", "1\n"),
    ("sys/devices/system/cpu/cpu2/cpuidle/state0/latency", "0\n"),
    ("sys/devices/system/cpu/cpu2/cpuidle/state0/disable", "0\n"),
    ("sys/devices/system/cpu/cpu2/cpuidle/state3/latency", "133\n"),
    ("sys/devices/system/cpu/cpu2/cpuidle/state3/disable", "0\n"),
    ("sys/devices/system/cpu/cpu2/cpuidle/state4/latency", "many\n"),
    ("sys/devices/virtual/workqueue/cpumask", "f\n"),
    ("sys/devices/virtual/workqueue/writeback/cpumask", "f\n"),
    ("sys/kernel/mm/ksm/run", "0\n"),
    ("sys/module/kvm/parameters/halt_poll_ns", "200000\n"),
    ("proc/sys/vm/swappiness", "60\n"),
    ("proc/sys/vm/stat_interval", "1\n"),
    ("proc/sys/vm/compaction_proactiveness", "20\n"),
    ("proc/sys/kernel/numa_balancing", "1\n"),
    ("proc/sys/kernel/timer_migration", "1\n"),
    ("proc/sys/kernel/nmi_watchdog", "1\n"),
    ("proc/sys/kernel/watchdog_cpumask", "0-3\n"),
    ("proc/sys/kernel/sched_rt_runtime_us", "950000\n"),
    ("proc/irq/default_smp_affinity", "f\n"),
    ("proc/irq/9/smp_affinity_list", "0-3\n"),
    ("proc/irq/24/smp_affinity_list", "3\n"),
    ("proc/irq/25/smp_affinity_list", "0-1\n"),
    ("etc/default/grub", "GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet isolcpus=3\"\n"),
    ("etc/systemd/system.conf", "[Manager]\n"),
];

impl Machine {
    fn new() -> Self {
        let machine = Self { root: tempfile::tempdir().unwrap() };
        for (path, text) in FILES {
            machine.write(path, text);
        }
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap().trim().into()
    }

    fn run_until(&self, step: Option<u64>, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spinwake-tune"));
        command.arg("--root").arg(self.root.path()).args(words);
        command.env_remove("SPINWAKE_TUNE_STOP_AFTER");
        command.envs(step.map(|step| ("SPINWAKE_TUNE_STOP_AFTER", step.to_string())));
        command.output().unwrap()
    }

    fn run(&self, words: &[&str]) -> String {
        let output = self.run_until(None, words);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{words:?}: {} {}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    fn fails(&self, words: &[&str]) -> String {
        let output = self.run_until(None, words);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]), "{words:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn journal(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("var/lib/spinwake-tune/journal.jsonl")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Every file and folder, but for those of the journal.
    fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        collect(self.root.path(), &mut all);
        all.retain(|path, _| !path.starts_with(self.path("var")));
        all
    }
}

fn collect(folder: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            all.insert(path.clone(), fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
        } else if path.is_dir() {
            collect(&path, all);
            all.insert(path, Vec::new());
        } else {
            all.insert(path.clone(), fs::read(path).unwrap());
        }
    }
}

const ALL: [&str; 4] = ["apply", "low-latency", "--boot", "--persist"];
const BACK: [&str; 2] = ["revert", "--boot"];

#[test]
fn values_are_as_promised_and_come_back() {
    let machine = Machine::new();
    let before = machine.snapshot();
    let told = machine.run(&ALL);
    for (path, value) in [
        ("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "performance"),
        ("sys/devices/system/cpu/cpufreq/policy2/scaling_governor", "schedutil"),
        ("sys/devices/system/cpu/cpufreq/boost", "0"),
        ("sys/devices/system/cpu/cpu2/cpuidle/state0/disable", "0"),
        ("sys/devices/system/cpu/cpu2/cpuidle/state3/disable", "1"),
        ("sys/devices/virtual/workqueue/cpumask", "3"),
        ("sys/devices/virtual/workqueue/writeback/cpumask", "3"),
        ("proc/sys/vm/swappiness", "1"),
        ("proc/sys/kernel/sched_rt_runtime_us", "-1"),
        ("proc/sys/kernel/watchdog_cpumask", "0-1"),
        ("proc/irq/default_smp_affinity", "3"),
        ("proc/irq/9/smp_affinity_list", "0-1"),
        ("proc/irq/24/smp_affinity_list", "0-1"),
        ("proc/irq/25/smp_affinity_list", "0-1"),
        (
            "etc/systemd/system/multi-user.target.wants/spinwake-tune.service",
            &machine.read("etc/systemd/system/spinwake-tune.service"),
        ),
    ] {
        assert_eq!(machine.read(path), *value, "{path}");
    }
    assert!(machine.read("etc/default/grub").contains("isolcpus=managed_irq,domain,2-3 nohz_full=2-3"));
    assert_eq!(machine.read("var/lib/spinwake-tune/backup/etc/default/grub"), FILES[30].1.trim());
    for words in
        ["2-3 for workers", "policy2/scaling_governor: there is no governor", "state4: how long", "after a reboot"]
    {
        assert!(told.contains(words), "no \"{words}\" in {told}");
    }
    let journal = machine.journal();
    let told = machine.run(&ALL);
    assert!(told.contains("changed 0") && machine.journal() == journal, "{told}");
    let told = machine.run(&["revert"]);
    assert!(told.contains("revert --boot") && machine.read("etc/default/grub").contains("isolcpus=managed"), "{told}");
    machine.run(&BACK);
    assert_eq!(machine.snapshot(), before);
    assert!(machine.journal().is_empty());
    assert!(machine.run(&BACK).contains("nothing to take back"));
}

#[test]
fn a_managed_interrupt_is_left_out() {
    let machine = Machine::new();
    machine.write("proc/irq/30/smp_affinity_list", "2\n");
    fs::set_permissions(machine.path("proc/irq/30/smp_affinity_list"), fs::Permissions::from_mode(0o444)).unwrap();
    let told = machine.run(&["apply", "low-latency"]);
    assert!(told.contains("/proc/irq/30/smp_affinity_list: the kernel alone chooses"), "{told}");
    assert_eq!(machine.read("proc/irq/30/smp_affinity_list"), "2");
}

#[test]
fn killed_at_any_step_it_is_taken_back() {
    let machine = Machine::new();
    let before = machine.snapshot();
    let mut step = 1;
    loop {
        let output = machine.run_until(Some(step), &ALL);
        let ended = output.status.success();
        assert!(ended || output.status.signal() == Some(6), "step {step}: {output:?}");
        machine.run(&BACK);
        assert_eq!(machine.snapshot(), before, "step {step}");
        assert!(machine.journal().is_empty(), "step {step}");
        if ended {
            break;
        }
        step += 1;
    }
    assert!(step > 60, "only {step} steps");
}

#[test]
fn killed_while_taking_back_it_is_taken_back_by_the_next() {
    let machine = Machine::new();
    let before = machine.snapshot();
    for step in 1.. {
        machine.run(&ALL);
        let output = machine.run_until(Some(step), &BACK);
        assert!(output.status.success() || output.status.signal() == Some(6), "step {step}: {output:?}");
        machine.run(&BACK);
        assert_eq!(machine.snapshot(), before, "step {step}");
        if output.status.success() {
            assert!(step > 60, "only {step} steps");
            break;
        }
    }
}

#[test]
fn what_was_killed_goes_on_with_the_next_apply() {
    let whole = Machine::new();
    let before = whole.snapshot();
    whole.run(&ALL);
    let machine = Machine::new();
    for step in (1..60).step_by(7) {
        machine.run_until(Some(step), &ALL);
        machine.run(&ALL);
        assert_eq!(machine.snapshot().values().collect::<Vec<_>>(), whole.snapshot().values().collect::<Vec<_>>());
        machine.run(&BACK);
        assert_eq!(machine.snapshot().values().collect::<Vec<_>>(), before.values().collect::<Vec<_>>(), "step {step}");
    }
}

#[test]
fn profiles_stack() {
    let machine = Machine::new();
    let before = machine.snapshot();
    machine.run(&["apply", "throughput"]);
    machine.run(&["apply", "low-latency", "--cores", "1-3"]);
    machine.run(&["apply", "balanced", "--cores", "3"]);
    assert_eq!(machine.read("proc/sys/vm/swappiness"), "10");
    assert_eq!(machine.read("proc/irq/9/smp_affinity_list"), "0");
    machine.run(&["revert"]);
    assert_eq!(machine.snapshot(), before);
}

#[test]
fn a_reboot_takes_values_back_and_leaves_files() {
    let machine = Machine::new();
    let before = machine.snapshot();
    machine.run(&ALL);
    let boot_id = "proc/sys/kernel/random/boot_id";
    for (path, text) in FILES.iter().filter(|(path, _)| !path.starts_with("etc")) {
        machine.write(path, text);
    }
    machine.write(boot_id, "other\n");
    machine.write("proc/sys/vm/swappiness", "30\n");
    let told = machine.run(&BACK);
    assert!(told.contains("went with the reboot"), "{told}");
    assert_eq!(machine.read("proc/sys/vm/swappiness"), "30", "what the new boot says stays");
    machine.write(boot_id, FILES[0].1);
    machine.write("proc/sys/vm/swappiness", "60\n");
    assert_eq!(machine.snapshot(), before);
}

#[test]
fn a_boot_entry_that_went_with_its_kernel_stays_away() {
    let machine = Machine::new();
    let entry = "boot/loader/entries/old.conf";
    machine.write(entry, "linux /vmlinuz\noptions root=/dev/vda1\n");
    machine.run(&ALL);
    assert!(machine.read(entry).contains("isolcpus"));
    fs::remove_file(machine.path(entry)).unwrap();
    let told = machine.run(&BACK);
    assert!(told.contains("old.conf is no longer there") && !machine.path(entry).exists(), "{told}");
    assert!(machine.journal().is_empty());
}

#[test]
fn an_own_profile_by_its_path() {
    let machine = Machine::new();
    machine.write("proc/sys/net/core/busy_poll", "0\n");
    machine.write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8\n");
    machine.write("mine.toml", "[sysctl]\n\"net.core.busy_poll\" = \"50\"\n[hugepages]\n2M = 64\n");
    let mine = machine.path("mine.toml");
    let mine = mine.to_str().unwrap();
    machine.run(&["apply", mine]);
    assert_eq!(machine.read("proc/sys/net/core/busy_poll"), "50");
    assert_eq!(machine.read("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"), "64");
    machine.run(&["revert"]);
    assert_eq!(machine.read("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"), "8");
    machine.write("mine.toml", "[memory]\nswapiness = 1\n");
    let told = machine.fails(&["apply", mine]);
    assert!(told.contains("swapiness") && told.contains("swappiness") && told.contains("mine.toml"), "{told}");
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let machine = Machine::new();
    let before = machine.snapshot();
    for (words, named) in [
        (&["apply", "fast"][..], &["fast", "low-latency, throughput and balanced"][..]),
        (&["apply", "low-latency", "--cores", "3-9"], &["4-9", "0-3"]),
        (&["apply", "low-latency", "--cores", "0-3"], &["every core"]),
        (&["apply", "low-latency", "--cores", "three"], &["three"]),
        (&["apply", "low-latency", "--script", "--dry-run"], &["--dry-run"]),
    ] {
        let told = machine.fails(words);
        assert!(named.iter().all(|name| told.contains(name)), "{words:?}: {told}");
    }
    assert_eq!(machine.snapshot(), before);
    assert!(machine.journal().is_empty());
}

#[test]
fn a_failure_in_the_middle_tells_the_way_back() {
    let machine = Machine::new();
    let before = machine.snapshot();
    // A folder where a file must be written: renaming fails.
    fs::create_dir_all(machine.path("etc/default/grub.d")).unwrap();
    fs::create_dir_all(machine.path("etc/default/grub.d/99-spinwake-tune.cfg.spinwake-new/x")).unwrap();
    let told = machine.fails(&ALL);
    assert!(told.contains("99-spinwake-tune.cfg") && told.contains("`spinwake-tune revert` takes them back"), "{told}");
    fs::remove_dir_all(machine.path("etc/default/grub.d")).unwrap();
    machine.run(&BACK);
    assert_eq!(machine.snapshot(), before);
}

#[test]
fn nothing_is_changed_by_a_dry_run_or_a_script() {
    let machine = Machine::new();
    let before = machine.snapshot();
    let told = machine.run(&["apply", "low-latency", "--dry-run", "--boot", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((json["dry_run"].as_bool(), json["workers"].as_str()), (Some(true), Some("2-3")));
    let swappiness =
        json["changes"].as_array().unwrap().iter().find(|change| change["target"] == "/proc/sys/vm/swappiness");
    let swappiness = swappiness.unwrap();
    assert_eq!(
        (&swappiness["old"], &swappiness["new"], &swappiness["outcome"]),
        (&"60".into(), &"1".into(), &"planned".into())
    );
    let script = machine.run(&["apply", "low-latency", "--script", "--boot"]);
    assert!(script.starts_with("#!/bin/sh\n") && script.contains("put /proc/sys/vm/swappiness 1 # was 60"), "{script}");
    let checked = Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
    assert!(checked.success());
    assert_eq!(machine.snapshot(), before);
    assert!(!machine.path("var").exists());
}

#[test]
fn every_file_may_be_malformed_or_missing() {
    for junk in [None, Some(""), Some("junk\n"), Some("99999999999999999999999\n"), Some(",,-\n")] {
        for (path, _) in FILES.iter().filter(|(path, _)| !path.starts_with("etc")) {
            let machine = Machine::new();
            match junk {
                Some(text) => machine.write(path, text),
                None => fs::remove_file(machine.path(path)).unwrap(),
            }
            let before = machine.snapshot();
            let output = machine.run_until(None, &["apply", "low-latency"]);
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(
                matches!(output.status.code(), Some(0 | 2)) && !told.contains("panicked"),
                "{path} {junk:?}: {told}"
            );
            let output = machine.run_until(None, &["revert"]);
            assert!(matches!(output.status.code(), Some(0)), "{path} {junk:?}: {output:?}");
            // Without white space at its ends, which no file of the kernel's lacks.
            let trimmed = |all: BTreeMap<PathBuf, Vec<u8>>| {
                all.into_values().map(|bytes| bytes.trim_ascii().to_vec()).collect::<Vec<_>>()
            };
            assert_eq!(trimmed(machine.snapshot()), trimmed(before), "{path} {junk:?}");
        }
    }
}
