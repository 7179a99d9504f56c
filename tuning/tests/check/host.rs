//! This machine, as root and as others, beside what other programs say of it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::program::{check_by, said, succeeds};
use super::{Seen, check, program, tier};

/// Runs the check after `limits`, as nobody.
fn as_nobody(limits: &str) -> Seen {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        &format!("{limits} exec setpriv --reuid=65534 --regid=65534 --clear-groups {} \"$@\"", program()),
        "sh",
    ]);
    check_by(command, &[])
}

/// What does not depend on who looks.
fn assert_like_other_programs_say(seen: &Seen) {
    let swapping = !said("swapon --show --noheadings").is_empty();
    assert_eq!(seen.state("memory.swap"), if swapping { "costs" } else { "good" });
    let hugepages = said("awk '/^HugePages_Total/ { print $2 }' /proc/meminfo");
    match hugepages.as_str() {
        "0" => seen.assert("memory.hugepages", "costs", &["no hugepages"]),
        _ => assert!(seen.found("memory.hugepages").contains(&format!("{hugepages} of ")), "{seen}"),
    }
    assert_eq!(seen.state("machine.virtual") == "costs", succeeds("grep -qw hypervisor /proc/cpuinfo"));
    let flawed = succeeds("lscpu | grep -q 'Vulnerability.*Mitigation'");
    assert_eq!(seen.state("kernel.mitigations"), if flawed { "costs" } else { "good" });
    let tsc = said("cat /sys/devices/system/clocksource/*0/current_clocksource") == "tsc";
    assert_eq!(seen.state("machine.clocksource"), if tsc { "good" } else { "costs" });
    let threads = said("lscpu | sed -n 's/^Thread(s) per core: *//p'");
    if threads == "1" {
        assert_eq!(seen.state("cores.smt"), "good");
    }
    // An IOMMU that is on has made groups, and a card that VFIO drives has a node.
    let groups = said("ls /sys/kernel/iommu_groups | wc -l") != "0";
    assert_eq!(seen.state("devices.iommu"), if groups { "good" } else { "broken" });
    assert_eq!(seen.code, i32::from(seen.to_string().contains("\"broken\"")));
}

#[test]
fn host_as_root_it_says_what_other_programs_say() {
    if !tier("host") {
        return;
    }
    let seen = check(&[]);
    assert_like_other_programs_say(&seen);
    assert_eq!(seen.state("user.realtime"), if succeeds("chrt -f 1 true") { "good" } else { "costs" });
    assert_eq!(seen.state("user.memlock"), "good");
    assert_eq!(seen.state("user.dma_latency"), if succeeds("exec 3>/dev/cpu_dma_latency") { "good" } else { "costs" });
}

#[test]
fn host_as_an_ordinary_user_it_says_what_that_one_lacks() {
    if !tier("host") {
        return;
    }
    let seen = as_nobody("ulimit -l 64;");
    assert_like_other_programs_say(&seen);
    seen.assert("user.memlock", "broken", &["user 65534 may lock 64 KiB"]);
    if said("cat /sys/devices/system/cpu/isolated").is_empty() {
        seen.assert("user.realtime", "costs", &["user 65534"]);
    }
    assert!(!succeeds("setpriv --reuid=65534 --regid=65534 --clear-groups chrt -f 1 true"));
    let deep = said("cat /sys/devices/system/cpu/cpu*/cpuidle/state*/latency")
        .lines()
        .any(|us| us.parse::<u32>().unwrap() > 10);
    seen.assert("user.dma_latency", if deep { "costs" } else { "good" }, &[]);
    // A root who was stripped of his powers may not raise the limit.
    if succeeds("ulimit -l unlimited") {
        as_nobody("ulimit -l unlimited;").assert("user.memlock", "good", &[]);
        as_nobody("ulimit -l 32768;").assert("user.memlock", "good", &["32 MiB"]);
    }
}

#[test]
fn host_within_a_restricted_cpuset_it_says_which_cores_are_left() {
    if !tier("host") {
        return;
    }
    let cores: usize = said("nproc --all").parse().unwrap();
    let mut command = Command::new("taskset");
    command.args(["-c", "0", program()]);
    let seen = check_by(command, &["container"]);
    if cores > 1 {
        seen.assert("container.cpuset", "costs", &["may run on core 0 of"]);
    }
    check(&["container"]).assert("container.cpuset", "good", &["every core"]);
    // In namespaces of its own it sees no processes but its own, and says so.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--cgroup", program()]).arg0("unshare");
    let seen = check_by(command, &[]);
    seen.assert("kernel.threads", "unknown", &["not seen from here"]);
    seen.assert("interrupts.irqbalance", "unknown", &[]);
    assert_eq!(seen.state("memory.thp"), check(&["memory.thp"]).state("memory.thp"));
}
