//! Guests: what the boot decided is measured, what can be set is set, and each item must follow.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::program::{check_by, said, succeeds};
use super::{check, program, tier};

const CARD: &str = "0000:01:00.0";
/// Far longer than anything takes: emulation on a busy machine is slow.
const LONG: Duration = Duration::from_secs(240);

/// A child that ends with the test.
struct Kept(Child);

impl Kept {
    fn start(command: &str) -> Self {
        Self(Command::new("sh").args(["-c", &format!("exec {command}")]).stdout(Stdio::null()).spawn().unwrap())
    }

    fn core(&self) -> usize {
        // proc_pid_stat(5): the core it ran on last is the 39th field, the 37th after its name.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(36).unwrap().parse().unwrap()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn set(path: &str, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{path}: {error}"));
}

#[track_caller]
fn expect(id: &str, state: &str, parts: &[&str]) {
    check(&[id]).assert(id, state, parts);
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(100));
    }
}

/// Whether the scheduler puts work on core 1 by itself: three that spin do not fit on one core for long.
fn core_1_is_shared() -> bool {
    let busy: Vec<_> = (0..3).map(|_| Kept::start("sh -c 'while :; do :; done'")).collect();
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        if busy.iter().any(|child| child.core() == 1) {
            return true;
        }
        sleep(Duration::from_millis(20));
    }
    false
}

/// Local timer interrupts a second on core 1, while one thread spins there.
fn ticks_on_core_1() -> f64 {
    let count = || said("awk '/^ *LOC:/ { print $3 }' /proc/interrupts").parse::<f64>().unwrap();
    let spinning = Kept::start("taskset -c 1 sh -c 'while :; do :; done'");
    until("the spinning thread is on core 1", || spinning.core() == 1);
    sleep(Duration::from_millis(500));
    let (begin, before) = (Instant::now(), count());
    sleep(Duration::from_secs(3));
    (count() - before) / begin.elapsed().as_secs_f64()
}

/// Tests run in the order of their names: this one before those that move every process to core 0.
#[test]
fn guest_at_boot_decided_things_are_found() {
    if !tier("guest") {
        return;
    }
    give_all_back();
    println!("{}", said(&format!("{} check", program())));
    let seen = check(&[]);
    let shared = core_1_is_shared();
    assert_eq!(shared, !said("cat /proc/cmdline").contains("isolcpus=1"), "the test's own truth");
    let unless_shared = if shared { "costs" } else { "good" };
    seen.assert("cores.isolated", unless_shared, &[if shared { "no core is isolated" } else { "core 1 alone" }]);
    seen.assert("cores.rcu_nocbs", unless_shared, &[]);
    assert_eq!(shared, !succeeds("ps -e -o comm= | grep -q '^rcuo[ps]/1$'"));
    let ticks = ticks_on_core_1();
    println!("{ticks:.0} timer interrupts a second on core 1");
    seen.assert("cores.nohz_full", if ticks > 60.0 { "costs" } else { "good" }, &[]);
    seen.assert("cores.smt", "good", &["no other"]);
    assert_eq!(said("lscpu -p=CORE | grep -v '^#' | sort -u | wc -l"), "2");
    let housekeeping = said("taskset -cp $$ | sed 's/.*: //'");
    seen.assert("cores.tasks", if housekeeping == "0" { "good" } else { "costs" }, &[]);

    // With an IOMMU VFIO takes the card; without one it cannot.
    assert!(succeeds("modprobe vfio-pci"));
    let taken = rebind("vfio-pci");
    seen.assert("devices.iommu", if taken { "good" } else { "broken" }, &[]);
    let expected = match (taken, said("cat /sys/kernel/iommu_groups/*/type | sort -u").as_str()) {
        (false, _) => "unknown",
        (true, "identity") => "good",
        (true, _) => "costs",
    };
    // The card's own group is VFIO's while nobody has opened it: its type is as it was.
    assert_eq!(check(&["devices.iommu_mode"]).state("devices.iommu_mode"), expected);
    let bound = check(&["devices", "user"]);
    if taken {
        bound.assert("devices.bound", "good", &[CARD]);
        bound.assert("devices.groups", "good", &["can be handed out alone"]);
        bound.assert("devices.acs", "good", &["every bridge"]);
        a_node_must_be_permitted();
    } else {
        seen.assert("devices.iommu", "broken", &["ACPI table DMAR", "leaves it off"]);
        assert_eq!(seen.code, 1);
    }
    rebind("igb");
    expect("devices.bound", "costs", &["none of"]);

    seen.assert("machine.virtual", "costs", &[]);
    assert_eq!(seen.state("machine.steal"), "good", "emulation steals nothing that it would tell of");
    // What a kernel does on KVM alone, and emulation is none, it does not do for being told to.
    let told = said("cat /proc/cmdline").contains("cpuidle_haltpoll.force=1");
    assert_eq!(said("cat /sys/module/cpuidle_haltpoll/parameters/force"), if told { "Y" } else { "N" });
    seen.assert("machine.halt_polling", "costs", &["cpuidle driver: none"]);
    assert!(seen.text("machine.halt_polling", "remedy").contains("--wait poll"));
    seen.assert("power.governor", "unknown", &["its host decides"]);
    seen.assert("memory.numa", "good", &["one NUMA node"]);
    let flawed = succeeds("lscpu | grep -q 'Vulnerability.*Mitigation'");
    seen.assert("kernel.mitigations", if flawed { "costs" } else { "good" }, &[]);
}

/// An ordinary user may open the node of a group when it is his, and not before; the check must know.
fn a_node_must_be_permitted() {
    let group = said(&format!("basename $(readlink /sys/bus/pci/devices/{CARD}/iommu_group)"));
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let opens = || succeeds(&format!("{nobody} sh -c 'exec 3<>/dev/vfio/{group}'"));
    let seen = || {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {nobody} {} \"$@\"", program()), "sh"]);
        check_by(command, &["user.devices"])
    };
    assert!(!opens());
    seen().assert("user.devices", "broken", &[CARD, "user 65534 may not open"]);
    assert_eq!(seen().text("user.devices", "remedy"), format!("spinwake-tune permit {CARD} --user nobody"));
    assert!(succeeds(&format!("chown 65534 /dev/vfio/{group}")) && opens());
    seen().assert("user.devices", "good", &[]);
    assert!(succeeds(&format!("chown 0 /dev/vfio/{group}")));
}

/// Takes from vfio-pci what tests before these have left there.
fn give_all_back() {
    const VFIO: &str = "/sys/bus/pci/drivers/vfio-pci";
    let names = fs::read_dir(VFIO).into_iter().flatten().flatten().map(|entry| entry.file_name().display().to_string());
    for bdf in names.filter(|name| name.starts_with("0000:")) {
        set(&format!("/sys/bus/pci/devices/{bdf}/driver_override"), "\n");
        set(&format!("{VFIO}/unbind"), &bdf);
        let _ = fs::write("/sys/bus/pci/drivers_probe", bdf);
    }
}

/// Gives the card to a driver; false when that one will not have it.
fn rebind(driver: &str) -> bool {
    let device = format!("/sys/bus/pci/devices/{CARD}");
    let _ = fs::write(format!("{device}/driver/unbind"), CARD);
    assert!(succeeds(&format!("modprobe {driver}")));
    set(&format!("{device}/driver_override"), driver);
    let _ = fs::write("/sys/bus/pci/drivers_probe", CARD);
    fs::read_link(format!("{device}/driver")).is_ok_and(|link| link.ends_with(driver))
}

#[test]
fn guest_memory_and_clock_follow_what_is_set() {
    if !tier("guest") {
        return;
    }
    let thp = "/sys/kernel/mm/transparent_hugepage/enabled";
    for (word, state) in [("always", "costs"), ("madvise", "good"), ("never", "good")] {
        set(thp, word);
        expect("memory.thp", state, &[word]);
    }
    let pool = "/proc/sys/vm/nr_hugepages";
    set(pool, "0");
    expect("memory.hugepages", "costs", &["no hugepages"]);
    set(pool, "48");
    expect("memory.hugepages", "good", &["48 of 2 MiB (48 free"]);
    // A program that takes them all leaves none.
    let taken = "python3 -c 'import mmap, time; m = mmap.mmap(-1, 48 << 21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000); \
                 [m.__setitem__(i << 21, 1) for i in range(48)]; time.sleep(1000)'";
    let taking = Kept::start(taken);
    until("all pages are taken", || said("awk '/^HugePages_Free/ { print $2 }' /proc/meminfo") == "0");
    expect("memory.hugepages", "costs", &["all hugepages are taken"]);
    drop(taking);

    expect("memory.swap", "good", &[]);
    let swap =
        "modprobe loop && truncate -s 32M /tmp/swap && D=$(losetup -f --show /tmp/swap) && mkswap $D && swapon $D";
    assert!(succeeds(swap), "a swap area on a loop device");
    expect("memory.swap", "costs", &["1 swap area in use: /dev/loop"]);
    assert!(succeeds("swapoff --all"));
    expect("memory.swap", "good", &[]);

    let folder = "/sys/devices/system/clocksource/clocksource0";
    let fit = said(&format!("cat {folder}/available_clocksource")).contains("tsc");
    let before = said(&format!("cat {folder}/current_clocksource"));
    set(&format!("{folder}/current_clocksource"), "acpi_pm");
    expect("machine.clocksource", "costs", &["acpi_pm"]);
    assert_eq!(check(&["machine.clocksource"]).text("machine.clocksource", "remedy").starts_with("echo tsc"), fit);
    set(&format!("{folder}/current_clocksource"), &before);
}

#[test]
fn guest_the_kernel_s_own_work_follows_what_is_set() {
    if !tier("guest") {
        return;
    }
    let sysctl = |name: &str, text: &str| set(&format!("/proc/sys/kernel/{name}"), text);
    sysctl("timer_migration", "0");
    expect("kernel.timer_migration", "costs", &[]);
    sysctl("timer_migration", "1");
    expect("kernel.timer_migration", "good", &[]);

    sysctl("watchdog", "1");
    sysctl("watchdog_cpumask", "0-1");
    expect("kernel.watchdogs", "costs", &["soft lockup", "core 1"]);
    sysctl("watchdog_cpumask", "0");
    expect("kernel.watchdogs", "good", &[]);
    sysctl("watchdog_cpumask", "0-1");
    sysctl("watchdog", "0");
    expect("kernel.watchdogs", "good", &[]);

    for file in ["/sys/devices/virtual/workqueue/cpumask", "/sys/devices/virtual/workqueue/writeback/cpumask"] {
        set(file, "1");
    }
    expect("kernel.workqueues", "good", &[]);
    set("/sys/devices/virtual/workqueue/cpumask", "3");
    expect("kernel.workqueues", "costs", &["core 1"]);

    // All kernel threads that can be moved are moved; then one is moved back.
    let movable =
        "for p in $(ps -e -o pid=,ppid= | awk '$2 == 2 { print $1 }'); do taskset -cp 0 $p; done; taskset -cp 0 2";
    said(movable);
    expect("kernel.threads", "good", &[]);
    let thread = said("ps -e -o pid=,comm= | awk '$2 == \"khugepaged\" || $2 == \"kcompactd0\" { print $1; exit }'");
    assert!(succeeds(&format!("taskset -cp 0-1 {thread}")));
    expect("kernel.threads", "costs", &["1 kernel thread may run on core 1", &format!("({thread})")]);
    assert!(succeeds(&format!("taskset -cp 0 {thread}")));

    // So is every process; then there is one more, that may run on both cores, or on core 1 alone.
    said("for p in $(ps -e -o pid=); do taskset -acp 0 $p; done");
    let roaming = Kept::start("taskset -c 0-1 sleep 1000");
    until("it sleeps", || said(&format!("ps -o comm= -p {}", roaming.0.id())) == "sleep");
    expect("cores.tasks", "costs", &["1 thread may run on core 1: sleep"]);
    drop(roaming);
    let pinned = Kept::start("taskset -c 1 sleep 1000");
    until("it sleeps", || said(&format!("ps -o comm= -p {}", pinned.0.id())) == "sleep");
    expect("cores.tasks", "good", &["pinned there: sleep"]);
    drop(pinned);
    expect("cores.tasks", "good", &["no other thread may run on core 1"]);
}

#[test]
fn guest_interrupts_follow_what_is_set() {
    if !tier("guest") {
        return;
    }
    set("/proc/irq/default_smp_affinity", "3");
    expect("interrupts.default_affinity", "costs", &["core 1"]);
    set("/proc/irq/default_smp_affinity", "1");
    expect("interrupts.default_affinity", "good", &["core 0"]);

    // Everything that can be moved to core 0; what is left on core 1 is named, and nothing else.
    let handled = || -> Vec<u32> {
        let irqs = fs::read_dir("/proc/irq").unwrap().flatten().filter(|irq| irq.path().is_dir());
        let handled = irqs.filter(|irq| fs::read_dir(irq.path()).unwrap().flatten().any(|entry| entry.path().is_dir()));
        let mut numbers: Vec<u32> = handled.filter_map(|irq| irq.file_name().to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    };
    let delivered = |irq: u32| said(&format!("cat /proc/irq/{irq}/effective_affinity_list"));
    for irq in handled() {
        let _ = fs::write(format!("/proc/irq/{irq}/smp_affinity_list"), "0");
    }
    let left = || handled().into_iter().filter(|&irq| delivered(irq) == "1").count();
    // One without interrupt remapping moves when it fires next; network interfaces that are down do not.
    let seen = check(&["interrupts"]);
    match left() {
        0 => seen.assert("interrupts.affinity", "good", &["none of"]),
        n => seen.assert("interrupts.affinity", "costs", &[&format!("{n} of ")]),
    }
    let movable = handled().into_iter().find(|&irq| {
        let moved = fs::write(format!("/proc/irq/{irq}/smp_affinity_list"), "1").is_ok();
        moved && delivered(irq) == "1"
    });
    println!("{} left on core 1; moved there: {movable:?}", left());
    if let Some(irq) = movable {
        expect("interrupts.affinity", "costs", &[&format!("{irq} (")]);
        set(&format!("/proc/irq/{irq}/smp_affinity_list"), "0");
    }
    expect("interrupts.irqbalance", "good", &[]);
    assert!(succeeds("cp $(command -v sleep) /tmp/irqbalance"));
    let _balancer = Kept::start("/tmp/irqbalance 1000");
    until("it runs", || check(&["interrupts.irqbalance"]).state("interrupts.irqbalance") == "costs");
}

#[test]
fn guest_a_cgroup_is_found() {
    if !tier("guest") {
        return;
    }
    let mount = "mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup";
    let make = "cd /sys/fs/cgroup && echo '+cpuset +hugetlb' > cgroup.subtree_control && mkdir -p box && echo 0 > box/cpuset.cpus \
                && echo 4M > box/hugetlb.2MB.max";
    assert!(succeeds(mount) && succeeds(make), "{}", said("cat /sys/fs/cgroup/cgroup.controllers"));
    for namespace in [
        "",
        "unshare --cgroup --mount sh -c 'umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec \"$@\"' sh",
    ] {
        let mut command = Command::new("sh");
        let script = format!("echo $$ > /sys/fs/cgroup/box/cgroup.procs && exec {namespace} {} \"$@\"", program());
        command.args(["-c", &script, "sh"]);
        let seen = check_by(command, &["container"]);
        seen.assert("container.cpuset", "costs", &["may run on core 0 of 0-1"]);
        seen.assert("container.hugetlb", "costs", &["at most 4 MiB in pages of 2 MiB"]);
    }
    let seen = check(&["container"]);
    seen.assert("container.cpuset", "good", &[]);
    seen.assert("container.hugetlb", "good", &[]);
}
