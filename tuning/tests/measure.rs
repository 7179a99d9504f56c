//! `jitter`, `wake` and `report` as one calls them.
#![expect(clippy::unwrap_used, reason = "the helpers of tests, too, fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn tune(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spinwake-tune")).args(args).output().unwrap()
}

fn core() -> String {
    spinwake::sys::sched::affinity(0).unwrap()[0].to_string()
}

fn json(args: &[&str]) -> Value {
    let run = tune(args);
    assert!(run.status.success(), "{args:?}: {}", String::from_utf8_lossy(&run.stderr));
    serde_json::from_slice(&run.stdout).unwrap()
}

#[test]
fn jitter_tells_what_it_measured_and_compares() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("before.json").display().to_string();
    let core = core();
    let first = json(&["jitter", "--core", &core, "--seconds", "0.2", "--save", &file, "--json"]);
    assert!(first["gaps"]["measured_ns"].as_u64().unwrap() >= 200_000_000, "{first}");
    assert_eq!(first["core"].to_string(), core);
    let run = tune(&["jitter", "--core", &core, "--seconds", "2.5", "--against", &file]);
    let (text, live) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    for part in ["gaps longer than 1 us", "now to before", "What it means"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert!(live.contains(" s: "), "a line each second: {live}");
}

#[test]
fn ctrl_c_ends_it_early_with_a_whole_report() {
    let child = Command::new(env!("CARGO_BIN_EXE_spinwake-tune"))
        .args(["jitter", "--core", &core(), "--seconds", "3600", "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = child;
    // Its first line tells that it is at it.
    let mut live = std::io::BufReader::new(child.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut live, &mut String::new()).unwrap();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let run = child.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!((run.status.code(), &report["ended_early"]), (Some(0), &Value::Bool(true)));
}

/// A tracefs made of files, with osnoise; `core` is the one that is measured.
fn tracefs(root: &Path, core: &str) -> PathBuf {
    let tracing = root.join("sys/kernel/tracing");
    let write = |name: &str, text: &str| {
        let path = tracing.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("available_tracers", "osnoise nop\n");
    write("osnoise/options", "NO_PANIC_ON_STOP OSNOISE_WORKLOAD\n");
    let buffer = format!("per_cpu/cpu{core}/buffer_size_kb");
    for name in ["tracing_on", "tracing_cpumask", "trace_clock", "current_tracer", "trace", &buffer] {
        write(&format!("instances/spinwake-tune/{name}"), "");
    }
    for event in ["nmi", "irq", "softirq", "thread"] {
        write(&format!("instances/spinwake-tune/events/osnoise/{event}_noise/enable"), "0");
    }
    tracing
}

#[test]
fn tracefs_is_put_back_even_when_the_program_is_killed() {
    let root = tempfile::tempdir().unwrap();
    let core = core();
    let tracing = tracefs(root.path(), &core);
    let read = |name: &str| fs::read_to_string(tracing.join(name)).unwrap().trim().to_owned();
    let until = |what: &str, is_so: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let folder = root.path().display().to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_spinwake-tune"))
        .args(["--root", &folder, "jitter", "--core", &core, "--seconds", "3600", "--trace"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("tracing is on", &|| read("instances/spinwake-tune/tracing_on") == "1");
    assert_eq!(read("osnoise/options"), "NO_OSNOISE_WORKLOAD");
    child.kill().unwrap();
    child.wait().unwrap();
    until("it is as it was", &|| read("osnoise/options") == "OSNOISE_WORKLOAD");
    let left = ["tracing_on", "current_tracer"].map(|name| read(&format!("instances/spinwake-tune/{name}")));
    assert_eq!(left, ["0", "nop"]);
}

#[test]
fn wake_recommends_a_policy_that_workers_understand() {
    let report = json(&["wake", "--core", &core(), "--seconds", "0.2", "--json"]);
    let policy = report["advice"]["policy"].as_str().unwrap();
    assert!(policy.parse::<spinwake::wait::WaitPolicy>().is_ok(), "{policy}");
}

#[test]
fn what_is_wrong_is_said_on_standard_error_with_code_2() {
    for (args, part) in [
        (&["jitter", "--core", "5000"][..], "core 5000"),
        (&["jitter", "--core", "0", "--threshold", "1"], "as in 1us"),
        (&["jitter", "--core", "0", "--seconds", "0"], "0.05 to 86400"),
        (&["jitter", "--core", "0", "--against", "/no/such.json"], "/no/such.json"),
        (&["wake", "--core", "5000"], "core 5000"),
        (&["report", "/no/such/folder/page.html"], "/no/such/folder/page.html"),
    ] {
        let run = tune(args);
        let error = String::from_utf8_lossy(&run.stderr);
        assert_eq!((run.status.code(), run.stdout.len()), (Some(2), 0), "{args:?}: {error}");
        assert!(error.contains(part), "no {part} in {error}");
    }
}

/// Where the edu device is, in a guest with VFIO.
#[test]
fn guest_wake_measures_interrupts_of_a_device() {
    if !std::env::var("SPINWAKE_TEST_TIER").is_ok_and(|tiers| tiers.contains("guest")) {
        println!("skipped: needs the guest tier");
        return;
    }
    let sysfs = spinwake::pci::Sysfs::default();
    for (vendor, device, by_device, kind) in [(0x1234, 0x11e8, true, "MSI"), (0x8086, 0x10c9, false, "MSI-X")] {
        let found = sysfs.find(spinwake::pci::DeviceId { vendor, device }).unwrap();
        let path = found.first().expect("the guest has one").path();
        let bdf = found[0].bdf().to_string();
        if found[0].driver().is_some_and(|driver| driver != "vfio-pci") {
            std::fs::write(path.join("driver/unbind"), &bdf).unwrap();
        }
        if found[0].driver().is_none() {
            std::fs::write(path.join("driver_override"), "vfio-pci").unwrap();
            std::fs::write("/sys/bus/pci/drivers_probe", &bdf).unwrap();
        }
        let report = json(&["wake", "--core", "1", "--seconds", "2", "--device", &bdf, "--json"]);
        let told = &report["device"];
        assert_eq!((told["by_device"].as_bool(), told["kind"].as_str()), (Some(by_device), Some(kind)), "{told}");
        assert_eq!(told["cells"].as_array().map(Vec::len), Some(4), "{told}");
    }
}

/// The tracers of whatever kernel the guest has: used, and gone afterwards.
#[test]
fn guest_jitter_traces_and_leaves_nothing_behind() {
    if !std::env::var("SPINWAKE_TEST_TIER").is_ok_and(|tiers| tiers.contains("guest")) {
        println!("skipped: needs the guest tier");
        return;
    }
    let tracing = std::path::Path::new("/sys/kernel/tracing");
    if !tracing.join("available_tracers").exists() {
        // Not there until it is mounted.
        let _ = Command::new("mount").args(["-t", "tracefs", "nodev", "/sys/kernel/tracing"]).status();
    }
    // Somebody who takes the core: an isolated one may have no other disturbance of its own.
    let other = ["-c", "1", "sh", "-c", "while :; do sleep 0.02; done"];
    // Its output closed: should this test fail, nobody waits for what is left running.
    let (out, err) = (std::process::Stdio::null(), std::process::Stdio::null());
    let mut other = Command::new("taskset").args(other).stdout(out).stderr(err).spawn().unwrap();
    let report = json(&["jitter", "--core", "1", "--seconds", "3", "--trace", "--json"]);
    other.kill().unwrap();
    other.wait().unwrap();
    let blame = &report["blame"];
    assert!(blame["traced"].as_array().is_some_and(|traced| !traced.is_empty()), "{blame}");
    assert!(!tracing.join("instances/spinwake-tune").exists());
    let worst = report["gaps"]["worst"].to_string();
    assert!(worst.contains("thread sh") || worst.contains("thread sleep"), "{worst}");
    assert!(blame["tasks"].to_string().contains("\"sh\""), "{blame}");
}
